"""`analyze convergence`: pairs vanilla with transferred runs and measures the convergence speed-up."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from prompt_transfer.analysis import captions, curves
from prompt_transfer.analysis.convergence import KINDS, TOLERANCE, Curve, compare, summarise
from prompt_transfer.analysis.plots import save
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.utils import results
from prompt_transfer.utils.digests import digest_of
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import check_writable_dir
from prompt_transfer.utils.progress import steps

LOG, CONFIG = "convergence.csv", "config.yaml"
# Options in which a pair of runs may differ: the initialization, and options that do not affect results.
FREE = {
    "model": ("init", "method", "seeds", "learning_rates", "prompts_at_once", "learning_rate"),
    "data": ("num_workers", "cache_dir", "eval_batch_size", "predict_split", "max_tokens"),
}
BUDGET = (
    *("max_steps", "max_epochs", "val_check_interval", "check_val_every_n_epoch", "limit_train_batches"),
    *("limit_val_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision"),
)
# Settings read from the prompt file, because the options may leave them to a default.
FACTS = ("backbone", "fingerprint", "layout", "attention", "dtype", "head", "reparameterization", "learning_rate")


def convergence(runs: Sequence[str | Path], output: str | Path, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Compare every transferred run with the vanilla run of the same options and seed.

    A run is transferred if its prompt was initialized with `FromPrompt`. Writes to `output`: `runs.csv` (one row per
    prompt), `pairs.csv` (one row per pair, measure and unit), `speedups.csv` and `speedups.png` (over seeds),
    `curves.csv` (all evaluations) and `curves.png`.

    Args:
        runs: folders of `fit --convergence`, or folders that contain such folders.
        output: folder for the tables and the figure.
        tolerance: distance from the best score that counts as converged, a fraction.

    Returns:
        The rows of `speedups.csv`; see `prompt_transfer.analysis.convergence` for the definitions.

    Raises:
        UserError: no runs, runs without an evaluation at step 0, unfinished runs, or a transferred run without its
            vanilla run; the message names the differing option.
    """
    if not 0 <= tolerance < 1:
        raise UserError(f"--tolerance is {tolerance}: give a fraction, 0.005 for half a point")
    loaded = [entry for folder in steps(_folders(runs), "runs") for entry in load(folder)]
    pairs = plan(loaded)
    folder = check_writable_dir(output)
    return report(pairs, score(pairs, tolerance), folder, tolerance)


def score(pairs: Sequence[tuple[Curve, Curve]], tolerance: float) -> pd.DataFrame:
    """Return the speed-ups of all pairs."""
    return pd.DataFrame([row for vanilla, other in pairs for row in compare(vanilla, other, tolerance)])


def report(pairs: Sequence[tuple[Curve, Curve]], found: pd.DataFrame, folder: Path, tolerance: float) -> pd.DataFrame:
    """Write tables and figure; return the summary over seeds."""
    overview = pd.DataFrame(summarise(found.to_dict("records")))  # type: ignore[arg-type]
    used = list(dict.fromkeys(curve for pair in pairs for curve in pair))
    for name, frame in (
        ("runs", pd.DataFrame([curve.facts(tolerance) for curve in used])),
        ("pairs", found),
        ("speedups", overview),
        ("curves", curve_table(used)),
    ):
        results.write(frame, folder / f"{name}.csv")
    save(curves.speedups(overview), folder / "speedups.png", captions.SPEEDUPS)
    save(curves.convergence(used, tolerance), folder / "curves.png", captions.convergence(tolerance))
    return overview


def curve_table(used: Sequence[Curve]) -> pd.DataFrame:
    """Return the evaluations of all runs, from which the figure can be drawn again.

    Returns:
        Columns task, source (missing for vanilla runs), seed, metric, step, samples, seconds, value, majority, run.
    """
    return pd.concat(
        [
            curve.evaluations.assign(
                task=curve.task, source=curve.source, seed=curve.seed, metric=curve.metric, majority=curve.majority,
                run=curve.name,
            )
            for curve in used
        ],
        ignore_index=True,
    )[["task", "source", "seed", "metric", "step", "samples", "seconds", "value", "majority", "run"]]  # fmt: skip


