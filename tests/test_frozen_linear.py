"""Frozen linear layers: values as in PyTorch, input gradients, and layers left unpatched."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_families import CAUSAL, MODES, P, Tiny, by_hand, collated, random_prompt, text_rows, words
from tiny_models import PLAIN
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.kernels import frozen_linear
from prompt_transfer.backbones.substitutes import fuse_activations

HAS_KERNEL = frozen_linear._kernel() is not None
needs_kernel = pytest.mark.skipif(not HAS_KERNEL, reason="this processor or this torch has no such kernel")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the input shape of each kernel call."""
    kernel = frozen_linear._kernel()
    seen: list[tuple[int, ...]] = []

    def watched(x: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return kernel(x, *rest)  # type: ignore[no-any-return]

    monkeypatch.setattr(frozen_linear, "_kernel", lambda: watched if kernel is not None else None)
    return seen


def tensors(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return input [*shape, 24], weight [40, 24], bias [40]."""
    torch.manual_seed(0)
    return torch.randn(*shape, 24).to(dtype), torch.randn(40, 24).to(dtype), torch.randn(40).to(dtype)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 1)])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 0.1)])
def test_output_and_gradient_are_those_of_a_linear_layer(
    shape: tuple[int, ...], dtype: torch.dtype, atol: float, taken: list[tuple[int, ...]]
) -> None:
    x, weight, bias = tensors(dtype, *shape)
    scale = torch.linspace(-1, 1, 40)
    found = []
    for function, precision in ((frozen_linear.frozen_linear, dtype), (functional.linear, torch.float32)):
        own = x.to(precision, copy=True).requires_grad_()
        output = function(own, weight.to(precision), bias.to(precision))
        (output.float() * scale).sum().backward()
        assert own.grad is not None
        found.append((output, own.grad))
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), exact, rtol=0.01, atol=atol)
    assert len(taken) == int(HAS_KERNEL and dtype == torch.bfloat16)


@needs_kernel
def test_what_does_not_fit_goes_the_usual_way(taken: list[tuple[int, ...]]) -> None:
    x, weight, bias = tensors(torch.bfloat16, 2, 6)
    strided = x[:, ::2]
    torch.testing.assert_close(
        frozen_linear.frozen_linear(strided, weight, bias), functional.linear(strided, weight, bias)
    )
    # A trained weight still gets its gradient.
    trained = weight.clone().requires_grad_()
    frozen_linear.frozen_linear(x, trained, bias).sum().backward()
    assert trained.grad is not None
    assert taken == []


def test_layers_are_found_and_derived_ones_left_alone() -> None:
    class Derived(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Conv1D(8, 6), nn.Linear(8, 4, bias=False), Derived(4, 4))
    x = torch.randn(2, 3, 4)
    before = model(x)
    frozen_linear.substitute(model.requires_grad_(False))
    changed = ["forward" in vars(layer) for layer in model]
    assert changed == [True, True, True, False]
    torch.testing.assert_close(model(x), before)


@needs_kernel
@pytest.mark.parametrize("conv1d", [False, True])
def test_sorted_weights_give_the_same_gradient(conv1d: bool) -> None:
    _, weight, _ = tensors(torch.bfloat16, 2, 5)
    weight = weight.t().contiguous().t() if conv1d else weight
    gradient = torch.randn(2, frozen_linear.MIN_ROWS, 40).bfloat16()
    transposed = frozen_linear.TransposedWeight(enabled=True)
    for scale in (1, 2):
        # Changed weights are used, even if autograd does not notice the change.
        weight.data.mul_(scale)
        exact = gradient.float() @ weight.float()
        torch.testing.assert_close(transposed.product(gradient, weight).float(), exact, rtol=0.01, atol=0.1)
    reordered = transposed.reordered
    assert reordered is not None
    transposed.product(gradient, weight)
    assert transposed.reordered is reordered
    other = copy.deepcopy(transposed)
    assert other.enabled
    assert other.reordered is None
    # Few rows are not worth a reordered weight, nor are the weights of a large model.
    few = frozen_linear.TransposedWeight(enabled=True)
    few.product(gradient[:1, :3], weight)
    assert few.reordered is None


@needs_kernel
def test_a_large_model_keeps_its_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4, bias=False))
    for most, enabled in ((1000, True), (10, False)):
        monkeypatch.setattr(frozen_linear, "MAX_TRANSPOSED_BYTES", most)
        frozen_linear.substitute(model.requires_grad_(False))
        assert [layer.forward.transposed.enabled for layer in model] == [enabled, enabled]


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Run the bf16 path in float32, free of rounding errors, and record the shapes of its products."""
    seen: list[tuple[int, ...]] = []

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return functional.linear(x, weight, bias)

    monkeypatch.setattr(frozen_linear, "DTYPE", torch.float32)
    monkeypatch.setattr(frozen_linear, "_kernel", lambda: kernel)
    monkeypatch.setattr(frozen_linear, "MAX_TRANSPOSED_BYTES", 0)
    return seen


@pytest.mark.parametrize(("family", "attention"), [mode for mode in MODES if mode[0] not in PLAIN])
def test_logits_and_gradients_equal_a_plain_forward(
    tiny: Tiny, family: str, attention: str, in_float32: list[tuple[int, ...]]
) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    rows, token_ids = text_rows(backbone), words(backbone)
    prompt = random_prompt(backbone).requires_grad_()
    logits = backbone(prompt, collated(backbone, rows), token_ids)
    logits.sum().backward()
    slow = prompt.detach().clone().requires_grad_()
    for index, row in enumerate(rows):
        expected = by_hand(tiny(family), backbone.family.kind, slow, row, attention == "shared")[token_ids]
        torch.testing.assert_close(logits[index], expected, atol=1e-5, rtol=1e-5)
        expected.sum().backward()
    assert prompt.grad is not None
    assert slow.grad is not None
    torch.testing.assert_close(prompt.grad, slow.grad, atol=1e-5, rtol=1e-4)
    # A prompt that sees the text enters the first layer once for all examples.
    if attention == "full" and family not in CAUSAL:
        assert (1, P, backbone.hidden_size) in in_float32


@pytest.mark.parametrize("family", ["roberta", "t5"])
def test_each_of_several_prompts_enters_once(tiny: Tiny, family: str, in_float32: list[tuple[int, ...]]) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    batch, token_ids = collated(backbone, text_rows(backbone) * 2), words(backbone)
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(3)]).requires_grad_()
    # The second prompt has no example.
    chosen = torch.tensor([2, 0, 2, 2, 2, 0])
    weights = torch.randn(6, len(token_ids), generator=torch.Generator().manual_seed(1))
    logits = backbone(prompts, {**batch, "prompt_ids": chosen}, token_ids)
    (logits * weights).sum().backward()
    assert (2, P, backbone.hidden_size) in in_float32
    assert prompts.grad is not None
    for index in range(3):
        rows = chosen == index
        alone = prompts[index].detach().clone().requires_grad_()
        if not rows.any():
            assert not prompts.grad[index].any()
            continue
        again = backbone(alone, {name: value[rows] for name, value in batch.items()}, token_ids)
        torch.testing.assert_close(again, logits[rows], atol=1e-5, rtol=0)
        (again * weights[rows]).sum().backward()
        torch.testing.assert_close(alone.grad, prompts.grad[index], atol=1e-5, rtol=1e-4)
    # Texts with several prompts are also multiplied once.
    in_float32.clear()
    texts = {name: value[:3] for name, value in batch.items()}
    crossed = {**texts, "text_ids": torch.tensor([0, 1, 2, 0, 1, 2]), "prompt_ids": chosen}
    torch.testing.assert_close(backbone(prompts, crossed, token_ids), logits, atol=1e-5, rtol=0)
    length = batch["input_ids"].shape[1] + (0 if family == "t5" else 1)
    assert (3, length, backbone.hidden_size) in in_float32
    # Sharing is not worth it if hardly any examples share a prompt.
    in_float32.clear()
    backbone(prompts, {**batch, "prompt_ids": torch.tensor([0, 1, 2, 0, 1, 2])}, token_ids)
    assert (3, P, backbone.hidden_size) in in_float32
    in_float32.clear()
    few = {name: value[:5] for name, value in batch.items()}
    backbone(prompts, {**few, "prompt_ids": torch.tensor([0, 1, 2, 0, 1])}, token_ids)
    assert (3, P, backbone.hidden_size) not in in_float32


