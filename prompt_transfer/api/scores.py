"""Scores of a hub: the studies of transfer and of masked neurons, asked for one prompt."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from prompt_transfer.api.arguments import PromptTrainingArguments
from prompt_transfer.api.returns import MaskedScore, Score
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.backbones import backbone_options
from prompt_transfer.studies.neurons.masking import MaskStudy, mask
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.studies.transfer.study import TransferStudy, transfer
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import SettingsChangedError, UserError

CONTROL = "constant"
# Metadata that decide with which words answers are scored.
WORDS = ("label_words_policy", "data_label_words")
COLUMNS = ("what", "value", "low", "high", "n")
Made = TypeVar("Made")


def evaluation_data(args: PromptTrainingArguments, task: str) -> EvaluationData:
    """Where the rows come from that a prompt is scored on."""
    known = get_task(task)
    return EvaluationData(
        source=args.source_of(known),
        root=args.data_root,
        max_length=args.max_length,
        limit_eval=args.limit_eval,
        # Built-in tasks have no label words of release 1.0; None: those that the prompt was trained with.
        label_words="default" if known.builtin else None,
    )


def recompute_if_changed(folder: Path, work: Callable[[], Made]) -> Made:
    """What a study gives; what lies in its folder is removed where it was made with other data or options."""
    try:
        return work()
    except SettingsChangedError:
        shutil.rmtree(folder)
        return work()


def of_one_mode(*prompts: Prompt) -> bool:
    """Whether prompts of a backbone are used with one layout, attention mode, dtype, head and revision."""
    try:
        backbone_options({str(number): prompt for number, prompt in enumerate(prompts)})
    except UserError:
        return False
    return True


def compare_well(prompt: Prompt, other: Prompt) -> bool:
    """Whether two prompts of a backbone are scored in one way: in one mode, with the same label words."""
    words = [{key: one.metadata.get(key) or "" for key in WORDS} for one in (prompt, other)]
    return of_one_mode(prompt, other) and words[0] == words[1]


def score(
    args: PromptTrainingArguments,
    backbone: str,
    task: str,
    prompts: Sequence[Path],
    name: str,
    source: str,
    output: Path,
) -> Score:
    """The score of a prompt, with its baselines; it is printed too.

    Args:
        backbone, task: where the prompt is used.
        prompts: folders with the prompt, the task's own one, and controls.
        name: of the prompt in the study: that of its run folder or file.
        source: the task that it was trained on.
        output: folder of the study.

    Raises:
        UserError: anything that does not fit.
    """
    study = TransferStudy(
        backbone=backbone,
        prompts=[str(folder) for folder in prompts],
        tasks=[task],
        output=str(output),
        data=evaluation_data(args, task),
        random_prompts=args.random_prompts,
        accelerator=args.accelerator,
    )
    frame = recompute_if_changed(output, lambda: transfer(study))
    this = frame[frame["prompt"] == name].iloc[0]
    controls = frame["prompt"].str.startswith(f"{CONTROL}-")
    drawn = (frame["kind"] == "random") & ~controls
    trained = frame[(frame["kind"] == "trained") & (frame["source"] == this["task"])]
    found = Score(
        **_common(this, backbone),
        source=source,
        random=float(frame.loc[drawn, "value"].mean()),
        baseline=float(frame.loc[frame["kind"].isin(("majority", "lead")), "value"].iloc[0]),
        own=_number(trained["value"].mean()),
        relative=_number(this["relative"]),
        control=_number(frame.loc[controls, "value"].mean()),
        table=frame,
    )
    rows: list[dict[str, Any]] = [_row("this prompt", this)]
    if found.own is not None and name not in set(trained["prompt"]):
        rows.append(_row("the task's own prompt", trained.iloc[0]))
    if found.control is not None:
        rows.append({"what": "projected random prompts, mean", "value": found.control})
    rows += [
        {"what": "random prompts, mean", "value": found.random},
        {"what": _baseline(task), "value": found.baseline},
    ]
    print(f"{found.task}, {found.split}: {found.metric} behind {backbone}")
    results.show(rows, columns=COLUMNS)
    return found


def masked_score(
    args: PromptTrainingArguments,
    backbone: str,
    task: str,
    run: Path,
    neurons: Path,
    ratio: float,
    scope: str,
    output: Path,
) -> MaskedScore:
    """The score of a task's own prompt with its own neurons masked, and with random ones; it is printed too.

    Args:
        run: folder of the prompt.
        neurons: folder of its captured neurons.
        ratio, scope: which neurons (see `neurons.mask.most_activated`).
        output: folder of the study.

    Raises:
        UserError: anything that does not fit.
    """
    study = MaskStudy(
        backbone=backbone,
        prompts=str(run),
        tasks=[task],
        output=str(output),
        neurons=str(neurons),
        data=evaluation_data(args, task),
        ratios=[ratio],
        scope=scope,
        masks=["own", "random"],
        random_seeds=args.random_prompts,
        accelerator=args.accelerator,
    )
    frame = recompute_if_changed(output, lambda: mask(study))
    own = frame[frame["mask"] == "own"].iloc[0]
    found = MaskedScore(
        **_common(own, backbone),
        ratio=ratio,
        unmasked=float(own["unmasked"]),
        random=float(frame.loc[frame["mask"] == "random", "value"].mean()),
        baseline=float(own["majority"]),
        masked=int(own["masked"]),
        table=frame,
    )
    rows = [
        _row("all neurons", frame[frame["mask"] == "none"].iloc[0]),
        _row("its own masked", own),
        {"what": "as many random ones masked, mean", "value": found.random},
        {"what": _baseline(task), "value": found.baseline},
    ]
    title = (
        f"{found.task}, {found.split}: {found.metric} behind {backbone}, {found.masked} neurons masked ({ratio:.0%})"
    )
    print(title)
    results.show(rows, columns=COLUMNS)
    return found


def _common(row: pd.Series, backbone: str) -> dict[str, Any]:
    return {
        "backbone": backbone,
        **{key: str(row[key]) for key in ("task", "split", "metric")},
        **{key: float(row[key]) for key in ("value", "low", "high")},
        "n": int(row["n"]),
    }


def _row(what: str, row: pd.Series) -> dict[str, Any]:
    return {"what": what, **{key: float(row[key]) for key in ("value", "low", "high")}, "n": int(row["n"])}


def _baseline(task: str) -> str:
    return "lead of the text" if get_task(task).is_generation else "majority class"


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
