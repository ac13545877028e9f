"""Task prompt vectors: what training added to a prompt, summed, scaled, averaged, and put onto another start.

T = P - P_init is the vector of a task (Belanec et al. 2025); sums of vectors stand for several tasks, -T for forgetting
one. Vectors are directions from a start, so those of several prompts go together only where the prompts had the same
initial prompt; `transplant` alone changes the start.

Numbers are combined in float64 and rounded once; terms are summed in order of size, so their order does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from prompt_transfer.backbones.layouts import is_causal
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.recommendation import shares
from prompt_transfer.utils.errors import UserError

# What stays true of a prompt that is made of others, where they agree in it.
KEPT = (
    *("backbone", "fingerprint", "family", "layout", "attention", "dtype", "head", "revision", "seed", "random"),
    *("label_words_policy", "data_source", "data_root", "data_label_words", "data_max_length", "data_seed"),
    "data_special_tokens",
)
SAME = ("layout", "attention")


def task_vector(prompt: Prompt) -> Tensor:
    """T = P - P_init, float64 [P, H].

    Raises:
        UserError: the prompt file holds no initial prompt.
    """
    return prompt.embeddings.double() - _initial(prompt).double()


def add(prompts: Sequence[Prompt], factors: Sequence[float] | None = None) -> Prompt:
    """P_init + the sum of the prompts' task vectors, each times its factor.

    Args:
        prompts: one or more with the same initial prompt.
        factors: one for each prompt; None: 1 each.

    Raises:
        UserError: they do not belong together; the line says why.
    """
    factors = [1.0] * len(prompts) if factors is None else list(factors)
    if len(factors) != len(prompts):
        raise UserError(f"{len(prompts)} prompts and {len(factors)} factors: give one factor for each prompt")
    check_together(prompts)
    whole = all(factor == 1 for factor in factors)
    parts = [_name(prompt) if whole else f"{factor:g} * {_name(prompt)}" for factor, prompt in _pairs(factors, prompts)]
    return _made(prompts, factors, f"add({', '.join(parts)})")


def scale(prompt: Prompt, factor: float) -> Prompt:
    """P_init + factor * T: 1 is the prompt itself, 0 its start, -1 the negated task.

    Raises:
        UserError: the prompt file holds no initial prompt.
    """
    return _made([prompt], [factor], f"scale({_name(prompt)}, {factor:g})")


def mean(prompts: Sequence[Prompt]) -> Prompt:
    """P_init + the mean of the task vectors: the mean of prompts with one start, such as checkpoints of a run.

    Raises:
        UserError: they do not belong together; the line says why.
    """
    check_together(prompts)
    names = ", ".join(_name(prompt) for prompt in prompts)
    return _made(prompts, [1 / len(prompts)] * len(prompts), f"mean({names})")


def average(prompts: Sequence[Prompt], weights: Sequence[float]) -> Prompt:
    """Weighted average of whole prompts, whatever they started from: a prompt to start from (SPoT, Vu et al. 2022).

    Unlike `mean` it asks for no common start, and it is a start itself: the result has no initial prompt.

    Args:
        prompts: one or more.
        weights: one for each, 0 or more; they count in proportion to their sum.

    Raises:
        UserError: they are not of one backbone, shape and mode, or the weights cannot be.
    """
    check_together(prompts, shared_start=False)
    rows = weighted_mean([prompt.embeddings for prompt in prompts], weights)
    parts = [f"{share:.3g} * {_name(prompt)}" for share, prompt in _pairs(shares(list(weights)), prompts)]
    return Prompt(rows, _metadata(prompts, f"average({', '.join(parts)})"))


def weighted_mean(rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Mean of prompts `[P, H]` with weights, float32; one of them alone comes out bit for bit.

    Raises:
        UserError: see `prompt_transfer.prompts.recommendation.shares`, or another number of weights.
    """
    if len(rows) != len(weights):
        raise UserError(f"{len(rows)} prompts and {len(weights)} weights: give one weight for each prompt")
    terms = [share * one.double() for share, one in zip(shares(list(weights)), rows, strict=True)]
    return _sum(torch.stack(terms)).float()


