"""What `FrozenBackbone` must know of an architecture, as one dataclass; the rows are in `families.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

AUTO_CLASSES = {
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
}


def _positions(config: Any) -> int:
    return config.max_position_embeddings


@dataclass(frozen=True)
class Family:
    """What `FrozenBackbone` must know of an architecture; paths are those of modules in the model with its LM head.

    Attributes:
        name: `model_type` of the Hugging Face configuration.
        kind: `masked_lm`, `causal_lm` or `seq2seq_lm`.
        body: the module that turns embeddings into hidden states (of a seq2seq model its encoder).
        head: the modules that turn hidden states into logits, one after the other.
        ffn_site: the module of layer `{i}` where the neurons are (of a seq2seq model in its decoder, where the answer
            is), read off its output; or with `ffn_input` off its input, which for gated FFNs is the product.
        ffn_input: see `ffn_site`.
        layer: the module of layer `{i}`, where the last one can be computed at a few positions alone
            (`last_layer.py`); None where it cannot be, or where all its states are read.
        reads_states: of such a layer the modules that make keys and values, where they are linear, read what enters the
            layer, and nothing comes between them and the products of attention (no norm, no rotation).
        reshaped: the module behind the last layer whose output the body gives the shape of its input, if it does.
        cross_attention: of layer `{i}` of a decoder, where it is as T5's is.
        self_attention: the same of its self-attention.
        activation: the activation function of layer `{i}`, where it is another module than `ffn_site`.
        gated: configuration -> whether what it gives is multiplied with a second projection before it is a neuron.
        learning_rate: default for prompts that start from vocabulary embeddings, with AdamW.
        layers: configuration -> how many layers `{i}` counts.
        max_positions: configuration -> how many positions an input may have.
        embedding_scale: configuration -> factor that the body applies to the word embeddings that it looks up itself,
            and not to those that it is given (Marian); Gemma's embedding module has its own.
        position_table: the position embeddings, where tokens can go without one; None where every token has a position.
        token_type_table: the token-type embeddings, if there are any.
        position_ids: whether the body takes `position_ids` (T5's positions are relative).
        first_position: configuration -> position id of the first token when nothing stands before it.
        prompt_token_type: token type of answer slot and prompt rows; -1 for none at all.
        separators: how many separators stand between the two texts of a pair.
        sliding: configuration -> the attention window of its sliding layers, or None.
        one_mask: all layers take the same attention mask: the sliding one where there is a window. Otherwise the body
            takes one for each kind of layer.
        logits: (configuration, output of `head`) -> logits, for models that scale or cap them.
        plain: use the library's own forward over prompt and text together (`plain.py`): the attention of the
            architecture is not a registered attention function, or has a term that ours lacks.
        attention: attention implementation of transformers that a `plain` family needs; None: the library's choice.
        has_row: False for families that `generic.py` describes at load time.
    """

    name: str
    kind: str
    body: str
    head: tuple[str, ...]
    ffn_site: str
    learning_rate: float
    ffn_input: bool = False
    layer: str | None = None
    reads_states: tuple[str, str] | None = None
    reshaped: str | None = None
    cross_attention: str | None = None
    self_attention: str | None = None
    activation: str | None = None
    gated: Callable[[Any], bool] = lambda config: False
    layers: Callable[[Any], int] = lambda config: config.num_hidden_layers
    max_positions: Callable[[Any], int] = _positions
    embedding_scale: Callable[[Any], float] = lambda config: 1.0
    position_table: str | None = None
    token_type_table: str | None = None
    position_ids: bool = True
    first_position: Callable[[Any], int] = lambda config: 0
    prompt_token_type: int = 0
    separators: int = 1
    sliding: Callable[[Any], int | None] = lambda config: None
    one_mask: bool = False
    logits: Callable[[Any, Tensor], Tensor] = lambda config, logits: logits
    plain: bool = False
    attention: str | None = None
    has_row: bool = True

    @property
    def auto_class(self) -> str:
        """The transformers class that loads it with its LM head."""
        return AUTO_CLASSES[self.kind]

    @property
    def shows_activation(self) -> bool:
        """Whether it is known which module is the activation function of an FFN."""
        return self.activation is not None or not self.ffn_input

    @property
    def needs_positions(self) -> bool:
        """Whether every token of the input has a position: rotary and causal models."""
        return self.position_table is None
