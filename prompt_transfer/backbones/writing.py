"""Generation settings: our own, except for a checkpoint's end tokens and its decoder's start token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer
from transformers.utils import cached_file

from prompt_transfer.backbones.family import Family
from prompt_transfer.utils.errors import UserError

FILE = "generation_config.json"


def stated_settings(source: str, config: dict[str, Any], places: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint's end tokens and decoder start token.

    Args:
        source: folder or hub id.
        config: contents of its config.json. Class defaults of transformers are ignored: Llama's end token is 2, which
            is an ordinary token of other vocabularies.
        places: `revision` and `local_files_only`, as for `from_pretrained`.

    Returns:
        `eos_token_id` and `decoder_start_token_id`, None if not stated.

    Raises:
        UserError: the generation settings are not an object of JSON, or lie in a field of config.json.
    """
    for field, harmless in (("generation_config", False), ("compile_config", config.get("compile_config") is None)):
        if field in config and not harmless:
            raise UserError(
                f"cannot load the backbone {source}: its config.json has the field {field}, which transformers cannot "
                "read there: remove it"
            )
    path = cached_file(source, FILE, _raise_exceptions_for_missing_entries=False, **places)
    found = {} if path is None else _read(Path(path), source)
    ends, starts = ((facts.get("eos_token_id"), facts.get("decoder_start_token_id")) for facts in (found, config))
    # config.json has priority for the start token: it is the one that training shifted the labels with.
    return {
        "eos_token_id": ends[0] if ends[0] is not None else starts[0],
        "decoder_start_token_id": starts[1] if starts[1] is not None else ends[1],
    }


def _read(path: Path, source: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"cannot load the backbone {source}: its {FILE} is not JSON ({error}): correct or delete it"
        ) from error
    if not isinstance(found, dict):
        raise UserError(
            f"cannot load the backbone {source}: its {FILE} contains no object of JSON: correct or delete it"
        )
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def neutralize(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stated: dict[str, Any]) -> None:
    """Replace a model's generation settings, which `generate` uses as defaults.

    Args:
        name: name of the backbone, for messages.
        model: as loaded.
        tokenizer: its end token, which training appends to targets, ends a text too.
        stated: see `stated_settings`.

    Raises:
        UserError: an end token is no token id, a decoder's start token is none of the vocabulary, or there is no start
            token.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    given = stated["eos_token_id"]
    ends = [] if given is None else given if isinstance(given, list) else [given]
    if not all(map(_is_id, ends)):
        raise UserError(
            f"cannot load the backbone {name}: eos_token_id {given!r} is neither a token id nor a list of token ids; "
            f"correct it in its {FILE} or config.json"
        )
    # GPT-2's default, 50256, is also stated for smaller vocabularies, where it is never generated.
    ends = [end for end in ends if end < vocabulary]
    own = tokenizer.eos_token_id
    ends = list(dict.fromkeys([*ends, *([] if own is None else [own])]))
    if model.config.is_encoder_decoder:
        start = getattr(model.config, "decoder_start_token_id", None)
        if start is None:
            start = stated["decoder_start_token_id"]
        if start is None:
            raise UserError(
                f"cannot load the backbone {name}: its config.json states no decoder_start_token_id; add the one that "
                "its decoder was trained with (of a T5 the id of its pad token)"
            )
        if not _is_id(start) or start >= vocabulary:
            raise UserError(
                f"cannot load the backbone {name}: decoder_start_token_id {start!r} is not a token id below "
                f"{vocabulary}, the size of its vocabulary; correct it in its config.json or {FILE}"
            )
        model.config.decoder_start_token_id = start
    model.generation_config = GenerationConfig(eos_token_id=ends or None)
    # Checkpoints can override `generate` with their own code.
    model.__dict__.pop("generate", None)


def settings(model: PreTrainedModel, pad_token_id: int, max_new_tokens: int, num_beams: int) -> GenerationConfig:
    """Return the settings of one call of `generate`: greedy, or beam search ranked by mean log-probability."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        use_cache=True,
        length_penalty=1.0,
        early_stopping=False,
        pad_token_id=pad_token_id,
        eos_token_id=model.generation_config.eos_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )


def keeps_all(cache: DynamicCache, family: Family) -> bool:
    """Return whether a cache supports padding between the prompt and shorter texts.

    Layers with sliding windows count pads as positions, and so do models without position ids.
    """
    return family.position_ids and all(type(layer) is DynamicLayer for layer in cache.layers)


def pads_first(mask: Tensor, *values: Tensor) -> list[Tensor]:
    """Move padding from the right to the left, since generation continues after the last position.

    Args:
        mask: [B, T], 1 for tokens.
        values: tensors [B, T, ...].
    """
    length = mask.shape[1]
    order = (torch.arange(length, device=mask.device) - (length - mask.sum(dim=1, keepdim=True))) % length
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    return [value[rows, order] for value in values]


def per_length(lengths: Tensor, generate: Callable[[Tensor, int], Tensor], pad_token_id: int) -> Tensor:
    """Generate for the examples of each length together, without padding.

    Args:
        lengths: [B], of the inputs.
        generate: (example numbers, their length) -> token ids [b, S].
        pad_token_id: pads the results to the longest, [B, S].
    """
    found = [
        (rows, generate(rows, int(length)))
        for length in lengths.unique().tolist()
        for rows in [(lengths == length).nonzero()[:, 0]]
    ]
    whole = lengths.new_full((len(lengths), max(ids.shape[1] for _, ids in found)), pad_token_id)
    for rows, ids in found:
        whole[rows, : ids.shape[1]] = ids
    return whole


def padded(ids: Tensor, ends: list[int] | None, pad_token_id: int) -> Tensor:
    """Replace the tokens after the first end token of each text in ids [B, S] by pads."""
    if not ends:
        return ids
    is_end = torch.isin(ids, torch.tensor(ends, device=ids.device))
    over = is_end.long().cumsum(dim=1) - is_end.long() > 0
    return ids.masked_fill(over, pad_token_id)
