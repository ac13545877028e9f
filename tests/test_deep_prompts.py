"""Deep prompts in training: exact counts, resume, two processes, many at once, starts, and the prompt file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_prompt_ensemble import train as train_together
from test_prompt_tuning import P, make, train
from tiny_models import prompt_facts
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts import arithmetic
from prompt_transfer.prompts.initializers import ClassLabels, FromPrompt, Normal, Text, Vocabulary
from prompt_transfer.prompts.io.interchange import write_numpy
from prompt_transfer.prompts.io.peft_adapter import read_adapter, write_adapter
from prompt_transfer.prompts.listing import describe, list_prompts
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.reparameterizations import LowRank, ResidualMLP, Superposition
from prompt_transfer.studies.inspection import nearest_words
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]
DEEP: dict[str, Any] = {"method": "deep_prompt", "init": None}
SHAPE = (2, 2, P, 4, 8)  # of the tiny BERT-like models, T5 and GPT-2


@pytest.fixture
def task(toy: Path) -> str:
    return str(toy)


def deep(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def saved(path: Path, backbone: FrozenBackbone, number: int = 0, start: int = 9, **facts: str) -> Prompt:
    """Save a deep prompt of the backbone; equal `start` gives equal initial prompts."""
    shape = backbone.keys_values_shape(P)
    metadata = {**prompt_facts(backbone), "attention": "shared", "task": "sst2", **facts}
    prompt = Prompt(deep(number, shape), metadata, deep(start, shape))
    prompt.save(path)
    return prompt


# Training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "shape"), [("roberta", SHAPE), ("llama", (2, 2, P, 2, 8)), ("t5", SHAPE)])
def test_only_the_keys_and_values_are_trained(
    task: str,
    tiny: Tiny,
    tmp_path: Path,
    family: str,
    shape: tuple[int, ...],
) -> None:
    module, data = make(task, tiny(family), tmp_path, **DEEP, learning_rate=0.05)
    before = {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}
    train(module, data, tmp_path / "run", 3, val_check_interval=3)
    layers, two, length, heads, width = shape
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == layers * two * length * heads * width
    after = module.backbone.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    prompt = Prompt.load(tmp_path / "run")
    assert prompt.initial is not None
    assert tuple(prompt.keys_values.shape) == tuple(prompt.initial.shape) == shape
    assert ((prompt.keys_values - prompt.initial).abs().amax(dim=(2, 4)) > 1e-3).all()  # every layer, kind and head
    assert {"method": "deep_prompt", "attention": "shared", "prompt_length": str(P)}.items() <= prompt.metadata.items()
    assert "hidden_size" not in prompt.metadata
    # The first loss counts: the trained prompt is better on its training data than its start.
    batch = next(iter(data.train_dataloader()))["micro_batches"][0]
    losses = [module.objective.losses(values, batch).mean() for values in (prompt.initial, module.current_prompt())]
    assert losses[1] < losses[0]


def test_a_resumed_run_equals_an_undisturbed_one(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    module, data = make(task, tiny_roberta, tmp_path, **DEEP)
    train(module, data, tmp_path / "whole", 9)
    resumed, data = make(task, tiny_roberta, tmp_path, **DEEP)
    torch.manual_seed(99)
    train(resumed, data, tmp_path / "rest", 9, resume=str(tmp_path / "whole" / "step=3.ckpt"))
    one, other = (Prompt.load(tmp_path / name / "prompt.safetensors") for name in ("whole", "rest"))
    assert torch.equal(module.current_prompt(), resumed.current_prompt())
    assert torch.equal(one.keys_values, other.keys_values)
    assert one.metadata["score"] == other.metadata["score"]
    plain, data = make(task, tiny_roberta, tmp_path)
    with pytest.raises(UserError, match="does not match the given options"):
        train(plain, data, tmp_path / "plain", 9, resume=str(tmp_path / "whole" / "step=3.ckpt"))


def test_two_processes_equal_one(task: str, tiny_roberta: Path, tmp_path: Path) -> None:
    scores = []
    for name, devices in (("one", {}), ("two", {"devices": 2, "strategy": "ddp_fork"})):
        module, data = make(task, tiny_roberta, tmp_path, **DEEP)
        trainer, _ = train(module, data, tmp_path / name, 4, val_check_interval=4, **devices)
        scores.append(float(trainer.callback_metrics["validation/accuracy"]))
    one, two = (Prompt.load(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(two.keys_values, one.keys_values, atol=1e-5, rtol=0)
    assert scores[0] == pytest.approx(scores[1])


@pytest.mark.parametrize("family", ["roberta", "gpt2", "t5"])
def test_many_at_once_equal_one_by_one(task: str, tiny: Tiny, tmp_path: Path, family: str) -> None:
    same: dict[str, Any] = {"backbone": str(tiny(family)), "prompt_length": P, "method": "deep_prompt"}
    together = PromptEnsemble(seeds=[3, 11], learning_rates=[0.1], **same)
    train_together(together, task, tmp_path / "together", steps=4, gradient_clip_val=0.5)
    for name in together.files:
        alone = PromptTuning(learning_rate=0.1, **same)
        train_together(alone, task, tmp_path / name, seed=int(name.split("-")[1][4:]), steps=4, gradient_clip_val=0.5)
        one, other = together.prompt(name), alone.prompt()
        torch.testing.assert_close(one.keys_values, other.keys_values, atol=1e-5, rtol=0)
        assert one.initial is not None
        assert other.initial is not None
        assert torch.equal(one.initial, other.initial)
        assert not torch.equal(one.keys_values, one.initial)


@pytest.mark.parametrize("reparameterization", [LowRank(2), ResidualMLP(3)])
def test_reparameterizations_of_vectors(
    task: str,
    tiny_roberta: Path,
    tmp_path: Path,
    reparameterization: Any,
) -> None:
    module, data = make(task, tiny_roberta, tmp_path, **DEEP, reparameterization=reparameterization)
    train(module, data, tmp_path / "run", 2, val_check_interval=2)
    width = 2 * 2 * 4 * 8
    counts = {"LowRank": 2 * (P + width), "ResidualMLP": P * width + 2 * width * 3}
    assert sum(p.numel() for p in module.trained()) == counts[type(reparameterization).__name__]
    assert tuple(Prompt.load(tmp_path / "run").keys_values.shape) == SHAPE
    with pytest.raises(UserError, match="Superposition mixes word embeddings"):
        make(task, tiny_roberta, tmp_path, **DEEP, reparameterization=Superposition(4))


def test_options(tiny: Tiny) -> None:
    module = PromptTuning(str(tiny("roberta")), method="deep_prompt")
    assert module.hparams.attention == module.backbone.attention == "shared"
    assert (module.hparams.method, module.hparams.learning_rate) == ("deep_prompt", 0.03)
    assert PromptTuning(str(tiny("t5")), method="deep_prompt").hparams.learning_rate == 0.1
    with pytest.raises(UserError, match="unknown method 'deep': choose one of prompt, deep_prompt"):
        PromptTuning(str(tiny("roberta")), method="deep")
    for family in ("bloom", "mpnet"):
        with pytest.raises(UserError, match=r"--model\.method prompt"):
            PromptTuning(str(tiny(family)), method="deep_prompt")


# Starts --------------------------------------------------------------------------------------------------------


def test_the_start_is_the_shared_prompt_of_the_same_seed(tiny: Tiny) -> None:
    """Keys and values of drawn words: the same function as these words' embeddings in front of the text."""
    for family in ("roberta", "llama"):
        module = PromptTuning(str(tiny(family)), P, method="deep_prompt")
        backbone = module.backbone
        vectors, _ = module.start(Vocabulary(), 5)
        embeddings = Vocabulary()(backbone, (P, 32), torch.Generator().manual_seed(5))
        batch = {"input_ids": torch.tensor([[7, 9, 11, 13]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
        found, expected = (backbone(prompt, batch, torch.arange(20)) for prompt in (module.shaped(vectors), embeddings))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_initializers(tiny: Tiny, tmp_path: Path) -> None:
    backbone = FrozenBackbone(str(tiny("llama")), attention="shared")
    generator = torch.Generator().manual_seed(1)
    shape = backbone.keys_values_shape(40)
    normal = Normal().keys_values(backbone, 40, generator)
    recorded = Vocabulary().keys_values(backbone, 40, generator)
    assert tuple(normal.shape) == tuple(recorded.shape) == shape
    found, expected = (each.std(dim=(2, 3, 4)) for each in (normal, recorded))
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)
    assert Normal(0.01).keys_values(backbone, 40, generator).std() == pytest.approx(0.01, rel=0.1)
    words = ClassLabels().keys_values(backbone, 3, generator, ["great", "terrible"])
    again = Text("great terrible").keys_values(backbone, 2, generator)
    torch.testing.assert_close(words[:, :, :2], again, atol=1e-6, rtol=0)  # a causal model: later words change nothing

    first, second = (saved(tmp_path / f"{seed}.safetensors", backbone, seed) for seed in range(2))
    assert torch.equal(FromPrompt(str(first.path)).keys_values(backbone, P, generator), first.keys_values)
    mean = FromPrompt([str(first.path), str(second.path)], [3, 1]).keys_values(backbone, P, generator)
    torch.testing.assert_close(mean, 0.75 * first.keys_values + 0.25 * second.keys_values)
    plain = Prompt(torch.randn(P, 32), prompt_facts(backbone))
    plain.save(tmp_path / "plain.safetensors")
    promoted = FromPrompt(str(plain.path)).keys_values(backbone, P, generator)
    assert torch.equal(promoted, backbone.keys_values(plain.embeddings))
    for paths, message in (
        ([first.path, plain.path], "give prompts of one method"),
        ([tmp_path / "other.safetensors"], "it has 3 layers of 2 key/value heads of width 8, the backbone 2 layers"),
    ):
        Prompt(deep(shape=(3, 2, P, 2, 8)), {}).save(tmp_path / "other.safetensors")
        with pytest.raises(UserError, match=message):
            FromPrompt([str(path) for path in paths]).keys_values(backbone, P, generator)
    with pytest.raises(UserError, match=r"set --model\.method deep_prompt"):
        FromPrompt(str(first.path))(backbone, (P, 32), generator)
    with pytest.raises(UserError, match=r"the run 3; set --model\.prompt_length 4"):
        FromPrompt(str(first.path)).keys_values(backbone, 3, generator)


# Files ---------------------------------------------------------------------------------------------------------


def test_the_file_holds_keys_and_values(tmp_path: Path) -> None:
    prompt = Prompt(deep(), {"task": "sst2"}, deep(1))
    path = prompt.save(tmp_path / "deep.safetensors")
    assert set(load_file(path)) == {"keys_values", "initial"}
    loaded = Prompt.load(path)
    assert torch.equal(loaded.keys_values, deep())
    assert (loaded.method, loaded.length, loaded.is_deep) == ("deep_prompt", P, True)
    assert {key: loaded.metadata[key] for key in ("method", "layers", "kv_heads", "head_dim", "prompt_length")} == {
        "method": "deep_prompt", "layers": "2", "kv_heads": "4", "head_dim": "8", "prompt_length": str(P),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"deep\.safetensors is a deep prompt: it has keys and values .* no embeddings"):
        _ = loaded.embeddings
    with pytest.raises(UserError, match="has embeddings, no keys and values"):
        _ = Prompt(torch.ones(2, 3)).keys_values
    old = Prompt(torch.ones(2, 3))
    assert (old.method, old.length, "method" in old.metadata) == ("prompt", 2, False)
    rows = {Path(row["path"]).name: row for row in list_prompts(tmp_path)}
    assert rows["deep.safetensors"]["method"] == "deep_prompt"
    facts = describe(loaded)
    assert facts["mean_row_norm"] == pytest.approx(deep().permute(2, 0, 1, 3, 4).flatten(1).norm(dim=1).mean().item())
    assert (facts["method"], facts["hidden_size"]) == ("deep_prompt", None)
    write_numpy(loaded, tmp_path / "numpy")
    assert np.array_equal(np.load(tmp_path / "numpy" / "prompt.npy"), deep().numpy())


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"keys_values": torch.zeros(2, 3)}, {}, "a deep prompt is"),
        ({"keys_values": torch.zeros(2, 3, 2, 1, 1)}, {}, "a deep prompt is"),
        ({"keys_values": torch.zeros(2, 2, 0, 1, 1)}, {}, "empty"),
        ({"keys_values": torch.full((1, 2, 1, 1, 1), torch.nan)}, {}, "non-finite"),
        ({"keys_values": torch.zeros(1, 2, 1, 1, 1).half()}, {}, "float32"),
        ({"embeddings": torch.zeros(1, 2, 1, 1, 1)}, {}, "a prompt is a matrix"),
        ({"embeddings": torch.zeros(1, 2)}, {"method": "deep_prompt"}, "the method deep_prompt, its tensor is that of"),
        ({"keys_values": torch.zeros(1, 2, 1, 1, 1)}, {"method": "prompt"}, "is damaged: its method is 'prompt'"),
        ({"keys_values": torch.zeros(1, 2, 1, 1, 1)}, {"layers": "3"}, "is damaged: its layers is '3'"),
        ({"keys_values": torch.zeros(1, 2, 1, 1, 1), "initial": torch.zeros(1, 2)}, {}, "a deep prompt is"),
    ],
)
def test_damaged_files(tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], message: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    with pytest.raises(UserError, match=message):
        Prompt.load(tmp_path / "x.safetensors")


