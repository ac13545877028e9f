"""Built-in tasks: English generated from a lexicon and a grammar, for work without a network.

Nine classification tasks of four types, with two or three domains per type. No label-carrying word occurs in two splits
(train, validation and test each have their own), and all classes of a split share the sentences around those words. So
a model that only counts words stays at the majority class; the score measures the backbone's knowledge of unseen words.
Two generation tasks: questions on a paragraph and one-line summaries. Names, things, places and times of a split occur
in no other split, so answers must be taken from the text. `builtin_rows` returns the same rows in every process.
"""

from __future__ import annotations

from functools import partial

from prompt_transfer.data.builtin import ethics, nli, paraphrase, questions, sentiment, summaries
from prompt_transfer.data.builtin.grammar import SPLIT_SIZES, Row, TextWriter, Writer, rows, text_rows
from prompt_transfer.tasks.builtin import BUILTIN_TASKS
from prompt_transfer.utils.errors import UserError

__all__ = ["BUILTIN_TASKS", "SPLIT_SIZES", "builtin_rows"]

_WRITERS: dict[str, Writer] = {
    "movies": partial(sentiment.write, "movies"),
    "restaurants": partial(sentiment.write, "restaurants"),
    "books": partial(sentiment.write, "books"),
    "nli_people": partial(nli.write, "people"),
    "nli_objects": partial(nli.write, "objects"),
    "ethics_deeds": partial(ethics.write, "deeds"),
    "ethics_excuses": partial(ethics.write, "excuses"),
    "paraphrase_actions": partial(paraphrase.write, "actions"),
    "paraphrase_opinions": partial(paraphrase.write, "opinions"),
}
_TEXT_WRITERS: dict[str, TextWriter] = {"questions": questions.write, "summaries": summaries.write}


_BY_NAME = {task.name: task for task in BUILTIN_TASKS}


def builtin_rows(name: str, split: str) -> list[Row]:
    """Return the rows of one split, shuffled by a fixed seed.

    Args:
        name: a task of `BUILTIN_TASKS`, e.g. `builtin_movies`.
        split: `train` (2000 rows), `validation` (400) or `test` (600).

    Returns:
        One dict per row: `text_a` (str), `text_b` (str, empty for single texts), and `label` (int, 0..C-1; class sizes
        differ by at most one row) or, for generation, `target` (list of str, the first is the training target).

    Raises:
        UserError: no such task or split.
    """
    if name not in _BY_NAME:
        raise UserError(f"there is no built-in task {name}; choose one of {', '.join(_BY_NAME)}")
    if split not in SPLIT_SIZES:
        raise UserError(f"built-in tasks have no split {split}; choose one of {', '.join(SPLIT_SIZES)}")
    short = name.removeprefix("builtin_")
    if short in _TEXT_WRITERS:
        return text_rows(name, split, _TEXT_WRITERS[short])
    return rows(name, split, _BY_NAME[name].num_classes, _WRITERS[short])
