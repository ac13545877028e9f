"""Auxiliary losses for a T5 that learns to answer questions: repeated tokens, answer positions, and attention.

The loss of an answer covers a few tokens per text and reaches the encoder only through the decoder, once both work. Two
linear probes on the encoder's states, discarded after training, add a loss on every token: whether the question repeats
the token (probed in the middle of the encoder, where later layers can use a match), and whether the answer begins there
(probed at its end, as in extractive question answering). A third loss makes the decoder use this information: its first
cross-attention should look at the answer before the first token is written.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prompt_transfer.pretraining.corpus_batches import IGNORED
from prompt_transfer.pretraining.matching_heads import Matches

LOSSES = ("repeated", "begins", "looks")
# Initial probe weight of a match found by hand-set heads. A probe that starts at zero learns too slowly to preserve
# them: after 500 steps it separated 0.87 of all pairs of a repeated and another token, their output alone 0.92.
KNOWN = 2.0


class Evidence(nn.Module):
    """The probes and the three losses.

    Args:
        hidden_size: H.
        num_layers: layers of the encoder.
    """

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.layer = min(2, num_layers)
        self.repeated = nn.Linear(hidden_size, 1)
        self.begins = nn.Linear(hidden_size, 1, bias=False)
        for probe in (self.repeated, self.begins):
            nn.init.zeros_(probe.weight)

    @torch.no_grad()
    def know(self, matches: Matches) -> None:
        """Initialize the probes to read the output of hand-set heads."""
        self.repeated.weight[0, matches.found] = KNOWN
        for number, share in matches.places.items():
            self.begins.weight[0, number] = share

    def forward(
        self, states: tuple[Tensor, ...], attention: Tensor, repeated: Tensor, begins: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean losses in nats of repeated tokens, of answer positions, and of the decoder's attention.

        Args:
            states: ``[B, T, H]`` each: inputs of the encoder's layers, and its output.
            attention: ``[B, T]`` cross-attention at the first decoder step, mean over heads.
            repeated: ``[B, T]`` 1 for tokens of the text that the question repeats, 0 for others, `IGNORED` for tokens
                without a loss.
            begins: ``[B, T]`` 1 where the answer begins, 0 elsewhere in the text, `IGNORED` after it. Texts without a 1
                are skipped.
        """
        middle = states[self.layer]
        scale = torch.rsqrt(middle.pow(2).mean(dim=-1, keepdim=True) + 1e-6)
        asked = repeated != IGNORED
        found = self.repeated(middle * scale).squeeze(-1).float()[asked]
        # A sum, since the mean over no tokens would be NaN.
        total = nn.functional.binary_cross_entropy_with_logits(found, repeated[asked].float(), reduction="sum")
        places = self.begins(states[-1]).squeeze(-1).float().masked_fill(begins == IGNORED, float("-inf"))
        right = begins == 1
        known = right.any(dim=1)
        texts = known.sum().clamp_min(1)
        shares = places.log_softmax(dim=1)[known]
        missed = -shares.masked_fill(~right[known], float("-inf")).logsumexp(dim=1)
        seen = (attention.float() * right).sum(dim=1)[known]
        return total / asked.sum().clamp_min(1), missed.sum() / texts, -(seen + 1e-6).log().sum() / texts
