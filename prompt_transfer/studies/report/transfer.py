"""Report sections of transfer matrices and of scores of single prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from prompt_transfer.analysis import captions
from prompt_transfer.analysis.contrasts import AGAINST, contrasts
from prompt_transfer.analysis.heatmaps import KINDS, summary_figure, transfer_heatmap
from prompt_transfer.analysis.matrix import BASELINES, Matrix, from_results, read_matrix
from prompt_transfer.analysis.matrix_summary import best_sources, summarize
from prompt_transfer.analysis.style import colour_range, task_labels, type_label
from prompt_transfer.studies.report import charts
from prompt_transfer.studies.report.content import (
    DASH,
    Chart,
    Column,
    Control,
    Figure,
    Section,
    Table,
    Tile,
    counted,
    number,
    records,
)
from prompt_transfer.tasks.registry import display_name

ENDS = ("low", "high")
NO_OWN = "the target has no prompt of its own"
# A target whose own prompt is barely above the majority class has scores far below it, which would fix the scale.
LEAST_CHANCE_CORRECTED = -1.0
MEASURES = {"relative": "relative performance", "value": "score", "chance_corrected": "chance-corrected score"}


def source_name(name: object) -> str:
    """Return the display name of a source: a task, a kind of random prompt, or a baseline."""
    return task_labels([name])[0]


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per target and source of `results.parquet`: means over the source's prompts (seeds).

    `low` and `high` are the mean limits of the prompts' own intervals over examples; `seeds` lists their scores.
    """
    keys = ["task", "source", "kind"]
    named = {"value": "mean", "low": "mean", "high": "mean", "n": "first", "relative": "mean", "learned": "first"}
    named |= {"chance_corrected": "mean", "task_type": "first", "source_type": "first", "metric": "first"}
    found = frame.groupby(keys, sort=False, observed=True).agg(
        **{key: (key, how) for key, how in named.items() if key in frame},
        prompts=("value", "size"),
        seeds=("value", lambda values: ", ".join(f"{value:.3f}" for value in values)),
    )
    found = found.reset_index()
    majority = found[found["kind"].isin(BASELINES)].set_index("task")["value"]
    random = found[found["kind"] == "random"].groupby("task")["value"].mean()
    own = found[(found["kind"] == "trained") & (found["task"] == found["source"])].set_index("task")["value"]
    for name, values in (("majority", majority), ("random", random), ("own", own)):
        found[name] = found["task"].map(values)
    return found


