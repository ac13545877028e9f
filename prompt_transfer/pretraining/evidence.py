"""What a T5 is told while it learns to answer questions: which tokens matter, where the answer is, and where to look.

The loss of an answer reaches the encoder through the decoder, a few tokens a text, and only once both of them do their
part. Two linear maps of the encoder's states, thrown away after training, give it a loss on every token: whether the
question has this token too (read in the middle of the encoder, where a match must be known to be of use), and whether
the answer begins here (read at its end, as in extractive question answering). A third loss is for the decoder, which
could do without what the encoder knows: where its first attention to the text looks before it writes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prompt_transfer.pretraining.corpus_batches import IGNORED
from prompt_transfer.pretraining.matching_heads import Matches

# What a match counts at first, where heads that find it are set by hand. From nothing the map learns too slowly to keep
# them: after 500 steps it told 0.87 of all pairs of a repeated token and another apart; what they write, 0.92 before.
KNOWN = 2.0


class Evidence(nn.Module):
    """The three losses.

    Args:
        hidden_size: H.
        num_layers: of the encoder.
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
        """Read what heads that are set by hand write."""
        self.repeated.weight[0, matches.found] = KNOWN
        for number, share in matches.places.items():
            self.begins.weight[0, number] = share

    def forward(
        self, states: tuple[Tensor, ...], attention: Tensor, repeated: Tensor, begins: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mean losses in nats of tokens that are repeated, of where answers begin, and of where the decoder looks.

        Args:
            states: ``[B, T, H]`` each: what the encoder's layers read, and what it puts out.
            attention: ``[B, T]`` the mean of the decoder's heads, before it writes the first token.
            repeated: ``[B, T]`` 1 for a token of the text that the question has too, 0 for others, `IGNORED` for those
                that are not asked for.
            begins: ``[B, T]`` 1 where the answer begins, 0 elsewhere in the text, `IGNORED` behind it. A text without
                any 1 counts nothing.
        """
        middle = states[self.layer]
        scale = torch.rsqrt(middle.pow(2).mean(dim=-1, keepdim=True) + 1e-6)
        asked = repeated != IGNORED
        found = self.repeated(middle * scale).squeeze(-1).float()[asked]
        # Of no token asked for the mean would be NaN.
        total = nn.functional.binary_cross_entropy_with_logits(found, repeated[asked].float(), reduction="sum")
        places = self.begins(states[-1]).squeeze(-1).float().masked_fill(begins == IGNORED, float("-inf"))
        right = begins == 1
        known = right.any(dim=1)
        texts = known.sum().clamp_min(1)
        shares = places.log_softmax(dim=1)[known]
        missed = -shares.masked_fill(~right[known], float("-inf")).logsumexp(dim=1)
        seen = (attention.float() * right).sum(dim=1)[known]
        return total / asked.sum().clamp_min(1), missed.sum() / texts, -(seen + 1e-6).log().sum() / texts
