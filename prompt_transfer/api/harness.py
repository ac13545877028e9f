"""A tuned prompt as a model of the Language Model Evaluation Harness (package `lm_eval`, extra `lm_eval`).

`python -m prompt_transfer.api.harness` is the harness's command line with the model `prompt_transfer`.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.backbones.answers import IGNORED
from prompt_transfer.backbones.builtin import find_shipped
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.options import greedy_log_probs
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.backbones import backbone_options, choose_device
from prompt_transfer.utils.errors import UserError, install_command

NAME = "prompt_transfer"
# Positions of a batch with batch_size auto, prompt and padding included.
AUTO_POSITIONS = 8192


class PromptedScorer:
    """Log-likelihoods and greedy text of a frozen model conditioned on a prompt.

    The input is prompt, start token (layout `start_answer_last`), context and continuation. The prompt was trained on
    the format of its own task, so other tasks measure how far it transfers. Contexts that are too long lose their
    beginning.

    Args:
        prompt: a prompt file, the folder of a run, or a loaded prompt.
        backbone: default: the one that the prompt was trained on.
        batch_size: requests of a forward pass; "auto": as many as fit into a fixed number of positions.
        device: such as cuda:0; None: a GPU if there is one.
        max_gen_toks: most generated tokens of tasks that do not state it.

    Raises:
        UserError: the prompt does not fit the backbone, or the backbone predicts only one word.
    """

    def __init__(
        self,
        prompt: str | Path | Prompt,
        backbone: str | None = None,
        batch_size: int | str | None = "auto",
        device: str | None = None,
        max_gen_toks: int = 256,
        **unused: Any,
    ) -> None:
        super().__init__()
        # `lm_eval` passes max_batch_size to every model, mostly None.
        wrong = sorted(key for key, value in unused.items() if value is not None and key != "max_batch_size")
        if wrong:
            raise UserError(
                f"unknown model argument {wrong[0]!r}: prompt, backbone, batch_size, device and max_gen_toks exist"
            )
        loaded = prompt if isinstance(prompt, Prompt) else Prompt.load(find_shipped(str(prompt)))
        name = backbone or loaded.metadata.get("backbone")
        if not name:
            raise UserError(f"{loaded.label} does not name its backbone: give backbone=NAME")
        if loaded.label_embeddings is not None:
            raise UserError(f"{loaded.label} has trained label embeddings, which log-likelihoods of text do not use")
        place = _device(device)
        self.prompt, self.max_gen_toks = loaded, int(max_gen_toks)
        self.batch_size = _batch_size(batch_size)
        options = backbone_options({loaded.label: loaded})
        self.backbone = FrozenBackbone(name, **options).to(place)
        loaded.check(self.backbone, self.backbone.layout.name, self.backbone.attention)
        if not self.backbone.writes:
            raise UserError(
                f"{name} predicts one word, and the harness scores texts: use a causal or sequence-to-sequence backbone"
            )
        self.encoder = self.backbone.encoder(loaded.length)
        self.causal = self.backbone.family.kind == "causal_lm"
        self._bank = self.backbone.record(loaded.values.to(place))
        self._warned = False

    @property
    def room(self) -> int:
        """Positions of the model that the prompt leaves."""
        return self.backbone.max_positions - self.prompt.length

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        return self.encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the token ids of context and continuation, split as in the harness's own models.

        Blanks at the end of the context move to the continuation. Causal models tokenize both as one text.
        """
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        if not self.causal:
            return self.ids(context), self.ids(continuation)
        first = self.ids(context)
        return first, self.ids(context + continuation)[len(first) :]

    def log_likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood in nats, and whether it is the greedy one.

        Args:
            pairs: token ids of context and continuation, without start and end tokens.

        Raises:
            UserError: a continuation without tokens, or longer than the model's positions.
        """
        ready = [self._fitted(context, continuation) for context, continuation in pairs]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(ready)
        for rows in self._batches([(len(context), len(target)) for context, target in ready]):
            batch = self._batch([ready[row][0] for row in rows], [ready[row][1] for row in rows])
            with torch.inference_mode():
                sums, greedy = greedy_log_probs(self.backbone, self._bank, batch)
            if not bool(torch.isfinite(sums).all()):
                raise UserError("the model's log-likelihoods are not finite: use a prompt trained in float32")
            for row, value, best in zip(rows, sums.tolist(), greedy.tolist(), strict=True):
                found[row] = (value, best)
        return found

    def write(self, contexts: Sequence[str], max_new_tokens: int, num_beams: int = 1) -> list[str]:
        """Return the text generated after each context, without special tokens.

        Raises:
            UserError: the model has too few positions.
        """
        room = self.room - (max_new_tokens if self.causal else 0)
        ready = [self._framed(self.ids(context), room, f"max_gen_toks {max_new_tokens}") for context in contexts]
        found = [""] * len(ready)
        for rows in self._batches([(len(ids), max_new_tokens) for ids in ready]):
            batch = self._batch([ready[row] for row in rows])
            ids = self.backbone.generate(self._bank, batch, max_new_tokens, num_beams)
            texts = self.encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                found[row] = text
        return found

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        if not continuation:
            raise UserError("a continuation has no tokens: give the task choices that are not empty")
        taken = len(continuation) if self.causal else 0
        return self._framed(context, self.room - taken, f"a continuation of {len(continuation)} tokens"), continuation

    def _framed(self, ids: list[int], room: int, what: str) -> list[int]:
        """Return a context with start or end token, shortened at its beginning to `room`."""
        start = list(self.encoder.start)
        ids = ids[len(start) :] if start and ids[: len(start)] == start else ids
        end = [] if self.causal else [self.encoder.end_token_id()]
        left = room - len(start) - len(end)
        if left < 1:
            raise UserError(
                f"{what} does not fit: prompt and model leave {self.room} positions; use a task with shorter texts"
            )
        if len(ids) > left and not self._warned:
            self._warned = True
            warnings.warn(f"contexts of more than {left} tokens lose their beginning", stacklevel=2)
        return self.encoder._readable([[*start, *ids[max(len(ids) - left, 0) :], *end]])[0]

    def _batches(self, sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Yield row numbers in batches of similar lengths, the longest first.

        Args:
            sizes: tokens of each context and of its continuation.
        """
        rows: list[int] = []
        longest = (0, 0)
        for row in sorted(range(len(sizes)), key=lambda row: -sum(sizes[row])):
            wider = (max(longest[0], sizes[row][0]), max(longest[1], sizes[row][1]))
            count, width = len(rows) + 1, sum(wider)
            full = count > self.batch_size if self.batch_size else count * (width + self.prompt.length) > AUTO_POSITIONS
            # A causal batch is as wide as its longest context and its longest continuation together.
            if rows and (full or (self.causal and width > self.room)):
                yield rows
                rows, wider = [], sizes[row]
            rows.append(row)
            longest = wider
        if rows:
            yield rows

    def _batch(self, texts: list[list[int]], targets: list[list[int]] | None = None) -> dict[str, Tensor]:
        batch = {
            "input_ids": _padded(texts, self.encoder.pad_token_id),
            "attention_mask": _padded([[1] * len(text) for text in texts], 0),
        }
        if targets is not None:
            batch["target_ids"] = _padded(targets, IGNORED)
        return {name: value.to(self.backbone.device) for name, value in batch.items()}


