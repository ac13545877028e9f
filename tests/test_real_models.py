"""Real pretrained models, if they were fetched: `make test-real`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import REAL_CACHE
from transformers import AutoModelForCausalLM, AutoTokenizer

from prompt_transfer.backbones.builtin import shipped
from prompt_transfer.backbones.catalogue import ROWS
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.backbones import describe
from prompt_transfer.prompts.prompt import Prompt

pytestmark = [pytest.mark.real_models, pytest.mark.timeout(600)]
TEXTS = ["The film was a wonderful surprise.", "In 2024, it's  a dull story: nobody should watch it."]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch) -> None:
    if REAL_CACHE is None:
        pytest.skip("PROMPT_TRANSFER_CACHE is not set: no real models")
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", REAL_CACHE)


def need(name: str) -> Path:
    source = ROWS[name].source
    if not source.exists():
        pytest.skip(f"{name} is not in PROMPT_TRANSFER_CACHE: {ROWS[name].command()}")
    return source


def test_smollm2_is_what_transformers_reads() -> None:
    path = need("smollm2-135m")
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    own = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(**place)
    ours = FrozenBackbone("smollm2-135m")
    assert ours.gguf["quantization"] == "Q4_1"
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ours.tokenizer(text)["input_ids"] == ids
        with torch.no_grad():
            expected, found = (model(torch.tensor([ids])).logits for model in (own, ours.model))
        # Logits reach 36; frozen layers sum products in another order.
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        assert torch.equal(found.argmax(-1), expected.argmax(-1))
    weights = ours.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in own.state_dict().items())


def test_the_shipped_prompts_of_smollm2_fit_it_and_answer() -> None:
    from prompt_transfer import classify

    need("smollm2-135m")
    folder = shipped("checkpoints") / "prompts" / "smollm2-135m"
    fingerprint = FrozenBackbone("smollm2-135m").fingerprint
    assert {Prompt.load(path).metadata["fingerprint"] for path in folder.glob("*.safetensors")} == {fingerprint}
    texts = ["a wonderful, moving film", "a dull and lifeless film", "i loved every minute", "a complete waste of time"]
    found = classify(texts, prompt=folder / "sst2.safetensors")
    assert [answer.word for answer in found] == ["great", "terrible"] * 2


def test_a_prompt_of_smollm2_trains() -> None:
    from prompt_transfer.data.datamodule import TaskDataModule
    from prompt_transfer.modules.prompt_tuning import PromptTuning

    need("smollm2-135m")
    losses = losses_of(PromptTuning, TaskDataModule, steps=20)
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def losses_of(model_class: type, data_class: type, steps: int) -> list[float]:
    """Return the training losses of a prompt of 20 tokens on the built-in films, one batch of 8 per step."""
    import lightning as L

    losses: list[float] = []

    class Noted(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    L.seed_everything(0)
    model = model_class(backbone="smollm2-135m", prompt_length=20)
    data = data_class("builtin_movies", source="builtin", batch_size=8)
    trainer = L.Trainer(
        max_steps=steps, callbacks=[Noted()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0, num_sanity_val_steps=0, accelerator="cpu", log_every_n_steps=1,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, data)
    return losses


def test_minilm_answers_by_its_word_embeddings() -> None:
    need("minilm")
    facts = describe("minilm")
    assert facts["head"] == "missing: use --model.head embedding"
    assert (facts["layers"], facts["hidden size"], facts["neurons"]) == (6, 384, "6 x 1536 = 9216")
    backbone = FrozenBackbone("minilm", head="embedding")
    batch = backbone.tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = backbone(torch.zeros(1, 384), batch, torch.tensor([2307, 6659]))
    assert logits.shape == (2, 2)
    assert torch.isfinite(logits).all()
