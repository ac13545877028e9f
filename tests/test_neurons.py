"""Neurons: captures equal direct computation, masks have the specified effect, and hooks are always removed."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import test_families
import torch
from test_families import ALL, P, by_hand, collated, random_prompt, text_rows, words
from tiny_models import SEQ2SEQ
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from prompt_transfer.analysis.indicators import neuron_overlap, neuron_overlap_per_layer
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.neurons.capture import NeuronCapture, PromptRows, capture_prompts
from prompt_transfer.neurons.mask import NeuronMask, layer_deviation, most_activated, random_like
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.neurons.capture import find_prompts
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]


def tanh_gelu(x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")


# First FFN layer (input of the activation function), its partner in gated FFNs, and the activation function.
FFN: dict[str, tuple[str, str | None, Callable[[Tensor], Tensor]]] = {
    "bert": ("bert.encoder.layer.{i}.intermediate.dense", None, gelu),
    **dict.fromkeys(
        ("roberta", "xlm-roberta", "camembert"), ("roberta.encoder.layer.{i}.intermediate.dense", None, gelu)
    ),
    "electra": ("electra.encoder.layer.{i}.intermediate.dense", None, gelu),
    "albert": ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn", None, tanh_gelu),
    "distilbert": ("distilbert.transformer.layer.{i}.ffn.lin1", None, gelu),
    "mpnet": ("mpnet.encoder.layer.{i}.intermediate.dense", None, gelu),
    "deberta-v2": ("deberta.encoder.layer.{i}.intermediate.dense", None, gelu),
    "modernbert": ("model.layers.{i}.mlp.Wi", "model.layers.{i}.mlp.Wi", gelu),
    "gpt2": ("transformer.h.{i}.mlp.c_fc", None, tanh_gelu),
    "opt": ("model.decoder.layers.{i}.fc1", None, relu),
    "gpt_neo": ("transformer.h.{i}.mlp.c_fc", None, tanh_gelu),
    "gptj": ("transformer.h.{i}.mlp.fc_in", None, tanh_gelu),
    "falcon": ("transformer.h.{i}.mlp.dense_h_to_4h", None, gelu),
    "bloom": ("transformer.h.{i}.mlp.dense_h_to_4h", None, tanh_gelu),
    "phi3": ("model.layers.{i}.mlp.gate_up_proj", "model.layers.{i}.mlp.gate_up_proj", silu),
    "gpt_neox": ("gpt_neox.layers.{i}.mlp.dense_h_to_4h", None, gelu),
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text"),
        ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj", tanh_gelu),
    ),
    **dict.fromkeys(
        ("llama", "qwen2", "qwen3", "mistral", "olmo2", "smollm3", "granite"),
        ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj", silu),
    ),
    "t5": ("decoder.block.{i}.layer.2.DenseReluDense.wi", None, relu),
    **dict.fromkeys(
        ("t5_v1_1", "mt5"),
        (
            "decoder.block.{i}.layer.2.DenseReluDense.wi_0",
            "decoder.block.{i}.layer.2.DenseReluDense.wi_1",
            tanh_gelu,
        ),
    ),
}


def from_weights(
    folder: Path, family: str, kind: str, prompt: Tensor, row: list[int], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """Compute the neurons [L, F] at the answer slot of one text from the inputs and weights of each FFN."""
    first, second, function = FFN[family]
    linears: dict[Any, list[Tensor]] = {}
    models: list[Any] = []
    plain = test_families.plain_model

    def watched(*arguments: Any) -> Any:
        model = plain(*arguments)
        models.append(model)
        layers = model.config.num_decoder_layers if kind == "seq2seq_lm" else model.config.num_hidden_layers
        for layer in range(layers):
            module = model.get_submodule(first.format(i=layer))
            if module not in linears:
                linears[module] = []
                module.register_forward_pre_hook(lambda module, args: linears[module].append(args[0]))
        return model

    monkeypatch.setattr("test_families.plain_model", watched)
    by_hand(folder, kind, prompt, row, shared=False)
    monkeypatch.undo()
    place = {"masked_lm": P, "causal_lm": -1, "seq2seq_lm": 0}[kind]
    # OPT's FFN gets [B * T', H].
    inputs = [x.view(1, -1, x.shape[-1])[0, place] for seen in linears.values() for x in seen]

    def project(path: str, layer: int, x: Tensor) -> Tensor:
        module = models[0].get_submodule(path.format(i=layer))
        weight = module.weight.T if family == "gpt2" else module.weight
        return weight @ x + (0 if module.bias is None else module.bias)

    found: dict[str, list[Tensor]] = {"activations": [], "before": [], "gate": []}
    for layer, x in enumerate(inputs):
        before = project(first, layer, x)
        other = None if second is None else project(second, layer, x)
        if first == second:
            before, other = before.chunk(2)
        found["before"].append(before)
        found["gate"].append(function(before))
        found["activations"].append(function(before) if other is None else function(before) * other)
    if second is None:
        found.pop("gate")
    return {name: torch.stack(values).detach() for name, values in found.items()}


@pytest.mark.parametrize("family", ALL)
def test_captured_neurons_are_those_of_the_weights(tiny: Tiny, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    prompt, rows = random_prompt(backbone), text_rows(backbone)
    each = [from_weights(tiny(family), family, backbone.family.kind, prompt, row, monkeypatch) for row in rows]
    with NeuronCapture(backbone) as capture:
        backbone(prompt, collated(backbone, rows, width=30), words(backbone))
    found = capture.means()
    assert set(found) == {*each[0], "active"}
    assert backbone.is_gated == ("gate" in found)
    for name in each[0]:
        expected = torch.stack([one[name] for one in each])
        torch.testing.assert_close(found[name][0], expected.mean(dim=0), atol=1e-5, rtol=1e-4)
    share = torch.stack([one["activations"] > 0 for one in each]).float().mean(dim=0)
    torch.testing.assert_close(found["active"][0], share)


@pytest.mark.parametrize("family", ALL)
def test_prompts_alone_are_one_batch(tiny: Tiny, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    prompts = [random_prompt(backbone, seed) for seed in range(13)]
    batches: list[int] = []
    original = FrozenBackbone.answer_states

    def counted(self: FrozenBackbone, prompt: Any, batch: dict[str, Tensor]) -> Tensor:
        batches.append(len(batch["input_ids"]))
        return original(self, prompt, batch)

    monkeypatch.setattr(FrozenBackbone, "answer_states", counted)
    together = capture_prompts(backbone, prompts)
    monkeypatch.undo()
    assert batches == [13]
    row = backbone.encoder(P).without_text()
    assert len(row) == 1
    for number in (0, 7):
        alone = from_weights(tiny(family), family, backbone.family.kind, prompts[number], row, monkeypatch)
        for name, values in alone.items():
            torch.testing.assert_close(together[name][number], values, atol=1e-5, rtol=1e-4)


def test_what_stands_for_no_text(tiny: Tiny) -> None:
    expected = {"roberta": "<s>", "bert": "[CLS]", "gpt2": "<|endoftext|>", "t5": "<extra_id_0>"}
    for family, token in expected.items():
        backbone = FrozenBackbone(str(tiny(family)))
        assert backbone.tokenizer.convert_ids_to_tokens(backbone.encoder(P).without_text()) == [token]


def test_prompts_of_several_lengths_come_back_in_order(tiny_roberta: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta), layout="mask_first")
    prompts = [random_prompt(backbone, seed)[: 3 + seed % 2] for seed in range(5)]
    together = capture_prompts(backbone, prompts)["activations"]
    alone = [capture_prompts(backbone, [prompt])["activations"][0] for prompt in prompts]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-6, rtol=0)


# -2 + 5 k / 63 is positive for k = 26 ... 63 (38 neurons), 3 - 4 k / 63 for k = 0 ... 47 (48 neurons).
BIASES = torch.stack([torch.linspace(-2, 3, 64), torch.linspace(3, -1, 64)])


def hand_made(folder: Path, biases: Tensor = BIASES) -> FrozenBackbone:
    """Build a RoBERTa whose first FFN layer outputs `biases` [2, 64] for any input."""
    backbone = FrozenBackbone(str(folder))
    for layer, bias in enumerate(biases):
        linear = backbone.model.get_submodule(f"roberta.encoder.layer.{layer}.intermediate.dense")
        linear.weight.data.zero_()
        linear.bias.data.copy_(bias)
    return backbone


def test_overlap_by_hand_on_two_layers(tiny_roberta: Path) -> None:
    first = capture_prompts(hand_made(tiny_roberta), [torch.zeros(3, 32)])
    torch.testing.assert_close(first["before"][0], BIASES)
    torch.testing.assert_close(first["activations"][0], gelu(BIASES))
    # The other 26 neurons of layer 0, the same 48 of layer 1: 48 in common.
    second = capture_prompts(hand_made(tiny_roberta, BIASES * torch.tensor([[-1], [1]])), [torch.zeros(3, 32)])
    neurons = torch.cat([first["activations"], second["activations"]])
    assert (neurons > 0).sum(dim=2).tolist() == [[38, 48], [26, 48]]
    assert neuron_overlap(neurons).flatten().tolist() == pytest.approx([1, *[48 / (86 * 74) ** 0.5] * 2, 1])
    by_layer = neuron_overlap_per_layer(neurons)
    assert by_layer[:, 0, 1].tolist() == pytest.approx([0, 1])


def test_bf16_is_captured_in_float32(tiny_roberta: Path) -> None:
    half, whole = (FrozenBackbone(str(tiny_roberta), dtype=dtype) for dtype in ("bfloat16", "float32"))
    found, expected = (capture_prompts(backbone, [random_prompt(whole)])["activations"] for backbone in (half, whole))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("attention", ["full", "shared"])
@pytest.mark.parametrize("family", ["roberta", "albert", "gpt2", "t5_v1_1"])
def test_the_answer_slot_in_both_modes_and_behind_a_bank(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(2)])
    batch = collated(backbone, text_rows(backbone)) | {"prompt_ids": torch.tensor([1, 0, 1])}
    with NeuronCapture(backbone, 2) as bank, NeuronCapture(backbone, 2) as nested:
        backbone.answer_states(backbone.record(prompts), batch)
    with NeuronCapture(backbone, 2) as capture:
        backbone.answer_states(prompts, batch)
    assert capture.counts.tolist() == [1, 2]
    for name, values in capture.means().items():
        torch.testing.assert_close(bank.means()[name], values)
        torch.testing.assert_close(nested.means()[name], values)
    # Each layer has its own neurons, even where ALBERT shares weights.
    first, second = capture.means()["activations"][0, :2]
    assert not torch.allclose(first, second)


def test_writing_is_not_the_answer_slot(tiny: Tiny) -> None:
    for family in ("gpt2", "t5"):
        backbone = FrozenBackbone(str(tiny(family)))
        prompt, batch = random_prompt(backbone), collated(backbone, text_rows(backbone))
        targets = torch.tensor([[5, 6], [7, -100], [5, 8]])
        with NeuronCapture(backbone) as capture:
            backbone.generate(prompt, batch, max_new_tokens=2)
            assert capture.means() == {}
            backbone.target_log_probs(prompt, batch | {"target_ids": targets})
        with NeuronCapture(backbone) as plain:
            backbone.answer_states(prompt, batch)
        torch.testing.assert_close(capture.means()["activations"], plain.means()["activations"], atol=1e-5, rtol=1e-4)


def test_prompt_rows_are_seen_where_they_see_the_text(tiny: Tiny) -> None:
    for layout, attention, places in (("prefix", "full", P), ("mask_first", "full", P), ("prefix", "shared", 1)):
        backbone = FrozenBackbone(str(tiny("roberta")), layout=layout, attention=attention)
        seen: list[tuple[int, torch.Size]] = []
        with PromptRows(backbone, lambda layer, rows, seen=seen: seen.append((layer, rows.shape))):  # type: ignore[misc]
            backbone.answer_states(random_prompt(backbone), collated(backbone, text_rows(backbone)))
        assert seen == [(0, (3, places, 64)), (1, (3, places, 64))]


# Hooks ---------------------------------------------------------------------------------------------------------------


def hooks_of(backbone: FrozenBackbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules())


@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_hooks_come_off_whatever_happens(tiny: Tiny, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    before = hooks_of(backbone)
    with NeuronCapture(backbone) as capture:
        one = hooks_of(backbone)
        with NeuronCapture(backbone), pytest.raises(RuntimeError, match="is already active"):
            capture.__enter__()
        assert hooks_of(backbone) == one > before
        with pytest.raises(KeyboardInterrupt), NeuronCapture(backbone):
            raise KeyboardInterrupt
        assert hooks_of(backbone) == one
    assert hooks_of(backbone) == before
    with pytest.raises(UserError, match="belongs to another backbone"), NeuronMask(backbone, torch.ones(2, 5)):
        backbone(random_prompt(backbone), collated(backbone, text_rows(backbone)), words(backbone))
    assert hooks_of(backbone) == before
    assert backbone.answer_slot is None
    monkeypatch.setattr(FrozenBackbone, "activation_sites", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        NeuronCapture(backbone).__enter__()
    assert hooks_of(backbone) == before


def test_a_compiled_backbone_is_refused(tiny_roberta: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta))
    backbone.model.roberta.encoder.compile()
    with pytest.raises(UserError, match=r"the part model.roberta.encoder of .* is compiled"):
        capture_prompts(backbone, [random_prompt(backbone)])
    backbone = FrozenBackbone(str(tiny_roberta))
    backbone.model.roberta = torch.compile(backbone.model.roberta)
    with pytest.raises(UserError, match="is compiled"):
        NeuronMask(backbone, torch.ones(2, 64)).__enter__()


# Masks ---------------------------------------------------------------------------------------------------------------


def test_which_neurons_are_masked() -> None:
    values = torch.tensor([[1.0, 4, 3, 2], [50, 40, 60, 30]])
    assert most_activated(values, 0.5).tolist() == [[False, True, True, False], [True, False, True, False]]
    assert most_activated(values, 0.25).sum(dim=1).tolist() == [1, 1]
    assert most_activated(values, 0.5, "all").tolist() == [[False] * 4, [True] * 4]
    mask = most_activated(values, 0.5, "all")
    assert random_like(mask, 1).sum(dim=1).tolist() == [0, 4]
    wide = most_activated(torch.randn(2, 100), 0.3)
    assert random_like(wide, 1).sum(dim=1).tolist() == [30, 30]
    assert not torch.equal(random_like(wide, 1), random_like(wide, 2))
    assert torch.equal(random_like(wide, 1), random_like(wide, 1))
    with pytest.raises(UserError, match="between 0 and 1"):
        most_activated(values, 1.5)


@pytest.mark.parametrize("family", ALL)
def test_masking_all_neurons_leaves_the_second_layers_bias(tiny: Tiny, family: str) -> None:
    """Without neurons an FFN adds a constant, so its first layer no longer has an effect."""
    backbone = FrozenBackbone(str(tiny(family)))
    batch, prompt = collated(backbone, text_rows(backbone)), random_prompt(backbone)
    layers, width = capture_prompts(backbone, [prompt])["activations"].shape[1:]
    plain = backbone(prompt, batch, words(backbone))
    with NeuronMask(backbone, torch.ones(layers, width)):
        masked = backbone(prompt, batch, words(backbone))
        with NeuronCapture(backbone) as capture:
            backbone(prompt, batch, words(backbone))
        for layer in range(1 if family == "albert" else layers):
            path = FFN[family][0].format(i=layer)
            backbone.model.get_submodule(path).weight.data.mul_(-3)
        again = backbone(prompt, batch, words(backbone))
    assert not torch.allclose(plain, masked)
    torch.testing.assert_close(masked, again)
    # A capture registered later sees masked neurons at sites that are read at their input.
    assert capture.means()["activations"].abs().max() == 0


def test_mean_and_noise(tiny_roberta: Path) -> None:
    backbone = hand_made(tiny_roberta)
    prompt, batch = random_prompt(backbone), collated(backbone, text_rows(backbone))
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[1, :10] = True
    means = torch.full((2, 64), 7.0)
    with NeuronMask(backbone, mask, "mean", means=means), NeuronCapture(backbone) as capture:
        backbone(prompt, batch, words(backbone))
    expected = gelu(BIASES).clone()
    expected[1, :10] = 7
    torch.testing.assert_close(capture.means()["activations"][0], expected)
    deviation = layer_deviation(list(gelu(BIASES)[None]))
    assert deviation.tolist() == pytest.approx([float(row.std()) for row in gelu(BIASES)])

    def noisy(batch: dict[str, Tensor]) -> Tensor:
        with NeuronMask(backbone, mask, "noise", deviation=deviation, seed=3), NeuronCapture(backbone, 3) as seen:
            backbone(prompt.expand(3, -1, -1), batch | {"prompt_ids": torch.arange(3)}, words(backbone))
        return seen.means()["activations"]

    first = noisy(batch)
    assert ((first - gelu(BIASES)) != 0).any(dim=0).sum(dim=1).tolist() == [0, 10]
    assert not torch.allclose(first[0, 1, :10], gelu(BIASES)[1, :10])
    # All examples get the same noise at a position, for any batch width.
    torch.testing.assert_close(noisy(collated(backbone, text_rows(backbone), width=50)), first)
    with pytest.raises(UserError, match="unknown method"):
        NeuronMask(backbone, mask, "half")
    with pytest.raises(UserError, match=r"\[L, F\] with L 2"):
        NeuronMask(backbone, mask[:1])


# Processes -----------------------------------------------------------------------------------------------------------


def _share(rank: int, folder: Path, model: Path) -> dict[str, Tensor]:
    """Capture one of three processes' share: two rows, one row, no row."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3)
    torch.set_num_threads(1)
    calls, original = [], dist.all_reduce
    dist.all_reduce = lambda *arguments: calls.append(arguments) or original(*arguments)  # type: ignore[func-returns-value]
    backbone = FrozenBackbone(str(model))
    rows = text_rows(backbone)[[0, 2, 3][rank] : [2, 3, 3][rank]]
    with NeuronCapture(backbone) as capture:
        if rows:
            backbone(random_prompt(backbone), collated(backbone, rows), words(backbone))
    capture.all_reduce()
    dist.destroy_process_group()
    assert len(calls) == 1
    return {**capture.means(), "count": capture.counts}


