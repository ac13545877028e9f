"""Prompt initializers."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prompt_transfer.prompts.initializers import (
    ClassLabels,
    FromPrompt,
    Normal,
    Text,
    Vocabulary,
    vocabulary_ids,
)
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "good", "bad", "un", "##fair", "movie", "the", "a"]


@pytest.fixture
def backbone():
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    # Two more rows than the vocabulary, as in padded tables; row i starts with i.
    table = torch.randn(len(WORDS) + 2, 4, generator=torch.Generator().manual_seed(1))
    table[:, 0] = torch.arange(len(table))
    return SimpleNamespace(
        id="b",
        family=SimpleNamespace(name="bert", kind="masked_lm"),
        hidden_size=4,
        fingerprint="ff",
        tokenizer=fast,
        embedding_weight=table,
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(rows):
    return [WORDS[int(row[0])] for row in rows]


@pytest.mark.parametrize(
    "initializer", [Normal(), Vocabulary(), ClassLabels(), Text("the good movie"), Vocabulary(top_k=2)]
)
def test_one_seed_one_prompt(backbone, initializer):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = initializer(backbone, (9, 4), seeded(), ["good", "bad"])
    assert first.shape == (9, 4)
    assert first.dtype == torch.float32
    assert first.device.type == "cpu"
    assert torch.equal(first, initializer(backbone, (9, 4), seeded(), ["good", "bad"]))
    assert not torch.equal(first, initializer(backbone, (9, 4), seeded(1), ["good", "bad"]))
    assert torch.equal(torch.get_rng_state(), state)


def test_normal(backbone):
    prompt = Normal(0.5)(backbone, (1000, 4), seeded())
    assert prompt.std().item() == pytest.approx(0.5, rel=0.05)
    default = Normal()(backbone, (1000, 4), seeded())
    assert default.std().item() == pytest.approx(backbone.embedding_weight.std().item(), rel=0.05)
    with pytest.raises(UserError, match="std"):
        Normal(0)


def test_ordinary_tokens_only(backbone):
    assert [WORDS[index] for index in vocabulary_ids(backbone, 0)] == WORDS[6:]
    assert [WORDS[index] for index in vocabulary_ids(backbone, 3, 1)] == ["bad", "un", "##fair"]
    with pytest.raises(UserError, match="no token is left"):
        vocabulary_ids(backbone, 5, 7)


def test_vocabulary_draws_each_token_once(backbone):
    assert sorted(tokens(Vocabulary()(backbone, (7, 4), seeded()))) == sorted(WORDS[6:])
    drawn = Vocabulary(top_k=3, skip=1)(backbone, (3, 4), seeded())
    assert sorted(tokens(drawn)) == ["##fair", "bad", "un"]
    assert any(torch.equal(drawn[0], row) for row in backbone.embedding_weight)


def test_no_two_rows_are_equal_when_tokens_repeat(backbone):
    for initializer in (Vocabulary(top_k=2), Text("the movie the")):
        prompt = initializer(backbone, (8, 4), seeded())
        assert len(prompt.unique(dim=0)) == 8
        exact = sum(bool((backbone.embedding_weight == row).all(1).any()) for row in prompt)
        assert exact == 2


def test_a_bfloat16_table_gives_float32(backbone):
    backbone.embedding_weight = backbone.embedding_weight.bfloat16()
    for initializer in (Normal(), Vocabulary(), ClassLabels(), Text("good")):
        assert initializer(backbone, (5, 4), seeded(), ["good"]).dtype == torch.float32


def test_class_labels_come_first_and_are_not_drawn_again(backbone):
    prompt = ClassLabels()(backbone, (6, 4), seeded(), ["bad", "unfair", "bad"])
    table = backbone.embedding_weight
    assert torch.equal(prompt[0], table[7])
    assert torch.allclose(prompt[1], (table[8] + table[9]) / 2)
    assert "bad" not in tokens(prompt[2:])
    assert len(set(tokens(prompt[2:]))) == 4


def test_class_labels_without_room_or_words(backbone):
    with pytest.warns(UserWarning, match="bad"):
        assert tokens(ClassLabels()(backbone, (1, 4), seeded(), ["good", "bad"])) == ["good"]
    assert tokens(ClassLabels()(backbone, (2, 4), seeded(), ["good", "bad"])) == ["good", "bad"]
    with pytest.raises(UserError, match="label words"):
        ClassLabels()(backbone, (2, 4), seeded(), [])


def test_text_is_cut_and_repeated(backbone):
    assert tokens(Text("the good movie")(backbone, (2, 4), seeded())) == ["the", "good"]
    prompt = Text("a bad movie")(backbone, (5, 4), seeded())
    assert torch.equal(prompt[:3], backbone.embedding_weight[[12, 7, 10]])
    assert torch.allclose(prompt[3:], backbone.embedding_weight[[12, 7]], atol=4)
    with pytest.raises(UserError, match="the text is empty"):
        Text("  ")(backbone, (2, 4), seeded())


def save(path, value, **metadata):
    metadata = {"backbone": "b", "fingerprint": "ff", "family": "bert"} | metadata
    Prompt(torch.full((3, 4), float(value)), metadata).save(path)
    return str(path)


def test_from_prompt_and_the_mean_of_several(backbone, tmp_path):
    one, two = save(tmp_path / "1.safetensors", 1), save(tmp_path / "2.safetensors", 2)
    assert torch.equal(FromPrompt(one)(backbone, (3, 4), seeded()), torch.ones(3, 4))
    for several in (f"{one},{two}", f"{one}, {two}", [one, two]):
        assert torch.equal(FromPrompt(several)(backbone, (3, 4), seeded()), torch.full((3, 4), 1.5))
    comma = save(tmp_path / "a,b.safetensors", 7)
    assert FromPrompt(comma)(backbone, (3, 4), seeded())[0, 0] == 7


def test_from_prompt_refuses_what_does_not_fit(backbone, tmp_path):
    one = save(tmp_path / "1.safetensors", 1)
    with pytest.raises(UserError, match=r"has 3 prompt tokens, the run 5"):
        FromPrompt(one)(backbone, (5, 4), seeded())
    with pytest.raises(UserError, match="fingerprint"):
        FromPrompt(save(tmp_path / "2.safetensors", 1, fingerprint="gg"))(backbone, (3, 4), seeded())
    with pytest.raises(UserError, match="no such prompt file"):
        FromPrompt(str(tmp_path / "none"))(backbone, (3, 4), seeded())
    for empty in ("", [], "a,,b"):
        with pytest.raises(UserError, match="empty path"):
            FromPrompt(empty)


def test_a_weighted_mean(backbone, tmp_path):
    files = [save(tmp_path / f"{value}.safetensors", value) for value in (1, 2, 8)]
    made = FromPrompt(files, [1, 2, 1])(backbone, (3, 4), seeded())
    assert torch.equal(made, torch.full((3, 4), 3.25))
    # A single prompt is copied bit by bit, whatever its weight.
    odd = Prompt(torch.randn(3, 4, generator=seeded(3)), {"backbone": "b", "fingerprint": "ff", "family": "bert"})
    odd.save(tmp_path / "odd.safetensors")
    for weights in ([0.3], None):
        made = FromPrompt(str(tmp_path / "odd.safetensors"), weights)(backbone, (3, 4), seeded())
        assert torch.equal(made, odd.embeddings)
    for weights, words in (
        ([1, 2], "3 prompts and 2 weights"),
        ([1, -1, 1], "invalid weights 1, -1, 1: give numbers of 0 or more, not all of them 0"),
        ([0, 0, 0], "not all of them 0"),
        ([1, float("nan"), 1], "0 or more"),
    ):
        with pytest.raises(UserError, match=words):
            FromPrompt(files, weights)
    assert FromPrompt([f"{tmp_path}/{{seed}}", "x"], [3, 1]).for_seed(2).weights == [3, 1]


def test_from_a_recommendation(backbone, tmp_path):
    files = [save(tmp_path / f"{value}.safetensors", value) for value in (1, 2, 8)]
    table = tmp_path / "recommendation.csv"
    lines = [f"toy,{number},t,x,{file}" for number, file in enumerate(files)]
    values = ["0.5,3,-1", "0.25,1,-3", "0.75,,-2"]
    both = [f"{line},{value}" for line, value in zip(lines, values, strict=True)]
    table.write_text("\n".join(["target,prompt,source,source_type,path,score,size,dot", *both]) + "\n")

    def made(**options):
        return float(FromPrompt(recommendation=str(table), **options)(backbone, (3, 4), seeded())[0, 0])

    assert made() == 8  # the best in the first column
    assert made(by="size") == 1
    assert made(top=2) == pytest.approx((0.75 * 8 + 0.5 * 1) / 1.25)
    assert made(top=2, weights=[1, 1]) == 4.5
    assert made(by="size", top=2) == pytest.approx((3 * 1 + 1 * 2) / 4)
    assert FromPrompt(recommendation=str(table)).describe() == f"FromPrompt(prompt={files[2:]!r})"
    assert FromPrompt(recommendation=str(table), top=2).weights == [0.75, 0.5]
    for options, words in (
        ({"by": "size", "top": 3}, "ranks 2 sources by size, so top cannot be 3"),
        ({"by": "sizes"}, "has no column 'sizes': choose one of score, size, dot"),
        ({"target": "other"}, "has no target 'other': choose one of toy"),
        ({"by": "dot", "top": 2}, "invalid weights 0, 0: .*not all of them 0"),
        ({"prompt": files}, "either a prompt file"),
    ):
        with pytest.raises(UserError, match=words):
            made(**options)
    table.write_text(table.read_text() + f"late,0,t,x,{files[1]},0.1,2,-1\n")
    with pytest.raises(UserError, match=r"several targets, toy, late: choose one with --model.init.target"):
        made()
    assert made(target="late") == 2
    table.write_text("target,path,score\ntoy,p,high\n")
    with pytest.raises(UserError, match="'high' in the column score is not a number"):
        made()
    for text in ("", "target,path\nt,p\n", "a,b\n1,2\n", "target,path,score\nt\n"):
        table.write_text(text)
        with pytest.raises(UserError, match="is not a recommendation"):
            made()
    with pytest.raises(UserError, match="cannot read the recommendation"):
        FromPrompt(recommendation=str(tmp_path / "none.csv"))


def test_from_prompt_wants_to_know_from_which():
    with pytest.raises(UserError, match="either a prompt file"):
        FromPrompt()
    for options in ({"by": "score"}, {"top": 2}, {"target": "toy"}):
        with pytest.raises(UserError, match="choose from a table"):
            FromPrompt("a", **options)


def test_describe():
    assert Normal().describe() == "Normal(std=None)"
    assert Vocabulary(10).describe() == "Vocabulary(top_k=10, skip=0)"
    assert Text("good").describe() == "Text(text='good')"
    assert FromPrompt("a,b").describe() == "FromPrompt(prompt=['a', 'b'])"
    assert FromPrompt("a,b", [1, 3]).describe() == "FromPrompt(prompt=['a', 'b'], weights=[1, 3])"
