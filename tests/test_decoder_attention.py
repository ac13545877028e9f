"""Attention in a decoder's first step, compared with the modules it replaces."""

from __future__ import annotations

import pytest
import torch
from test_families import Tiny, collated, random_prompt, text_rows, words
from torch import Tensor
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from prompt_transfer.backbones.decoder_attention import AbsorbedKVAttention, SingleTokenAttention
from prompt_transfer.backbones.frozen import FrozenBackbone


@pytest.mark.parametrize("padded", [True, False])
def test_output_and_gradients_equal_the_modules_own(padded: bool) -> None:
    torch.manual_seed(0)
    # The heads' total width differs from the model's, as in the larger T5 v1.0.
    config = T5Config(d_model=24, d_kv=5, num_heads=3, is_decoder=True, dropout_rate=0.0)
    config._attn_implementation = "sdpa"
    whole = T5Attention(config, layer_idx=0).eval()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = [torch.randn(2, 1, 24, requires_grad=True), torch.randn(2, 7, 24, requires_grad=True)]
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()[:, None, None] if padded else None
    weights = torch.randn(2, 1, 24)

    def run(module: torch.nn.Module) -> tuple[Tensor, ...]:
        output = module(inputs[0], mask=mask, key_value_states=inputs[1])[0]
        return output, *torch.autograd.grad((output * weights).sum(), inputs)

    for found, expected in zip(run(AbsorbedKVAttention(whole).eval()), run(whole), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_token_alone_reads_itself() -> None:
    torch.manual_seed(0)
    config = T5Config(d_model=24, d_kv=5, num_heads=3, is_decoder=True, dropout_rate=0.0)
    config._attn_implementation = "sdpa"
    whole = T5Attention(config, layer_idx=0, has_relative_attention_bias=True, is_causal=True).eval()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    asked: list[int] = []
    whole.q.register_forward_hook(lambda module, args, output: asked.append(output.shape[1]))
    alone = SingleTokenAttention(whole).eval()
    for length in (1, 3):
        found = []
        for module in (alone, whole):
            states = torch.randn(2, length, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
            output = module(states)[0]
            found.append((output, *torch.autograd.grad(output.square().sum(), states)))
        for ours, expected in zip(*found, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    # For one token only the original computes queries; for three tokens both do.
    assert asked == [1, 3, 3]


def test_keys_and_values_are_made_for_targets_only(tiny: Tiny) -> None:
    backbone = FrozenBackbone(str(tiny("t5")))
    calls: list[int] = []
    attention = backbone.model.decoder.block[0].layer[1].EncDecAttention
    attention.whole.k.register_forward_hook(lambda module, args, output: calls.append(output.shape[1]))
    prompt, batch = random_prompt(backbone), collated(backbone, text_rows(backbone))
    backbone(prompt, batch, words(backbone))
    assert calls == []
    backbone.target_log_probs(prompt, {**batch, "target_ids": torch.tensor([[5, 1], [6, 1], [7, 1]])})
    assert calls == [len(prompt) + batch["input_ids"].shape[1]]
