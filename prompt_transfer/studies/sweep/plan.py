"""The plan of a sweep: runs of `fit` from one file, their state, and the commands that follow them."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from prompt_transfer.tracking.options import LOGGERS
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic

KEYS = ("fit", "grid", "cases", "name", "then")
# Placeholders that `fit` fills in: the seed of each of several prompts.
LATER = ("seed",)
Options = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of `fit`.

    Attributes:
        name: folder below `runs/`; unique in a sweep.
        options: options by dotted name.
        values: values of the grid options, columns of the tables.
    """

    name: str
    options: Options
    values: Options

    def config(self) -> str:
        """Return the options as YAML for `fit --config`."""
        nested: dict[str, Any] = {}
        for name, value in self.options.items():
            *groups, last = name.split(".")
            place = nested
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = value
        return yaml.safe_dump(nested, sort_keys=False)

    @property
    def devices(self) -> int:
        """The number of devices, each with a process of its own (`trainer.devices`, `trainer.num_nodes` is 1)."""
        given = self.options.get("trainer.devices")
        if isinstance(given, list):
            return max(1, len(given))
        return max(1, int(str(given))) if str(given).isdecimal() else 1

    @property
    def digest(self) -> str:
        """SHA-256 of the options that affect training; logger options are excluded."""
        deciding = {
            name: value for name, value in self.options.items() if name.split(".")[0] not in ("logger", *LOGGERS)
        }
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep and the argument lists of the commands after them."""

    runs: list[Run]
    then: list[list[str]] = field(default_factory=list)


@dataclass
class State:
    """The state of a run, saved as JSON in the sweep folder.

    Attributes:
        digest: digest of the options of the run.
        status: `done`, `failed` or `open`.
        attempts: number of starts.
        seconds: total time of all attempts.
        error: last output line of a failed run.
    """

    digest: str
    status: str = "open"
    attempts: int = 0
    seconds: float = 0.0
    error: str = ""

    @classmethod
    def read(cls, path: Path, run: Run) -> State:
        """Read the state of `run`; a new state if there is no file.

        Raises:
            UserError: the run was made with other options, or the file is damaged.
        """
        if not path.is_file():
            return cls(run.digest)
        try:
            state = cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged: remove it to start the run again") from error
        if state.digest != run.digest:
            raise UserError(
                f"the run {run.name} in {path.parent.parent} was made with other options: give another --output, or "
                f"remove {path} and its run folder"
            )
        return state

    def write(self, path: Path) -> None:
        """Write the state atomically."""
        write_text_atomic(path, json.dumps(self.__dict__) + "\n")


def read_plan(path: str | Path, output: Path, given: Options) -> Plan:
    """Read the plan of a sweep from a YAML file.

    Keys: `fit` (options of every run, nested as in a configuration of `fit`), `grid` (dotted option -> values; every
    combination is a run), `cases` (a list: `when` selects values of the grid, the rest are options of these runs),
    `name` (name of a run, with options in braces) and `then` (a list of command -> options, executed after all runs).
    Strings may contain `{output}`, `{runs}`, `{run}` (number of the run, from 1) and `{option}`; in `then`, a grid
    option expands to all its values, separated by commas.

    Args:
        path: the file.
        output: sweep folder.
        given: command line options by dotted name; they override the file, and replace the values of a grid option.

    Raises:
        UserError: the file cannot be read, has an unknown key, or two runs share a name.
    """
    content = _read(path)
    grid = {name: _values(name, values) for name, values in (content.get("grid") or {}).items()}
    for name in set(grid) & set(given):
        grid[name] = given[name] if isinstance(given[name], list) else [given[name]]
    fixed = {name: value for name, value in given.items() if name not in grid}
    common = dict(_flat(content.get("fit") or {})) | fixed
    places = {"output": str(output), "runs": str(output / "runs")}
    runs = []
    for number, combination in enumerate(itertools.product(*grid.values()), start=1):
        values = dict(zip(grid, combination, strict=True))
        options = common | values
        for case in content.get("cases") or []:
            rest = dict(case)
            if _matches(rest.pop("when", {}), values, path):
                options |= dict(_flat(rest)) | fixed
        options = {name: _fill(value, places | {"run": number} | options, path) for name, value in options.items()}
        values = {name: _short(options[name], value) for name, value in values.items()}
        pattern = content.get("name") or "-".join(f"{{{name}}}" for name in grid)
        name = re.sub(r"[^\w.+-]+", "_", str(_fill(pattern, places | {"run": number} | options | values, path)))
        runs.append(Run(name, options, values))
    names = [run.name for run in runs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UserError(f"{path}: two runs have the name {double}: `name` must contain every option of the grid")
    shared = {name: value for name, value in runs[0].options.items() if all(r.options.get(name) == value for r in runs)}
    words = places | shared | {name: ",".join(map(str, values)) for name, values in grid.items()}
    return Plan(runs, [_command(step, words, path) for step in content.get("then") or []])


def _short(value: Any, word: Any) -> Any:
    """Reduce a class with options to the grid's word for it, or to its class name, for run names and columns."""
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        return word if isinstance(word, str) else value["class_path"].rpartition(".")[2]
    return value


