"""Arithmetic on task prompt vectors: add, scale, average and transplant the change that training made to a prompt.

T = P - P_init is a task's vector (Belanec et al. 2025); a sum of vectors represents several tasks, -T forgets one.
Vectors are offsets from an initial prompt, so prompts can be combined only if they share it; `transplant` moves a
vector to another initial prompt.

Values are combined in float64 and rounded once. Terms are sorted before summation, so results do not depend on order.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from prompt_transfer.backbones.layouts import is_causal
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.recommendation import shares
from prompt_transfer.utils.errors import UserError

# Metadata that a combined prompt inherits if all its inputs agree.
KEPT = (
    *("backbone", "fingerprint", "family", "layout", "attention", "dtype", "head", "revision", "seed", "random"),
    *("label_words_policy", "data_source", "data_root", "data_label_words", "data_max_length", "data_seed"),
    *("data_special_tokens", "data_template", "data_chat_template"),
)
SAME = ("layout", "attention")


def task_vector(prompt: Prompt) -> Tensor:
    """Return T = P - P_init, float64 `[P, H]`.

    Raises:
        UserError: the prompt has no initial prompt.
    """
    return prompt.embeddings.double() - _initial(prompt).double()


def add(prompts: Sequence[Prompt], factors: Sequence[float] | None = None) -> Prompt:
    """Return P_init plus the weighted sum of the prompts' task vectors.

    Args:
        prompts: one or more with the same initial prompt.
        factors: one per prompt; None means 1 each.

    Raises:
        UserError: the prompts cannot be combined, or the number of factors differs.
    """
    factors = [1.0] * len(prompts) if factors is None else list(factors)
    if len(factors) != len(prompts):
        raise UserError(f"{len(prompts)} prompts and {len(factors)} factors: give one factor per prompt")
    check_together(prompts)
    whole = all(factor == 1 for factor in factors)
    parts = [_name(prompt) if whole else f"{factor:g} * {_name(prompt)}" for factor, prompt in _pairs(factors, prompts)]
    return _combine(prompts, factors, f"add({', '.join(parts)})")


def scale(prompt: Prompt, factor: float) -> Prompt:
    """Return P_init + factor * T: 1 gives the prompt, 0 its initial prompt, -1 the negated task.

    Raises:
        UserError: the prompt has no initial prompt.
    """
    return _combine([prompt], [factor], f"scale({_name(prompt)}, {factor:g})")


def mean(prompts: Sequence[Prompt]) -> Prompt:
    """Return the mean of prompts with one initial prompt, such as the checkpoints of a run.

    Raises:
        UserError: the prompts cannot be combined.
    """
    check_together(prompts)
    names = ", ".join(_name(prompt) for prompt in prompts)
    return _combine(prompts, [1 / len(prompts)] * len(prompts), f"mean({names})")


def average(prompts: Sequence[Prompt], weights: Sequence[float]) -> Prompt:
    """Return the weighted average of prompts, to initialize a new prompt (SPoT, Vu et al. 2022).

    Unlike `mean`, it needs no common initial prompt, and the result has none.

    Args:
        prompts: one or more.
        weights: one per prompt, 0 or more; they are normalised to sum to 1.

    Raises:
        UserError: backbone, shape or mode of the prompts differ, or the weights are invalid.
    """
    check_together(prompts, shared_start=False)
    rows = weighted_mean([prompt.embeddings for prompt in prompts], weights)
    parts = [f"{share:.3g} * {_name(prompt)}" for share, prompt in _pairs(shares(list(weights)), prompts)]
    return Prompt(rows, _metadata(prompts, f"average({', '.join(parts)})"))


def weighted_mean(rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of prompts `[P, H]`, float32; a single prompt is returned bit-equal.

    Raises:
        UserError: invalid weights (see `recommendation.shares`), or not one per prompt.
    """
    if len(rows) != len(weights):
        raise UserError(f"{len(rows)} prompts and {len(weights)} weights: give one weight per prompt")
    terms = [share * one.double() for share, one in zip(shares(list(weights)), rows, strict=True)]
    return _sum(torch.stack(terms)).float()


def transplant(prompt: Prompt, onto: Prompt) -> Prompt:
    """Add a prompt's task vector to another prompt's initial prompt.

    Args:
        prompt: the prompt that provides the task vector.
        onto: the prompt that provides the initial prompt; if it has none, its embeddings are used.

    Raises:
        UserError: backbone, shape or mode of the two differ, or `prompt` has no initial prompt.
    """
    check_together([prompt, onto], shared_start=False)
    start = onto.embeddings if onto.initial is None else onto.initial
    if torch.equal(start, _initial(prompt)):
        rows = prompt.embeddings.double()
    else:
        rows = _sum(torch.stack([start.double(), prompt.embeddings.double(), -_initial(prompt).double()]))
    operation = f"transplant({_name(prompt)}, onto the start of {_name(onto)})"
    return Prompt(rows.float(), _metadata([prompt], operation), start)


