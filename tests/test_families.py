"""All families against plain Hugging Face forwards on concatenated embeddings, implemented independently here."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CAUSAL, MASKED, PLAIN_ENCODERS, SEQ2SEQ
from torch import Tensor

from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.family import AUTO_CLASSES
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.prompts.initializers import embedding_rows, vocabulary_ids
from prompt_transfer.utils.errors import UserError

P = 5
TEXTS = ["great good", "no yes maybe wrong right okay good bad terrible", "the film was very good"]
Tiny = Callable[[str], Path]
ALL = (*MASKED, *CAUSAL, *SEQ2SEQ)
MODES = [(family, mode) for family in ALL for mode in ("full", "shared") if (family, mode) not in
         {(encoder, "shared") for encoder in PLAIN_ENCODERS}]  # fmt: skip
"""Families and the attention modes that they have."""


def collated(backbone: FrozenBackbone, rows: list[list[int]], width: int | None = None) -> dict[str, Tensor]:
    longest = width or max(map(len, rows))
    pad = backbone.encoder(P).pad_token_id
    return {
        "input_ids": torch.tensor([row + [pad] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


def text_rows(backbone: FrozenBackbone) -> list[list[int]]:
    return backbone.encoder(P).encode(TEXTS, None, 32, cue="it was")


def random_prompt(backbone: FrozenBackbone, seed: int = 0) -> Tensor:
    return torch.randn(P, backbone.hidden_size, generator=torch.Generator().manual_seed(seed)) * 0.5


def words(backbone: FrozenBackbone) -> Tensor:
    ids = [backbone.tokenizer.encode(f" {word}", add_special_tokens=False) for word in ("terrible", "great", "okay")]
    assert all(len(row) == 1 for row in ids)
    return torch.tensor([row[0] for row in ids])


@functools.cache
def plain_model(folder: Path, kind: str) -> Any:
    auto = getattr(transformers, AUTO_CLASSES[kind])
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def seen_by_hand(length: int, total: int, shared: bool) -> Tensor:
    """Return the additive attention mask: in `shared` mode a prompt of `length` tokens sees only itself."""
    allowed = torch.ones(total, total, dtype=torch.bool)
    if shared:
        allowed[:length, length:] = False
    return torch.zeros(1, 1, total, total).masked_fill(~allowed, torch.finfo(torch.float32).min)


def by_hand(folder: Path, kind: str, prompt: Tensor, row: list[int], shared: bool) -> Tensor:
    """Compute the logits [V] at the answer slot of one unpadded example with the library's own forward."""
    model = plain_model(folder, kind)
    embed = model.get_input_embeddings()
    text = embed(torch.tensor(row))
    if kind == "causal_lm":
        return model(inputs_embeds=torch.cat([prompt, text])[None]).logits[0, -1]
    if kind == "masked_lm":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        text = torch.cat([embed(torch.tensor([tokenizer.mask_token_id])), text])
    length, total = len(prompt), len(prompt) + len(text)
    low = torch.finfo(torch.float32).min
    mask = seen_by_hand(length, total, shared)
    if kind == "seq2seq_lm":
        x = torch.cat([prompt, text])[None]
        encoded = model.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state
        start = torch.tensor([[model.config.decoder_start_token_id]])
        return model(encoder_outputs=(encoded,), decoder_input_ids=start).logits[0, 0]
    config = model.config
    if config.model_type in PLAIN_ENCODERS:
        return model(inputs_embeds=torch.cat([prompt, text])[None]).logits[0, length]
    if config.model_type == "modernbert":
        places = torch.arange(total)
        near = (places[:, None] - places).abs() <= config.sliding_window
        masks = {"full_attention": mask, "sliding_attention": mask.masked_fill(~near, low)}
        return model(inputs_embeds=torch.cat([prompt, text])[None], attention_mask=masks).logits[0, length]
    # Prompt tokens and answer slot get no position or token type: subtract in advance what the model adds.
    table = model.base_model.embeddings
    fairseq = config.model_type in ("roberta", "xlm-roberta", "camembert")
    first = config.pad_token_id + 1 if fairseq else 0
    bare = torch.full((length + 1,), first)
    positions = torch.cat([bare, torch.arange(first, first + len(text) - 1)])[None]
    added = table.position_embeddings.weight[first]
    if hasattr(table, "token_type_embeddings") and not fairseq:
        added = added + table.token_type_embeddings.weight[0]
    x = torch.cat([prompt - added, text[:1] - added, text[1:]])[None]
    return model(inputs_embeds=x, position_ids=positions, attention_mask=mask).logits[0, length]


