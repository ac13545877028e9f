"""Runs of `fit` that can be asked for again: done ones are taken as they are, stopped ones go on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from lightning.pytorch.utilities.seed import isolate_rng

from prompt_transfer.api.returns import TrainingResult
from prompt_transfer.commands import training
from prompt_transfer.commands.lightning import CONFIG_FILE, RESULTS_FILE, quiet, show_warning
from prompt_transfer.commands.run_folders import PROJECTOR_FILE, PROMPT_FILE
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic

FILES = {"PromptTuning": PROMPT_FILE, "CrossModelProjector": PROJECTOR_FILE}
SHOWN = ("task", "split", "metric", "value", "majority", "lead", "n", "best_step")


@contextmanager
def plainly() -> Iterator[None]:
    """Inside `with`: warnings of one line. The session's own warnings and random numbers are as before at its end."""
    with warnings.catch_warnings(), isolate_rng():
        quiet()
        warnings.showwarning = show_warning
        yield


def fit(
    folder: str | Path, config: Mapping[str, Any], model: str = "PromptTuning", overwrite: bool = False
) -> TrainingResult:
    """A run of `fit` from Python, for what no verb of a hub does: several seeds, another start, convergence.

    A run that is done with the same options is taken as it is, one that was stopped goes on.

    Args:
        folder: of the run; its options lie beside it in `<folder>.yaml`.
        config: options, nested as in a file for `fit --config`.
        model: PromptTuning or CrossModelProjector.
        overwrite: start anew what is there.

    Returns:
        The best prompt's file (beside it those of all seeds) and scores: means over what was trained.

    Raises:
        UserError: a run with other options is there, an unknown model, or anything that `fit` says.
    """
    if model not in FILES:
        raise UserError(f"unknown model {model!r}: choose one of {', '.join(FILES)}")
    with plainly():
        return train(Path(folder), model, config, f"fit of {model}", f"fit({str(folder)!r}, ...", overwrite)


def train(
    folder: Path, model: str, config: Mapping[str, Any], made_of: str, call: str, overwrite: bool
) -> TrainingResult:
    """Do the run of `fit` in a folder, unless it is done.

    The options lie beside the folder, in a file that `fit --config` reads too; by it a run is known again.

    Args:
        folder: of the run.
        model: name of the LightningModule.
        config: options of `fit`.
        made_of: what decides the result beside the options, a line for the file.
        call: as a user writes it, for messages; without the closing bracket.
        overwrite: start anew what is there.

    Raises:
        UserError: a run with other options is there, or anything that `fit` says.
    """
    options = folder.with_name(f"{folder.name}.yaml")
    text = f"# {made_of}\n{yaml.safe_dump(dict(config), sort_keys=False)}"
    known = options.read_text(encoding="utf-8") if options.is_file() else None
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and not overwrite:
        if known is None or _content(known) != _content(text):
            raise UserError(
                f"{folder} holds a run with {_difference(known, text)}: {call}, overwrite=True) starts it anew, "
                "another output_dir keeps both"
            )
        if (folder / RESULTS_FILE).is_file():
            found = _trained(folder, model)
            print(f"{found.path} is there already, made with these options; {call}, overwrite=True) starts anew")
            rows = found.table[[name for name in SHOWN if name in found.table.dropna(axis=1, how="all")]].to_dict(
                "records"
            )
            results.show([{str(key): None if value != value else value for key, value in row.items()} for row in rows])
            return found
    begun = _mark(folder / CONFIG_FILE)
    write_text_atomic(options, text)
    go_on = [] if not occupied else ["--overwrite" if overwrite else "--resume"]
    try:
        training.run("fit", ["--model", model, "--config", str(options), "--output", str(folder), *go_on])
    finally:
        # What was refused before it began changed nothing, and the options are those of what is there.
        if _mark(folder / CONFIG_FILE) == begun:
            if known is None:
                options.unlink()
                with suppress(OSError):  # other things lie there
                    options.parent.rmdir()
            else:
                write_text_atomic(options, known)
    return _trained(folder, model)


def _trained(folder: Path, model: str) -> TrainingResult:
    path = folder / FILES[model]
    if not path.is_file():
        raise UserError(f"the run in {folder} broke before its first evaluation: lower the learning rate")
    table = pd.read_csv(folder / RESULTS_FILE)
    majority = table["majority"].mean()
    return TrainingResult(
        path=path,
        metric=", ".join(dict.fromkeys(table["metric"])),
        value=float(table["value"].mean()),
        majority=None if pd.isna(majority) else float(majority),
        best_step=int(table["best_step"].iloc[0]),
        table=table,
    )


def _mark(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written again, with equal content too."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None


def _content(text: str) -> tuple[str, Any]:
    """What decides a run: of source prompts their digests, which stand in the first line, and not where they lie."""
    made_of, _, rest = text.partition("\n")
    options = yaml.safe_load(rest)
    options.get("model", {}).pop("prompts", None)
    return made_of, options


def _difference(known: str | None, text: str) -> str:
    """For messages: the options in which two files differ."""
    if known is None:
        return "options that are not known here (this hub did not make it)"
    before, now = _flat(_content(known)[1]), _flat(_content(text)[1])
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if not changed:
        return "other source prompts (they were trained anew)"
    return ", ".join(f"{key} {before.get(key)}, not {now.get(key)}" for key in changed[:4])


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
