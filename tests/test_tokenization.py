"""Tokenizer differences: words that continue a text, start tokens, tokens without an embedding."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from start_models import START, byte_level_with_start, save_llama, sentencepiece_tokenizer, with_pad_beyond
from transformers import AutoTokenizer

from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.fingerprint import text_rules
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.loading import local_start_ids
from prompt_transfer.backbones.tokenization import continued, start_ids, word_pieces
from prompt_transfer.data.tables import Tables
from prompt_transfer.prompts.initializers import ClassLabels, Text
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.backbones import backbone_options
from prompt_transfer.tasks.registry import Task, get_task
from prompt_transfer.tasks.verbalizers import Verbalizer, label_sequences
from prompt_transfer.utils.errors import LayoutKindError, UserError

P = 3
NEWLINE = "<0x0A>"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a tiny Llama; return tokenizer name -> its folder."""
    makers: dict[str, Callable[[], Any]] = {
        "prepend": lambda: sentencepiece_tokenizer("prepend"),
        "metaspace": lambda: sentencepiece_tokenizer("metaspace"),
        "byte_level": byte_level_with_start,
        "both_ends": lambda: byte_level_with_start(last=True),
    }

    @functools.cache
    def folder(name: str) -> Path:
        return save_llama(makers[name](), tmp_path_factory.mktemp(name))

    return folder


def pieces(backbone: FrozenBackbone, ids: list[int]) -> list[str]:
    return backbone.tokenizer.convert_ids_to_tokens(ids)


# Words that continue a text.


@pytest.mark.parametrize("manner", ["prepend", "metaspace"])
def test_no_stray_space_before_words_that_continue_a_text(llama: Callable[[str], Path], manner: str) -> None:
    backbone = FrozenBackbone(str(llama(manner)))
    encoder, tokenizer = backbone.encoder(P), backbone.tokenizer
    assert pieces(backbone, word_pieces(tokenizer, "terrible")) == ["▁terrible"]
    verbalizer = Verbalizer.build("t", ["terrible", "great"], tokenizer)
    assert verbalizer.class_pieces == (("▁terrible",), ("▁great",))
    # With `first` and `mean`, labels would share the space.
    assert len(Verbalizer.build("t", ["terribleness", "greatness"], tokenizer, "first").token_ids) == 2
    (pair,) = encoder.encode(["the film"], [" bad food"], 40, cue="it was")
    assert pieces(backbone, pair) == ["<s>", "▁the", "▁film", NEWLINE, "▁bad", "▁food", "▁it", "▁was"]
    assert [pieces(backbone, row) for row in encoder.encode_targets(["very good", ""], 9)] == [
        ["▁very", "▁good", "</s>"],
        ["▁", "</s>"],
    ]
    sequences, _ = label_sequences([Labels()], encoder)
    assert sequences.tolist() == [[word_pieces(tokenizer, "terrible"), word_pieces(tokenizer, "great")]]
    generator, shape = torch.Generator().manual_seed(0), (2, backbone.hidden_size)
    table, expected = backbone.embedding_weight, tokenizer.convert_tokens_to_ids(["▁very", "▁good"])
    assert torch.equal(Text("very good")(backbone, shape, generator), table[expected])
    assert torch.equal(ClassLabels()(backbone, shape, generator, ["very", "good"]), table[expected])


class Labels:
    name, label_words = "t", ("terrible", "great")


def test_a_text_that_merges_with_the_anchor_is_encoded_alone() -> None:
    ids = {"a": [1], "a b": [2, 3], " b": [4], "a c": [1, 5]}
    assert continued(lambda texts: [ids[text] for text in texts], [" b", " c"]) == [[4], [5]]


# Recorded before `continued` existed: inputs of the built-in backbones must never change.
HAND = {
    "roberta": {" great": ["Ġgreat"], " it was": ["Ġit", "Ġwas"]},
    "gpt2": {" great": ["Ġgreat"], " it was": ["Ġit", "Ġwas"]},
    "bert": {" great": ["great"], " it was": ["it", "was"]},
    "t5": {" great": ["▁great"], " it was": ["▁it", "▁was"]},
}


@pytest.mark.parametrize("family", HAND)
def test_tokenizers_that_add_no_space_are_unchanged(tiny: Callable[[str], Path], family: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny(family))
    for text, expected in HAND[family].items():
        assert tokenizer.convert_ids_to_tokens(continued(plain(tokenizer), [text])[0]) == expected


def plain(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    return lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]


@functools.cache
def builtin(name: str) -> Any:
    return AutoTokenizer.from_pretrained(builtin_backbones()[name])


@pytest.mark.parametrize("name", sorted(builtin_backbones()))
@settings(max_examples=60)
@given(st.text(max_size=12) | st.sampled_from(["terrible", "it was", "'s", "", " ", "é", "1.5", "</s>"]))
def test_inputs_of_built_in_backbones_are_unchanged(name: str, text: str) -> None:
    tokenizer = builtin(name)
    text = f" {text.strip()}"
    assert continued(plain(tokenizer), [text]) == plain(tokenizer)([text])


