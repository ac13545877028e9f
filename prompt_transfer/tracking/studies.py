"""Output files of each command, and their upload to W&B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.tracking import charts
from prompt_transfer.tracking.mlflow_run import MlflowTracker, source_facts
from prompt_transfer.tracking.options import MlflowOptions, WandbOptions
from prompt_transfer.tracking.run import Tracker, to_table
from prompt_transfer.utils.distributed import torchrun_rank

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study:
    """Output files and inputs of a command.

    Attributes:
        tables: CSV or Parquet files.
        figures: PNG files.
        headline: computes summary numbers from the tables.
        chart: title of the bar chart of these numbers.
        inputs: options with prompt files or folders.
        projectors: options with projector files.
        prompts: whether the command writes prompts.
    """

    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    headline: charts.Headline | None = None
    chart: str = ""
    inputs: tuple[str, ...] = ("prompts",)
    projectors: tuple[str, ...] = ()
    prompts: bool = False


STUDIES = {
    "transfer": Study(
        ("results.parquet", "matrix.csv", "summary.csv", "best_sources.csv"),
        ("matrix.png", "matrix_clustered.png", "summary.png"),
        charts.matrix_means,
        "transfer, mean over pairs",
    ),
    **{
        command: Study(
            ("results.csv", "differences.csv", "per_class.csv", "confusion_matrix.csv", "calibration.csv"),
            ("confusion_matrix.png",),
            charts.scored,
            inputs=("prompt",),
        )
        for command in ("test", "validate")
    },
    "compare": Study(("results.parquet", "summary.csv", "differences.csv"), ("compare.png", "curves.png"), inputs=()),
    "neurons compare": Study(
        ("overlap.csv", "overlap.parquet"),
        ("overlap.png", "overlap_clustered.png", "activations.png", "layers.png"),
        charts.overlap,
    ),
    "neurons mask": Study(("results.parquet", "summary.csv"), ("masking.png",), charts.masked, "points lost by masks"),
    "analyze convergence": Study(
        ("runs.csv", "pairs.csv", "speedups.csv"),
        ("speedups.png", "curves.png"),
        charts.speedups,
        "speed-up in steps",
        inputs=("runs",),
    ),
    "analyze indicators": Study(
        ("correlations.csv", "indicators.parquet"),
        ("similarity.png", "ranking.png", "layers.png", "scatter.png"),
        charts.ranking,
        "how well indicators rank sources",
    ),
    "analyze matrix": Study(
        ("summary.csv", "best_sources.csv"),
        ("summary.png",),
        charts.matrix_means,
        "transfer, mean over pairs",
        inputs=(),
    ),
    "analyze projection": Study(
        ("projection.csv",),
        ("projection.png",),
        charts.projected,
        "mean scores over tasks",
        inputs=("sources", "own"),
        projectors=("projectors",),
    ),
    "prompts project": Study(inputs=("sources",), projectors=("projector",), prompts=True),
    "prompts recommend": Study(("recommendation.csv", "costs.csv", "quality.csv", "judgements.csv")),
}


def publish(command: str, values: Mapping[str, Any], options: WandbOptions | MlflowOptions) -> None:
    """Log a command's tables, figures, charts, headline numbers and artifacts to W&B or MLflow as one run.

    Only the first process logs.

    Args:
        command: a key of `STUDIES`.
        values: its options, including `output`.
        options: W&B's or MLflow's settings of the run.
    """
    if torchrun_rank().rank:
        return
    study, output = STUDIES[command], Path(values["output"]).expanduser()
    folder = output if output.is_dir() else output.parent
    if isinstance(options, MlflowOptions):
        _publish_mlflow(command, values, options)
        return
    tracker = Tracker(command, f"{command} {output.stem}", folder, _config(values, options), options, tags=[command])
    tracker.start()
    try:
        with tracker.shielded("part of the study was not logged"):
            _send(tracker, command, study, values, output)
    except BaseException:
        tracker.finish(1)
        raise
    tracker.finish()


def _publish_mlflow(command: str, values: Mapping[str, Any], options: MlflowOptions) -> None:
    """Log a command's tables, figures, headline numbers and prompts to MLflow as one run."""
    from prompt_transfer.tracking.artifacts import find_prompt_files

    study, output = STUDIES[command], Path(values["output"]).expanduser()
    folder = output if output.is_dir() else output.parent
    tracker = MlflowTracker(command, f"{command} {output.stem}", folder, _config(values, options), options, [command])
    tracker.start()
    code = 1
    try:
        with tracker.shielded("part of the study was not logged"):
            if found := source_facts(list(find_prompt_files(_places(values, study.inputs)))):
                tracker.set_tag("source_prompts", found)
            frames, figures = read(study, output)
            for name, frame in frames.items():
                tracker.log_table(Path(name).stem, frame)
            for path in figures.values():
                tracker.log_file(path, "figures")
            for path in find_prompt_files([output]) if study.prompts else ():
                tracker.log_file(path, "prompts")
            if frames and study.headline is not None:
                prefix = command.replace(" ", "_")
                tracker.log({f"{prefix}/{name}": value for name, value in study.headline(frames).items()})
        code = 0
    finally:
        tracker.finish(code)


