"""Write tables of speed and memory into a Markdown page, from the reports in `results/benchmarks`.

    python benchmarks/table.py --folder results/benchmarks --page docs/pages/speed.md

The tables replace the text between two markers. A missing report is skipped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompt_transfer.commands.parsing import call
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
NAMES = {"roberta": "RoBERTa-base", "gpt2": "GPT-2", "t5": "T5-base"}
STEPS = {
    "old": "old releases: 128 tokens, whole head",
    "plain": "plain Hugging Face loop",
    "peft_autocast": "PEFT, bf16 autocast",
    "peft": "PEFT",
    "full_random": "`full`, same batches as PEFT",
    "full": "`full`",
    "shared_random": "`shared`, same batches as PEFT",
    "shared": "`shared`",
    "full_compiled": "`full`, compiled",
    "shared_compiled": "`shared`, compiled",
}
PREDICTIONS = {
    "loop": "transformers' forward, all logits",
    "loop_last": "transformers' forward, logits of the last position",
    "classify": "`classify`",
    "transfer": "`transfer`, for each of several prompts",
}


def number(value: Any) -> str:
    """Format a number with three digits; "" if it was not measured."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; all but the first two columns are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(number(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def where(report: dict[str, Any]) -> str:
    """Return a report's machine and libraries in one line."""
    machine, versions = report["machine"], report["versions"]
    place = machine["gpu"] or f"{machine['cpu']}, {report.get('threads', machine['cores'])} threads"
    return f"{place}; {', '.join(f'{name} {version}' for name, version in versions.items())}"


def steps(report: dict[str, Any]) -> str:
    """Return the section on training steps."""
    keys = ("seconds", "faster_than_peft", "faster_than_old", "peak_mib", "over_matrix_floor", "over_floor_with_bytes")
    rows = [
        [NAMES.get(row["model"], row["model"]), STEPS[row["step"]], row["dtype"], *(row.get(key) for key in keys)]
        for row in report["rows"]
    ]  # fmt: skip
    own = report.get("backbone") is not None
    head = ["model" if own else "sizes of", "way", "weights", "s a step", "x PEFT", "x old", "peak MiB"]
    head += ["over matrix floor", "with bytes"]
    what = f"A training step: {report['batch_size']} texts of {report['texts']}, prompt of {report['prompt_length']}"
    how = f"{'its own' if own else 'random'} weights, median of {report['steps']}, ways taken in turn ({where(report)})"
    note = "x PEFT: against its faster way. The floor is that of the arithmetic (`benchmarks/floor.py`)."
    return f"{what}, {how}. {note}{noted(report)}\n\n{markdown(head, rows)}"


def prediction(report: dict[str, Any]) -> str:
    """Return the section on prediction."""
    keys = ("seconds", "texts_per_second", "faster_than_loop", "faster_than_loop_last")
    rows = [[report["backbone"], PREDICTIONS[row["way"]], *(row[key] for key in keys)] for row in report["rows"]]
    head = ["model", "way", "s", "texts a second", "x loop", "x loop, last position"]
    what = (
        f"{report['what'][0].upper()}{report['what'][1:]} ({report['texts']}), prompt length {report['prompt_length']}"
    )
    how = f"batches of {report['batch_size']}, {report['dtype']}, median of {report['repeats']} ({where(report)})"
    same = f"Same labels as the loop: {report['same_label_as_loop']:.0%}"
    apart = f"largest difference of a probability {number(report['largest_difference_to_loop'])}"
    return (
        f"{what}, {how}. {same}, {apart} ({number(report['largest_difference_of_the_loops'])} between the loops)."
        + (f"{noted(report)}\n\n{markdown(head, rows)}")
    )


def noted(report: dict[str, Any]) -> str:
    """Return a report's manual note as a sentence."""
    return f" {report['note'][0].upper()}{report['note'][1:]}." if "note" in report else ""


