"""Pretraining: batch recipes, starts that beat word frequencies, and an exported folder that works as a backbone."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import BertModel, PreTrainedTokenizerFast

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.pretraining.architectures import ARCHITECTURES
from prompt_transfer.pretraining.backbone_pretraining import BackbonePretraining
from prompt_transfer.pretraining.cloze import make_cloze
from prompt_transfer.pretraining.copying_heads import copying_heads, windows
from prompt_transfer.pretraining.corpus import CorpusDataModule
from prompt_transfer.pretraining.corpus_batches import IGNORED
from prompt_transfer.pretraining.evidence import Evidence
from prompt_transfer.pretraining.growth import add_heads, grow
from prompt_transfer.pretraining.informed_init import decoder_from_encoder, frequencies, informed_init
from prompt_transfer.pretraining.matching_heads import AROUND, Matches, matching_heads, pairs
from prompt_transfer.pretraining.start import start
from prompt_transfer.utils.errors import UserError

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32, "vocab_size": 300}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Write texts on two topics with disjoint vocabularies, so each word predicts the others."""
    rng = np.random.default_rng(0)
    topics = [["river", "boat", "water", "fish", "sail"], ["engine", "wheel", "road", "car", "drive"]]
    lines = [" ".join(rng.choice(topics[i % 2], 12)) + "." for i in range(600)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "text.txt"


@pytest.fixture
def data(text: Path, tmp_path: Path) -> CorpusDataModule:
    made = CorpusDataModule(
        {str(text): [1.0, None]}, str(tmp_path / "cache"), vocab_size=300, lengths=[16, 24], tokens_per_batch=96,
        max_positions=64, held_out=0.2,
    )  # fmt: skip
    made.prepare_data()
    made.setup()
    return made


def twelve_steps() -> L.Trainer:
    return L.Trainer(
        max_steps=12, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip


def one_step() -> L.Trainer:
    return L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def test_batches_begin_at_sentences_and_mask_text_only(data: CorpusDataModule) -> None:
    for _, batch in zip(range(5), data.train_dataloader(), strict=False):
        ids, mask, masked, labels = (batch[n] for n in ("input_ids", "attention_mask", "masked_ids", "labels"))
        assert ids.numel() == 96
        assert (ids[:, 0] == 0).all()
        assert ((ids == 2).sum(dim=1) == 1).all()
        assert torch.equal(mask.bool(), ids != 1)
        chosen = labels != IGNORED
        assert (ids[chosen] >= 5).all()
        assert torch.equal(labels[chosen], ids[chosen])
        assert torch.equal(masked[~chosen], ids[~chosen])
        positions = batch["position_ids"]
        assert (positions[ids == 1] == 1).all()
        assert positions.max() < 66
        steps = (positions[:, 1:] - positions[:, :-1])[(ids[:, 1:] != 1)]
        assert (steps == 1).all()


def test_order_is_a_function_of_the_step(data: CorpusDataModule) -> None:
    first = [batch["masked_ids"] for _, batch in zip(range(4), data.train_dataloader(), strict=False)]
    data.load_state_dict({"batches_trained": 2})
    rest = [batch["masked_ids"] for _, batch in zip(range(2), data.train_dataloader(), strict=False)]
    assert all(torch.equal(a, b) for a, b in zip(first[2:], rest, strict=True))


def test_informed_start_beats_word_frequencies_before_any_step(data: CorpusDataModule) -> None:
    torch.manual_seed(0)
    module = BackbonePretraining(**SIZES, max_positions=64)
    streams = [store["tokens"] for store in data.train_stores]
    batches = [batch for _, batch in zip(range(8), data.val_dataloader(), strict=False)]
    labels = torch.cat([batch["labels"][batch["labels"] != IGNORED] for batch in batches])
    unigram = -frequencies(streams, 300).log()[labels].mean()
    with torch.no_grad():
        random = torch.stack([module.token_loss(batch, "masked") for batch in batches]).mean()
        informed_init(module.model, ARCHITECTURES["roberta"], data.tokens, streams)
        informed = torch.stack([module.token_loss(batch, "masked") for batch in batches]).mean()
    assert informed < unigram < random


def test_causal_loss_does_not_see_the_future(data: CorpusDataModule) -> None:
    module = BackbonePretraining(**SIZES, max_positions=64).eval()
    batch = next(iter(data.train_dataloader()))
    position = 5
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, position + 1 :] = torch.where(
        batch["attention_mask"][:, position + 1 :].bool(), 7, batch["input_ids"][:, position + 1 :]
    )
    length = batch["input_ids"].shape[1]
    below = torch.ones(length, length, dtype=torch.bool).tril() & batch["attention_mask"][:, None, None, :].bool()
    states = [
        module.model.roberta(b["input_ids"], attention_mask=below, position_ids=b["position_ids"]).last_hidden_state
        for b in (batch, other)
    ]
    torch.testing.assert_close(states[0][:, : position + 1], states[1][:, : position + 1], atol=1e-5, rtol=0)


def test_pretrain_leaves_a_backbone_with_card(text: Path, tmp_path: Path) -> None:
    config = tmp_path / "pretrain.yaml"
    sizes = "".join(f"  {key}: {value}\n" for key, value in SIZES.items())
    config.write_text(
        f"model:\n{sizes}  max_positions: 64\n  budget_steps: 6\n  warmup_steps: 2\n"
        f"data:\n  files:\n    {text}: [1.0, null]\n  cache_dir: {tmp_path / 'cache'}\n  vocab_size: 300\n"
        "  lengths: [16, 24]\n  tokens_per_batch: 96\n  max_positions: 64\n  held_out: 0.2\n"
    )
    output = tmp_path / "tiny"
    quick = ["--trainer.val_check_interval", "3", "--trainer.accelerator", "cpu"]
    quick += ["--trainer.enable_progress_bar", "false"]
    assert main(["pretrain", "--config", str(config), "--output", str(output), *quick]) == 0
    facts = json.loads((output / "facts.json").read_text())
    assert facts["steps"] == 6
    assert facts["held_out_loss"] < facts["random_weights_loss"]
    assert "| this model |" in (output / "README.md").read_text()
    backbone = FrozenBackbone(str(output))
    assert (backbone.hidden_size, backbone.max_positions) == (16, 64)
    assert not (output / "last.ckpt").exists()


def test_missing_corpus_is_a_user_error(tmp_path: Path) -> None:
    data = CorpusDataModule({str(tmp_path / "none.txt"): [1.0, None]}, str(tmp_path / "cache"))
    with pytest.raises(UserError, match="no corpus file"):
        data.prepare_data()


def test_resumed_pretraining_equals_an_undisturbed_one(data: CorpusDataModule, tmp_path: Path) -> None:
    def train(steps: int, resume: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = BackbonePretraining(**SIZES, max_positions=64, warmup_steps=2, budget_steps=6)
        data.batches_trained = 0
        trainer = L.Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        if resume is None and steps < 6:
            trainer.save_checkpoint(tmp_path / "half.ckpt")
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    whole = train(6)
    train(3)
    resumed = train(6, resume=tmp_path / "half.ckpt")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def made(text: Path, tmp_path: Path, kind: str) -> CorpusDataModule:
    data = CorpusDataModule(
        {str(text): [1.0, None]}, str(tmp_path / "cache"), kind, vocab_size=300, lengths=[24], tokens_per_batch=96,
        max_positions=64, held_out=0.2,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_every_architecture_learns_and_becomes_a_backbone(text: Path, tmp_path: Path, kind: str) -> None:
    data = made(text, tmp_path, kind)
    torch.manual_seed(0)
    module = BackbonePretraining(kind, **SIZES, max_positions=64, warmup_steps=5, budget_steps=60, learning_rate=1e-2)
    objective = module.architecture.objectives[0]
    held_out = [batch for _, batch in zip(range(4), data.val_dataloader(), strict=False)]

    def loss() -> float:
        with torch.no_grad():
            return float(torch.stack([module.token_loss(batch, objective) for batch in held_out]).mean())

    random = loss()
    trainer = L.Trainer(
        max_steps=60, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    # Two topics of five words: a model that knows a text's topic needs ln 5 = 1.6 nats per word.
    assert loss() < min(random, 3.0)
    module.export(tmp_path / "out", data.tokenizer)
    backbone = FrozenBackbone(str(tmp_path / "out"))
    assert backbone.family.name == kind
    assert backbone.hidden_size == 16


def test_span_corruption_and_prefix_keep_every_token_of_the_text(text: Path, tmp_path: Path) -> None:
    data = made(text, tmp_path, "t5")
    batch = next(iter(data.train_dataloader()))
    first_sentinel, end = 299, data.tokens.end
    for ids, labels, prefix, rest in zip(
        *(batch[name] for name in ("input_ids", "labels", "prefix_ids", "prefix_labels")), strict=True
    ):
        source = [int(i) for i in ids if i != data.tokens.pad]
        target = [int(i) for i in labels if i != IGNORED]
        assert source[-1] == target[-1] == end
        spans: dict[int, list[int]] = {}
        for token in target[:-1]:
            if token >= 300 - data.tokens.reserved:
                sentinel = token
                spans[sentinel] = []
            else:
                spans[sentinel].append(token)
        assert list(spans) == [first_sentinel - i for i in range(len(spans))]
        assert all(spans.values())
        whole = [token for piece in source[:-1] for token in spans.get(piece, [piece])]
        start = [int(i) for i in prefix if i != data.tokens.pad][:-1]
        assert start + [int(i) for i in rest if i != IGNORED][:-1] == whole


def test_tokens_that_the_encoder_fills_in_stand_for_those_of_the_text(text: Path, tmp_path: Path) -> None:
    data = made(text, tmp_path, "t5")
    batch = next(iter(data.train_dataloader()))
    ids, labels = batch["infill_ids"], batch["infill_labels"]
    chosen = labels != IGNORED
    assert 0 < chosen.sum() < 0.5 * batch["infill_mask"].sum()
    for row, hidden in zip(ids, chosen, strict=True):
        # Sentinels come in order; all later gaps share the last one.
        sentinels = [max(299 - i, 300 - data.tokens.reserved) for i in range(int(hidden.sum()))]
        assert row[hidden].tolist() == sentinels
    whole = torch.where(chosen, labels, ids)
    for row, prefix in zip(whole, batch["prefix_ids"], strict=True):
        start = [int(i) for i in prefix if i != data.tokens.pad][:-1]
        assert row[: len(start)].tolist() == start


def test_a_decoder_made_from_its_encoder_reads_text_as_it_did() -> None:
    torch.manual_seed(0)
    model = BackbonePretraining("t5", **SIZES, max_positions=64).model.eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    decoder_from_encoder(model)
    for block in model.decoder.block:
        block.layer[1].EncDecAttention.o.weight.data.zero_()
    # With up to eight tokens both stacks distinguish all distances.
    ids = torch.randint(10, 200, (2, 8))
    above = torch.full((8, 8), -1e9).triu(1)[None, None].expand(2, 1, 8, 8)
    expected = model.encoder(input_ids=ids, attention_mask=above).last_hidden_state
    found = model.decoder(input_ids=ids, encoder_hidden_states=expected, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_heads_of_a_t5_start_with_directions(text: Path, tmp_path: Path) -> None:
    data = made(text, tmp_path, "t5")
    module = BackbonePretraining("t5", **SIZES, max_positions=64)
    informed_init(module.model, module.architecture, data.tokens, [store["tokens"] for store in data.train_stores])
    attention = module.model.encoder.block[0].layer[0].SelfAttention
    # [query, key] of the first head: previous token, itself, next token.
    bias = attention.compute_bias(3, 3)[0, 0, 1]
    assert bias[0] > bias[1]
    assert bias[0] > bias[2] + 4


def test_causal_loss_of_gpt_ignores_pads(text: Path, tmp_path: Path) -> None:
    data = made(text, tmp_path, "gpt2")
    module = BackbonePretraining("gpt2", **SIZES, max_positions=64).eval()
    batch = next(iter(data.train_dataloader()))
    longer = {name: torch.nn.functional.pad(tensor, (0, 4)) for name, tensor in batch.items()}
    torch.testing.assert_close(module.token_loss(longer, "causal"), module.token_loss(batch, "causal"))


def test_a_grown_model_computes_what_the_small_one_does(data: CorpusDataModule, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = BackbonePretraining(**SIZES, max_positions=64)
    for parameter in small.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    small.model.lm_head.decoder.bias.data.copy_(small.model.lm_head.bias.data)
    batches = [batch for _, batch in zip(range(2), data.val_dataloader(), strict=False)]

    def losses(module: BackbonePretraining) -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([module.token_loss(batch, "masked") for batch in batches])

    # Every unit duplicated: exactly the same function.
    double = {**SIZES, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64}
    twice = BackbonePretraining(**double, max_positions=64)
    before = losses(twice)
    grow(small.model, twice.model)
    torch.testing.assert_close(losses(twice), losses(small), atol=1e-4, rtol=0)
    assert (before - losses(small)).abs().min() > 1e-3
    # Some units duplicated and one more layer: nearly the same function.
    uneven = {**SIZES, "hidden_size": 24, "num_heads": 3, "intermediate_size": 40, "num_layers": 3}
    more = BackbonePretraining(**uneven, max_positions=64)
    grow(small.model, more.model)
    assert (losses(more) - losses(small)).abs().max() < 0.2
    with pytest.raises(ValueError, match="nothing that shrinks"):
        grow(twice.model, small.model)


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """Write texts with names and numbers to ask for."""
    rng = np.random.default_rng(0)
    names, places = ("Anna Berg", "Tom", "Maria Stone"), ("Paris", "Rome", "Lima")
    lines = [
        f"We know that {rng.choice(names)} lived in {rng.choice(places)} for {rng.integers(2, 90)} years, and that the "
        f"river was wide there. In {rng.integers(1700, 1999)} everything came to an end when {rng.choice(names)} left."
        for _ in range(200)
    ]
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return tmp_path / "prose.jsonl"


def reader(prose: Path, kind: str, **options: Any) -> CorpusDataModule:
    made = CorpusDataModule(
        {str(prose): [1.0, None]}, str(prose.parent / kind), tokenizer=kind, vocab_size=400, lengths=[16],
        tokens_per_batch=64, max_positions=256, held_out=0.2, clozes=60, cloze_growth=4, **options,
    )  # fmt: skip
    made.prepare_data()
    made.setup()
    return made


def test_a_cloze_asks_for_a_part_of_its_text() -> None:
    text = "The old school lies in Paris near the river. In 1842 it was Marie Curie who taught 30 children there."
    rng = np.random.default_rng(0)
    found = [make_cloze(text, rng, 40) for _ in range(200)]
    assert all(cloze is not None and cloze.context == text and cloze.answer in text for cloze in found)
    asked = {cloze.answer: cloze.question.split()[0] for cloze in found if cloze is not None}
    assert asked["Paris"] == "where"
    assert asked["1842"] == "when"
    assert {asked.get("30"), asked.get("30 children")} <= {"how", None}
    assert asked["Marie Curie"] in ("who", "what", "which")
    for cloze in found:
        assert cloze is not None
        # Except for its first words, the question consists of words around the answer.
        words = cloze.question.removesuffix("?").split()[2 if cloze.question.startswith("how many") else 1 :]
        assert set(words) <= {word.strip(".,") for word in text.split()}


def test_a_loose_question_has_fewer_words_from_further_around() -> None:
    words = [f"word{index}" for index in range(40)]
    words[20] = "1492"
    sizes, furthest = [], []
    for loose in (False, True):
        asked = [make_cloze(" ".join(words), np.random.default_rng(seed), 60, loose) for seed in range(200)]
        questions = [one.question.rstrip("?").split()[1:] for one in asked if one and one.answer.startswith("1492")]
        sizes.append(np.mean([len(one) for one in questions]))
        furthest.append(max(abs(int(word[4:]) - 20) for one in questions for word in one))
        assert all(word in words for one in questions for word in one)
    assert sizes[1] < sizes[0] + 1
    assert furthest == [9, 18]


def test_a_share_of_loose_questions_is_one(prose: Path) -> None:
    with pytest.raises(UserError, match=r"loose_clozes 1.5 is a share"):
        CorpusDataModule({str(prose): [1.0, None]}, clozes=10, loose_clozes=1.5)


def test_a_text_without_anything_to_ask_gives_no_cloze() -> None:
    assert make_cloze("too short", np.random.default_rng(0), 40) is None
    assert make_cloze("and so it is as it was " * 5, np.random.default_rng(0), 40) is None


def test_copies_repeat_what_was_read_and_clozes_end_with_the_answer(prose: Path) -> None:
    data = reader(prose, "gpt2")
    for _, batch in zip(range(5), data.train_dataloader(), strict=False):
        ids, weights, labels = (batch[f"copy_{name}"] for name in ("ids", "weights", "labels"))
        assert ids.shape == weights.shape == labels.shape
        for row, weight, label in zip(ids, weights, labels, strict=True):
            answer = row[weight == 3.0]
            assert answer[-1] == 0  # the end token
            size = len(answer) - 1
            before = row[weight == 1.0]
            assert any(torch.equal(before[i : i + size], answer[:-1]) for i in range(len(before) - size + 1))
            # The whole copy is predicted, and labels equal the input.
            assert torch.equal(label[weight == 3.0], answer)
            assert torch.equal(label[label != IGNORED], row[label != IGNORED])
        positions = batch["copy_positions"]
        assert ((positions[:, 1:] - positions[:, :-1]) == 1).all()
        assert positions.max() < 256
        row, weight = batch["cloze_ids"][0], batch["cloze_weights"][0]
        said = data.tokenizer.decode(row[weight == 3.0][:-1]).strip()
        assert said
        assert said in data.tokenizer.decode(row[weight == 1.0])


def test_a_seq2seq_model_reads_the_question_behind_the_text(prose: Path) -> None:
    data = reader(prose, "t5")
    batch = next(iter(data.train_dataloader()))
    for ids, labels in zip(batch["cloze_ids"], batch["cloze_labels"], strict=True):
        text, question, *rest = data.tokenizer.decode(ids).split("</s>")
        assert question.strip().startswith(("who", "what", "which", "where", "when", "how many"))
        assert not rest or not "".join(rest).replace("<pad>", "").strip()
        answer = data.tokenizer.decode(labels[labels != IGNORED])
        assert answer.endswith("</s>")
        assert answer.removesuffix("</s>").strip() in text


def test_reading_is_resumed_at_its_batch(prose: Path) -> None:
    data = reader(prose, "gpt2")
    first = [batch["cloze_ids"] for _, batch in zip(range(4), data.train_dataloader(), strict=False)]
    data.load_state_dict({"batches_trained": 2})
    rest = [batch["cloze_ids"] for _, batch in zip(range(2), data.train_dataloader(), strict=False)]
    assert all(torch.equal(a, b) for a, b in zip(first[2:], rest, strict=True))


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_model_that_reads_learns_to_copy(prose: Path, tmp_path: Path, kind: str) -> None:
    data = reader(prose, kind)
    torch.manual_seed(0)
    module = BackbonePretraining(
        kind, **{**SIZES, "vocab_size": 400}, max_positions=256, budget_steps=12, warmup_steps=2, learning_rate=0.01,
        informed_start=False, reading=True,
    )  # fmt: skip
    batches = list(data.val_dataloader())[:4]

    def losses() -> dict[str, float]:
        with torch.no_grad():
            return {
                name: float(torch.stack([module.token_loss(batch, name) for batch in batches]).mean())
                for name in ("copy", "cloze")
            }

    before = losses()
    twelve_steps().fit(module, data)
    after = losses()
    assert all(after[name] < before[name] for name in before)
    # With the same sizes a model starts from an exported one.
    module.export(tmp_path / "made", data.tokenizer)
    other = BackbonePretraining(kind, **{**SIZES, "vocab_size": 400}, max_positions=256)
    start(other.model, str(tmp_path / "made"))
    for one, two in zip(other.model.parameters(), module.model.parameters(), strict=True):
        assert torch.equal(one, two.to(torch.bfloat16).float())
    with pytest.raises(UserError, match="has different tensor shapes or another architecture"):
        start(
            BackbonePretraining(kind, **{**SIZES, "vocab_size": 500}, max_positions=256).model, str(tmp_path / "made")
        )


def test_heads_set_by_hand_look_behind_the_token_just_written(prose: Path) -> None:
    data = reader(prose, "t5")
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 64, "vocab_size": 400}
    module = BackbonePretraining("t5", **sizes, max_positions=256, reading=True, copying_heads=True)
    model = module.model.eval()
    model.set_attn_implementation("eager")
    texts = torch.stack([torch.randperm(300)[:12] + data.tokens.ordinary for _ in range(8)])

    def found() -> float:
        with torch.no_grad():
            attention = model(input_ids=texts, labels=texts, output_attentions=True).cross_attentions[0].mean(dim=1)
        return float(attention.diagonal(dim1=1, dim2=2)[:, 1:].mean())

    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert found() < 0.2
    copying_heads(model, data.tokens, windows([store["tokens"] for store in data.train_stores], 64, 12))
    assert found() > 0.8
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    own, read = "encoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.1.EncDecAttention"
    assert changed == {
        *(f"{own}.{part}.weight" for part in ("q", "v", "o", "relative_attention_bias")),
        *(f"{read}.{part}.weight" for part in "qkvo"),
    }
    with pytest.raises(UserError, match="for t5, whose decoder reads an encoder, not for gpt2"):
        BackbonePretraining("gpt2", **SIZES, copying_heads=True)


def test_added_heads_change_nothing_before_they_are_trained() -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 64, "vocab_size": 400}
    small, large, other = (
        BackbonePretraining("t5", **{**sizes, **more}, max_positions=256).model.eval()
        for more in ({}, {"num_heads": 5, "head_size": 32}, {"intermediate_size": 12})
    )
    assert large.config.d_kv == small.config.d_kv
    before = {name: value.clone() for name, value in large.state_dict().items()}
    add_heads(small, large)
    ids = torch.randint(3, 300, (3, 9))
    with torch.no_grad():
        one, two = (model(input_ids=ids, labels=ids).logits for model in (small, large))
    assert torch.allclose(one, two, atol=1e-5)
    # The new heads are not zero, so training can use them.
    values = "encoder.block.0.layer.0.SelfAttention.v.weight"
    assert large.state_dict()[values][64:].norm(dim=1).mean() == pytest.approx(1, abs=0.1)
    assert not torch.equal(large.state_dict()[values], before[values])
    for one, two in ((large, small), (small, other), (BackbonePretraining("t5", **SIZES).model, large)):
        with pytest.raises(ValueError, match=r"heads|has other sizes"):
            add_heads(one, two)


def test_heads_set_by_hand_find_what_a_question_repeats(prose: Path) -> None:
    data = reader(prose, "t5")
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_layers": 3, "num_heads": 5, "intermediate_size": 64, "vocab_size": 400}
    options = {"max_positions": 256, "head_size": 64, "reading": True}
    model = BackbonePretraining("t5", **sizes, **options, matching_heads=True).model.eval()
    end, tokens = data.tokens.end, data.tokens
    drawn = torch.stack([torch.randperm(300)[:16] + tokens.ordinary for _ in range(12)])
    # Eleven text tokens and five question tokens; the question's first two also occur in the text.
    text, question = drawn[:, :11], drawn[:, 11:].clone()
    question[:, 0], question[:, 1] = text[:, 7], text[:, 2]
    ends = torch.full((12, 1), end)
    ids = torch.cat([text, ends, question, ends], dim=1)

    def attention(layer: int, head: int) -> torch.Tensor:
        with torch.no_grad():
            return model.encoder(input_ids=ids, output_attentions=True).attentions[layer][:, head]

    texts = pairs(data.clozes["train"], tokens, 64)
    assert ((texts == end).sum(dim=1) == 2).all()
    shares = torch.full((400,), 1 / 400)
    matches = matching_heads(model, tokens, texts, shares)
    marked = attention(0, 3)[..., 11]
    assert marked[:, 12:].min() > 0.9
    assert marked[:, :11].max() < 0.1
    found = attention(1, 4)
    for there, here in ((7, 12), (2, 13)):
        assert found[:, there, here].mean() > 0.6
        assert found[:, here, there].mean() > 0.6
    # A token that is not repeated attends to an end token instead, which is not rare at all.
    alone, twice = (found[:, places][..., [11, 17]].sum(dim=2).mean() for places in ([0, 4, 14, 16], [2, 7, 12, 13]))
    assert alone > 5 * twice
    around = attention(2, 2)
    assert around[:, :12, 12:].max() < 0.05
    assert around[:, 12:, :12].max() < 0.05
    bias = model.encoder.block[0].layer[0].SelfAttention.compute_bias(18, 18)[0, 2]
    assert (bias[0, 1] - bias[0, 7]).item() == pytest.approx(6 / AROUND)
    assert torch.equal(bias, bias.T)
    # Without fitting these texts: the repeated tokens are found, and their smoothed mean peaks near them.
    with torch.no_grad():
        states = model.encoder(input_ids=ids, output_hidden_states=True).hidden_states
    written = states[2][:, :11, matches.found].mean(dim=0)
    assert sorted(written.topk(2).indices.tolist()) == [2, 7]
    assert {share > 0 for number, share in matches.places.items() if number == matches.found} == {False}
    place = next(number for number in matches.places if number != matches.found)
    mean = states[3][:, :11, place].mean(dim=0)
    assert 2 <= int(mean.argmax()) <= 7


def test_what_stands_before_a_text_decides_what_is_written(prose: Path) -> None:
    data = reader(prose, "t5", unasked=0.5)
    end, tokens = data.tokens.end, data.tokens
    stored = data.clozes["train"]
    whole = [part.tolist() for part in np.split(stored["tokens"].astype(np.int64), stored["lengths"].cumsum()[:-1])]
    contexts, answers = whole[::3], whole[2::3]

    def rows(batch: dict[str, torch.Tensor], kind: str) -> list[tuple[list[int], list[int], list[int]]]:
        """Return the tokens before the first end token, the sentinels among them, and the target tokens."""
        found = []
        for ids, labels in zip(batch[f"{kind}_ids"], batch[f"{kind}_labels"], strict=True):
            read = ids[: int((ids == end).nonzero()[0])].tolist()
            sentinels = [tokens.vocab_size - 1 - token for token in read if token >= tokens.vocab_size - 32]
            found.append((read, sentinels, labels[labels != IGNORED].tolist()[:-1]))
        return found

    trained = [batch for batch, _ in zip(data.train_dataloader(), range(12), strict=False)]
    asked = unasked = alone = 0
    for batch in trained:
        for read, sentinels, written in rows(batch, "cloze"):
            assert set(sentinels) <= {0, 1, 2, 3}
            if sentinels:
                asked += 1
                assert any(read[-len(text) :] == text and written in answers for text in contexts)
            else:
                unasked += 1
                assert 0 < len(written) <= 10
                assert any((read + written)[-len(text) :] == text for text in contexts)
                alone += (read + written) in contexts
        for read, sentinels, written in rows(batch, "copy"):
            assert sentinels
            assert set(sentinels) <= {4, 5, 6, 7}
            assert read[-len(written) :] == written
        # Neither the question's sentinels nor a continued text is evidence of an answer.
        before = batch["cloze_ids"] >= tokens.vocab_size - 32
        assert (batch["cloze_repeated"][before] == IGNORED).all()
        assert (batch["cloze_begins"][before] == IGNORED).all()
    assert 0.35 < asked / (asked + unasked) < 0.65
    assert 0 < alone < unasked / 2
    # The held-out loss is computed on answers.
    assert all(sentinels for batch in data.val_dataloader() for _, sentinels, _ in rows(batch, "cloze"))


@pytest.mark.parametrize(
    ("kind", "share", "words"), [("t5", 1.0, "unasked 1 is a share"), ("gpt2", 0.2, "unasked is for the tokenizer")]
)
def test_only_a_t5_can_be_asked_with_sentinels(prose: Path, kind: str, share: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        CorpusDataModule({str(prose): [1.0, None]}, tokenizer=kind, clozes=10, unasked=share)


def test_evidence_is_what_a_question_repeats_and_where_its_answer_begins(prose: Path) -> None:
    data = reader(prose, "t5")
    batch = next(iter(data.train_dataloader()))
    ids, repeated, begins = (batch[f"cloze_{name}"] for name in ("ids", "repeated", "begins"))
    assert ids.shape == repeated.shape == begins.shape
    assert ids.shape[1] % 16 == 0
    for row, again, place, labels in zip(ids, repeated, begins, batch["cloze_labels"], strict=True):
        size = int((row == data.tokens.end).nonzero()[0])
        text, question = row[:size], row[size:]
        assert (again[size:] == IGNORED).all()
        asked = again != IGNORED
        assert torch.equal(again[asked], torch.isin(row[asked], question).long())
        answer = labels[labels != IGNORED][:-1]
        for start_at in (place == 1).nonzero().flatten().tolist():
            assert torch.equal(text[start_at : start_at + len(answer)], answer)
    assert (begins == 1).any(dim=1).float().mean() > 0.5
    assert set(repeated.unique().tolist()) <= {IGNORED, 0, 1}

    evidence = Evidence(4, 3)
    evidence.know(Matches(0, {1: 1.0}))
    evidence.repeated.weight.data *= 0.5
    evidence.repeated.bias.data.zero_()
    states = torch.zeros(2, 3, 4)
    states[..., 0] = torch.tensor([2.0, -2.0, 2.0])
    states[..., 1] = torch.tensor([0.0, math.log(2), math.log(5)])
    unread = torch.full((2, 3, 4), 7.0)
    looked = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    told = torch.tensor([[1, 0, IGNORED], [IGNORED] * 3]), torch.tensor([[1, 0, 1], [0, 0, IGNORED]])
    first, second, third = (value.detach() for value in evidence((unread, unread, states, states), looked, *told))
    size = states[0].pow(2).mean(dim=1).rsqrt()
    wanted = nn.functional.softplus(-2 * size[:2]).mean()
    assert float(first) == pytest.approx(float(wanted), abs=1e-4)
    assert float(second) == pytest.approx(-math.log(6 / 8), abs=1e-5)  # the second text has no answer
    assert float(third) == pytest.approx(-math.log(0.5), abs=1e-5)
    nothing = evidence((unread, unread, states, states), looked, torch.full((2, 3), IGNORED), torch.zeros(2, 3))
    assert [value.item() for value in nothing] == [0, 0, 0]


def test_a_t5_learns_from_evidence_and_forgets_what_it_was_told_with(prose: Path, tmp_path: Path) -> None:
    data = reader(prose, "t5")
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": 400, "num_layers": 3, "num_heads": 4, "head_size": 16}
    module = BackbonePretraining(
        "t5", **sizes, max_positions=256, budget_steps=12, warmup_steps=2, learning_rate=0.01, reading=True,
        copies=0.0, plain_text=0.0, matching_heads=True, evidence=1.0, autocast=True,
    )  # fmt: skip
    batches = list(data.val_dataloader())[:4]

    def losses() -> torch.Tensor:
        with torch.no_grad():
            found = [module.evidence_losses(batch)[1] for batch in batches]
            return torch.tensor([list(row.values()) for row in found]).mean(dim=0)

    before = losses()
    twelve_steps().fit(module, data)
    assert losses().sum() < before.sum()
    module.export(tmp_path / "made", data.tokenizer)
    again = type(module.model).from_pretrained(tmp_path / "made", dtype=torch.float32)
    assert again.config.num_heads * again.config.d_kv == 64
    assert again.state_dict().keys() == module.model.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "gpt2", "reading": True, "evidence": 0.5}, "evidence is for t5"),
        ({"architecture": "t5", "evidence": 0.5}, "give --model.reading true"),
        ({"architecture": "t5", "matching_heads": True}, "give --model.reading true"),
        ({"architecture": "t5", "copying_heads": True, "head_size": 16}, "together as wide as the model"),
        ({"architecture": "bert", "head_size": 16}, "head_size is for t5"),
        ({"architecture": "t5", "reading": True, "matching_heads": True, "num_layers": 1}, "needs three layers"),
    ],
)
def test_options_of_a_reading_t5(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        BackbonePretraining(**{**SIZES, **options})


@pytest.mark.parametrize(
    ("option", "name", "words"),
    [
        ("start_from", "no-such-nano", "start_from no-such-nano is neither a built-in backbone nor a folder"),
        ("start_from", "/no/such/folder", "no such folder: /no/such/folder"),
        ("start_from", "bert-nano", "start_from bert-nano has different tensor shapes or another architecture"),
        ("grow_from", "no-such-nano", "grow_from no-such-nano is neither a built-in backbone nor a folder"),
    ],
)
def test_starts_that_are_none(
    option: str, name: str, words: str, data: CorpusDataModule, capfd: pytest.CaptureFixture[str]
) -> None:
    module = BackbonePretraining("roberta", **SIZES, **{option: name})
    with pytest.raises(UserError, match=words):
        one_step().fit(module, data)
    assert "Loading weights" not in capfd.readouterr().err


def test_a_damaged_start(data: CorpusDataModule, tmp_path: Path) -> None:
    shutil.copytree(builtin_backbones()["roberta-nano"], tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut off")
    module = BackbonePretraining("roberta", **SIZES, start_from=str(tmp_path / "cut"))
    with pytest.raises(UserError, match="the model there cannot be read"):
        one_step().fit(module, data)


def test_a_sentence_encoder_starts_with_a_head_of_its_word_embeddings(text: Path, tmp_path: Path) -> None:
    """The missing LM head becomes the identity before the word embeddings; special ids may be anywhere."""
    words = ["[PAD]", "a", "b", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "boat", "water", "engine", "wheel", "."]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordPiece(dict(zip(words, range(13), strict=True)), unk_token="[UNK]")),
        unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=4)
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": 13}
    config = BackbonePretraining("bert", **sizes).model.config
    encoder = BertModel(config, add_pooling_layer=False)
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    data = CorpusDataModule(
        {str(text): [1.0, None]}, str(tmp_path / "cache"), "bert", str(tmp_path / "encoder"), vocab_size=13,
        lengths=[16], tokens_per_batch=96,
    )  # fmt: skip
    module = BackbonePretraining("bert", **sizes, start_from=str(tmp_path / "encoder"), learning_rate=0.0)
    one_step().fit(module, data)
    assert data.tokens.ordinary == 7
    # A sentence has twelve words and a full stop: neither cut nor filled.
    assert len(data.train_stores[0]["tokens"]) == 13 * len(data.train_stores[0]["starts"])
    for _, batch in zip(range(3), data.train_dataloader(), strict=False):
        assert (batch["labels"][batch["labels"] != IGNORED] >= 7).all()
    ids = torch.tensor([[4, 7, 8, 5]])
    with torch.no_grad():
        logits = module.model(ids).logits
        states = nn.functional.layer_norm(encoder.eval()(ids).last_hidden_state, (16,))
    streams = [store["tokens"] for store in data.train_stores]
    expected = states @ encoder.embeddings.word_embeddings.weight.T + frequencies(streams, 13).log()
    # GELU slightly changes the lowest states.
    assert (logits - expected).abs().max() < 0.01
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, tmp_path / "encoder" / "model.safetensors", {"format": "pt"})
    module = BackbonePretraining("bert", **sizes, start_from=str(tmp_path / "encoder"))
    with pytest.raises(
        UserError, match=r"lacks tensors, which would be randomly initialized: bert.encoder.layer.1.output.dense"
    ):
        one_step().fit(module, data)