def _folders(runs: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for run in map(Path, runs):
        below = [run] if (run / LOG).is_file() else sorted(path.parent for path in run.rglob(LOG))
        # The output of an earlier analysis has tables but no options: skip it.
        below = [path for path in below if (path / CONFIG).is_file()]
        if not below:
            raise UserError(f"{run} holds no run with a {LOG}: train with `prompt-transfer fit --convergence`")
        found += below
    if not found:
        raise UserError("no runs to compare: give the folders of vanilla and transferred runs")
    return list(dict.fromkeys(path.resolve() for path in found))


def load(folder: Path) -> list[tuple[Curve, dict[str, Any]]]:
    """Load the curves of a run, one per prompt, each with the options that a comparable run must share.

    Raises:
        UserError: the run has no evaluation at step 0, was stopped, or a file is missing or damaged.
    """
    try:
        log = pd.read_csv(folder / LOG)
        config = yaml.safe_load((folder / CONFIG).read_text())
        names = list(log["prompt"].unique())
        budget = {name: config["trainer"].get(name) for name in BUDGET}
        options = {
            f"{group}.{name}": value
            for group, free in FREE.items()
            for name, value in config[group].items()
            if name not in free
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{folder} is not the folder of a run ({' '.join(str(error).split())[:100]})") from error
    steps, interval = budget["max_steps"], budget["val_check_interval"]
    last = int(log["step"].max())
    if isinstance(steps, int) and isinstance(interval, int) and steps > 0 and last + interval <= steps:
        raise UserError(f"{folder} was stopped at step {last} of {steps}: finish it, fit --output {folder} --resume")
    if config.get("early_stopping") is not None:
        raise UserError(f"{folder} was trained with --early_stopping: convergence compares runs of one budget")
    found = []
    for name in names:
        prompt = Prompt.load(folder / f"{name}.safetensors")
        evaluations = log[log["prompt"] == name].sort_values("step").reset_index(drop=True)
        if evaluations["step"].iloc[0] != 0:
            raise UserError(f"{folder} was not evaluated at step 0: train it with `prompt-transfer fit --convergence`")
        if len(evaluations) < 2:
            raise UserError(
                f"{folder} was evaluated only at step 0: train for --trainer.val_check_interval steps or more"
            )
        facts = prompt.metadata
        # The last evaluation must agree too: with another budget a run had more time to converge.
        shared = {**options, **{f"trainer.{key}": value for key, value in budget.items()}, "last evaluation": last}
        shared |= {f"model.{key}": facts[key] for key in FACTS if key in facts}
        # Runs from before this option have it neither in their configuration nor in their prompt.
        shared["model.method"] = prompt.method
        source = _source(facts) if facts.get("init", "").startswith("FromPrompt") else None
        curve = Curve(
            name=str(folder) if name == "prompt" else f"{folder}/{name}",
            task=facts.get("task", ""),
            source=source,
            kind=_kind(facts.get("task", ""), source),
            seed=facts.get("seed", ""),
            evaluations=evaluations[["step", "samples", "seconds", "value"]],
            majority=float(evaluations["majority"].iloc[0]),
            metric=str(evaluations["metric"].iloc[0]),
            at_once=len(names),
            digest=digest_of(prompt.values),
        )
        found.append((curve, shared))
    return found


def _source(facts: dict[str, str]) -> str:
    """Return the tasks of a run's source prompts; guessed from their paths if the files are gone."""
    names = []
    for path in facts.get("source_prompt", "").split(","):
        try:
            names.append(Prompt.load(path).metadata.get("task") or Path(path).stem)
        except UserError:
            folder = Path(path).parent.name if re.fullmatch(r"prompt(-.*)?", Path(path).stem) else Path(path).stem
            names.append(re.sub(r"-?seed\d+$", "", folder) or path)
    return "+".join(names)


def _kind(task: str, source: str | None) -> str:
    """Return whether all source tasks have the type of the task; see `Curve.kind`."""
    if not source or source == task:
        return ""
    try:
        types = [get_task(name).type for name in (task, *source.split("+"))]
    except UserError:
        return ""
    same, other = KINDS
    return same if len(set(types)) == 1 else other


def plan(loaded: Sequence[tuple[Curve, dict[str, Any]]]) -> list[tuple[Curve, Curve]]:
    """Pair every transferred curve with the vanilla curve of the same options and seed.

    Raises:
        UserError: a vanilla run is missing or given twice, no run is transferred, or two seeds are the same run.
    """
    vanilla: dict[tuple[str, str], Curve] = {}
    for curve, options in loaded:
        if curve.source is None:
            key = (_key(options), curve.seed)
            if key in vanilla:
                raise UserError(f"{vanilla[key].name} and {curve.name} are the same run twice: give one of them")
            vanilla[key] = curve
    found = []
    for curve, options in loaded:
        if curve.source is None:
            continue
        partner = vanilla.get((_key(options), curve.seed))
        if partner is None:
            raise UserError(f"{curve.name} has no vanilla run to compare with: {_nearest(curve, options, loaded)}")
        found.append((partner, curve))
    if not found:
        raise UserError("none of these runs starts from a prompt (fit --model.init FromPrompt): nothing to compare")
    _check_different([curve for _, curve in found])
    return found


def _check_different(curves: Sequence[Curve]) -> None:
    """Raise UserError if two seeds gave the same prompt, which would make an interval over seeds meaningless."""
    seen: dict[tuple[str, bytes], Curve] = {}
    for curve in curves:
        # Two seeds whose best prompt is the source itself differ in the later evaluations.
        other = seen.setdefault((curve.digest, curve.values.tobytes()), curve)
        if other.seed != curve.seed:
            raise UserError(
                f"{other.name} and {curve.name} are the same run with the seeds {other.seed} and {curve.seed}: from "
                "one source, only --data.seed changes a run; give it too"
            )


def _key(options: dict[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=str)


def _nearest(curve: Curve, options: dict[str, Any], loaded: Sequence[tuple[Curve, dict[str, Any]]]) -> str:
    """Return how the most similar vanilla run differs from a transferred run."""
    best: tuple[list[str], Curve] | None = None
    for other, others in loaded:
        if other.source is not None:
            continue
        differ = [name for name in {**options, **others} if options.get(name) != others.get(name)]
        differ += [] if other.seed == curve.seed else ["seed"]
        if best is None or len(differ) < len(best[0]):
            best = (differ, other)
    if best is None:
        return "all of the runs given start from a prompt"
    return f"the most similar, {best[1].name}, differs in {', '.join(best[0])}"