def section(path: Path) -> Section:
    """Return the section of a transfer study, from its `results.parquet`."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    matrix, table = from_results(frame), cells(frame)
    facts = f"{counted(frame.loc[frame['kind'] == 'trained', 'prompt'].nunique(), 'prompt')} of "
    facts += f"{counted(frame.loc[frame['kind'] == 'trained', 'source'].nunique(), 'task')} on "
    facts += f"{counted(matrix.scores.shape[0], 'target task')}, backbone {', '.join(frame['backbone'].unique())}, "
    facts += f"{' and '.join(map(str, frame['split'].unique()))} split."
    found = _of_matrix(matrix, path.parent)
    found.lead = f"The score of every prompt on every task, unchanged: {facts}"
    found.charts.insert(0, _heatmap(matrix, table))
    found.tables.insert(0, _cell_table(table))
    found.tables.append(_prompt_table(frame))
    return found


def matrix_section(path: Path) -> Section:
    """Return the section of a matrix without a table of results, from `matrix.csv`."""
    matrix = read_matrix(path)
    found = _of_matrix(matrix, path.parent)
    whole = pd.concat([matrix.scores, matrix.random], axis=1)
    relative, chance = matrix.measured(whole, "relative"), matrix.measured(whole, "chance_corrected")
    rows = [
        {
            "task": task,
            "source": source,
            "kind": "random" if source in matrix.random else "trained",
            "value": whole.loc[task, source],
            "relative": relative.loc[task, source],
            "chance_corrected": chance.loc[task, source],
            "own": matrix.own[task],
            "majority": matrix.baseline[task],
        }
        for task in whole.index
        for source in whole.columns
    ]
    table = pd.DataFrame(rows)
    found.lead = f"A transfer matrix: {counted(len(whole), 'target')}, {counted(whole.shape[1], 'source')}."
    found.charts.insert(0, _heatmap(matrix, table))
    found.tables.insert(0, _cell_table(table))
    return found


def _of_matrix(matrix: Matrix, folder: Path) -> Section:
    summary = _reliable(summarize(matrix), matrix)
    found = Section("Transfer between tasks", "", "transfer", folder)
    found.tiles = _tiles(summary)
    if matrix.learned is not None and not matrix.learned.isna().all():
        learned = int(matrix.learned.fillna(False).astype(bool).sum())
        total = int(matrix.learned.notna().sum())
        found.tiles.append(Tile("targets learned", f"{learned} of {total}", "own prompt above the majority class"))
        if learned < total:
            found.notes.append(
                f"{total - learned} of {total} targets were not learned: their own prompt is not above the majority "
                "class, so relative scores there compare noise."
            )
    if len(summary):
        found.charts.append(_means(summary))
        found.tables.append(_mean_table(summary))
        found.figures.append(Figure("summary", captions.SUMMARY, lambda: summary_figure(summary)))
    differences = _reliable(contrasts(matrix), matrix)
    if len(differences):
        found.tables.append(_contrast_table(differences))
    best = best_sources(matrix)
    if len(best):
        found.tables.append(_best_table(best))
    found.figures.insert(0, Figure("matrix", captions.MATRIX, lambda: transfer_heatmap(matrix)))
    if len(matrix.scores) > 2:
        ordered = Figure(
            "matrix_clustered", captions.MATRIX_CLUSTERED, lambda: transfer_heatmap(matrix, clustered=True)
        )
        found.figures.insert(1, ordered)
    return found


def _tiles(summary: pd.DataFrame) -> list[Tile]:
    whole = summary[(summary["measure"] == "relative") & (summary["type"] == "all") & (summary["targets"] == "all")]
    rows = {row["kind"]: row for row in records(whole)}
    return [
        Tile(f"relative, {label}", number(row["mean"], 2), _interval(row))
        for kind, label in KINDS.items()
        if (row := rows.get(kind)) is not None
    ]


def _interval(row: dict[str, Any]) -> str:
    targets = counted(row["n_targets"], "target")
    return targets if row["low"] is None else f"[{number(row['low'], 2)}, {number(row['high'], 2)}], {targets}"


def _heatmap(matrix: Matrix, table: pd.DataFrame) -> Chart:
    shown = table[~table["kind"].isin(BASELINES)]
    names = {
        str(name): display_name(name) + (" *" if name in matrix.not_learned else "") for name in matrix.scores.index
    }
    order_y = [names[name] for name in matrix.by_type(matrix.scores.index)]
    sources = [*matrix.by_type(matrix.scores.columns), *matrix.random.columns]
    rows = []
    grid = pd.MultiIndex.from_product([matrix.scores.index, sources], names=["task", "source"])
    # With the cells that were not scored: they are drawn grey.
    whole = shown.set_index(["task", "source"]).reindex(grid).reset_index()
    for row in records(whole):
        text = Column("value", "score", "number", ends=ENDS).text(row)
        three = {key: Column(key, "", "number").text(row) for key in ("relative", "chance_corrected", "own", "random")}
        rows.append(
            {
                **{key: row.get(key) for key in MEASURES},
                "target": names[row["task"]],
                "source": source_name(row["source"]),
                "framed": row["task"] == row["source"],
                "plain": row["task"] in matrix.not_learned,
                "score_text": text,
                **{f"{key}_text": value for key, value in three.items()},
                "majority_text": Column("majority", "", "number").text(row),
                "n_text": Column("n", "", "number", 0).text(row),
                "seeds": row.get("seeds") or DASH,
                "learned_text": Column("learned", "").text(row),
            }
        )
    hover = {"target": "target", "source": "source of the prompt", "score_text": "score [95 % interval]"}
    hover |= {"n_text": "examples", "seeds": "score of each prompt", "relative_text": "relative performance"}
    hover |= {"chance_corrected_text": "chance-corrected score", "own_text": "target's own prompt"}
    hover |= {"random_text": "random prompts", "majority_text": "majority class", "learned_text": "target learned"}
    measures = {key: title for key, title in MEASURES.items() if shown[key].notna().any()}
    spec = charts.heatmap(
        f"Heat map of the transfer matrix, {len(order_y)} targets in rows, {len(sources)} sources in columns",
        rows,
        (
            charts.axis("source", [source_name(name) for name in sources], "source of the prompt", True),
            charts.axis("target", order_y, "target"),
        ),
        {key: _domain(shown[~shown["task"].isin(matrix.not_learned)], key) for key in measures},
        hover,
    )
    caption = (
        "Frame: the target's own prompt. Relative performance: score / score of the target's own prompt. "
        "Chance-corrected: (score - majority class) / (own prompt - majority class). Colours span the coloured cells; "
        f"chance-corrected scores below {number(LEAST_CHANCE_CORRECTED, 0)} have the colour of that value. "
        "Grey with a dash: no value."
    )
    if matrix.not_learned:
        caption += (
            " * Grey with a number: the target was not learned, its own prompt is not above the majority class, so "
            "scores relative to it compare noise."
        )
    return Chart("matrix", "Transfer matrix", spec, caption, [Control("measure", "Show", measures)])


def _domain(table: pd.DataFrame, measure: str) -> tuple[float, float]:
    """Return the range of the colours of a measure: that of the values, from `LEAST_CHANCE_CORRECTED` at the lowest."""
    values = table[measure].dropna()
    return colour_range(values.clip(lower=LEAST_CHANCE_CORRECTED) if measure == "chance_corrected" else values)


def _reliable(table: pd.DataFrame, matrix: Matrix) -> pd.DataFrame:
    """Drop chance-corrected means over all targets if some were not learned: those divide by noise."""
    noise = (table["measure"] == "chance_corrected") & (table["targets"] == "all") & bool(matrix.not_learned)
    return table[~noise]


def _means(summary: pd.DataFrame) -> Chart:
    rows = []
    for row in records(summary[summary["kind"].isin(KINDS)]):
        scope = row["measure"] if row["targets"] == "all" else f"{row['measure']}, learned"
        title = type_label(str(row["type"]))
        rows.append(
            {
                "select": scope,
                "type": title,
                "kind": KINDS[row["kind"]],
                "value": row["mean"],
                "low": row["low"],
                "high": row["high"],
                "text": Column("mean", "", "number", ends=ENDS).text(row),
                "pairs": row["n_pairs"],
                "targets": row["n_targets"],
            }
        )
    order = list(dict.fromkeys(row["type"] for row in rows))
    hover = {"type": "type of the target", "kind": "source", "text": "mean [95 % interval]", "targets": "targets"}
    spec = charts.dots(
        "Mean transfer by kind of source and type of the target",
        rows,
        charts.axis("type", order, None),
        "mean over pairs",
        ("kind", list(KINDS.values())),
        {**hover, "pairs": "pairs"},
        reference=1,
    )
    scopes = list(dict.fromkeys(row["select"] for row in rows))
    spec["params"] = [{"name": "select", "value": scopes[0]}]
    spec["transform"] = [{"filter": "datum.select == select"}]
    caption = (
        "Means over pairs of tasks, with 95 % bootstrap intervals over "
        "targets (three or more). 1: as good as the own prompt."
    )
    names = {scope: scope.replace("_", "-").replace(", learned", ", learned targets only") for scope in scopes}
    return Chart("means", "Means by type", spec, caption, [Control("select", "Measure", names)])


def _cell_table(table: pd.DataFrame) -> Table:
    columns = [
        Column("task", "target", "task"),
        Column("source", "source"),
        Column("value", "score", "number", ends=ENDS),
        Column("n", "examples", "number", 0),
        Column("prompts", "prompts", "number", 0),
        Column("relative", "relative", "number", missing=NO_OWN),
        Column("chance_corrected", "chance-corrected", "number", missing=NO_OWN),
        Column("random", "random prompts", "number", missing="no random prompts were scored"),
        Column("majority", "majority class", "number", missing="unknown"),
        Column("learned", "learned", missing=NO_OWN),
    ]
    columns = [column for column in columns if column.key in table]
    rows = [{**row, "source": source_name(row["source"])} for row in records(table)]
    return Table("cells", "All cells of the matrix", columns, rows, "Means over the prompts (seeds) of a source.")


def _mean_table(summary: pd.DataFrame) -> Table:
    columns = [
        Column("measure", "measure"),
        Column("targets", "targets"),
        Column("type", "type of the target"),
        Column("kind", "source"),
        Column("mean", "mean", "number", ends=ENDS),
        Column("n_targets", "number of targets", "number", 0),
        Column("n_pairs", "pairs", "number", 0),
    ]
    rows = [{**row, "measure": str(row["measure"]).replace("_", "-")} for row in records(summary)]
    rows = [{**row, "kind": KINDS.get(str(row["kind"]), source_name(row["kind"]))} for row in rows]
    caption = "95 % bootstrap intervals over targets; none for fewer than three targets."
    return Table("means", "Means by type and kind of source", columns, rows, caption)


def _contrast_table(differences: pd.DataFrame) -> Table:
    columns = [
        Column("measure", "measure"),
        Column("targets", "targets"),
        Column("against", "same type minus"),
        Column("difference", "difference", "number", ends=ENDS),
        Column("p_value", "p", "number"),
        Column("n_targets", "number of targets", "number", 0),
        Column("n_better", "positive", "number", 0),
    ]
    rows = [
        {**row, "measure": str(row["measure"]).replace("_", "-"), "against": AGAINST[str(row["against"])]}
        for row in records(differences)
    ]
    caption = (
        "Each target's same-type sources minus its other sources; 95 % bootstrap intervals over targets (and seeds, if "
        "there are several), two-sided permutation test of the signs."
    )
    return Table("contrasts", "Sources of the same type against others", columns, rows, caption)


def _best_table(best: pd.DataFrame) -> Table:
    columns = [
        Column("target", "target", "task"),
        Column("type", "type"),
        Column("best", "best source", "task"),
        Column("best_type", "its type"),
        Column("same_type", "same type"),
        Column("relative", "relative", "number"),
    ]
    return Table("best_sources", "Best source of each target", columns, records(best))


def _prompt_table(frame: pd.DataFrame) -> Table:
    columns = [
        Column("task", "target", "task"),
        Column("prompt", "prompt"),
        Column("seed", "seed", "number", 0, missing="a baseline has no seed"),
        Column("metric", "metric"),
        Column("value", "score", "number", ends=ENDS),
        Column("relative", "relative", "number", missing=NO_OWN),
        Column("chance_corrected", "chance-corrected", "number", missing=NO_OWN),
    ]
    rows = records(frame[[column.key for column in columns] + ["low", "high"]])
    return Table("prompts", "Every prompt on every task", columns, rows, "95 % bootstrap intervals over examples.")