def test_arithmetic(tmp_path: Path, tiny: Tiny) -> None:
    backbone = FrozenBackbone(str(tiny("roberta")))
    first, second, other = (
        saved(tmp_path / f"{seed}.safetensors", backbone, seed, start) for seed, start in ((0, 9), (1, 9), (2, 8))
    )
    total = arithmetic.add([first, second])
    torch.testing.assert_close(total.keys_values, first.values + second.values - deep(9), atol=1e-6, rtol=0)
    assert torch.equal(arithmetic.scale(first, 1).keys_values, first.keys_values)
    assert torch.equal(arithmetic.scale(first, 0).keys_values, deep(9))
    torch.testing.assert_close(arithmetic.mean([first, second]).keys_values, (first.values + second.values) / 2)
    moved = arithmetic.transplant(first, other)
    torch.testing.assert_close(moved.keys_values, first.values - deep(9) + deep(8), atol=1e-6, rtol=0)
    assert total.metadata["method"] == "deep_prompt"
    with pytest.raises(UserError, match="different initial prompts"):
        arithmetic.add([first, other])
    plain = Prompt(torch.ones(P, 32), prompt_facts(backbone), torch.zeros(P, 32))
    for combine in (lambda: arithmetic.add([plain, first]), lambda: arithmetic.transplant(first, plain)):
        with pytest.raises(UserError, match=r"one is a (deep_)?prompt, the other a (deep_)?prompt"):
            combine()


