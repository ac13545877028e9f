"""Initializers of a prompt; transfer by initialization is one of them.

To add one, write a class here: `__init__` takes its options (plain types), `__call__` creates the prompt. All
randomness comes from the generator, so a seed gives the same prompt on every machine.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from prompt_transfer.backbones.tokenization import word_pieces
from prompt_transfer.prompts.arithmetic import weighted_mean
from prompt_transfer.prompts.prompt import Backbone, Prompt
from prompt_transfer.prompts.recommendation import read_choices, shares
from prompt_transfer.utils.errors import UserError

# Reserved tokens that tokenizers do not mark as special: BERT, RoBERTa (fairseq), T5.
_RESERVED = re.compile(r"\[unused\d+\]|madeupword\d+|<extra_id_\d+>|<unused_?\d+>")
# Prompt tokens have no position embedding in encoders: equal ones would get equal gradients and stay equal.
REPEAT_NOISE = 0.1


class Initializer(ABC):
    """Factory of the initial prompt of a run."""

    @abstractmethod
    def __call__(
        self, backbone: Backbone, shape: tuple[int, int], generator: torch.Generator, label_words: Sequence[str] = ()
    ) -> Tensor:
        """Create a prompt.

        Args:
            backbone: the backbone that the prompt is for.
            shape: (P, H).
            generator: a CPU generator, the only source of randomness.
            label_words: the label words of all tasks of the run.

        Returns:
            The prompt, float32 `[P, H]` on the CPU.
        """

    def keys_values(
        self, backbone: Backbone, length: int, generator: torch.Generator, label_words: Sequence[str] = ()
    ) -> Tensor:
        """Create a deep prompt: by default the keys and values that the backbone computes for the prompt of `__call__`.

        It then starts as the same function as that prompt with `shared` attention (in a T5 encoder; its decoder
        attends to the states of a prompt, which a deep prompt lacks).

        Args:
            backbone, generator, label_words: as in `__call__`.
            length: P.

        Returns:
            float32 `[L, 2, P, kv_heads, head_dim]` on the CPU.
        """
        return backbone.keys_values(self(backbone, (length, backbone.hidden_size), generator, label_words))

    def for_seed(self, seed: int) -> Initializer:
        """Return the initializer for a run with that seed: itself, unless its options contain `{seed}`."""
        return self

    def describe(self) -> str:
        """Return the class and its options in one line, for the prompt's metadata."""
        options = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class Normal(Initializer):
    """Independent normal values with mean 0.

    Args:
        std: standard deviation; None uses that of the backbone's whole embedding table. For a deep prompt None uses,
            in each layer, those of the keys and of the values that the backbone computes for drawn tokens.
    """

    def __init__(self, std: float | None = None) -> None:
        if std is not None and not std > 0:
            raise UserError(f"init Normal: std is {std}; give a number above 0, or null for the backbone's")
        self.std = std

    def __call__(
        self, backbone: Backbone, shape: tuple[int, int], generator: torch.Generator, label_words: Sequence[str] = ()
    ) -> Tensor:
        std = _std(backbone) if self.std is None else self.std
        return torch.randn(shape, generator=generator) * std

    def keys_values(
        self, backbone: Backbone, length: int, generator: torch.Generator, label_words: Sequence[str] = ()
    ) -> Tensor:
        drawn = torch.randn(backbone.keys_values_shape(length), generator=generator)
        if self.std is not None:
            return drawn * self.std
        return drawn * Vocabulary().keys_values(backbone, length, generator).std(dim=(2, 3, 4), keepdim=True)


class Vocabulary(Initializer):
    """Embeddings of ordinary tokens, drawn at random ("sampled vocabulary" of Lester et al. 2021).

    Tokens are drawn from the first `top_k` ids, each at most once if there are enough. The order of ids serves as a
    proxy for frequency: exact for RoBERTa's and T5's vocabularies, approximate for BPE merges and WordPiece. Special
    and reserved tokens are excluded.

    Args:
        top_k: number of tokens to draw from; 0 for all.
        skip: number of leading ordinary tokens to exclude (the most frequent ones are punctuation and letters).
    """

    def __init__(self, top_k: int = 5000, skip: int = 0) -> None:
        if top_k < 0 or skip < 0:
            raise UserError(f"init Vocabulary: top_k is {top_k} and skip {skip}; neither can be below 0")
        self.top_k = top_k
        self.skip = skip

    def __call__(
        self, backbone: Backbone, shape: tuple[int, int], generator: torch.Generator, label_words: Sequence[str] = ()
    ) -> Tensor:
        return _sample(backbone, shape[0], generator, vocabulary_ids(backbone, self.top_k, self.skip))