def _padded(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def _device(given: str | None) -> torch.device:
    """Return the device to use; the harness's own default is cuda:0, also on machines without CUDA."""
    if given is None:
        return choose_device("auto")
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise UserError(f"device is {given!r}: give cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        warnings.warn(f"no CUDA device is available: cpu instead of {given}", stacklevel=3)
        return torch.device("cpu")
    return device


def _batch_size(given: int | str | None) -> int:
    """Return the number of requests of a batch; 0 for "auto"."""
    if given is None or str(given).partition(":")[0] == "auto":
        return 0
    if not str(given).isdecimal() or int(given) < 1:
        raise UserError(f"batch_size is {given!r}: give a number from 1 on, or auto")
    return int(given)


def stop_sequences(settings: dict[str, Any], longest: int) -> tuple[list[str], int, int]:
    """Return the stop sequences, the most new tokens and the beams of a task's generation settings.

    Raises:
        UserError: the task samples.
    """
    if settings.get("do_sample"):
        raise UserError("the task samples (do_sample), but prompts are scored on greedy text: set do_sample: false")
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
    most = settings.get("max_gen_toks") or settings.get("max_new_tokens") or longest
    return stops, int(most), int(settings.get("num_beams") or 1)


def cut(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first stop sequence."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


@lru_cache(maxsize=1)
def register() -> Any:
    """Register the model `prompt_transfer` with the harness, and return its class.

    Raises:
        UserError: `lm_eval` is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401  # first: the harness registers its own models into an empty registry only
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError as error:
        raise UserError(f"the harness needs the package lm_eval ({error}): {install_command('lm_eval')}") from error

    class PromptedLM(PromptedScorer, LM):
        """`PromptedScorer` behind the harness's interface."""

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            found = self.log_likelihoods([self.encode_pair(*request.args) for request in requests])
            return self._cached("loglikelihood", requests, found)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            if not self.causal:
                raise UserError("the log-likelihood of a whole text needs a causal backbone: leave out this task")
            prefix, longest = self.encoder.without_text()[-1], self.room - len(self.encoder.start) - 1
            windows, owners = [], []
            for number, (text,) in enumerate(request.args for request in requests):
                for window in get_rolling_token_windows(self.ids(text), prefix, longest, 1):
                    windows.append(make_disjoint_window(window))
                    owners.append(number)
            sums = [0.0] * len(requests)
            for number, (value, _) in zip(owners, self.log_likelihoods(windows), strict=True):
                sums[number] += value
            return self._cached("loglikelihood_rolling", requests, sums)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            groups: dict[tuple[int, int], list[int]] = {}
            stops = []
            for number, request in enumerate(requests):
                until, most, beams = stop_sequences(request.args[1], self.max_gen_toks)
                stops.append(until)
                groups.setdefault((most, beams), []).append(number)
            found = [""] * len(requests)
            for (most, beams), rows in groups.items():
                texts = self.write([requests[row].args[0] for row in rows], most, beams)
                for row, text in zip(rows, texts, strict=True):
                    found[row] = cut(text, stops[row])
            return self._cached("generate_until", requests, found)

        def _cached(self, name: str, requests: list[Any], found: list[Any]) -> list[Any]:
            for request, value in zip(requests, found, strict=True):
                self.cache_hook.add_partial(name, request.args, value)
            return found

        def get_model_info(self) -> dict[str, Any]:
            """Return the facts that the harness stores with the results."""
            return {
                "prompt": str(self.prompt.path or ""),
                "prompt_sha256": hashlib.sha256(self.prompt.values.numpy().tobytes()).hexdigest(),
                "backbone": self.backbone.id,
                "backbone_fingerprint": self.backbone.fingerprint,
                "layout": self.backbone.layout.name,
            }

        @property
        def tokenizer_name(self) -> str:
            return self.backbone.id.replace("/", "__")

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return (self.encoder.tokenizer.chat_template or "") if chat_template else None

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            # Without a generation prompt the harness continues the last message.
            options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
            options["continue_final_message"] = not add_generation_prompt
            return self.encoder.tokenizer.apply_chat_template(chat_history, **options)

    return register_model(NAME)(PromptedLM)


def main() -> int:
    """Run the harness's command line with the model `prompt_transfer`; return the exit code."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
