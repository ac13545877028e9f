"""The W&B dashboard: a declarative list of panels and the workspace built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from prompt_transfer.tracking.options import WandbOptions
from prompt_transfer.tracking.run import STEP
from prompt_transfer.utils.errors import UserError, install_command

GROUP_BY = ("task", "backbone")
BEST = "best/score"


@dataclass(frozen=True)
class Panel:
    """A dashboard panel.

    Attributes:
        kind: `line` (over `x`), `bar`, `media` (figures), `table`, `parallel` (parallel coordinates of options and best
            score) or `importance` (parameter importance for the best score).
        shows: names of logged values; for `parallel`, configuration options.
        title: panel title.
        x: name of the x axis of a line plot.
    """

    kind: Literal["line", "bar", "media", "table", "parallel", "importance"]
    shows: tuple[str, ...]
    title: str
    x: str = STEP


@dataclass(frozen=True)
class Section:
    """A titled group of panels."""

    name: str
    panels: list[Panel] = field(default_factory=list)


SECTIONS = [
    Section(
        "Convergence",
        [
            Panel("line", ("convergence/score",), "validation score over steps"),
            Panel("line", ("convergence/score",), "over training examples", "convergence/samples"),
            Panel("line", ("convergence/score",), "over seconds", "convergence/seconds"),
            Panel("line", ("best/score", "convergence/majority"), "best so far, and majority class"),
        ],
    ),
    Section(
        "Scores",
        [
            Panel("bar", (BEST,), "best score on validation"),
            Panel("bar", ("best/above_majority",), "above the majority class"),
            Panel("bar", ("best/step",), "step of the best score"),
        ],
    ),
    Section(
        "Training",
        [Panel("line", ("train/loss",), "training loss"), Panel("line", ("validation/loss",), "validation loss")],
    ),
    Section(
        "Transfer",
        [
            Panel("media", ("transfer/matrix", "transfer/matrix_clustered"), "transfer matrix"),
            Panel(
                "bar",
                ("transfer/relative/same", "transfer/relative/different", "transfer/relative/random"),
                "relative score",
            ),
            Panel("table", ("transfer/matrix_table",), "scores"),
            Panel("media", ("analyze_convergence/curves",), "from transferred prompts"),
            Panel("table", ("analyze_convergence/speedups_table",), "speed-ups"),
        ],
    ),
    Section(
        "Neurons",
        [
            Panel("media", ("neurons_compare/overlap", "neurons_compare/overlap_clustered"), "ON"),
            Panel("media", ("neurons_compare/layers", "neurons_mask/masking"), "layers, masks"),
            Panel("media", ("analyze_indicators/ranking", "analyze_indicators/scatter"), "indicators"),
            Panel("table", ("analyze_indicators/correlations_table",), "indicators against transfer"),
        ],
    ),
    Section(
        "Between backbones",
        [
            Panel("media", ("analyze_projection/projection",), "projected prompts and controls"),
            Panel("table", ("analyze_projection/projection_table",), "scores"),
        ],
    ),
    Section(
        "Options",
        [
            Panel("parallel", ("model.learning_rate", "model.prompt_length", "data.batch_size"), "options and score"),
            Panel("importance", (), "parameter importance"),
        ],
    ),
]


def workspace(options: WandbOptions, study: str | None = None, name: str = "prompt-transfer") -> Any:
    """Return the dashboard as an unsaved view, without contacting W&B.

    Args:
        options: entity and project.
        study: restrict the view to the runs of this group.
        name: name of the view.

    Raises:
        UserError: the library is missing, or no entity is given.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(f"a dashboard needs an extra: {install_command('dashboard')}") from error
    found = options.resolved()
    if found.entity is None:
        raise UserError("a dashboard needs a W&B user or team: give --wandb.entity NAME, or set WANDB_ENTITY")

    def made(panel: Panel) -> Any:
        if panel.kind == "line":
            return wr.LinePlot(title=panel.title, x=panel.x, y=list(panel.shows))
        if panel.kind == "bar":
            return wr.BarPlot(title=panel.title, metrics=list(panel.shows), orientation="h")
        if panel.kind == "media":
            return wr.MediaBrowser(title=panel.title, media_keys=list(panel.shows))
        if panel.kind == "table":
            return wr.WeavePanelSummaryTable(table_name=panel.shows[0])
        if panel.kind == "importance":
            return wr.ParameterImportancePlot(with_respect_to=BEST)
        columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(option)) for option in panel.shows]
        columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(BEST)))
        return wr.ParallelCoordinatesPlot(title=panel.title, columns=columns)

    sections = [
        ws.Section(name=section.name, panels=[made(panel) for panel in section.panels], is_open=section is SECTIONS[0])
        for section in SECTIONS
    ]
    runs = ws.RunsetSettings(
        filters=ws.And(ws.Config("study") == study) if study else "",
        groupby=[ws.Config(key) for key in GROUP_BY],
    )
    return ws.Workspace(
        entity=found.entity,
        project=found.project,
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=runs,
    )


def create(options: WandbOptions, study: str | None = None, name: str = "prompt-transfer") -> str:
    """Save the dashboard on W&B and return its URL.

    Args:
        options, study, name: see `workspace`.

    Raises:
        UserError: see `workspace`; or W&B rejected the dashboard or is unreachable.
    """
    view = workspace(options, study, name)
    try:
        return str(view.save().url)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"cannot save the dashboard on W&B: {reason}; log in with `wandb login`") from error