class ClassLabels(Initializer):
    """Embeddings of the label words, then of tokens drawn from the vocabulary (Lester et al. 2021).

    A word of several tokens contributes the mean of their embeddings. Words shared by several tasks are used once.

    Args:
        top_k: number of tokens that the remaining prompt tokens are drawn from; 0 for all. See `Vocabulary`.
    """

    def __init__(self, top_k: int = 5000) -> None:
        self.top_k = Vocabulary(top_k).top_k

    def __call__(
        self, backbone: Backbone, shape: tuple[int, int], generator: torch.Generator, label_words: Sequence[str] = ()
    ) -> Tensor:
        words = list(dict.fromkeys(label_words))
        if not words:
            raise UserError("init ClassLabels needs label words, and this task has none; choose init Vocabulary")
        if len(words) > shape[0]:
            warnings.warn(
                f"{len(words)} label words, but only {shape[0]} prompt tokens: {words[shape[0] :]} are left out"
            )
            words = words[: shape[0]]
        pieces = [word_pieces(backbone.tokenizer, word) for word in words]
        first = torch.stack([embedding_rows(backbone, ids).mean(dim=0) for ids in pieces])
        if len(words) == shape[0]:
            return first
        used = {ids[0] for ids in pieces if len(ids) == 1}
        others = vocabulary_ids(backbone, self.top_k, exclude=used)
        return torch.cat([first, _sample(backbone, shape[0] - len(words), generator, others)])


class Text(Initializer):
    """Embeddings of a text's tokens, truncated or repeated to the prompt length.

    Repeated tokens get normal noise with a tenth of the embedding table's standard deviation (REPEAT_NOISE): an
    encoder cannot distinguish equal prompt tokens, so they would stay equal throughout training.

    Args:
        text: the text, e.g. an instruction that describes the task. In a config file, quote a text that contains a
            colon followed by a space (": ").
    """

    def __init__(self, text: str) -> None:
        if not text.strip():
            raise UserError("init Text: the text is empty; give --model.init.text VALUE")
        self.text = text

    def __call__(
        self, backbone: Backbone, shape: tuple[int, int], generator: torch.Generator, label_words: Sequence[str] = ()
    ) -> Tensor:
        ids = word_pieces(backbone.tokenizer, self.text)
        if not ids:
            raise UserError(f"init Text: {self.text!r} has no tokens; give a text")
        repeated = (ids * -(-shape[0] // len(ids)))[: shape[0]]
        return _apart(embedding_rows(backbone, repeated), repeated, backbone, generator)


class FromPrompt(Initializer):
    """A trained prompt, or the mean of several (transfer by initialization; SPoT, Vu et al. 2022).

    Args:
        prompt: a prompt file, or several as a list or separated by commas. `{seed}` in a path is replaced by the
            run's seed, which lets each seed start from its own prompt.
        weights: one per prompt, 0 or more, normalised to sum to 1; null weighs all equally, or by the values of the
            recommendation's column (SPoT's weighted average).
        recommendation: a table of `prompts recommend` to choose the prompts from, instead of `prompt`.
        by: the table's column to rank by; null uses the one that it recommends by.
        top: number of prompts; 1 uses the best.
        target: the target task, if the table has several.
    """

    def __init__(
        self,
        prompt: list[str] | str | None = None,
        weights: list[float] | None = None,
        recommendation: str | None = None,
        by: str | None = None,
        top: int = 1,
        target: str | None = None,
    ) -> None:
        if (prompt is None) == (recommendation is None):
            raise UserError(
                "init FromPrompt: give either a prompt file (--model.init.prompt FILE) or a table of `prompts "
                "recommend` (--model.init.recommendation FILE)"
            )
        if recommendation is not None:
            choices = read_choices(recommendation, by, top, target)
            prompt = [choice.path for choice in choices]
            if weights is None and top > 1:
                # SPoT's similarities are positive; prompts with negative values get no weight.
                weights = [max(choice.value, 0.0) for choice in choices]
        elif by is not None or top != 1 or target is not None:
            raise UserError("init FromPrompt: by, top and target choose from a table: give recommendation FILE too")
        if isinstance(prompt, str):
            # A file whose name has a comma is still one file.
            prompt = [prompt] if Path(prompt).exists() else prompt.split(",")
        self.prompt = [str(path).strip() for path in prompt or []]
        if not all(self.prompt) or not self.prompt:
            raise UserError("init FromPrompt: an empty path; give one prompt file, or several separated by commas")
        self.weights = weights
        if weights is not None and len(weights) != len(self.prompt):
            raise UserError(
                f"init FromPrompt: {len(self.prompt)} prompts and {len(weights)} weights: give one weight per prompt"
            )
        if weights is not None:
            shares(weights)

    def for_seed(self, seed: int) -> FromPrompt:
        return FromPrompt([path.replace("{seed}", str(seed)) for path in self.prompt], self.weights)

    def describe(self) -> str:
        weights = "" if self.weights is None else f", weights={self.weights!r}"
        return f"FromPrompt(prompt={self.prompt!r}{weights})"

    def __call__(
        self, backbone: Backbone, shape: tuple[int, int], generator: torch.Generator, label_words: Sequence[str] = ()
    ) -> Tensor:
        prompts = self._loaded(backbone, shape[0])
        if any(prompt.is_deep for prompt in prompts):
            raise UserError(
                f"init FromPrompt: {prompts[0].path} is a deep prompt, but the run trains a prompt of embeddings; set "
                "--model.method deep_prompt"
            )
        return self._mean(prompts)

    def keys_values(
        self, backbone: Backbone, length: int, generator: torch.Generator, label_words: Sequence[str] = ()
    ) -> Tensor:
        """Return deep prompts as they are; of prompts of embeddings the keys and values that the backbone computes."""
        prompts = self._loaded(backbone, length)
        mean = self._mean(prompts)
        return mean if prompts[0].is_deep else backbone.keys_values(mean)

    def _loaded(self, backbone: Backbone, length: int) -> list[Prompt]:
        prompts = [Prompt.load(path) for path in self.prompt]
        for path, prompt in zip(self.prompt, prompts, strict=True):
            # Layout and attention may differ: starting from a prompt of another mode is a legitimate experiment.
            prompt.check(backbone)
            if prompt.length != length:
                raise UserError(
                    f"init FromPrompt: {path} has {prompt.length} prompt tokens, the run {length}; "
                    f"set --model.prompt_length {prompt.length}"
                )
            if prompt.method != prompts[0].method:
                raise UserError(
                    f"init FromPrompt: {self.prompt[0]} is a {prompts[0].method}, {path} a {prompt.method}; give "
                    "prompts of one method"
                )
        return prompts

    def _mean(self, prompts: Sequence[Prompt]) -> Tensor:
        return weighted_mean([prompt.values for prompt in prompts], self.weights or [1.0] * len(prompts))


def vocabulary_ids(backbone: Backbone, top_k: int, skip: int = 0, exclude: Iterable[int] = ()) -> list[int]:
    """Return the first `top_k` ids (0: all) of ordinary tokens after the first `skip`, in order, without `exclude`.

    Raises:
        UserError: no token is left.
    """
    tokenizer = backbone.tokenizer
    # Embedding tables are padded beyond the vocabulary (T5: 32128 embeddings, 32100 tokens).
    size = min(backbone.embedding_weight.shape[0], len(tokenizer))
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(size)))
    ordinary = [
        index
        for index, token in enumerate(tokens)
        if token is not None and index not in special and not _RESERVED.fullmatch(token)
    ]
    left_out = set(exclude)
    ids = [index for index in ordinary[skip : skip + top_k if top_k else None] if index not in left_out]
    if not ids:
        raise UserError(
            f"no token is left to draw from: the vocabulary has {len(ordinary)} ordinary tokens, skip is {skip}, top_k "
            f"{top_k}; take a smaller skip or a larger top_k"
        )
    return ids