@pytest.mark.parametrize("family", ["roberta", "t5"])
def test_layers_computed_again_know_the_rows_too(tiny: Tiny, family: str, in_float32: list[tuple[int, ...]]) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = FrozenBackbone(str(tiny(family)), gradient_checkpointing=checkpointing)
        prompt = random_prompt(backbone).requires_grad_()
        backbone(prompt, collated(backbone, text_rows(backbone)), words(backbone)).sum().backward()
        gradients.append(prompt.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    assert frozen_linear._sharing.rows is None


@needs_kernel
@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_a_backbone_in_bf16_uses_it(tiny: Tiny, family: str, taken: list[tuple[int, ...]]) -> None:
    backbone = FrozenBackbone(str(tiny(family)), dtype="bfloat16")
    prompt = random_prompt(backbone).requires_grad_()
    backbone(prompt, collated(backbone, text_rows(backbone)), words(backbone)).sum().backward()
    # At least four in every layer: attention layers and two of the FFN.
    assert len(taken) >= 4 * backbone.config.num_hidden_layers


@pytest.mark.parametrize("kind", [NewGELUActivation, FastGELUActivation])
def test_the_fused_activation_is_the_same_function(kind: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(kind()))
    x = torch.linspace(-6, 6, 4000).view(-1, 4)
    before = model(x)
    fuse_activations(model)
    assert isinstance(model[1][0], nn.GELU)  # type: ignore[index]
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["prefix", "mask_first"])
def test_a_single_layer_is_first_and_last(
    tiny: Tiny, tmp_path: Path, layout: str, in_float32: list[tuple[int, ...]]
) -> None:
    folder = tmp_path / "one"
    shutil.copytree(tiny("roberta"), folder)
    model = transformers.RobertaForMaskedLM.from_pretrained(folder, num_hidden_layers=1)
    model.save_pretrained(folder)
    backbone = FrozenBackbone(str(folder), layout=layout)
    rows, token_ids, prompt = text_rows(backbone), words(backbone), random_prompt(backbone)
    prompts = torch.stack([prompt, prompt])
    batch = collated(backbone, rows)
    # Separate prompts are not merged, even if equal.
    apart = backbone(prompts, {**batch, "prompt_ids": torch.tensor([0, 1, 0])}, token_ids)
    expected = prompts.clone().requires_grad_()
    backbone(expected, {**batch, "prompt_ids": torch.tensor([0, 1, 0])}, token_ids).sum().backward()
    together = prompt.clone().requires_grad_()
    logits = backbone(together, batch, token_ids)
    torch.testing.assert_close(logits, apart, atol=1e-5, rtol=0)
    logits.sum().backward()
    assert together.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(together.grad, expected.grad.sum(dim=0), atol=1e-5, rtol=1e-4)


