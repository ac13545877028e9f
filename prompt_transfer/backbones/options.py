"""Log-probabilities of whole options for every kind of backbone.

Causal and seq2seq models: of each token given the text and the tokens before it. Masked LMs: pseudo-log-likelihood of
the option in the place after the text, all its tokens masked at once; there is no answer slot besides.

Shape letters: B batch, S tokens of an option, P prompt tokens, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prompt_transfer.backbones.answers import IGNORED, Answers
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.prompt_inputs import PromptBank, Prompts, expand_texts


def option_log_probs(backbone: FrozenBackbone, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> Tensor:
    """Compute the log-probability of each token of an option.

    Args:
        backbone: the backbone.
        prompt: as in `FrozenBackbone.forward`.
        batch: as there, and `target_ids` [B, S] of the options, padded with -100.

    Returns:
        float32 [B, S] in nats, 0 for padding.
    """
    if backbone.writes:
        return backbone.target_log_probs(prompt, batch)
    states = _masked_states(backbone._answers, backbone._prompts(prompt, batch), expand_texts(batch))
    return backbone.log_probs(states, batch["target_ids"])


def greedy_log_probs(
    backbone: FrozenBackbone, prompt: Tensor | PromptBank, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute each target's log-probability, and whether it is the greedy continuation.

    Args:
        backbone: a causal or seq2seq backbone.
        prompt: as in `FrozenBackbone.forward`.
        batch: as there, and `target_ids` [B, S], padded with -100.

    Returns:
        Sums over the tokens in nats, float32 [B], and bool [B].
    """
    targets = batch["target_ids"]
    is_target = targets != IGNORED
    states = backbone._answers.target_states(backbone._prompts(prompt, batch), expand_texts(batch))
    logits = backbone._logits(states[is_target])
    found = torch.zeros(targets.shape, device=logits.device)
    found[is_target] = -torch.nn.functional.cross_entropy(logits, targets[is_target], reduction="none")
    missed = torch.zeros_like(is_target)
    missed[is_target] = logits.argmax(dim=1) != targets[is_target]
    return found.sum(dim=1), ~missed.any(dim=1)


def _masked_states(answers: Answers, prompts: Prompts, batch: dict[str, Tensor]) -> Tensor:
    """Compute the hidden states [B, S, H] of a masked option between a text and its last separator."""
    ids, mask, targets = batch["input_ids"], batch["attention_mask"], batch["target_ids"]
    assert answers.mask_token_id is not None
    filled = (targets != IGNORED).long()
    last = mask.sum(dim=1, keepdim=True) - 1
    places = last + torch.arange(targets.shape[1], device=ids.device)
    room = ids.new_full(targets.shape, answers.pad_token_id)
    masks = torch.where(filled > 0, answers.mask_token_id, answers.pad_token_id)
    end = last + filled.sum(dim=1, keepdim=True)
    joined = torch.cat([ids, room], dim=1).scatter(1, places, masks).scatter(1, end, ids.gather(1, last))
    joined_mask = torch.cat([mask, torch.zeros_like(room)], dim=1).scatter(1, places, filled)
    joined_mask = joined_mask.scatter(1, end, torch.ones_like(end))
    offset = prompts.length if answers.family.needs_positions else answers.layout.text_offset(prompts.length)
    text = answers.text_part({"input_ids": joined, "attention_mask": joined_mask}, offset)
    if not prompts.length:
        with answers.answering(places[:, 0], prompts):
            return answers.stack.run_alone(text, places)
    if answers.attention == "shared":
        _, states = answers.record(prompts)
        with answers.answering(places[:, 0], prompts):
            return answers.stack.run_after_prompt(states, text, prompts.length, prompts.ids, places)
    whole = answers.prompt_part(prompts.per_example(len(ids))).joined(text)
    places, span = places + prompts.length, (0, prompts.length)
    with answers.answering(places[:, 0], prompts, span):
        return answers.stack.run_alone(whole, places, prompts.shared_rows(span, {}, len(ids)))