def test_built_in_backbones_keep_their_layout_and_cached_tokens() -> None:
    for name in builtin_backbones():
        assert text_rules(builtin(name), "causal_lm") == text_rules(builtin(name))
    backbone = FrozenBackbone("gpt2-nano")
    assert backbone.layout.name == "answer_last"
    (row,) = backbone.encoder(P).encode(["the film"], ["good"], 40, cue="it was")
    # Its tokenizer puts a space before every text, and in pretraining a space preceded line feeds too.
    assert pieces(backbone, row) == ["Ġthe", "Ġfilm", "Ġ", "Ċ", "Ġgood", "Ġit", "Ġwas"]


# The start token.


@pytest.mark.parametrize("name", ["prepend", "metaspace", "byte_level", "both_ends"])
def test_the_start_token_is_between_prompt_and_text(llama: Callable[[str], Path], name: str) -> None:
    backbone = FrozenBackbone(str(llama(name)))
    start, tokenizer = backbone.tokenizer.bos_token_id, backbone.tokenizer
    assert backbone.layout.name == "start_answer_last"
    assert local_start_ids(str(llama(name))) == start_ids(tokenizer) == (start,)
    encoder = backbone.encoder(P)
    assert encoder.without_text() == [start]
    # Only a leading token is kept: an end token after the text would be the answer slot.
    assert encoder.encode(["the film", ""], None, 40) == [
        [start, *tokenizer("the film", add_special_tokens=False)["input_ids"]],
        [start],
    ]
    (cut,) = encoder.encode(["the film " * 9], ["bad food " * 9], 10, cue="it was")
    assert (len(cut), cut[0], pieces(backbone, cut[-2:])) == (
        10,
        start,
        [f"{cut_mark(name)}{w}" for w in ("it", "was")],
    )
    # Targets have no start token.
    assert start not in encoder.encode_targets(["very good"], 9)[0]
    without = FrozenBackbone(str(llama(name)), layout="answer_last")
    assert without.encoder(P).encode(["the film"], None, 40) == [encoder.encode(["the film"], None, 40)[0][1:]]
    assert without.encoder(P).fingerprint != encoder.fingerprint
    assert without.fingerprint == backbone.fingerprint


def cut_mark(name: str) -> str:
    return "▁" if name in ("prepend", "metaspace") else "Ġ"