def test_several_processes_equal_one_with_one_exchange(tmp_path: Path, tiny: Tiny) -> None:
    model = tiny("llama")
    backbone = FrozenBackbone(str(model))
    with NeuronCapture(backbone) as capture:
        backbone(random_prompt(backbone), collated(backbone, text_rows(backbone)), words(backbone))
    whole = {**capture.means(), "count": capture.counts}
    with get_context("fork").Pool(3) as pool:
        found = pool.starmap(_share, [(rank, tmp_path, model) for rank in range(3)], chunksize=1)
    for one in found:
        assert set(one) == set(whole)
        for name, values in whole.items():
            torch.testing.assert_close(one[name], values, atol=1e-6, rtol=1e-5)


def test_seq2seq_reads_the_decoder(tiny: Tiny) -> None:
    for family in SEQ2SEQ:
        backbone = FrozenBackbone(str(tiny(family)))
        decoder = set(backbone.model.get_decoder().modules())
        assert all(site in decoder for site in [*backbone.ffn_sites(), *backbone.activation_sites()])


def test_the_copy_of_a_run_s_best_prompt_is_left_out(tmp_path: Path) -> None:
    for name in ("prompt", "prompt-seed0", "prompt-seed1"):
        Prompt(torch.zeros(2, 4)).save(tmp_path / "run" / f"{name}.safetensors")
    assert list(find_prompts(tmp_path)) == ["run/prompt-seed0", "run/prompt-seed1"]