@pytest.mark.parametrize(("family", "attention"), MODES)
def test_logits_and_gradients_equal_a_plain_forward(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    rows, token_ids = text_rows(backbone), words(backbone)
    prompt = random_prompt(backbone).requires_grad_()
    logits = backbone(prompt, collated(backbone, rows), token_ids)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    slow = prompt.detach().clone().requires_grad_()
    for index, row in enumerate(rows):
        expected = by_hand(tiny(family), backbone.family.kind, slow, row, attention == "shared")[token_ids]
        torch.testing.assert_close(logits[index], expected, atol=1e-5, rtol=1e-5)
        (expected * weights[index]).sum().backward()
    assert prompt.grad is not None
    assert slow.grad is not None
    torch.testing.assert_close(prompt.grad, slow.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_padding_and_company_do_not_change_logits(tiny: Tiny, family: str) -> None:
    for attention in [mode for name, mode in MODES if name == family]:
        backbone = FrozenBackbone(str(tiny(family)), attention=attention)
        rows, prompt, token_ids = text_rows(backbone), random_prompt(backbone), words(backbone)
        together = backbone(prompt, collated(backbone, rows, width=30), token_ids)
        alone = [backbone(prompt, collated(backbone, [row]), token_ids)[0] for row in rows]
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [family for family, mode in MODES if mode == "shared"])
def test_full_and_shared_agree_for_causal_models_only(tiny: Tiny, family: str) -> None:
    full, shared = (FrozenBackbone(str(tiny(family)), attention=mode) for mode in ("full", "shared"))
    batch, prompt, token_ids = collated(full, text_rows(full)), random_prompt(full), words(full)
    difference = (full(prompt, batch, token_ids) - shared(prompt, batch, token_ids)).abs().max()
    assert (difference < 1e-6) if family in CAUSAL else (difference > 1e-5)


@pytest.mark.parametrize(("family", "attention"), MODES)
def test_several_prompts_in_a_batch_equal_one_after_the_other(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    batch, token_ids = collated(backbone, text_rows(backbone)), words(backbone)
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(3)])
    chosen = (2, 0, 2)
    together = backbone(prompts, {**batch, "prompt_ids": torch.tensor(chosen)}, token_ids)
    alone = [backbone(prompts[index], batch, token_ids)[row] for row, index in enumerate(chosen)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ALL)
def test_one_step_changes_the_prompt_alone(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family))).train()
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    prompt = torch.nn.Parameter(random_prompt(backbone))
    start = prompt.detach().clone()
    trained = [p for p in (prompt, *backbone.parameters()) if p.requires_grad]
    assert sum(p.numel() for p in trained) == P * backbone.hidden_size
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    backbone(prompt, collated(backbone, text_rows(backbone)), words(backbone)).logsumexp(dim=1).sum().backward()
    optimizer.step()
    assert (prompt != start).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())


@pytest.mark.parametrize("family", ALL)
def test_neurons_are_what_enters_the_second_ffn_layer(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    sites, seen = backbone.ffn_sites(), []
    width = {"bloom": 4 * 32}.get(family, getattr(backbone.config, "intermediate_size", 64))
    for site in dict.fromkeys(sites):
        site.register_forward_hook(
            lambda module, args, output: seen.append(args[0] if backbone.family.ffn_input else output)
        )
    backbone(random_prompt(backbone), collated(backbone, text_rows(backbone)), words(backbone))
    assert len(sites) == backbone.config.num_hidden_layers
    # ALBERT reuses one layer; a causal model runs over the prompt and then over the text.
    twice = backbone.family.kind == "causal_lm" and not backbone.family.plain
    assert len(seen) == len(sites) * (2 if twice else 1)
    assert all(neurons.shape[-1] == width for neurons in seen)


@pytest.mark.parametrize("family", [*CAUSAL, *SEQ2SEQ])
@pytest.mark.parametrize("attention", ["full", "shared"])
def test_target_log_probs_equal_a_plain_forward(tiny: Tiny, family: str, attention: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)), attention=attention)
    rows, prompt = text_rows(backbone), random_prompt(backbone)
    targets = backbone.encoder(P).encode_targets(["very good", "the", "a boring film"], 8)
    longest = max(map(len, targets))
    padded = torch.tensor([row + [-100] * (longest - len(row)) for row in targets])
    found = backbone.target_log_probs(prompt, {**collated(backbone, rows), "target_ids": padded})
    model = plain_model(tiny(family), backbone.family.kind)
    embed = model.get_input_embeddings()
    for index, (row, target) in enumerate(zip(rows, targets, strict=True)):
        assert target[-1] == backbone.tokenizer.eos_token_id
        if family in CAUSAL:
            x = torch.cat([prompt, embed(torch.tensor(row + target))])[None]
            logits = model(inputs_embeds=x).logits[0, P + len(row) - 1 : -1]
        else:
            if attention == "shared":
                continue
            x = torch.cat([prompt, embed(torch.tensor(row))])[None]
            logits = model(inputs_embeds=x, labels=torch.tensor([target])).logits[0]
        expected = logits.log_softmax(dim=-1)[torch.arange(len(target)), torch.tensor(target)]
        torch.testing.assert_close(found[index, : len(target)], expected, atol=1e-5, rtol=1e-5)
        assert (found[index, len(target) :] == 0).all()


