"""The description of an architecture, as one dataclass; the rows are in `families.py`."""

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
    """The facts about an architecture that `FrozenBackbone` needs.

    Paths are module paths in the model with its LM head; `{i}` is the layer's number.

    Attributes:
        name: `model_type` of the Hugging Face configuration.
        kind: `masked_lm`, `causal_lm` or `seq2seq_lm`.
        body: path of the module from embeddings to hidden states; the encoder of a seq2seq model.
        head: paths of the modules from hidden states to logits, in order.
        ffn_site: path of the module of layer `{i}` whose output is the neurons; in the decoder of a seq2seq model,
            which has the answer slot.
        ffn_input: the neurons are the input of `ffn_site` instead; in gated FFNs this is the product.
        layer: path of layer `{i}`, if the last layer can be computed at the scored positions only (`last_layer.py`);
            None if it cannot, or if all its states are needed.
        reads_states: paths of the key and value projections in `layer`, if they are linear, read the layer's input, and
            are not followed by a norm or rotary positions.
        reshaped: path of the module after the last layer whose output the body reshapes to the input's shape, if any.
        cross_attention: path of the cross-attention of decoder layer `{i}`, if it is like T5's.
        self_attention: path of the self-attention of decoder layer `{i}`, if it is like T5's.
        rotary: path of the attention of layer `{i}`, if it is like Llama's: rotary positions, no norms of its own.
        swiglu: path of the feed-forward module of layer `{i}`, if it is like Llama's.
        activation: path of the activation function of layer `{i}`, if it is not `ffn_site`.
        gated: configuration -> whether a second projection is multiplied with the activation.
        learning_rate: default with AdamW for prompts initialized from vocabulary embeddings.
        layers: configuration -> number of layers `{i}`.
        max_positions: configuration -> longest input in positions.
        embedding_scale: configuration -> factor that the body applies to embeddings of `input_ids` but not to
            `inputs_embeds` (Marian). Gemma's embedding module applies its own.
        position_table: path of the position embeddings, if tokens may have none; None if every token has a position.
        token_type_table: path of the token-type embeddings, if any.
        position_ids: whether the body takes `position_ids` (T5's positions are relative).
        first_position: configuration -> position id of the first token.
        prompt_token_type: token type of answer slot and prompt tokens; -1 for none.
        separators: number of separators between the two texts of a pair.
        sliding: configuration -> attention window of sliding layers, or None.
        one_mask: all layers take the same attention mask, the sliding one if there is a window; otherwise the body
            takes one mask per kind of layer.
        logits: (configuration, output of `head`) -> logits, for models that scale or cap them.
        plain: use transformers' own forward pass over prompt and text together (`plain.py`), because the attention is
            not a registered attention function or has a term that ours lacks.
        attention: attention implementation of transformers for a `plain` family; None for the default.
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
    rotary: str | None = None
    swiglu: str | None = None
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
        """The Auto class of transformers that loads the model with its LM head."""
        return AUTO_CLASSES[self.kind]

    @property
    def shows_activation(self) -> bool:
        """Whether the activation function of the FFN is a known module."""
        return self.activation is not None or not self.ffn_input

    @property
    def needs_positions(self) -> bool:
        """Whether every token must have a position, as in rotary and causal models."""
        return self.position_table is None
