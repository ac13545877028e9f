"""`sweep`: many runs of `fit` and follow-up commands from one file."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from prompt_transfer.commands.parsing import call
from prompt_transfer.commands.values import task_names_of
from prompt_transfer.studies.sweep.executor import Executor, state_file
from prompt_transfer.studies.sweep.local_executor import LocalExecutor
from prompt_transfer.studies.sweep.plan import Plan, Run, State, overview, read_plan, same_runs, with_tracking
from prompt_transfer.studies.sweep.ray_executor import RayExecutor
from prompt_transfer.studies.sweep.view import SweepView
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tracking.studies import STUDIES
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir, exclusive_lock, write_text_atomic
from prompt_transfer.utils.provenance import write_provenance

GROUPS = (
    *("--model.", "--data.", "--trainer.", "--seed_everything", "--convergence", "--early_stopping"),
    *("--logger", "--wandb.", "--mlflow."),
)

# Columns of the scores that a narrow terminal leaves out first.
SPARE = ("best_step", "lead", "majority")


@dataclass(frozen=True)
class SweepOptions:
    """train many prompts from one file of runs; the same command resumes with the missing runs

    Options of `fit` (--model.*, --data.*, --trainer.*) apply to every run and override the file. With --logger wandb,
    runs and follow-up commands are logged to W&B, grouped under the name of the output folder.

    Args:
        config: file with `fit`, `grid`, `cases`, `name` and `then`; see configs/study.
        output: folder for the runs, their logs, sweep.csv (one row per run) and results.parquet (their scores).
        executor: local (this machine) or ray (a Ray cluster with a shared file system; extra `ray`).
        at_once: number of parallel runs; default: as many as there are GPUs for (--trainer.devices, one), or one on a
            CPU; with ray as many as fit.
        retries: number of restarts of a failed or killed run.
        address: address of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT; default: start Ray on this machine.
        cpus: CPUs per run, with ray; default: one per device (--trainer.devices).
        gpus: GPUs per run, with ray; default: one per device if the cluster has GPUs.
        dry_run: print the runs and follow-up commands without starting them.
    """

    config: str
    output: str
    executor: Literal["local", "ray"] = "local"
    at_once: int | None = None
    retries: int = 1
    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if (self.at_once is not None and self.at_once < 1) or self.retries < 0:
            raise UserError("--at_once must be 1 or more, --retries 0 or more")
        if self.executor == "local" and (self.address, self.cpus, self.gpus) != (None, None, None):
            raise UserError("--address, --cpus and --gpus belong to --executor ray")

    def make_executor(self, runs: list[Run]) -> Executor:
        """Return the executor that the options select, for some runs."""
        folder = Path(self.output)
        if self.executor == "ray":
            return RayExecutor(folder, self.retries, self.cpus, self.gpus, self.address, self.at_once)
        devices = _gpus()
        at_once = self.at_once or max(1, devices // max(run.devices for run in runs))
        return LocalExecutor(folder, at_once, self.retries, devices)


def sweep(options: SweepOptions, given: dict[str, Any]) -> None:
    """Run a sweep.

    Args:
        options: options of the sweep.
        given: options of `fit` for every run.

    Raises:
        UserError: an option is invalid, a run failed, or a follow-up command failed.
    """
    folder = Path(options.output)
    plan = with_tracking(read_plan(options.config, folder, given), folder.resolve().name, STUDIES)
    # Check all task names before the first run.
    for task in dict.fromkeys(name for run in plan.runs for name in task_names_of(run.options.get("data.task"))):
        get_task(task)
    from prompt_transfer.commands.checking import check_runs  # imports torch, only needed for a valid plan

    check_runs(plan.runs)
    same = same_runs(plan)
    if same is not None:
        warnings.warn(
            f"the runs {same[0]} and {same[1]} start from the same prompt and differ only in seed_everything, which "
            "does not change the order of the data: vary data.seed too, or they are equal",
            stacklevel=2,
        )
    if options.dry_run:
        results.show([{"run": run.name, **run.values} for run in plan.runs], title=f"{len(plan.runs)} runs of fit")
        for command in plan.then:
            print(f"$ prompt-transfer {shlex.join(command)}")
        return
    executor = options.make_executor(plan.runs)
    # A separate lock: a follow-up command may write to the same folder.
    with exclusive_lock(folder, ".sweep.lock"):
        states = [State.read(state_file(folder, run), run) for run in plan.runs]
        for place in ("runs", "configs", "logs", "state"):
            check_writable_dir(folder / place)
        for run in plan.runs:
            write_text_atomic(folder / "configs" / f"{run.name}.yaml", run.config())
        facts = {"config": options.config, "executor": options.executor}
        write_provenance(folder, "sweep", facts | given, {}, goes_on=True)
        _train(executor, plan.runs, states, folder)
        results.keep(overview(plan.runs, states), "runs")
        try:
            _finish(plan, states, folder)
        finally:
            show_scores(plan.runs, folder)
    print(folder)


def _finish(plan: Plan, states: list[State], folder: Path) -> None:
    """Run the follow-up commands; raise UserError if a run or a command failed."""
    failed = [run.name for run, state in zip(plan.runs, states, strict=True) if state.status == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(plan.runs)} runs failed: {', '.join(failed)} (see sweep.csv and logs in "
            f"{folder}); run the same command to retry them"
        )
    for command in plan.then:
        print(f"$ prompt-transfer {shlex.join(command)}", flush=True)
        _follow(command)


def show_scores(runs: list[Run], folder: Path) -> None:
    """Print the scores of the runs: one row per run and task, with the values of the grid."""
    import pandas as pd

    path = folder / "results.csv"
    if not path.is_file():
        return
    frame = pd.read_csv(path, dtype={"run": str})
    grid = list(dict.fromkeys(name for run in runs for name in run.values))
    # Several prompts of one run.
    several = frame.duplicated(["run", "task"]).any()
    which = [name for name in ("seed", "learning_rate") if several and name in frame]
    rows = []
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        values = {name.rpartition(".")[2]: row.get(name) for name in grid if name != "data.task"}
        facts = {key: row[key] for key in (*which, "metric", "value", *SPARE) if row.get(key) is not None}
        rows.append({"run": row["run"], "task": row["task"], **values, **facts})
    short = [name.rpartition(".")[2] for name in grid]
    title = f"scores of {len(runs)} runs on validation"
    # Scores of different tasks or metrics cannot be compared.
    scored: dict[tuple[str, Any], list[tuple[float, str]]] = {}
    for one in rows:
        if one.get("value") is not None:
            scored.setdefault((one["task"], one.get("metric")), []).append((one["value"], one["run"]))
    best = {key: max(values) for key, values in scored.items()}
    if len(best) == 1:
        title += ", the best {:.3f} ({})".format(*next(iter(best.values())))
    elif max(map(len, scored.values()), default=1) > 1:
        title += ", the best of each task marked *"
        for one in rows:
            top = best.get((one["task"], one.get("metric")))
            one["best"] = "*" if top is not None and one.get("value") == top[0] else ""
    results.show(rows, title, spare=(*SPARE, *short), common=("metric",))


def _follow(command: list[str]) -> None:
    """Run a follow-up command in its own process; with `--json`, collect its tables."""
    start = [sys.executable, "-P", "-m", "prompt_transfer", *command]
    if results.keeping():
        done = subprocess.run([*start, "--json"], stdout=subprocess.PIPE, text=True)
    else:
        done = subprocess.run(start, text=True)
    if done.returncode:
        raise UserError(f"prompt-transfer {command[0]} failed; run the same sweep to resume there")
    for table in json.loads(done.stdout)["tables"] if done.stdout else []:
        results.keep(table["rows"], table["title"])


def _train(executor: Executor, runs: list[Run], states: list[State], folder: Path) -> None:
    import pandas as pd

    left = [run for run, state in zip(runs, states, strict=True) if state.status != "done"]
    if len(left) < len(runs):
        print(f"{len(runs) - len(left)} of {len(runs)} runs are already done", flush=True)
    with SweepView(folder, runs, states) as view:

        def report(run: Run, state: State) -> None:
            print(view.report(run, state), flush=True)
            results.write(pd.DataFrame(overview(runs, states)), folder / "sweep.csv")

        executor.execute(runs, states, report)
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
    """Return the sweep's own arguments, and the options of `fit` by dotted name."""
    own, given = [], {}
    rest = iter(arguments)
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
    from prompt_transfer.commands.arguments import find_configs

    own, given = split_options(arguments)
    sweep(call(SweepOptions, command, find_configs(own)), given)