def check_together(prompts: Sequence[Prompt], shared_start: bool = True) -> None:
    """Check that prompts can be combined.

    Args:
        prompts: each is compared with the first.
        shared_start: also require the same initial prompt.

    Raises:
        UserError: names the first mismatch and both files.
    """
    if not prompts:
        raise UserError("no prompt was given: give prompt files")
    first = prompts[0]
    for prompt in prompts:
        both = f"{_name(first)} and {_name(prompt)} do not belong together"
        shapes = [tuple(one.embeddings.shape) for one in (first, prompt)]
        if _other_backbone(first, prompt):
            names = [one.metadata.get("backbone", UNKNOWN) for one in (first, prompt)]
            raise UserError(f"{both}: they were trained on different backbones ({names[0]}, {names[1]})")
        if shapes[0] != shapes[1]:
            raise UserError(f"{both}: one is {_shape(shapes[0])}, the other {_shape(shapes[1])}")
        for key in SAME:
            values = [one.metadata.get(key, UNKNOWN) for one in (first, prompt)]
            # Full and shared attention are the same function for causal models.
            causal = key == "attention" and is_causal(first.metadata.get("layout"))
            if values[0] != values[1] and UNKNOWN not in values and not causal:
                raise UserError(f"{both}: one was trained with {key} {values[0]}, the other with {values[1]}")
        if shared_start and not torch.equal(_initial(first), _initial(prompt)):
            raise UserError(
                f"{both}: they had different initial prompts, so their task vectors start at different points; train "
                "them from one initial prompt (same seed and init), or move one with `prompts transplant`"
            )


def _other_backbone(first: Prompt, second: Prompt) -> bool:
    prints = [prompt.metadata.get("fingerprint", UNKNOWN) for prompt in (first, second)]
    if UNKNOWN not in prints:
        return prints[0] != prints[1]
    names = [prompt.metadata.get("backbone", UNKNOWN) for prompt in (first, second)]
    return UNKNOWN not in names and names[0] != names[1]


def _initial(prompt: Prompt) -> Tensor:
    if prompt.initial is None:
        raise UserError(
            f"{_name(prompt)} holds no initial prompt, so it has no task vector; use a prompt that `fit` wrote "
            "(imported ones hold none)"
        )
    return prompt.initial


def _combine(prompts: Sequence[Prompt], factors: Sequence[float], operation: str) -> Prompt:
    # (1 - sum of factors) P_init + sum of factor * P rounds no difference, so P_init + T is bit-equal to P.
    start = _initial(prompts[0])
    terms = [factor * prompt.embeddings.double() for factor, prompt in _pairs(factors, prompts)]
    rest = 1 - sum(sorted(factors))
    rows = _sum(torch.stack([rest * start.double(), *terms]))
    return Prompt(rows.float(), _metadata(prompts, operation), start)


def _pairs(factors: Sequence[float], prompts: Sequence[Prompt]) -> list[tuple[float, Prompt]]:
    return list(zip(factors, prompts, strict=True))


def _sum(terms: Tensor) -> Tensor:
    """Sum `terms` `[K, P, H]` over K, independent of their order."""
    return terms.sort(dim=0).values.sum(dim=0)


def _metadata(prompts: Sequence[Prompt], operation: str) -> dict[str, str]:
    if any(prompt.label_embeddings is not None for prompt in prompts):
        warnings.warn("label embeddings are left out: the result is scored by the label words", stacklevel=3)
    facts = [prompt.metadata for prompt in prompts]
    kept = {key: facts[0][key] for key in KEPT if key in facts[0] and len({one.get(key) for one in facts}) == 1}
    tasks = list(dict.fromkeys(name for one in facts for name in one.get("task", "").split(",") if name))
    words: dict[str, list[str]] = {}
    paths: dict[str, None] = {}
    for one in facts:
        words |= json.loads(one.get("label_words") or "{}")
        paths |= dict.fromkeys(json.loads(one.get("data_task") or "[]"))
    combined = {"task": ",".join(tasks), "arithmetic": operation, "init": operation}
    if words:
        combined["label_words"] = json.dumps(words)
    if paths:
        combined["data_task"] = json.dumps(list(paths))
    if any(one.get("projected") == "true" for one in facts):
        combined["projected"] = "true"
    combined["source_prompt"] = ",".join(str(prompt.path) for prompt in prompts if prompt.path)
    return kept | combined


def _name(prompt: Prompt) -> str:
    return str(prompt.path) if prompt.path else f"the prompt for {prompt.metadata.get('task', 'an unnamed task')}"


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[0]} prompt tokens of width {shape[1]}"
