"""Idempotent runs of `fit`: finished runs are reused, interrupted ones resumed."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from lightning.pytorch.utilities.seed import isolate_rng

from prompt_transfer.api.returns import TrainingResult
from prompt_transfer.api.store import options_file
from prompt_transfer.commands import training
from prompt_transfer.commands.lightning import CONFIG_FILE, RESULTS_FILE, quiet, show_warning
from prompt_transfer.commands.run_folders import PROJECTOR_FILE, PROMPT_FILE
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic

FILES = {"PromptTuning": PROMPT_FILE, "CrossModelProjector": PROJECTOR_FILE}
# Options that change no result, and options of an evaluation; the studies compare the backbone by its fingerprint.
COSMETIC = {
    *("logger", "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
    *("trainer.logger", "trainer.accelerator", "trainer.devices"),
    *("data.num_workers", "data.cache_dir", "data.eval_batch_size", "data.max_tokens"),
}
EVALUATION = {"model.backbone", "data.limit_eval", "data.max_length", "data.root", "data.source"}
# Not in a resolved configuration in the same form.
RESOLVED = {"trainer.val_check_interval", "trainer.check_val_every_n_epoch", "model.learning_rate", "data.task"}
PATHS = ("data.root", "data.task", "model.backbone")
# Facts in the first line of an options file.
FACTS = PROMPTS, WORDS = "source prompts", "label words"
SHOWN = ("task", "split", "metric", "value", "majority", "lead", "n", "best_step")


@contextmanager
def quiet_session() -> Iterator[None]:
    """Show one-line warnings; restore the session's warning filters and random state on exit."""
    with warnings.catch_warnings(), isolate_rng():
        quiet()
        warnings.showwarning = show_warning
        yield


def fit(
    folder: str | Path, config: Mapping[str, Any], model: str = "PromptTuning", overwrite: bool = False
) -> TrainingResult:
    """Run `fit` from Python, for options that the hub's methods lack: several seeds, initializers, convergence.

    A finished run with the same options is reused, an interrupted one is resumed.

    Args:
        folder: the run folder; its options are saved as `<folder>.yaml`.
        config: options, nested as in a file for `fit --config`.
        model: PromptTuning or CrossModelProjector.
        overwrite: replace an existing run.

    Returns:
        The best prompt's file (those of all seeds are in the same folder) and mean scores.

    Raises:
        UserError: the folder has a run with other options, an unknown model, or any error of `fit`.
    """
    if model not in FILES:
        raise UserError(f"unknown model {model!r}: choose one of {', '.join(FILES)}")
    with quiet_session():
        return train(Path(folder), model, config, f"fit of {model}", f"fit({str(folder)!r}, ...", overwrite)


def train(
    folder: Path, model: str, config: Mapping[str, Any], origin: str, call: str, overwrite: bool
) -> TrainingResult:
    """Run `fit` in a folder unless it has finished.

    The options are saved next to the folder, in a file that `fit --config` accepts; they identify the run.

    Args:
        folder: the run folder.
        model: name of the LightningModule.
        config: options of `fit`.
        origin: one line for the file, with what else determines the result: the call, source prompts, label words.
        call: the user's call without the closing bracket, for messages.
        overwrite: replace an existing run.

    Raises:
        UserError: the folder has a run with other options, or any error of `fit`.
    """
    options = options_file(folder)
    text = f"# {origin}\n{yaml.safe_dump(dict(config), sort_keys=False)}"
    known = options.read_text(encoding="utf-8") if options.is_file() else None
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and not overwrite:
        difference = _difference(known, text)
        if difference:
            raise UserError(
                f"{folder} holds a run with {difference}: {call}, overwrite=True) replaces it, "
                "another output_dir keeps both"
            )
        if (folder / RESULTS_FILE).is_file():
            found = _trained(folder, model)
            print(f"{found.path} exists with these options and is reused; {call}, overwrite=True) replaces it")
            rows = found.table[[name for name in SHOWN if name in found.table.dropna(axis=1, how="all")]].to_dict(
                "records"
            )
            results.show([{str(key): None if value != value else value for key, value in row.items()} for row in rows])
            return found
    before = _file_version(folder / CONFIG_FILE)
    write_text_atomic(options, text)
    flags = [] if not occupied else ["--overwrite" if overwrite else "--resume"]
    try:
        training.run("fit", ["--model", model, "--config", str(options), "--output", str(folder), *flags])
    finally:
        # A run refused before its start changed nothing: restore the options of the existing run.
        if _file_version(folder / CONFIG_FILE) == before:
            if known is None:
                options.unlink()
                with suppress(OSError):  # the folder has other files
                    options.parent.rmdir()
            else:
                write_text_atomic(options, known)
    return _trained(folder, model)


def _trained(folder: Path, model: str) -> TrainingResult:
    path = folder / FILES[model]
    if not path.is_file():
        raise UserError(f"the run in {folder} failed before its first evaluation: lower the learning rate")
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


def _file_version(path: Path) -> tuple[int, int] | None:
    """Return a value that changes whenever the file is written, even with equal content."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None


def training_changes(folder: Path, config: Mapping[str, Any], origin: str) -> str:
    """Describe the training options in which a finished run differs from `config`, for messages; "" if in none.

    Options of the evaluation do not count. A run of the command line is compared by its `config.yaml`.
    """
    text = f"# {origin}\n{yaml.safe_dump(dict(config), sort_keys=False)}"
    options = options_file(folder)
    if options.is_file():
        return _difference(options.read_text(encoding="utf-8"), text, EVALUATION)
    try:
        stored = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        stored["model"] = {**stored["model"], **stored["model"].get("init_args", {})}
    except (OSError, yaml.YAMLError, AttributeError, LookupError, TypeError):
        return ""
    before, now = _flat(stored), _options(text)
    left_out = EVALUATION | RESOLVED
    return _changes([key for key in now if key in before and key not in left_out], before, now)


def _options(text: str) -> dict[str, Any]:
    """Return the options that identify a run, with absolute paths; source prompts count by digest, not by path."""
    options = yaml.safe_load(text)
    options.get("model", {}).pop("prompts", None)
    flat = {key: value for key, value in _flat(options).items() if key not in COSMETIC and key[:6] != "wandb."}
    return flat | {key: _absolute(flat[key]) for key in PATHS if key in flat}


def _absolute(value: Any) -> Any:
    """Return a path as an absolute one, also in a list; other values as they are."""
    if isinstance(value, list):
        return [_absolute(one) for one in value]
    return str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value


def _facts(text: str) -> dict[str, str]:
    """Return the facts of the first line by name; earlier versions wrote no label words."""
    facts = text.partition("\n")[0].partition("), ")[2].split("; ")
    return {name: fact.removeprefix(name) for fact in facts for name in FACTS if fact.startswith(name)}


def _difference(known: str | None, text: str, left_out: Collection[str] = ()) -> str:
    """Describe the options in which two files differ, for messages; "" if in none."""
    if known is None:
        return "unknown options (this hub did not create it)"
    before, now = _options(known), _options(text)
    changes = _changes([key for key in {**before, **now} if key not in left_out], before, now)
    if changes:
        return changes
    old, new = _facts(known), _facts(text)
    if PROMPTS in old and old[PROMPTS] != new.get(PROMPTS):
        return "other source prompts (they were retrained)"
    if WORDS in old and WORDS in new and old[WORDS] != new[WORDS]:
        return f"the {WORDS}{old[WORDS]}, not{new[WORDS]}"
    return ""


def _changes(keys: Iterable[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [key for key in keys if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {before.get(key)}, not {now.get(key)}" for key in changed[:4])


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