def _config(values: Mapping[str, Any], options: WandbOptions | MlflowOptions) -> dict[str, Any]:
    known = {"study": options.resolved().group}
    if values.get("backbone"):
        known["backbone"] = Path(str(values["backbone"])).name
    # The short backbone name replaces the option: runs are grouped by it.
    return {**{key: _plain(value) for key, value in values.items()}, **known}


def _plain(value: Any) -> Any:
    return dict(vars(value)) if hasattr(value, "__dataclass_fields__") else value


def _send(tracker: Tracker, command: str, study: Study, values: Mapping[str, Any], output: Path) -> None:
    from prompt_transfer.tracking import artifacts

    for path in artifacts.find_prompt_files(_places(values, study.inputs)):
        tracker.use(artifacts.prompt_artifact(path))
    for place in _places(values, study.projectors):
        tracker.use(artifacts.projector_artifact(place))
    if study.prompts:
        for path in artifacts.find_prompt_files([output]):
            tracker.add(artifacts.prompt_artifact(path))
    frames, figures = read(study, output)
    if not frames:
        return
    tracker.log(_shown(command.replace(" ", "_"), study, frames, figures))
    if study.headline is not None:
        tracker.summarize(
            {f"{command.replace(' ', '_')}/{name}": value for name, value in study.headline(frames).items()}
        )
    files = [output / name for name in (*frames, *figures, "config.yaml") if (output / name).is_file()]
    tracker.add(artifacts.results_artifact(f"{command}-{output.name}", files))


def read(study: Study, folder: Path) -> tuple[dict[str, pd.DataFrame], dict[str, Path]]:
    """Return the existing tables and figures of a study by file name."""
    import pandas as pd

    frames = {}
    for name in study.tables:
        if (folder / name).is_file():
            frames[name] = pd.read_csv(folder / name) if name.endswith(".csv") else pd.read_parquet(folder / name)
    return frames, {name: folder / name for name in study.figures if (folder / name).is_file()}


def _shown(
    prefix: str, study: Study, frames: Mapping[str, pd.DataFrame], figures: Mapping[str, Path]
) -> dict[str, Any]:
    """Return W&B media by name: `transfer/matrix` (figure), `transfer/matrix_table`, `transfer/matrix_heatmap`, ..."""
    import wandb

    shown: dict[str, Any] = {}
    for name, frame in frames.items():
        # A Parquet table with a CSV of the same name needs another key.
        suffix = "table" if name.endswith(".csv") or f"{Path(name).stem}.csv" not in frames else "rows"
        shown[f"{prefix}/{Path(name).stem}_{suffix}"] = to_table(frame)
        if name in charts.HEATMAPS:
            shown[f"{prefix}/{Path(name).stem}_heatmap"] = charts.heatmap(frame, charts.HEATMAPS[name])
    headline = study.headline(frames) if study.headline is not None and study.chart else {}
    if headline:
        shown[f"{prefix}/headline"] = charts.bars(headline, study.chart)
    shown |= {f"{prefix}/{Path(name).stem}": wandb.Image(str(path)) for name, path in figures.items()}
    return shown


def _places(values: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for name in names:
        value = values.get(name)
        found += [value] if isinstance(value, str) else list(value or [])
    return found
