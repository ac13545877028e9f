"""Templates: the words around the texts of an example, and chat templates of a tokenizer.

A template is a string with the fields ``{text_a}`` and, for pairs, ``{text_b}``; ``{{`` and ``}}`` are braces.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from prompt_transfer.utils.errors import UserError

FIELDS = ("text_a", "text_b")
# Stand for the texts while a chat template is rendered: control characters that no template contains.
_MARKS = {"text_a": "\x02a\x03", "text_b": "\x02b\x03"}


@dataclass(frozen=True)
class Template:
    """The words around the texts.

    Attributes:
        before, between, after: words before the first text, between the two, and after the last.
        pairs: whether there is a second text.
        swapped: ``{text_b}`` comes first.
        chat: the tokenizer's chat template wraps the whole (`with_chat`); not done yet.
    """

    before: str = ""
    between: str = ""
    after: str = ""
    pairs: bool = False
    swapped: bool = False
    chat: bool = False

    @classmethod
    def parse(cls, text: str, pairs: bool, chat: bool = False) -> Template:
        """Parse a template.

        Args:
            text: the template.
            pairs: whether the task has two texts.
            chat: wrap it in the tokenizer's chat template later.

        Raises:
            UserError: the fields are not exactly those of the task.
        """
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"the template {text!r} cannot be read ({error}); write braces as {{{{ and }}}}") from error
        words, fields = [""], []
        for literal, field, form, conversion in parts:
            words[-1] += literal
            if field is not None:
                if field not in FIELDS or form or conversion:
                    shown = "{" + field + "}"
                    raise UserError(
                        f"the template {text!r} has the field {shown}; fields are {{text_a}} and, for pairs, {{text_b}}"
                    )
                fields.append(field)
                words.append("")
        wanted = FIELDS if pairs else FIELDS[:1]
        if sorted(fields) != list(wanted):
            needs = " and ".join(f"{{{name}}}" for name in wanted)
            raise UserError(
                f"the template {text!r} must have the field{'s' * pairs} {needs}, each once: the task has "
                f"{'two texts' if pairs else 'one text'}"
            )
        between = words[1] if pairs else ""
        return cls(words[0], between, words[-1], pairs, fields[0] == "text_b", chat)

    @property
    def text(self) -> str:
        """The template as a string."""
        first, second = reversed(FIELDS) if self.swapped else FIELDS
        before, between, after = (
            words.replace("{", "{{").replace("}", "}}") for words in (self.before, self.between, self.after)
        )
        return f"{before}{{{first}}}{between}{{{second}}}{after}" if self.pairs else f"{before}{{text_a}}{after}"

    @property
    def answer_is_spaced(self) -> bool:
        """Whether a blank separates the template from the answer: not after a line feed."""
        end = self.after.rstrip(" ")
        return not end or not end[-1].isspace()

    def with_chat(self, tokenizer: Any) -> Template:
        """Return the template as the user's turn of the tokenizer's chat template, before the assistant's answer.

        Raises:
            UserError: the tokenizer has no chat template, or the template drops a text.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the backbone's tokenizer has no chat template: leave out --data.chat_template (and `chat_template` of "
                "the task), or use an instruct model"
            )
        marks = [_MARKS[field] for field in (reversed(FIELDS) if self.swapped else FIELDS)][: 1 + self.pairs]
        content = f"{self.before}{self.between.join(marks)}{self.after}"
        turns = [{"role": "user", "content": content}]
        try:
            whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2 and templates raise errors of any class
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"the tokenizer's chat template fails ({reason}); leave out chat_template") from error
        if any(whole.count(mark) != 1 for mark in marks):
            raise UserError("the tokenizer's chat template does not contain the user's text once; leave it out")
        before, _, rest = whole.partition(marks[0])
        between, _, after = rest.partition(marks[1]) if self.pairs else ("", "", rest)
        return replace(self, before=before, between=between, after=after, chat=False)


def default_template(pairs: bool, cue: str) -> str:
    """Return the template that a causal model's default format corresponds to."""
    cue = cue.strip().replace("{", "{{").replace("}", "}}")
    return ("{text_a}\n{text_b}" if pairs else "{text_a}") + (f" {cue}" if cue else "")


def split_blank(words: str) -> tuple[str, str]:
    """Split words at their trailing white space, which is tokenized with the text that follows."""
    kept = words.rstrip()
    return kept, words[len(kept) :]


def check_single_start(ids: list[int], start: Iterable[int]) -> list[int]:
    """Return a template's first ids without the start tokens, which the layout adds."""
    start = list(start)
    return ids[len(start) :] if start and ids[: len(start)] == start else ids
