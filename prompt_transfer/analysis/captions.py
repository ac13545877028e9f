"""Captions of the figures. They are written next to a figure, or below it in a report, never into the image."""

from __future__ import annotations

MATRIX = (
    "Transfer matrix. Numbers: scores in per cent, means over the prompts (seeds) of a source. Colours: relative "
    "performance, the score divided by that of the target's own prompt (framed), over the range of the coloured cells. "
    "Grey: the target has no prompt of its own, or was not learned (*): its own prompt is not above the majority "
    "class, so relative performance compares noise."
)
MATRIX_CLUSTERED = (
    MATRIX + " Rows and columns are ordered by average-linkage clustering of the other targets; targets that were not "
    "learned come last."
)
SUMMARY = (
    "Mean relative performance of prompts from tasks of the same type, "
    "of other types, and of random prompts, by type of "
    "the target. Bars: 95 % bootstrap intervals over targets; none for "
    "fewer than three. Dashed: the target's own prompt."
)
SIMILARITY = "{name} between tasks, means over their prompts. Lines separate task types. Grey: no value."
RANKING = (
    "How well each indicator predicts transfer. Bars: 95 % bootstrap "
    "intervals over tasks. Dashed: chance. A confounder "
    "ignores what prompts do; an indicator must beat it. Indicators without a value are left out."
)
INDICATOR_LAYERS = (
    "The overlap of activated neurons of single layers as an indicator. "
    "Band: 95 % bootstrap interval over tasks. The best "
    "of several layers is more likely to be good by chance."
)
SCATTER = (
    "Indicators against relative performance, one mark per pair of different tasks. Dashed: the target's own prompt. "
    "Spearman's rank correlation over all pairs; a dash where there are too few."
)
OVERLAP = (
    "Overlap of activated neurons (ON) between tasks, means over their "
    "prompts. Lines separate task types. Grey: no value."
)
OVERLAP_CLUSTERED = (
    "Overlap of activated neurons (ON) between tasks, ordered by "
    "average-linkage clustering of 1 - ON. Colours of the names "
    "are task types."
)
OVERLAP_LAYERS = (
    "Mean overlap of activated neurons (ON) by layer, for task pairs of the same and of different types. Bars: 95 % "
    "intervals over pairs."
)
ACTIVATIONS = (
    "Share of active neurons of each prompt. In each layer the neurons "
    "that most prompts activate come first; a column is a "
    "group of neurons."
)
MASKING = (
    "Points lost when a prompt's most activated neurons are masked, "
    "and when as many neurons of other prompts, or random "
    "ones, are masked. Means over {tasks} tasks; bars: 95 % bootstrap intervals over tasks."
)
PROJECTION = (
    "Scores of projected prompts, the target backbone's own prompts and controls, one panel per projector (means over "
    "its seeds). Lines: 95 % intervals over examples of projected and own prompts. In brackets: training task of the "
    "projector (trained), or of the same type as one. Other controls are in the table."
)
SPEEDUPS = (
    "Speed-up of training from a transferred prompt over vanilla training: geometric means over seeds with 95 % "
    "bootstrap intervals (three runs or more); the last rows are over all pairs. Open mark with an arrow: a lower "
    "bound, no interval. Dashed: as fast as vanilla. At the right: pairs of runs that have a speed-up, of all pairs; "
    "the others did not learn, or never reached vanilla's score."
)
COMPARISON = (
    "Left: score of each method, mean over seeds (small dots: single seeds) with its 95 % bootstrap interval over "
    "examples and seeds. Right: the same marks against the number of trained parameters. Dashed: majority class."
)
COMPARISON_CURVES = (
    "Score on the validation split during training, means over seeds. Bands: range of the seeds; none for fewer than "
    "three. Dashed: majority class."
)
SCORES = "95 % bootstrap intervals over examples."
RUNS = "Score on the validation split during training, one line per run. Dashed: majority class."
RECOMMENDATION = (
    "How well each ranking orders the sources: nDCG, the mean over targets, judged by the transfer matrix. Bars: 95 % "
    "bootstrap intervals over targets. Dashed: a random order."
)
QUICKSTART = "Accuracy on the test splits."
LEARNING_CURVE = "Score on the validation split during training. Dashed: majority class."


def convergence(tolerance: float) -> str:
    """Return the caption of convergence curves."""
    return (
        f"Marks: convergence, the first evaluation within {100 * tolerance:g} points of a run's best. Convergence "
        "speed-up: vanilla's mark / the transferred run's. Comparable-result speed-up: vanilla's mark / the first "
        "point where the transferred run reaches that score. Evaluated from step 0, same budget and data order. Lines: "
        "means over seeds; grey dashes: vanilla; dotted: majority class. Bands: 95 % interval of the mean over seeds; "
        "none for fewer than three."
    )