def transplant(prompt: Prompt, onto: Prompt) -> Prompt:
    """The task vector of a prompt on another start.

    Args:
        prompt: whose vector is taken.
        onto: whose initial prompt is the new start; a prompt without one is itself the start.

    Raises:
        UserError: they are not of one backbone, shape and mode, or `prompt` has no initial prompt.
    """
    check_together([prompt, onto], shared_start=False)
    start = onto.embeddings if onto.initial is None else onto.initial
    if torch.equal(start, _initial(prompt)):
        rows = prompt.embeddings.double()
    else:
        rows = _sum(torch.stack([start.double(), prompt.embeddings.double(), -_initial(prompt).double()]))
    what = f"transplant({_name(prompt)}, onto the start of {_name(onto)})"
    return Prompt(rows.float(), _metadata([prompt], what), start)


def check_together(prompts: Sequence[Prompt], shared_start: bool = True) -> None:
    """Make sure that prompts can be combined.

    Args:
        prompts: two or more are compared with the first.
        shared_start: they must have the same initial prompt too.

    Raises:
        UserError: the first thing that does not fit, with both files.
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
            # For causal models full and shared attention are one function.
            causal = key == "attention" and is_causal(first.metadata.get("layout"))
            if values[0] != values[1] and UNKNOWN not in values and not causal:
                raise UserError(f"{both}: one was trained with {key} {values[0]}, the other with {values[1]}")
        if shared_start and not torch.equal(_initial(first), _initial(prompt)):
            raise UserError(
                f"{both}: they had different initial prompts, so their task vectors start at different points; train "
                "them from one start (same seed and init), or move one with `prompts transplant`"
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
            f"{_name(prompt)} holds no initial prompt, so it is not known what training added; prompts that `fit` "
            "writes hold one, imported ones do not"
        )
    return prompt.initial


def _made(prompts: Sequence[Prompt], factors: Sequence[float], what: str) -> Prompt:
    # (1 - sum of factors) P_init + sum of factor * P: no difference is rounded, so P_init + T is P, bit for bit.
    start = _initial(prompts[0])
    terms = [factor * prompt.embeddings.double() for factor, prompt in _pairs(factors, prompts)]
    rest = 1 - sum(sorted(factors))
    rows = _sum(torch.stack([rest * start.double(), *terms]))
    return Prompt(rows.float(), _metadata(prompts, what), start)


def _pairs(factors: Sequence[float], prompts: Sequence[Prompt]) -> list[tuple[float, Prompt]]:
    return list(zip(factors, prompts, strict=True))


def _sum(terms: Tensor) -> Tensor:
    """Sum of `terms` [K, P, H] over K, the same for every order of them."""
    return terms.sort(dim=0).values.sum(dim=0)


def _metadata(prompts: Sequence[Prompt], what: str) -> dict[str, str]:
    facts = [prompt.metadata for prompt in prompts]
    kept = {key: facts[0][key] for key in KEPT if key in facts[0] and len({one.get(key) for one in facts}) == 1}
    tasks = list(dict.fromkeys(name for one in facts for name in one.get("task", "").split(",") if name))
    words: dict[str, list[str]] = {}
    paths: dict[str, None] = {}
    for one in facts:
        words |= json.loads(one.get("label_words") or "{}")
        paths |= dict.fromkeys(json.loads(one.get("data_task") or "[]"))
    made = {"task": ",".join(tasks), "arithmetic": what, "init": what}
    if words:
        made["label_words"] = json.dumps(words)
    if paths:
        made["data_task"] = json.dumps(list(paths))
    if any(one.get("projected") == "true" for one in facts):
        made["projected"] = "true"
    made["source_prompt"] = ",".join(str(prompt.path) for prompt in prompts if prompt.path)
    return kept | made


def _name(prompt: Prompt) -> str:
    return str(prompt.path) if prompt.path else f"the prompt for {prompt.metadata.get('task', 'an unnamed task')}"


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[0]} rows of {shape[1]}"
