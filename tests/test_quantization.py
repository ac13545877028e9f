"""Quantized backbones: `prompt_transfer.backbones.quantization`."""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from prompt_transfer.backbones import quantization
from prompt_transfer.backbones.config import BackboneConfig
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.quantization import METHODS, QuantizedLinear
from prompt_transfer.cli import main
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError

pytest.importorskip("torchao", reason="the extra `quantization` is not installed")
pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")

TEXTS = ["a great film", "the plot is dull, and far too long for a short story"]


def batch(backbone: FrozenBackbone, length: int, texts: list[str] = TEXTS) -> dict[str, torch.Tensor]:
    encoder = backbone.encoder(length)
    rows = [torch.tensor(row) for row in encoder.encode(texts, None, 32)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=encoder.pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def answer(backbone: FrozenBackbone, texts: list[str] = TEXTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and the gradient of their weighted sum for a prompt of three words."""
    prompt = backbone.embedding_weight[100:103].detach().float().clone().requires_grad_()
    logits = backbone(prompt, batch(backbone, 3, texts), torch.arange(50, 60))
    (logits * torch.linspace(-1, 1, 10)).sum().backward()
    assert prompt.grad is not None
    return logits.detach(), prompt.grad


def test_int8_and_int4_by_hand() -> None:
    weight = torch.zeros(2, 32)
    weight[0, :3] = torch.tensor([127.0, -64.0, 1.0])
    weight[1, :4] = torch.tensor([0.0, 15.0, 7.0, 3.4])
    eight = METHODS["int8"].from_weight(weight)
    # The scale of a row is its largest magnitude over 127 (127.5 in torchao).
    torch.testing.assert_close(eight.dequantize(torch.float32), weight, atol=0.51, rtol=0)
    assert (eight.values.dtype, eight.values.shape) == (torch.int8, (2, 32))
    four = METHODS["int4"].from_weight(weight)
    assert (four.values.dtype, four.values.shape) == (torch.uint8, (2, 16))
    # Group 1 runs from 0 to 15, so its levels are whole numbers.
    torch.testing.assert_close(four.dequantize(torch.float32)[1, :4], torch.tensor([0.0, 15.0, 7.0, 3.0]))


def test_int4_keeps_sixteen_equidistant_levels_of_any_offset() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 16, (8, 4, 32), generator=generator).float()
    levels[..., 0], levels[..., 1] = 0, 15
    step, lowest = torch.rand(8, 4, 1, generator=generator) / 64 + 2**-10, torch.randn(8, 4, 1, generator=generator)
    weight = (lowest + step * levels).flatten(1)
    found = METHODS["int4"].from_weight(weight).dequantize(torch.float32)
    # float16 rounds scale and offset.
    torch.testing.assert_close(found, weight, atol=2e-3, rtol=0)


@pytest.mark.parametrize("method", list(METHODS))
def test_errors_stay_below_half_a_step(method: str) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    found = METHODS[method].from_weight(weight).dequantize(torch.float32)
    error = (found - weight).abs()
    if method == "int8":
        assert (error <= weight.abs().amax(dim=1, keepdim=True) / 127 / 2 * 1.01).all()
    elif method == "int4":
        groups = weight.view(16, 4, 32)
        step = (groups.amax(-1) - groups.amin(-1)) / 15
        assert (error.view(16, 4, 32) <= step[..., None] / 2 * 1.01 + 2e-3).all()
    else:
        # The largest gap between NF4 levels is from -1 to -0.696.
        assert (error.view(16, 2, 64) <= weight.view(16, 2, 64).abs().amax(-1, keepdim=True) * 0.153).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_matrix_expanded_in_parts_equals_the_whole(
    method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = METHODS[method].from_weight(torch.randn(50, 128, generator=torch.Generator().manual_seed(0)))
    whole = weight.dequantize(dtype)
    assert (whole.shape, whole.dtype, whole.is_contiguous()) == ((50, 128), dtype, True)
    # Seven rows at once, one in the last part, and less than a row.
    for numbers in (7 * 128 + 5, 100):
        monkeypatch.setattr(quantization, "EXPANDED_AT_ONCE", numbers)
        assert torch.equal(weight.dequantize(dtype), whole)


@pytest.mark.parametrize("method", list(METHODS))
def test_expanding_copies_no_whole_matrix_in_float32(method: str) -> None:
    weight = METHODS[method].from_weight(torch.randn(1024, 1024))
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor):
                sizes.append(output.untyped_storage().nbytes())
            return output

    with Sizes():
        weight.dequantize(torch.bfloat16)
    # The matrix in bf16; in float32 it has 4 MiB.
    assert max(sizes) == 2 * 2**20


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_products_share_the_memory_of_expanded_weights(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_scratch", quantization._Scratch())
    generator = torch.Generator().manual_seed(0)
    small, large = (METHODS[method].from_weight(torch.randn(size, 64, generator=generator)) for size in (8, 32))
    # A first use in inference mode must not prevent training.
    with torch.inference_mode():
        QuantizedLinear(small, None, 64, 8)(torch.randn(2, 64))
    x = torch.randn(3, 64, generator=generator, requires_grad=True)
    layers = [QuantizedLinear(weight, None, 64, len(weight.dequantize(torch.float32))) for weight in (small, large)]
    outputs = [layer(x) for layer in layers]
    sum(output.square().sum() for output in outputs).backward()
    matrices = [weight.dequantize(torch.float32) for weight in (small, large)]
    for output, matrix in zip(outputs, matrices, strict=True):
        torch.testing.assert_close(output, x @ matrix.t())
    torch.testing.assert_close(x.grad, sum(2 * (x @ matrix.t()) @ matrix for matrix in matrices))
    assert {dtype: len(block) for dtype, block in quantization._scratch.blocks.items()} == {torch.float32: 32 * 64}
    # A new tensor unless asked otherwise.
    assert large.dequantize(torch.float32).data_ptr() != large.dequantize(torch.float32, reuse=True).data_ptr()


def test_each_thread_has_its_own_memory_for_expanded_weights() -> None:
    weight = METHODS["int8"].from_weight(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    here = weight.dequantize(torch.float32, reuse=True)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(weight.dequantize, torch.float32, True).result()
    assert here.data_ptr() != there.data_ptr()
    assert torch.equal(here, there)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_layer_equals_one_with_the_dequantized_weights(method: str) -> None:
    weight = METHODS[method].from_weight(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    layer = QuantizedLinear(weight, torch.randn(64), 128, 64)
    x = torch.randn(2, 5, 128, requires_grad=True)
    gradient = torch.randn(2, 5, 64)
    layer(x).backward(gradient)
    found, x.grad = x.grad, None
    expanded = weight.dequantize(torch.float32)
    functional.linear(x, expanded, layer.bias).backward(gradient)
    torch.testing.assert_close(layer(x), functional.linear(x, expanded, layer.bias))
    torch.testing.assert_close(found, x.grad)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_autograd_keeps_no_dequantized_weight() -> None:
    layer = QuantizedLinear(METHODS["int8"].from_weight(torch.randn(512, 256)), None, 256, 512)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(3, 256, requires_grad=True))
    assert all(tensor.numel() < 256 * 512 for tensor in kept)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(
    ("name", "attention"),
    [("roberta-nano", "full"), ("roberta-nano", "shared"), ("gpt2-nano", "full"), ("t5-nano", "full")],
)
def test_backbones_equal_those_with_dequantized_weights(name: str, attention: str, method: str) -> None:
    quantized = FrozenBackbone(name, attention=attention, quantization=method)
    expanded = FrozenBackbone(name, attention=attention)
    layers = {path: layer for path, layer in quantized.model.named_modules() if isinstance(layer, QuantizedLinear)}
    assert layers
    with torch.no_grad():
        for path, layer in layers.items():
            target = expanded.model.get_submodule(path)
            matrix = layer.quantized.dequantize(torch.float32)
            target.weight.copy_(matrix if isinstance(target, nn.Linear) else matrix.t())
    logits, gradient = answer(quantized)
    wanted, wanted_gradient = answer(expanded)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-4, rtol=1e-3)
    # Every linear layer except those of the LM head is quantized.
    heads = (*quantized.family.head, "lm_head")
    left = [path for path, module in quantized.model.named_modules() if isinstance(module, nn.Linear)]
    assert all(path.startswith(heads) for path in left), left


@pytest.mark.parametrize("name", ["roberta-nano", "gpt2-nano", "t5-nano"])
def test_padding_and_several_prompts_do_not_change_logits(name: str) -> None:
    backbone = FrozenBackbone(name, quantization="int8")
    together, _ = answer(backbone)
    alone, _ = answer(backbone, TEXTS[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)
    prompts = torch.stack([backbone.embedding_weight[100:103].float(), backbone.embedding_weight[200:203].float()])
    texts = batch(backbone, 3, [TEXTS[0]] * 2)
    both = backbone(prompts, {**texts, "prompt_ids": torch.tensor([0, 1])}, torch.arange(50, 60))
    torch.testing.assert_close(both[:1], together[:1], atol=1e-4, rtol=1e-4)


def test_recomputed_layers_give_the_same_gradient() -> None:
    plain = answer(FrozenBackbone("gpt2-nano", quantization="int4"))
    again = answer(FrozenBackbone("gpt2-nano", quantization="int4", gradient_checkpointing=True))
    torch.testing.assert_close(plain, again)


def test_micro_batches_of_the_benchmark_add_up_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    script = importlib.import_module("quantization")
    backbone = FrozenBackbone("gpt2-nano", quantization="int8")
    ids = torch.randint(300, 500, (5, 6), generator=torch.Generator().manual_seed(0))
    rows, words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(50, 60)
    found = []
    # Nine positions an example: one pass, two examples a pass, and one, since a pass has at least one.
    for max_tokens, passes in ((None, 1), (18, 3), (5, 5)):
        prompt = nn.Parameter(backbone.embedding_weight[100:103].float().clone())
        calls: list[int] = []
        with monkeypatch.context() as patched:
            forward = backbone.forward
            patched.setattr(backbone, "forward", lambda *args, f=forward, c=calls: c.append(1) or f(*args))
            logits = script.step(backbone, prompt, rows, words, max_tokens)
        assert len(calls) == passes
        found.append((logits, prompt.grad))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-4)


def test_fit_and_test_keep_the_quantization(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ["--model.backbone", "roberta-nano", "--model.prompt_length", "3", "--data.task", "builtin_movies"]
    limits = ["--data.limit_eval", "20", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    assert main(["fit", *options, *limits, "--model.quantization", "int8", "--output", str(run)]) == 0
    prompt = Prompt.load(run / "prompt.safetensors")
    assert prompt.metadata["dtype"] == "float32+int8"
    capsys.readouterr()
    found = tmp_path / "test"
    command = ["test", "--prompt", str(run / "prompt.safetensors"), "--data.limit_eval", "20", "--output", str(found)]
    assert main([*command, "--random_prompts", "1"]) == 0
    import pandas as pd

    assert set(pd.read_parquet(found / "results.parquet")["dtype"]) == {"float32+int8"}


def test_a_dtype_may_name_the_quantization() -> None:
    config = BackboneConfig("x", dtype="bfloat16+int4")
    assert (config.dtype, config.quantization, config.dtype_name) == ("bfloat16", "int4", "bfloat16+int4")
    assert BackboneConfig("x", dtype="bfloat16+int4", quantization="int8").quantization == "int8"


def test_invalid_options_and_missing_libraries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown quantization 'int3': choose one of int8, int4, nf4"):
        BackboneConfig("x", quantization="int3")
    with pytest.raises(UserError, match=r"remove --model\.compile or --model\.quantization"):
        BackboneConfig("x", quantization="int8", compile=True)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"needs torchao .*: pip install 'prompt_transfer\[quantization\]'"):
        FrozenBackbone("roberta-nano", quantization="int8")
