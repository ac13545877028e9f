"""Scores of a single prompt, computed by the transfer and masking studies."""

from __future__ import annotations

import shutil
import warnings
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
# Metadata that determine the label words of a score.
WORDS = ("label_words_policy", "data_label_words", "data_template", "data_chat_template")
COLUMNS = ("what", "value", "low", "high", "n")
Result = TypeVar("Result")


def evaluation_data(args: PromptTrainingArguments, task: str) -> EvaluationData:
    """Return the evaluation data of a task under the hub's settings."""
    known = get_task(task)
    return EvaluationData(
        source=args.source_of(known),
        root=args.data_root,
        max_length=args.max_length,
        limit_eval=args.limit_eval,
        # Built-in tasks have no label words of release 1.0; None uses those of the prompt's training.
        label_words="default" if known.builtin else None,
    )


def recompute_if_changed(folder: Path, work: Callable[[], Result]) -> Result:
    """Run a study, removing its earlier outputs if they were produced with different data or options."""
    try:
        return work()
    except SettingsChangedError:
        shutil.rmtree(folder)
        return work()


def have_same_mode(*prompts: Prompt) -> bool:
    """Return whether prompts of a backbone share layout, attention mode, dtype, head and revision."""
    try:
        backbone_options({str(number): prompt for number, prompt in enumerate(prompts)})
    except UserError:
        return False
    return True


def are_comparable(prompt: Prompt, other: Prompt) -> bool:
    """Return whether two prompts of a backbone are scored in the same mode with the same label words."""
    words = [{key: one.metadata.get(key) or "" for key in WORDS} for one in (prompt, other)]
    return have_same_mode(prompt, other) and words[0] == words[1]


def score(
    args: PromptTrainingArguments,
    backbone: str,
    task: str,
    prompts: Sequence[Path],
    name: str,
    source: str,
    output: Path,
) -> Score:
    """Score a prompt and its baselines, print the table and return the score.

    Args:
        backbone, task: the backbone and task of the evaluation.
        prompts: folders with the prompt, the task's own prompt and controls.
        name: the prompt's name in the study: its run folder's or file's.
        source: the task that the prompt was trained on.
        output: folder of the study.

    Raises:
        UserError: any error of the study.
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
    with warnings.catch_warnings():
        # Its advice names options of the command; the hub has given its own.
        warnings.filterwarnings("ignore", message="no prompt was trained on")
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
    print(f"{found.task}, {found.split}: {found.metric}, {backbone}")
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
    """Score a task's own prompt with its own and with random neurons masked, print the table and return the score.

    Args:
        run: folder of the prompt.
        neurons: folder of its captured neurons.
        ratio, scope: see `neurons.mask.most_activated`.
        output: folder of the study.

    Raises:
        UserError: any error of the study.
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
    title = f"{found.task}, {found.split}: {found.metric}, {backbone}, {found.masked} neurons masked ({ratio:.0%})"
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


def _row(label: str, row: pd.Series) -> dict[str, Any]:
    return {"what": label, **{key: float(row[key]) for key in ("value", "low", "high")}, "n": int(row["n"])}


def _baseline(task: str) -> str:
    known = get_task(task)
    return "lead of the text" if known.is_generation else "best position" if known.is_choice else "majority class"


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