@torch.no_grad()
def greedy_by_hand(
    folder: Path, kind: str, prompt: Tensor, row: list[int], steps: int, end: int, shared: bool = False
) -> list[int]:
    model = plain_model(folder, kind)
    embed = model.get_input_embeddings()
    written: list[int] = []
    if kind == "seq2seq_lm":
        x = torch.cat([prompt, embed(torch.tensor(row))])[None]
        seen = seen_by_hand(len(prompt), x.shape[1], shared)
        encoded = model.encoder(inputs_embeds=x, attention_mask=seen).last_hidden_state
    while len(written) < steps and (not written or written[-1] != end):
        if kind == "causal_lm":
            ids = torch.tensor(row + written)
            logits = model(inputs_embeds=torch.cat([prompt, embed(ids)])[None]).logits[0, -1]
        else:
            ids = torch.tensor([[model.config.decoder_start_token_id, *written]])
            logits = model(encoder_outputs=(encoded,), decoder_input_ids=ids).logits[0, -1]
        written.append(int(logits.argmax()))
    return written


@pytest.mark.parametrize("family", [*CAUSAL, *SEQ2SEQ])
def test_greedy_output_equals_step_by_step_forwards(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    rows, end = text_rows(backbone), backbone.tokenizer.eos_token_id
    prompts = torch.stack([random_prompt(backbone, seed) for seed in range(3)])
    chosen = [2, 0, 1]
    batch = {**collated(backbone, rows), "prompt_ids": torch.tensor(chosen)}
    written = backbone.generate(prompts, batch, max_new_tokens=6)
    for index, row in enumerate(rows):
        expected = greedy_by_hand(tiny(family), backbone.family.kind, prompts[chosen[index]], row, 6, end)
        assert written[index, : len(expected)].tolist() == expected
        assert (written[index, len(expected) :] == backbone.encoder(P).pad_token_id).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "t5_v1_1"])
