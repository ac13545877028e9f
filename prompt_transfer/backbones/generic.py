"""Families without a row: described from the loaded model and run by transformers' own forward pass (`plain.py`).

`proof.py` checks each of these models at load time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.family import AUTO_CLASSES, Family
from prompt_transfer.backbones.substitutes import path_of
from prompt_transfer.utils.errors import UserError

# Tried in this order if a checkpoint does not name its class.
_CLASSES = {
    "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked_lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
# Values of a configuration's fields that the family's class would follow only in part.
_CONTRARY: dict[str, dict[str, Callable[[Any], bool]]] = {
    # Without the field a model is causal, but with null it is not.
    "causal_lm": {"is_causal": lambda value: not value},
    "masked_lm": {"is_causal": bool, "is_decoder": bool},
    # Encoder and decoder share the field.
    "seq2seq_lm": {"is_causal": lambda value: True, "is_decoder": bool},
}
_WORDS = {"causal_lm": "causal", "masked_lm": "masked", "seq2seq_lm": "sequence-to-sequence"}
# Name substrings of token-mixing modules.
_MIXERS = ("attn", "attention", "mixer", "mamba", "ssm", "conv", "recurrent")
_ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")


def kind_of(facts: Mapping[str, Any], name: str) -> str:
    """Return the kind of a model from its config.json, by its family's row or else by transformers' Auto classes.

    Raises:
        UserError: neither transformers nor the checkpoint has a language model of this type.
    """
    model_type = facts.get("model_type", "unknown")
    if model_type in FAMILIES:
        return FAMILIES[model_type].kind
    classes = {kind: names.get(model_type) for kind, names in _CLASSES.items()}
    for architecture in facts.get("architectures") or ():
        for kind, known in classes.items():
            if architecture == known or architecture in (known if isinstance(known, tuple) else ()):
                return kind
    for kind, known in classes.items():
        if known is not None or AUTO_CLASSES[kind] in (facts.get("auto_map") or {}):
            return kind
    raise UserError(
        f"backbone {name} has the model type {model_type!r}, for which transformers has no class with an LM head: use "
        "a causal, masked or sequence-to-sequence language model"
    )


def refuse_contrary(facts: Mapping[str, Any], name: str, kind: str) -> None:
    """Raise UserError if a config.json states that tokens see others than in models of this kind.

    Args:
        facts: contents of the config.json; the nested configurations of a text model, encoder and decoder count too.
        name: name of the backbone, for messages.
        kind: see `kind_of`.
    """
    sections = [(facts, kind), (facts.get("text_config"), kind)]
    if kind == "seq2seq_lm":
        sections += [(facts.get("encoder"), "masked_lm"), (facts.get("decoder"), "causal_lm")]
    for section, rules in sections:
        for field, contrary in _CONTRARY[rules].items():
            if isinstance(section, Mapping) and field in section and contrary(section[field]):
                raise UserError(
                    f"{name} is loaded as a {_WORDS[kind]} language model, but its config.json states {field}: "
                    f"{json.dumps(section[field])}: use another backbone, or remove {field} if the model was trained "
                    "without it"
                )


def describe(model: PreTrainedModel, model_type: str, kind: str) -> Family:
    """Build a `Family` for a model type without a row.

    Raises:
        UserError: the model's body cannot be separated from its LM head.
    """
    body = model.get_encoder() if kind == "seq2seq_lm" else model.base_model
    if body is model:
        raise UserError(
            f"a {model_type} model has no body that is separate from its LM head; use a backbone of another family"
        )
    reader = model.get_decoder() if kind == "seq2seq_lm" else body
    kept = {id(part) for part in (body, reader, model.get_input_embeddings())}
    head = tuple(
        name for name, child in model.named_children() if not any(id(part) in kept for part in child.modules())
    )
    path = path_of(model, body)
    config = model.config.get_text_config()
    positions = _max_positions(config, body)
    # A custom embedding module applies its own scale; otherwise the body scales `input_ids` but not `inputs_embeds`.
    scale = getattr(body, "embed_scale", 1.0) if type(model.get_input_embeddings()) is nn.Embedding else 1.0
    site, activation, gated, layers = find_ffn(reader, getattr(config, "hidden_size", None))
    inside = path_of(model, reader)
    return Family(
        model_type,
        kind,
        path,
        head,
        f"{inside}.{site}" if site else "",
        learning_rate=0.003,
        ffn_input=True,
        activation=f"{inside}.{activation}" if activation else None,
        gated=lambda config: gated,
        layers=lambda config: layers,
        max_positions=lambda config: positions,
        embedding_scale=lambda config: scale,
        plain=True,
        has_row=False,
    )


def _max_positions(config: Any, body: nn.Module) -> int:
    for name in ("max_position_embeddings", "max_encoder_position_embeddings", "n_positions", "max_seq_len"):
        size = getattr(config, name, None)
        if isinstance(size, int) and size > 0:
            break
    else:
        # The config states no limit; inputs longer than this are untested.
        return 2048
    for name, table in body.named_modules():
        # fairseq counts positions from the padding index.
        if isinstance(table, nn.Embedding) and "position" in name and table.padding_idx is not None:
            return min(size, table.num_embeddings - table.padding_idx - 1)
    return size


# Neurons -------------------------------------------------------------------------------------------------------------


def find_ffn(body: nn.Module, width: int | None) -> tuple[str, str | None, bool, int]:
    """Find the output projection of each layer's FFN by the sizes of linear layers.

    Args:
        body: the module with the layers.
        width: H.

    Returns:
        Path of the projection in layer `{i}` ("" if ambiguous), path of the activation function or None, whether the
        FFN is gated, number of layers.
    """
    nothing = ("", None, False, 0)
    lists = [(name, part) for name, part in body.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    outer = [(name, part) for name, part in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        return nothing
    name, layers = outer[0]
    found = {_ffn_of_layer(layer, width) for layer in layers}
    if len(found) != 1:
        return nothing
    site, activation, gated = found.pop()
    if not site:
        return nothing
    prefix = f"{name}.{{i}}."
    return prefix + site, None if activation is None else prefix + activation, gated, len(layers)


def with_site(model: PreTrainedModel, family: Family, site: str) -> Family:
    """Return the family with its FFN path set: the module of layer `{i}` whose input is the neurons.

    Raises:
        UserError: the family has a row, or the module does not exist.
    """
    if family.has_row:
        raise UserError(f"the family {family.name} already defines its FFN path: remove ffn_site")
    names = {name for name, _ in model.named_modules()}
    layers = 0
    while "{i}" in site and site.format(i=layers) in names:
        layers += 1
    if not layers:
        raise UserError(
            f"ffn_site {site!r} is not a module of layer {{i}}: give a path such as 'model.layers.{{i}}.mlp.down_proj'"
        )
    return replace(family, ffn_site=site, activation=None, layers=lambda config: layers)


def refuse_ambiguous(name: str, family: Family) -> None:
    """Raise UserError if the FFN output projection cannot be identified."""
    if not family.ffn_site:
        raise UserError(
            f"cannot locate the FFN neurons of {name} ({family.name}): pass the module of layer {{i}} that takes them "
            "as input, e.g. FrozenBackbone(name, ffn_site='model.layers.{i}.mlp.down_proj')"
        )


def _sizes(part: nn.Module) -> tuple[int, int] | None:
    """Return the input and output sizes of a linear layer, None for other modules."""
    if isinstance(part, nn.Linear):
        return part.in_features, part.out_features
    return (part.weight.shape[0], part.weight.shape[1]) if isinstance(part, Conv1D) else None


def _ffn_of_layer(layer: nn.Module, width: int | None) -> tuple[str, str | None, bool]:
    """Return the paths of output projection ("" if ambiguous) and activation function, and whether the FFN is gated."""
    inside = dict(layer.named_modules())
    own = {path: part for path, part in inside.items() if not any(word in path.lower() for word in _MIXERS)}
    weights = [weight for part in own.values() for weight in part.parameters(recurse=False)]
    if any("expert" in path for path in own) or any(weight.ndim == 3 and min(weight.shape) > 1 for weight in weights):
        return "", None, False
    linear = {path: size for path, part in own.items() if (size := _sizes(part)) is not None}
    order = list(linear)
    found = []
    for path, (inputs, outputs) in linear.items():
        # An FFN narrower than the hidden states is a bottleneck around another FFN (MobileBERT).
        if outputs != (width or outputs) or inputs < outputs:
            continue
        partners = [
            linear[other][1]
            for other in order
            if linear[other] in ((outputs, inputs), (outputs, 2 * inputs))
            and other != path
            and (inputs != outputs or order.index(other) < order.index(path))
        ]
        if partners:
            found.append((path, sum(partners) == 2 * inputs))
    if len(found) != 1:
        return "", None, False
    activations = [path for path, part in own.items() if type(part).__module__ in _ACTIVATIONS]
    return found[0][0], activations[0] if len(activations) == 1 else None, found[0][1]