def same_runs(plan: Plan) -> tuple[str, str] | None:
    """Return the names of two runs that start from the same prompt and differ only in `seed_everything`, if any.

    Such runs are equal unless the backbone has dropout: the seed of the order of the data is `data.seed`.
    """
    seen: dict[str, str] = {}
    for run in plan.runs:
        start = str(run.options.get("model.init"))
        if "FromPrompt" not in start or "{seed}" in start:
            continue
        rest = {name: value for name, value in run.options.items() if name != "seed_everything"}
        other = seen.setdefault(json.dumps(rest, sort_keys=True, default=str), run.name)
        if other != run.name:
            return other, run.name
    return None


def with_tracking(plan: Plan, study: str, commands: Collection[str]) -> Plan:
    """Group the runs of a study in W&B and log the commands after them too; no change without W&B.

    Args:
        plan: plan of a sweep.
        study: group name, unless the options set one.
        commands: commands that support logging.
    """
    name = next((run.options["logger"] for run in plan.runs if run.options.get("logger") in LOGGERS), None)
    if name is None:
        return plan
    runs = [replace(run, options={f"{name}.group": study} | run.options) for run in plan.runs]
    where = {key: value for key, value in runs[0].options.items() if key.startswith(f"{name}.") and value is not None}
    more = ["--logger", name, *itertools.chain(*((f"--{key}", str(value)) for key, value in where.items()))]
    then = [
        [*step, *(more if {step[0], " ".join(step[:2])} & set(commands) and "--logger" not in step else [])]
        for step in plan.then
    ]
    return Plan(runs, then)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict) or (not content.get("fit") and not content.get("grid")):
        raise UserError(f"{path} is not a sweep: it needs `fit` and `grid`")
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise UserError(f"{path} has the unknown key {unknown[0]!r}: there are {', '.join(KEYS)}")
    return content


def _values(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise UserError(f"grid: {name} needs a list of values")
    return values


def _flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested options by dotted name; a `class_path` with its arguments stays one value."""
    for name, value in options.items():
        if isinstance(value, dict) and value and "class_path" not in value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _matches(when: dict[str, Any], values: Options, path: str | Path) -> bool:
    for name, wanted in when.items():
        if name not in values:
            raise UserError(f"{path}: `when` names {name}, which is not an option of the grid")
        if values[name] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def _fill(value: Any, words: dict[str, Any], path: str | Path) -> Any:
    """Replace placeholders in braces; a result of digits only becomes an integer."""
    if isinstance(value, list):
        return [_fill(one, words, path) for one in value]
    if isinstance(value, dict):
        return {name: _fill(one, words, path) for name, one in value.items()}
    if not isinstance(value, str) or "{" not in value:
        return value

    def word(match: re.Match[str]) -> str:
        if match[1] in LATER:
            return match[0]
        if match[1] not in words:
            raise UserError(f"{path}: unknown placeholder {match[0]}: choose from {', '.join(words)}")
        found = words[match[1]]
        return "+".join(map(str, found)) if isinstance(found, list) else str(found)

    filled = re.sub(r"\{([\w.]+)\}", word, value)
    return int(filled) if filled.isdecimal() else filled


def _command(step: Any, words: dict[str, Any], path: str | Path) -> list[str]:
    """Convert a step such as `transfer: {backbone: x}` to arguments; `arguments` lists the positional ones."""
    if not isinstance(step, dict) or len(step) != 1:
        raise UserError(f"{path}: each step of `then` is one command with its options")
    ((command, options),) = step.items()
    found = command.split()
    for name, value in _flat(options or {}):
        filled = _fill(value, words, path)
        if name == "arguments":
            found += map(str, filled if isinstance(filled, list) else [filled])
        elif filled is not None:
            found += [f"--{name}", filled if isinstance(filled, str) else json.dumps(filled)]
    return found


def overview(runs: Sequence[Run], states: Sequence[State]) -> list[dict[str, Any]]:
    """Return one row per run: grid values, status, attempts, seconds, error."""
    return [
        {"run": run.name, **run.values, "status": state.status, "attempts": state.attempts}
        | {"seconds": round(state.seconds, 1), "error": state.error}
        for run, state in zip(runs, states, strict=True)
    ]