def test_beam_search_finds_texts_at_least_as_likely(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    prompt, batch = random_prompt(backbone), collated(backbone, text_rows(backbone))
    end = backbone.tokenizer.eos_token_id

    def scores(ids: Tensor) -> Tensor:
        over = (ids == end).long().cumsum(dim=1) - (ids == end).long()
        targets = ids.masked_fill(over > 0, -100)
        likelihoods = backbone.target_log_probs(prompt, {**batch, "target_ids": targets})
        return likelihoods.sum(dim=1) / (targets != -100).sum(dim=1)

    greedy, beams = (backbone.generate(prompt, batch, max_new_tokens=4, num_beams=n) for n in (1, 4))
    assert scores(beams).mean() >= scores(greedy).mean() - 1e-5
    assert len(backbone.decode(beams)) == len(TEXTS)


@pytest.mark.parametrize("family", MASKED)
def test_masked_models_say_that_they_cannot_write(tiny: Tiny, family: str) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    batch = collated(backbone, text_rows(backbone))
    assert not backbone.writes
    with pytest.raises(UserError, match="cannot generate text"):
        backbone.generate(random_prompt(backbone), batch)
    with pytest.raises(UserError, match="cannot generate text"):
        backbone.target_log_probs(random_prompt(backbone), {**batch, "target_ids": torch.zeros(3, 1).long()})


def test_cue_is_never_cut_and_pairs_have_their_separator(tiny: Tiny) -> None:
    encoder = FrozenBackbone(str(tiny("gpt2"))).encoder(P)
    cue = encoder.tokenizer.encode(" it was")
    row = encoder.encode(["good " * 50], None, 12, cue="it was")[0]
    assert (len(row), row[-2:]) == (12, cue)
    pair = encoder.encode(["good " * 50], ["bad bad"], 12, cue="it was")[0]
    assert (len(pair), pair[-2:]) == (12, cue)
    assert pair[-4:-2] == encoder.tokenizer.encode(" bad bad")
    t5 = FrozenBackbone(str(tiny("t5"))).encoder(P)
    assert t5.encode(["good"], ["bad"], 12) == [[*t5.tokenizer.encode("good"), 1, *t5.tokenizer.encode("bad"), 1]]


@pytest.mark.parametrize(
    ("family", "layout", "message"),
    [
        ("gpt2", "mask_first", "is for masked_lm backbones, but this backbone is causal_lm: choose one of answer_last"),
        ("t5", "prefix", "choose one of encoder"),
        (
            "modernbert",
            "mask_first",
            "needs support for tokens without a position, which this backbone lacks: choose one of prefix",
        ),
        ("bert", "encoder", "choose one of mask_first, prefix"),
    ],
)
def test_layouts_of_other_kinds_are_refused(tiny: Tiny, family: str, layout: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FrozenBackbone(str(tiny(family)), layout=layout)


@pytest.mark.parametrize("family", ["electra", "albert", "distilbert", "modernbert", "t5_v1_1", "mt5"])
def test_missing_heads_are_refused_by_name(tiny: Tiny, family: str, tmp_path: Path) -> None:
    backbone = FrozenBackbone(str(tiny(family)))
    shutil.copytree(tiny(family), tmp_path / "headless")
    file = tmp_path / "headless" / "model.safetensors"
    tensors = load_file(file)
    heads = tuple(f"{path}." for path in backbone.family.head)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
    assert len(kept) < len(tensors)
    save_file(kept, file, metadata={"format": "pt"})
    # For T5 v1.1, transformers would tie the output layer to the word embeddings, which gives another model.
    with pytest.raises(
        UserError,
        match="missing or mismatched tensors, which transformers would initialize randomly or tie to another layer",
    ):
        FrozenBackbone(str(tmp_path / "headless"))


@pytest.mark.parametrize("family", ["gemma3_text", "gemma2", "gemma", "mistral"])
def test_a_prompt_of_words_is_the_words(tiny: Tiny, family: str) -> None:
    """A prompt of word embeddings gives the logits of those words as text, even if longer than any window."""
    backbone = FrozenBackbone(str(tiny(family)))
    model = plain_model(tiny(family), "causal_lm")
    embed, weight = backbone.embedding_weight, model.get_input_embeddings().weight
    scale = 32**0.5 if family.startswith("gemma") else 1
    torch.testing.assert_close(embed, weight.detach() * scale)
    chosen = torch.tensor(vocabulary_ids(backbone, top_k=0)[-11:])
    prompt = torch.nn.Parameter(embedding_rows(backbone, chosen.tolist()))
    rows = text_rows(backbone)
    found = backbone(prompt, collated(backbone, rows), words(backbone))
    recorded = backbone(backbone.record(prompt), collated(backbone, rows), words(backbone))
    torch.testing.assert_close(recorded, found, atol=1e-5, rtol=0)
    for index, row in enumerate(rows):
        ids = torch.cat([chosen, torch.tensor(row)])[None]
        torch.testing.assert_close(found[index], model(ids).logits[0, -1, words(backbone)], atol=1e-5, rtol=1e-5)


def test_rows_name_their_kind() -> None:
    assert {row.kind for row in FAMILIES.values()} == {"masked_lm", "causal_lm", "seq2seq_lm"}
    assert all(row.auto_class == AUTO_CLASSES[row.kind] for row in FAMILIES.values())


def test_frame_of_a_seq2seq_model_stands_round_the_texts_and_is_never_cut(tiny: Tiny) -> None:
    encoder = FrozenBackbone(str(tiny("t5"))).encoder(P)
    frame = ("question ", " because ")
    row = encoder.encode(["good " * 30], ["bad bad"], 12, cue="it was", seq2seq_frame=frame)[0]
    before, between = (encoder.tokenizer.encode(text, add_special_tokens=False) for text in frame)
    assert (len(row), row[-1]) == (12, encoder.tokenizer.eos_token_id)
    assert row[: len(before)] == before
    assert row[-3 - len(between) : -3] == between
    # Other kinds of backbones ignore the frame.
    gpt = FrozenBackbone(str(tiny("gpt2"))).encoder(P)
    texts = (["good film"], ["bad film"], 12)
    assert gpt.encode(*texts, cue="it was", seq2seq_frame=frame) == gpt.encode(*texts, cue="it was")