def test_nearest_words_have_no_meaning(tmp_path: Path, tiny: Tiny) -> None:
    prompt = saved(tmp_path / "deep.safetensors", FrozenBackbone(str(tiny("gpt2"))))
    with pytest.raises(UserError, match="no embeddings, which this needs"):
        nearest_words(prompt)


# PEFT ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_an_exported_adapter_gives_equal_logits(tmp_path: Path, tiny: Tiny, family: str) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    backbone = FrozenBackbone(str(tiny(family)))
    prompt = saved(tmp_path / "deep.safetensors", backbone)
    write_adapter(prompt, tmp_path / "adapter", "card")
    base = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([[7, 30, 41, 9]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = model(**batch).logits[0, -1]
    found = backbone(prompt.keys_values, batch, torch.arange(len(expected)))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    back = read_adapter(tmp_path / "adapter")
    assert torch.equal(back.keys_values, prompt.keys_values)
    assert {key: back.metadata[key] for key in ("fingerprint", "attention", "layout", "task")} == {
        key: prompt.metadata[key] for key in ("fingerprint", "attention", "layout", "task")
    }
    # PEFT's own file, with its projection: the projected numbers are saved.
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, prefix_projection=True)
    base = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float32)
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "own")
    with torch.no_grad():
        expected = model(**batch).logits[0, -1]
    own = read_adapter(tmp_path / "own")
    with pytest.warns(
        UserWarning, match=r"only its shape of [23] layers of [24] key/value heads of width 8 was checked"
    ):
        own.check(backbone)
    assert own.metadata["attention"] == "shared"
    found = backbone(own.keys_values, batch, torch.arange(len(expected)))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "message"),
    [("roberta", "is for a masked LM"), ("t5", "a deep prompt of an encoder: PEFT's prefix tuning puts")],
)
def test_what_peft_has_not_is_refused(tmp_path: Path, tiny: Tiny, family: str, message: str) -> None:
    prompt = saved(tmp_path / "deep.safetensors", FrozenBackbone(str(tiny(family))))
    with pytest.raises(UserError, match=message):
        write_adapter(prompt, tmp_path / "adapter", "card")
    assert not (tmp_path / "adapter").exists()
