"""Parts of a user's task file: templates, texts in place of values, and multiple choice."""

from __future__ import annotations

from typing import Any

from prompt_transfer.backbones.templates import Template
from prompt_transfer.tasks.task import CHOICE_SCORES
from prompt_transfer.utils.errors import UserError


def word(value: Any) -> str:
    """Return a word of a YAML file, which parses true, false and numbers, as a string."""
    return (str(value).lower() if isinstance(value, bool) else str(value)).strip()


def texts_format(fields: Any, columns: dict[str, Any]) -> dict[str, Any]:
    """Return the template and chat template of a task.

    Raises:
        UserError: a template that does not fit the texts, or one besides a cue.
    """
    template, chat = fields._string("template", required=False), fields.values.get("chat_template", False)
    if not isinstance(chat, bool):
        raise fields._fail(f"chat_template must be true or false, not {chat!r}")
    if template is not None:
        if "cue" in fields.values:
            raise fields._fail("a template replaces the cue: write the cue's words at its end, and leave out cue")
        try:
            Template.parse(template, columns.get("text_b") is not None)
        except UserError as error:
            raise fields._fail(str(error)) from error
    return {"template": template, "chat_template": chat}


def multiple_choice(fields: Any) -> dict[str, Any]:
    """Return the fields of a multiple-choice task.

    Raises:
        UserError: they are not valid.
    """
    wrong = [key for key in ("label_words", "label_words_policy", "drop_labels", "group") if key in fields.values]
    if wrong:
        raise fields._fail(f"a task with choices has no {', '.join(wrong)}: its options are its words")
    given = fields.values["choices"]
    choices = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else ()
    many = isinstance(given, str) or (len(choices) > 1 and len(set(map(str, choices))) == len(choices))
    if not choices or not many or not all(isinstance(name, str) and name for name in choices):
        raise fields._fail(
            f"choices must be two or more columns of texts [a, b], or the name of a column of lists, not {given!r}"
        )
    labels = fields._list("labels")
    if labels is not None and len(labels) != len(choices):
        raise fields._fail(f"{len(labels)} labels and {len(choices)} columns of choices: give each column its label")
    return {
        "label_column": fields._string("label_column", default="label"),
        "labels": None if labels is None else tuple(labels),
        "choices": choices,
        "choice_score": fields._choice("choice_score", CHOICE_SCORES),
        "max_target_length": fields._tokens("max_target_length", 32),
    }


def texts_of_values(fields: Any) -> dict[str, dict[str, str]]:
    """Return the texts in place of values: column -> value -> text.

    Raises:
        UserError: they are not nested mappings.
    """
    found = fields.values.get("values", {})
    if not isinstance(found, dict) or not all(isinstance(texts, dict) for texts in found.values()):
        raise fields._fail("values must be a mapping from columns to mappings of values: {column: {value: text}}")
    return {str(name): {word(value): str(text) for value, text in texts.items()} for name, texts in found.items()}
