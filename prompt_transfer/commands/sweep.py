"""`sweep`: many runs from one file, and the commands that follow."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from prompt_transfer.commands.parsing import call, expand_flags
from prompt_transfer.studies.sweep.executor import Executor, state_file
from prompt_transfer.studies.sweep.local_executor import LocalExecutor
from prompt_transfer.studies.sweep.plan import Run, State, overview, read_plan, with_tracking
from prompt_transfer.studies.sweep.ray_executor import RayExecutor
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tracking.studies import STUDIES
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir, exclusive_lock, write_text_atomic
from prompt_transfer.utils.provenance import write_provenance

GROUPS = (
    *("--model.", "--data.", "--trainer.", "--seed_everything", "--convergence", "--early_stopping"),
    *("--logger", "--wandb."),
)


def sweep(
    config: str,
    output: str,
    executor: Literal["local", "ray"] = "local",
    at_once: int | None = None,
    retries: int = 1,
    address: str | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    dry_run: bool = False,
) -> None:
    """train many prompts from one file of runs, and go on with what is missing

    Options of `fit` (--model.*, --data.*, --trainer.*) are given to every run and win over the file. With --logger
    wandb the runs, and the commands after them, are logged to W&B with the name of the output folder as their group.

    Args:
        config: file with `fit`, `grid`, `cases`, `name` and `then`; see configs/study.
        output: folder for the runs, their logs, sweep.csv (one row a run) and results.parquet (their scores).
        executor: local (this machine) or ray (a Ray cluster whose machines share a file system; extra `ray`).
        at_once: runs at a time; default: one a GPU, or one on a CPU; with ray as many as there is room for.
        retries: how often a run that failed, or was killed, is started again.
        address: of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT; default: Ray is started here.
        cpus: CPUs of a run, with ray; default: 1.
        gpus: GPUs of a run, with ray; default: 1 where the cluster has any.
        dry_run: show the runs and the commands after them, and do nothing.
    """
    raise AssertionError("called with the options of fit by `run`")


def _sweep(
    given: dict[str, Any],
    config: str,
    output: str,
    executor: str,
    at_once: int | None,
    retries: int,
    address: str | None,
    cpus: float | None,
    gpus: float | None,
    dry_run: bool,
) -> None:
    if (at_once is not None and at_once < 1) or retries < 0:
        raise UserError("--at_once must be 1 or more, --retries 0 or more")
    if executor == "local" and (address, cpus, gpus) != (None, None, None):
        raise UserError("--address, --cpus and --gpus belong to --executor ray")
    folder = Path(output)
    plan = with_tracking(read_plan(config, folder, given), folder.resolve().name, STUDIES)
    # A misspelt one is told now, and not when its turn comes.
    for task in dict.fromkeys(name for run in plan.runs for name in _tasks(run.options.get("data.task"))):
        get_task(task)
    from prompt_transfer.commands.checking import check_runs  # heavy, and the plan is sound by now

    check_runs(plan.runs)
    if dry_run:
        results.show([{"run": run.name, **run.values} for run in plan.runs], title=f"{len(plan.runs)} runs of fit")
        for command in plan.then:
            print(f"$ prompt-transfer {shlex.join(command)}")
        return
    engine: Executor
    if executor == "ray":
        engine = RayExecutor(folder, retries, 1.0 if cpus is None else cpus, gpus, address, at_once)
    else:
        devices = _gpus()
        engine = LocalExecutor(folder, at_once or max(1, devices), retries, devices)
    # A lock of its own: a command that follows may have the same folder as its output.
    with exclusive_lock(folder, ".sweep.lock"):
        states = [State.read(state_file(folder, run), run) for run in plan.runs]
        for place in ("runs", "configs", "logs", "state"):
            check_writable_dir(folder / place)
        for run in plan.runs:
            write_text_atomic(folder / "configs" / f"{run.name}.yaml", run.config())
        write_provenance(folder, "sweep", {"config": config, "executor": executor} | given, {}, goes_on=True)
        _train(engine, plan.runs, states, folder)
        results.keep(overview(plan.runs, states), "runs")
        failed = [run.name for run, state in zip(plan.runs, states, strict=True) if state.status == "failed"]
        if failed:
            raise UserError(
                f"{len(failed)} of {len(plan.runs)} runs failed: {', '.join(failed)} (see sweep.csv and logs in "
                f"{folder}); the same command tries them again"
            )
        for command in plan.then:
            print(f"$ prompt-transfer {shlex.join(command)}", flush=True)
            _follow(command)
    print(folder)


def _tasks(given: Any) -> list[str]:
    """Names in an option of the grid: a list, or its words; those that are no text are the parser's to refuse."""
    if isinstance(given, str) and given.startswith("["):
        with suppress(yaml.YAMLError):
            given = yaml.safe_load(given)
    return [name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str)]


def _follow(command: list[str]) -> None:
    """Run a command after the runs, in a process of its own; a program that waits for tables gets those of it too."""
    start = [sys.executable, "-P", "-m", "prompt_transfer", *command]
    if results.keeping():
        done = subprocess.run([*start, "--json"], stdout=subprocess.PIPE, text=True)
    else:
        done = subprocess.run(start, text=True)
    if done.returncode:
        raise UserError(f"prompt-transfer {command[0]} failed; the same sweep goes on there")
    for table in json.loads(done.stdout)["tables"] if done.stdout else []:
        results.keep(table["rows"], table["title"])


def _train(executor: Executor, runs: list[Run], states: list[State], folder: Path) -> None:
    left = [run for run, state in zip(runs, states, strict=True) if state.status != "done"]
    if len(left) < len(runs):
        print(f"{len(runs) - len(left)} of {len(runs)} runs are done already", flush=True)
    started, finished = time.monotonic(), 0

    def tell(run: Run, state: State) -> None:
        nonlocal finished
        finished += 1
        rest = (time.monotonic() - started) / finished * (len(left) - finished)
        what = state.status if not state.error else f"{state.status}: {state.error}"
        minutes = f"about {rest / 60:.0f} min" if rest >= 60 else "less than a minute"
        about = f", {minutes} left" if finished < len(left) else ""
        print(f"[{finished}/{len(left)}] {run.name}: {what}, {state.seconds:.0f} s{about}", flush=True)
        results.write(pd.DataFrame(overview(runs, states)), folder / "sweep.csv")

    executor.execute(runs, states, tell)
    results.write(pd.DataFrame(overview(runs, states)), folder / "sweep.csv")
    tables = []
    for run in runs:
        path = folder / "runs" / run.name / "results.csv"
        if path.is_file():
            own = pd.read_csv(path)
            for name, value in run.values.items():
                own[name] = str(value) if isinstance(value, list | dict) else value
            own.insert(0, "run", run.name)
            tables.append(own)
    if tables:
        frame = pd.concat(tables, ignore_index=True)
        results.write(frame, folder / "results.parquet")
        results.write(frame, folder / "results.csv")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def split_options(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Arguments of the sweep itself, and the options of `fit` among them by dotted name."""
    own, given = [], {}
    rest = iter(expand_flags(arguments, ["--dry_run"]))
    for argument in rest:
        if not argument.startswith(GROUPS):
            own.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if not equals:
            value = next(rest, "")
            if not value or value.startswith("--"):
                raise UserError(f"{name} needs a value")
        try:
            given[name.removeprefix("--")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{name}: cannot read {value!r} as YAML") from error
    return own, given


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer sweep`."""
    from functools import partial, update_wrapper

    from prompt_transfer.commands.lightning import find_configs

    own, given = split_options(arguments)
    call(update_wrapper(partial(_sweep, given), sweep), command, find_configs(own))