def cost(report: dict[str, Any]) -> str:
    """Return the section on growth of cost."""
    base = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report["base"].items())
    keys = ("seconds", "over_base", "expected")
    rows = [
        [row["varied"].replace("_", " "), row["attention"], str(row["value"]), *(row[key] for key in keys)]
        for row in report["rows"]
    ]  # fmt: skip
    head = ["varied", "attention", "value", "s a step", "over base", "products over base"]
    what = f"Growth of a step's cost, RoBERTa-base sizes, {report['dtype']}, from the base point {base}"
    return f"{what} ({where(report)}).\n\n{markdown(head, rows)}"


def many(report: dict[str, Any]) -> str:
    """Return the section on training several prompts together."""
    keys = ("at_once_s", "one_after_the_other_s", "speed", "cost_over_one_run")
    rows = [[row["attention"], str(row["prompts"]), *(row[key] for key in keys)] for row in report["rows"]]
    head = ["attention", "prompts", "at once, s", "one after the other, s", "times faster", "over one run"]
    alone = report.get("alone")
    note = "" if alone is None else f" Of the runs one after the other at most {alone} were measured, and scaled to N."
    return f"{report['what']}, {report['steps']} steps ({where(report)}).{note}\n\n{markdown(head, rows)}"


def start(report: dict[str, Any]) -> str:
    """Return the section on the start-up of `fit`."""
    keys = ("total", "import", "parse", "load", "data", "first_step", "rest")
    rows = [[row["backbone"], *(row[key] for key in keys)] for row in report["rows"]]
    head = ["backbone", *(key.replace("_", " ") for key in keys)]
    return (
        f"From the command `fit` to the end of its first step, seconds, median of {report['repeats']}.\n\n"
        + markdown(head, rows)
    )


def race(report: dict[str, Any]) -> str:
    """Return the section on the time to PEFT's accuracy."""
    best = [row for row in report["rows"] if row.get("best")]
    peft = {row["backbone"]: row for row in best if row["way"] == "peft"}
    rows = [
        [row["backbone"], "PEFT" if row["way"] == "peft" else "`shared`", str(row["learning_rate"]), row["accuracy"],
         str(row["mark_steps"] or row["steps"]), row["mark_seconds"] or row["seconds"],
         _sooner(row, peft[row["backbone"]])]
        for row in best
    ]  # fmt: skip
    head = ["backbone", "way", "learning rate", "final accuracy", "steps", "s of training", "sooner than PEFT"]
    what = f"{report['what'][0].upper()}{report['what'][1:]}, each way with its best learning rate, mean of"
    count = report["seeds"].count(",") + 1
    seeds = f"{count} seeds" if count > 1 else "one seed"
    return f"{what} {seeds} ({where(report)}).{noted(report)}\n\n{markdown(head, rows)}"


def _sooner(row: dict[str, Any], peft: dict[str, Any]) -> float | str:
    """Return the speed-up to the target accuracy, or "not reached"."""
    return peft["mark_seconds"] / row["mark_seconds"] if row["mark_seconds"] else "not reached"


PARTS = {
    "training_step": steps, "training_step_smollm2": steps, "predict_smollm2": prediction, "time_to_accuracy": race,
    "many_prompts": many, "many_prompts_smollm2": many, "start_up": start, "cost": cost,
}  # fmt: skip


def run(folder: str = "results/benchmarks", page: str = "docs/pages/speed.md", parts: str = ",".join(PARTS)) -> None:
    """Write the tables.

    Args:
        folder: folder of the reports.
        page: Markdown file with the two markers.
        parts: reports to show, in this order.
    """
    text = Path(page).read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{page} lacks the markers {BEGIN} and {END}; add both, the tables are written between them")
    found = []
    for part in parts.split(","):
        file = Path(folder) / f"{part}.json"
        if file.is_file():
            found.append(PARTS[part](json.loads(file.read_text(encoding="utf-8"))))
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    inside = "\n\n".join(["## How fast is it?", *found]) + "\n" if found else ""
    write_text_atomic(page, f"{before}{BEGIN}\n{inside}{END}{after}")


if __name__ == "__main__":
    call(run, "table", sys.argv[1:])
