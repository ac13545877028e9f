"""Registry rows of the built-in tasks; `prompt_transfer.data.builtin` generates their texts."""

from __future__ import annotations

from prompt_transfer.tasks.task import CUES, Task

_CLASSIFICATION = (
    "movies",
    "restaurants",
    "books",
    "nli_people",
    "nli_objects",
    "ethics_deeds",
    "ethics_excuses",
    "paraphrase_actions",
    "paraphrase_opinions",
)
# One token each in a lower-cased byte-level BPE of 8 k tokens; shared by all tasks of a type.
_WORDS: dict[str, tuple[str, ...]] = {
    "sentiment": ("terrible", "great"),
    "nli": ("no", "maybe", "yes"),
    "ethics": ("wrong", "right"),
    "paraphrase": ("no", "yes"),
}


def _task(short: str) -> Task:
    kind = short.split("_")[0] if "_" in short else "sentiment"
    return Task(
        name=f"builtin_{short}",
        type=kind,
        text_a="text_a",
        text_b="text_b" if kind in ("nli", "paraphrase") else None,
        label_column="label",
        label_words=_WORDS[kind],
        builtin=True,
        cue=CUES[kind],
        title="built-in " + short.replace("_", " "),
    )


def _text_task(short: str, kind: str, text_b: str | None, metrics: tuple[str, ...], max_target_length: int) -> Task:
    return Task(
        name=f"builtin_{short}",
        type=kind,
        text_a="text_a",
        text_b=text_b,
        label_column=None,
        metric=metrics[0],
        metrics=metrics,
        target_column="target",
        max_target_length=max_target_length,
        builtin=True,
        cue=CUES[kind],
        title="built-in " + short.replace("_", " "),
    )


BUILTIN_TASKS: tuple[Task, ...] = (
    *(_task(short) for short in _CLASSIFICATION),
    _text_task("questions", "qa", "text_b", ("squad_f1", "exact_match"), 12),
    _text_task("summaries", "summarization", None, ("rougeL", "rouge1", "rouge2"), 16),
)
"""The built-in rows of the registry, sentiment first, generation last."""
