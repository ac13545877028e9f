"""The token tables of a run: text lengths per task, and each split tokenized once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_transfer.backbones.templates import Template
from prompt_transfer.data.checks import warn_of_special_tokens
from prompt_transfer.data.choices import option_table
from prompt_transfer.data.selection import Selection
from prompt_transfer.data.special_tokens import SpecialTokens
from prompt_transfer.data.tokens import TextEncoder, TokenTable, cache_path, tokenise
from prompt_transfer.tasks.columns import all_columns
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

MIN_LENGTH = 8


@dataclass
class Tables:
    """The splits of a `Selection`, tokenized by one encoder.

    Args:
        selection: the rows.
        encoder: the tokenizer, with the positions of prompt and answer slot.
        max_length: longest text in tokens; None: the task's own, or less if only less fits.
        cache_dir: as in `prompt_transfer.data.tokens.cache_path`.
        special_tokens: `keep` special tokens inside texts, or `split` them into ordinary tokens.

    Raises:
        UserError: the lengths do not fit the model, or its tokenizer cannot end the texts of a generation task.
    """

    selection: Selection
    encoder: TextEncoder
    max_length: int | None = None
    cache_dir: str | None = None
    special_tokens: SpecialTokens = "keep"
    _splits: dict[str, TokenTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._unsplit = self.encoder
        if self.special_tokens == "split":
            self.encoder = self.encoder.splitting()
        self.templates = [self._template(task) for task in self.selection.tasks]
        self.lengths = [self._length(task) for task in self.selection.tasks]
        for index in range(len(self.lengths)):
            self._check(index)

    def _template(self, task: Task) -> Template | None:
        """Return the task's template for the encoder; None if it has none."""
        try:
            # Encoders of tests know no templates.
            return None if task.format is None else self.encoder.resolved(task.format)
        except UserError as error:
            raise UserError(f"task {task.name}: {error}") from error

    def shown_templates(self) -> dict[str, str]:
        """Return task -> template, as rendered for the encoder; "" for the default format."""
        pairs = zip(self.selection.tasks, self.templates, strict=True)
        return {task.name: "" if template is None else template.text for task, template in pairs}

    def _words(self, index: int) -> dict[str, Any]:
        """Return the options of the texts' format."""
        task, template = self.selection.tasks[index], self.templates[index]
        if template is not None:
            return {"template": template}
        return {"cue": task.cue, "seq2seq_frame": task.seq2seq_frame}

    def input_format(self, index: int) -> dict[str, Any]:
        """Return the options of a task's `TextEncoder.encode`, with `pairs` for the second texts."""
        return {"max_length": self.lengths[index], "pairs": self._pairs(index), **self._words(index)}

    def _check(self, index: int) -> None:
        """Check, also for tokens in the cache, that cue and frame leave room for text, and that targets can end."""
        task, text_room = self.selection.tasks[index], getattr(self.encoder, "text_room", None)
        try:
            if text_room is not None:
                text_room(self.lengths[index], self._pairs(index), **self._words(index))
            if task.is_generation and hasattr(self.encoder, "end_token_id"):
                self.encoder.end_token_id()
        except UserError as error:
            raise UserError(f"task {task.name}: {error}") from error

    def _length(self, task: Task) -> int:
        budget, extra = self.encoder.text_budget(), self.encoder.extra_positions
        positions, taken = budget + extra, f"prompt ({extra - 1}) and answer slot"
        # Only causal models write the target into the positions of the text; encoders do so with options.
        shared = getattr(self.encoder, "targets_share_positions", False)
        if (task.is_generation and shared) or (task.is_choice and getattr(self.encoder, "kind", "") != "seq2seq_lm"):
            budget -= task.max_target_length
            taken = f"prompt ({extra - 1}), answer slot and target ({task.max_target_length})"
        room = f"the model has {positions} positions, {taken} leave {budget} for text"
        if budget < MIN_LENGTH:
            raise UserError(f"{room}, at least {MIN_LENGTH} are needed; use a shorter --model.prompt_length")
        if self.max_length is not None and self.max_length > budget:
            raise UserError(f"--data.max_length {self.max_length} is too long: {room}; use {budget} or less")
        length = min(task.max_length, budget) if self.max_length is None else self.max_length
        if length < MIN_LENGTH:
            raise UserError(f"a max_length of {length} leaves no text; use {MIN_LENGTH} or more")
        return length

    def warn_of_special_tokens(self, *splits: str, predicted: bool = False) -> None:
        """Warn, once per task, of rows of these splits with special tokens, if those are kept.

        Args:
            predicted: check the rows to predict, which may be unlabelled.
        """
        rows = self.selection.to_predict if predicted else self.selection.rows
        for index, task in enumerate(self.selection.tasks):
            self._warn_of_special_tokens(task, {f"{split} rows": rows(split, index) for split in splits})

    def _warn_of_special_tokens(self, task: Task, parts: Mapping[str, Dataset]) -> None:
        if self.special_tokens == "keep":
            warn_of_special_tokens(task, parts, getattr(self.encoder, "special_tokens", ()))

    def split(self, name: str) -> TokenTable:
        """Return all tasks' rows of a split, task by task."""
        if name not in self._splits:
            parts = [self._tokens(name, index) for index in range(len(self.lengths))]
            self._splits[name] = TokenTable.concatenate(parts)
        return self._splits[name]

    def _pairs(self, index: int) -> bool:
        return self.selection.tasks[index].pairs

    def _tokens(self, split: str, index: int) -> TokenTable:
        task = self.selection.tasks[index]
        options: dict[str, Any] = {
            **self.input_format(index),
            "max_target_length": task.max_target_length if task.is_generation else None,
        }
        # The targets are part of the data's fingerprint, the end token of the encoder's.
        facts = {"encoder": self.encoder.fingerprint, **options, **self.selection.facts(split, index)}
        if (template := self.templates[index]) is not None:
            facts["template"] = asdict(template)
        cache = cache_path(self.cache_dir, f"{task.name}-{split}", facts)
        rows = self.selection.rows(split, index)
        table = tokenise(rows, self.encoder, task_index=index, cache_file=cache, **options)
        return self._with_answers(table, rows, index)

    def _with_answers(self, table: TokenTable, rows: Dataset, index: int) -> TokenTable:
        """Return the table with the rows' options and groups, if the task has them."""
        task, template = self.selection.tasks[index], self.templates[index]
        if task.is_choice:
            words = {} if template is None else {"template": template}
            return replace(table, options=option_table(rows, task, self.encoder, words))
        return replace(table, groups=np.asarray(rows["group"][:])) if "group" in rows.column_names else table

    def texts(self, rows: Dataset) -> TokenTable:
        """Tokenize texts to predict, for the first task; not cached.

        Raises:
            UserError: a single text for a task on pairs, or the reverse.
        """
        pairs, task = self._pairs(0), self.selection.tasks[0]
        wrong = next((row for row, text in enumerate(rows["text_b"]) if bool(text) != pairs), None)
        if wrong is not None:
            columns = ",".join(all_columns((task.text_a, task.text_b, *task.choices)))
            about = f"pairs and this text has no second one: give a table with the columns {columns}"
            about = about if pairs else "single texts and this is a pair"
            raise UserError(f"text {wrong} (counted from 0): task {task.name} is about {about}")
        self._warn_of_special_tokens(task, {"texts": rows})
        return self._texts(rows, 0)

    def _texts(self, rows: Dataset, index: int) -> TokenTable:
        words = self._words(index)
        table = tokenise(rows, self.encoder, self.lengths[index], pairs=self._pairs(index), task_index=index, **words)
        if self.selection.tasks[index].is_choice and "choices" not in rows.column_names:
            name = self.selection.tasks[index].name
            raise UserError(f"task {name} is multiple choice: give a table with the columns of texts and options")
        return self._with_answers(table, rows, index)

    def content_free(self) -> TokenTable:
        """Tokenize the content-free texts of every task: "N/A", an empty text, and a mask (Zhao et al. 2021)."""
        from datasets import Dataset

        mask = getattr(getattr(self._unsplit, "tokenizer", None), "mask_token", None) or "[MASK]"
        texts = ["N/A", "", mask]
        parts = []
        for index, length in enumerate(self.lengths):
            second = texts if self._pairs(index) else [""] * len(texts)
            rows = Dataset.from_dict({"id": list(range(len(texts))), "text_a": texts, "text_b": second})
            options: dict[str, Any] = {"pairs": self._pairs(index), "task_index": index, **self._words(index)}
            parts.append(tokenise(rows, self._unsplit, length, **options))
        return TokenTable.concatenate(parts)

    def to_predict(self, split: str) -> TokenTable:
        """Return all tasks' rows of a split as in the source; unlabelled rows are not cached."""
        unlabelled = [split in data.unlabelled for data in self.selection.data]
        if not any(unlabelled):
            return self.split(split)
        key = f"{split} (no labels)"
        if key not in self._splits:
            self._splits[key] = TokenTable.concatenate([
                self._texts(self.selection.to_predict(split, index), index) if without else self._tokens(split, index)
                for index, without in enumerate(unlabelled)
            ])  # fmt: skip
        return self._splits[key]

    def facts(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return task -> split -> rows, available, origin; for tokenized splits also at_max_length, and for generation
        at_max_target_length."""
        selection = self.selection
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for index, data in enumerate(selection.data):
            splits = found[data.task.name] = {}
            for split, rows in data.splits.items():
                used = len(selection.rows(split, index))
                splits[split] = {"rows": used, "available": len(rows), "origin": data.origin[split]}
                if split in self._splits:
                    table = self._splits[split]
                    mine = table.task_ids == index
                    splits[split]["at_max_length"] = int((table.lengths[mine] >= self.lengths[index]).sum())
                    if data.task.is_generation:
                        full = table.target_lengths[mine] >= data.task.max_target_length
                        splits[split]["at_max_target_length"] = int(full.sum())
        return found

    def digests(self) -> dict[str, dict[str, str]]:
        """Return task -> tokenized split -> digest of its tokens (`TokenTable.content`)."""
        names = [task.name for task in self.selection.tasks]
        return {
            name: {split: table.content(index) for split, table in self._splits.items()}
            for index, name in enumerate(names)
        }