def test_what_is_not_finite_in_one_prompt_stays_there(tiny: Tiny, in_float32: list[tuple[int, ...]]) -> None:
    backbone = FrozenBackbone(str(tiny("roberta")))
    batch = collated(backbone, text_rows(backbone) * 2)
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(2)])
    prompts[1, 0, 0] = float("inf")
    prompts.requires_grad_()
    logits = backbone(prompts, {**batch, "prompt_ids": torch.tensor([0, 0, 0, 1, 1, 1])}, words(backbone))
    logits.sum().backward()
    assert (2, P, backbone.hidden_size) in in_float32
    assert prompts.grad is not None
    assert prompts.grad[0].isfinite().all()
    assert not prompts.grad[1].isfinite().all()


@pytest.mark.parametrize("family", ["roberta", "t5"])
def test_with_dropout_or_a_hook_no_rows_are_alike(tiny: Tiny, family: str, in_float32: list[tuple[int, ...]]) -> None:
    backbone = FrozenBackbone(str(tiny(family)), dropout=True)
    prompt, batch, token_ids = random_prompt(backbone), collated(backbone, text_rows(backbone)), words(backbone)

    def once() -> bool:
        in_float32.clear()
        backbone(prompt, batch, token_ids)
        return (1, P, backbone.hidden_size) in in_float32

    assert not once()
    backbone.eval()
    assert once()
    handle = backbone.model.get_input_embeddings().register_forward_hook(lambda module, args, output: None)
    body = backbone.model.get_submodule(backbone.family.body)
    inside = body.register_forward_pre_hook(lambda module, args: None)
    assert not once()
    handle.remove()
    inside.remove()
    assert once()


@pytest.mark.parametrize("family", ["roberta", "modernbert", "t5"])
def test_compiled_layers_share_no_rows(
    tiny: Tiny, family: str, in_float32: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FrozenBackbone(str(tiny(family)))
    prompt, batch, token_ids = random_prompt(plain), collated(plain, text_rows(plain)), words(plain)
    expected = plain(prompt, batch, token_ids)
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend="eager", **options))
    compiled = FrozenBackbone(str(tiny(family)), compile=True)
    in_float32.clear()
    torch.testing.assert_close(compiled(prompt, batch, token_ids), expected, atol=1e-5, rtol=0)
    assert (1, P, plain.hidden_size) not in in_float32


def test_threads_do_not_see_each_others_rows() -> None:
    seen: list[frozen_linear.SharedRows | None] = []
    with frozen_linear.sharing_rows(frozen_linear.SharedRows(0, 2, None, None)):
        thread = threading.Thread(target=lambda: seen.append(frozen_linear._sharing.rows))
        thread.start()
        thread.join()
        assert frozen_linear._sharing.rows is not None
    assert seen == [None]
    with (
        pytest.raises(RuntimeError, match="broken"),
        frozen_linear.sharing_rows(frozen_linear.SharedRows(0, 2, None, None)),
    ):
        raise RuntimeError("broken")
    assert frozen_linear._sharing.rows is None