@pytest.mark.parametrize(("share", "copies", "plain"), [(0.7, 0.255, 0.1), (0.15, 0.15, 0.3)])
def test_copies_come_first_or_as_told(
    share: float, copies: float, plain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = BackbonePretraining("gpt2", **SIZES, budget_steps=1000, reading=True, copies=share, plain_text=plain)
    counts: dict[str, int] = {}
    for step in range(1000):
        monkeypatch.setattr(BackbonePretraining, "global_step", step)
        counts[module.objective()] = counts.get(module.objective(), 0) + 1
    # Linear from 0.7 to 0.15 over 0.367 of the steps: 0.367 * (0.7 - 0.15) / 2 above 0.15.
    assert counts["copy"] / 1000 == pytest.approx(copies, abs=0.01)
    assert counts["causal"] / 1000 == pytest.approx(plain, abs=0.01)


def test_reading_needs_a_model_that_writes_and_questions(prose: Path) -> None:
    with pytest.raises(UserError, match="for gpt2 and t5, which write: bert does not"):
        BackbonePretraining("bert", **SIZES, reading=True)
    with pytest.raises(UserError, match="two starts"):
        BackbonePretraining("gpt2", **SIZES, grow_from="a", start_from="b")
    (prose.parent / "short.txt").write_text("a word\n" * 30)
    data = CorpusDataModule({str(prose.parent / "short.txt"): [1.0, None]}, str(prose.parent / "s"), clozes=5)
    with pytest.raises(UserError, match="too short to ask anything"):
        data.prepare_data()