def draw(ids: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """Draw `count` of `ids`, repeating an id only after all have been drawn equally often."""
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(ids), generator=generator).tolist()
    return [ids[index] for index in order[:count]]


def embedding_rows(backbone: Backbone, ids: Sequence[int]) -> Tensor:
    """Return the input embeddings of `ids`, float32 `[len(ids), H]` on the CPU.

    Raises:
        UserError: the backbone has no embedding for one of the tokens.
    """
    table = backbone.embedding_weight
    if ids and max(ids) >= len(table):
        token = backbone.tokenizer.convert_ids_to_tokens([max(ids)])[0]
        raise UserError(f"{backbone.id} has no embedding for its token {token!r}: choose other words")
    return table[torch.tensor(ids, device=table.device)].to("cpu", torch.float32)


def _sample(backbone: Backbone, count: int, generator: torch.Generator, ids: Sequence[int]) -> Tensor:
    drawn = draw(ids, count, generator)
    return _apart(embedding_rows(backbone, drawn), drawn, backbone, generator)


def _apart(rows: Tensor, ids: Sequence[int], backbone: Backbone, generator: torch.Generator) -> Tensor:
    repeats = [row for row, index in enumerate(ids) if index in ids[:row]]
    if repeats:
        noise = torch.randn(len(repeats), rows.shape[1], generator=generator)
        rows[repeats] += REPEAT_NOISE * _std(backbone) * noise
    return rows


def _std(backbone: Backbone) -> float:
    return backbone.embedding_weight.float().std().item()
