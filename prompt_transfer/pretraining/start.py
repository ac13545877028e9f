"""Initial weights of pretraining: word statistics, an earlier model, and hand-set heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from prompt_transfer.backbones.loading import quiet_transformers, resolve
from prompt_transfer.pretraining.copying_heads import copying_heads, windows
from prompt_transfer.pretraining.evidence import Evidence
from prompt_transfer.pretraining.growth import add_heads, grow
from prompt_transfer.pretraining.informed_init import frequencies, informed_init
from prompt_transfer.pretraining.matching_heads import matching_heads, pairs
from prompt_transfer.pretraining.objectives import Architecture
from prompt_transfer.pretraining.options import Start
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.pretraining.corpus import CorpusDataModule

# Larger than the hidden states of an encoder, which lie within a few units of zero.
LINEAR_SHIFT = 4.0


def begin(
    model: PreTrainedModel,
    evidence: Evidence | None,
    architecture: Architecture,
    options: Start,
    data: CorpusDataModule,
) -> None:
    """Initialize a fresh model as the options ask for.

    Args:
        model: changed in place.
        evidence: initialized to read the output of the matching heads.
        architecture: the model's architecture.
        options: the start.
        data: the training data, set up.

    Raises:
        UserError: the source model is unknown, cannot be read or does not fit.
    """
    streams = [store["tokens"] for store in data.train_stores]
    if options.grow_from:
        _grow(model, options.grow_from)
    elif options.start_from:
        start(model, options.start_from, frequencies(streams, model.config.vocab_size))
    elif options.informed_start:
        informed_init(model, architecture, data.tokens, streams)
    if options.copying_heads:
        copying_heads(model, data.tokens, windows(streams))
    if options.matching_heads:
        shares = frequencies(streams, model.config.vocab_size)
        matches = matching_heads(model, data.tokens, pairs(data.clozes["train"], data.tokens), shares)
        if evidence:
            evidence.know(matches)


def start(model: PreTrainedModel, name: str, shares: Tensor | None = None) -> None:
    """Copy the weights of a model of the same sizes into `model`.

    A T5 may have more heads than the source. A BERT source may lack its LM head, as sentence encoders do: the head then
    starts as the identity, with the log frequencies of the corpus as output bias.

    Args:
        model: changed in place.
        name: a built-in backbone or a folder.
        shares: [V], share of each token in the corpus; needed for a source without an LM head.

    Raises:
        UserError: the source cannot be read or has other sizes.
    """
    found, missing = _read("start_from", name, type(model))
    try:
        if getattr(model.config, "is_encoder_decoder", False):
            add_heads(found, model)
        else:
            model.load_state_dict(found.state_dict())
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--model.start_from {name} has different tensor shapes or another architecture") from error
    if not missing:
        return
    if shares is None or not all(key.startswith("cls.predictions.") for key in missing):
        raise UserError(
            f"--model.start_from {name} lacks tensors, which would be randomly initialized: {', '.join(missing[:6])}"
        )
    _identity_head(model.get_submodule("cls.predictions"), shares)


@torch.no_grad()
def _identity_head(head: Any, shares: Tensor) -> None:
    """Make BERT's LM head score a hidden state by its dot products with the word embeddings."""
    dense, norm = head.transform.dense, head.transform.LayerNorm
    nn.init.eye_(dense.weight)
    # GELU is close to the identity this far above zero, and the norm removes the shift.
    nn.init.constant_(dense.bias, LINEAR_SHIFT)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    head.bias.copy_(shares.log())


def _grow(model: PreTrainedModel, name: str) -> None:
    small, _ = _read("grow_from", name, AutoModelForMaskedLM)
    try:
        grow(small, model)
    except (ValueError, AttributeError) as error:
        raise UserError(f"--model.grow_from {name}: {error}") from error


def _read(option: str, name: str, kind: Any) -> tuple[Any, list[str]]:
    """Return the float32 model of a built-in name or folder, and the names of its missing tensors."""
    source, origin = resolve(name)
    if origin not in ("builtin", "folder"):
        raise UserError(f"--model.{option} {name} is neither a built-in backbone nor a folder")
    try:
        with quiet_transformers():
            options = {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
            model, info = kind.from_pretrained(source, **options)
            return model, sorted(info["missing_keys"])
    except Exception as error:  # transformers raises many types here; all mean that the model cannot be used
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--model.{option} {name}: the model there cannot be read ({reason})") from error