def test_logits_are_those_of_prompt_start_token_and_text(llama: Callable[[str], Path]) -> None:
    from transformers import LlamaForCausalLM

    backbone = FrozenBackbone(str(llama("prepend")))
    prompt = torch.randn(P, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor(backbone.encoder(P).encode(["the film"], None, 40, cue="it was"))
    assert ids[0, 0] == START
    words = torch.tensor([word_pieces(backbone.tokenizer, word)[0] for word in ("terrible", "great")])
    found = backbone(prompt, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, words)
    model = LlamaForCausalLM.from_pretrained(llama("prepend"), dtype=torch.float32).eval()
    rows = torch.cat([prompt, model.get_input_embeddings()(ids[0])])[None]
    with torch.no_grad():
        expected = model(inputs_embeds=rows).logits[:, -1, words]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_prompt_keeps_its_layout(llama: Callable[[str], Path], tiny: Callable[[str], Path]) -> None:
    backbone = FrozenBackbone(str(llama("byte_level")))
    facts = {"fingerprint": backbone.fingerprint, "backbone": backbone.id, "family": "llama", "attention": "full"}
    old, new = (Prompt(torch.zeros(P, 32), facts | {"layout": f"{start}answer_last"}) for start in ("", "start_"))
    new.check(backbone, backbone.layout, "full")
    with pytest.raises(
        UserError, match=r"trained with layout answer_last, not start_answer_last.*--model.layout answer"
    ):
        old.check(backbone, backbone.layout, "full")
    assert backbone_options({"a": old})["layout"] == "answer_last"
    with pytest.raises(UserError, match=r"layout.*choose one with --layout"):
        backbone_options({"a": old, "b": new})
    # In a causal model both attention modes are the same function, for any layout.
    shared = Prompt(torch.zeros(P, 32), new.metadata | {"attention": "shared"})
    assert backbone_options({"a": new, "b": shared})["attention"] == "full"
    with pytest.raises(LayoutKindError, match=r"needs a tokenizer that adds a start token.*choose one of answer_last"):
        FrozenBackbone(str(tiny("gpt2")), layout="start_answer_last")
    assert FrozenBackbone(str(tiny("gpt2"))).layout.name == "answer_last"
    assert local_start_ids("nobody/has-this-model") is None


# Empty texts.


@pytest.mark.parametrize("name", ["prepend", "byte_level"])
def test_an_empty_text_becomes_the_start_token(llama: Callable[[str], Path], name: str) -> None:
    for layout in ("answer_last", "start_answer_last"):
        backbone = FrozenBackbone(str(llama(name)), layout=layout)
        assert backbone.encoder(P).encode([""], None, 40) == [[backbone.tokenizer.bos_token_id]]
    assert backbone.encoder(0).encode([""], [""], 40)[0][0] == backbone.tokenizer.bos_token_id


# Tokenizers without an end token.


def test_generation_needs_an_end_token(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer("prepend")
    tokenizer.eos_token = None
    encoder = FrozenBackbone(str(save_llama(tokenizer, tmp_path / "a"))).encoder(P)
    assert encoder.tokenizer.eos_token_id is None
    with pytest.raises(UserError, match=r"tokenizer has no end token \(eos_token\)") as caught:
        encoder.encode_targets(["very good"], 9)
    assert "\n" not in str(caught.value)
    task = Task(name="toy", type="other", text_a="text", target_column="answer", metric="rougeL")
    with pytest.raises(UserError, match=r"^task toy: the backbone's tokenizer has no end token"):
        Tables(SimpleNamespace(tasks=[task]), encoder, 20)
    # Labels are scored without an end token.
    words = [word_pieces(encoder.tokenizer, word) for word in ("terrible", "great")]
    assert label_sequences([Labels()], encoder)[0].tolist() == [words]
    assert Tables(SimpleNamespace(tasks=[get_task("sst2")]), encoder, 20).lengths == [20]


# Tokens without an embedding.


@pytest.mark.parametrize("make", [lambda: sentencepiece_tokenizer("prepend"), byte_level_with_start])
def test_an_added_pad_needs_no_embedding(tmp_path: Path, make: Callable[[], Any]) -> None:
    tokenizer, size = with_pad_beyond(make())
    backbone = FrozenBackbone(str(save_llama(tokenizer, tmp_path / "a", size)))
    assert backbone.tokenizer.pad_token_id == size
    encoder = backbone.encoder(P)
    assert encoder.pad_token_id == backbone.tokenizer.eos_token_id
    ids = torch.tensor([[1, 5, 7], [1, 5, encoder.pad_token_id]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    prompt = torch.randn(P, 32, generator=torch.Generator().manual_seed(1))
    written = backbone.generate(prompt, batch, max_new_tokens=3)
    assert int(written.max()) < size
    assert len(backbone.decode(written)) == 2
    loss = backbone.target_log_probs(prompt, {**batch, "target_ids": torch.tensor([[5, 6], [7, -100]])})
    assert loss.isfinite().all()
    with pytest.raises(UserError, match=rf"a text contains '\[PAD\]', token {size} of the tokenizer"):
        encoder.encode(["the [PAD] film"], None, 40)
    with pytest.raises(UserError, match="token"):
        encoder.encode_targets(["[PAD]"], 9)
    with pytest.raises(UserError, match=r"has no embedding for its token '\[PAD\]'"):
        Text("[PAD]")(backbone, (2, 32), torch.Generator())


def test_words_and_required_special_tokens_need_an_embedding(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    tokenizer = byte_level_with_start()
    tokenizer.add_tokens(["splendid"])
    save_llama(tokenizer, tmp_path / "word", len(tokenizer) - 1)
    with pytest.raises(UserError, match="do not match: 717 tokens, 716 word embeddings, none for 'splendid'"):
        FrozenBackbone(str(tmp_path / "word"))
    # The start token is the last of this vocabulary.
    save_llama(byte_level_with_start(), tmp_path / "start", 715)
    with pytest.raises(UserError, match="none for '<s>'"):
        FrozenBackbone(str(tmp_path / "start"))
    # A mask token added only to an encoder's tokenizer would be read at every answer slot.
    shutil.copytree(tiny("bert"), tmp_path / "bert")
    encoder = AutoTokenizer.from_pretrained(tmp_path / "bert")
    encoder.add_special_tokens({"mask_token": "<added>"})
    encoder.save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="none for '<added>'"):
        FrozenBackbone(str(tmp_path / "bert"))
    assert json.loads((tmp_path / "bert" / "config.json").read_text())["vocab_size"] == len(encoder) - 1


def test_split_special_tokens_need_no_embedding(tmp_path: Path) -> None:
    tokenizer, size = with_pad_beyond(sentencepiece_tokenizer("prepend"))
    encoder = FrozenBackbone(str(save_llama(tokenizer, tmp_path / "a", size))).encoder(P).splitting()
    ((start, *row),) = encoder.encode(["the film"], ["[PAD]"], 40)
    assert start == START
    tokens = ["▁the", "▁film", NEWLINE, "▁", "[", "P", "A", "D", "]"]
    assert encoder.tokenizer.convert_ids_to_tokens(row) == tokens
