"""Verbalizers: label words to token ids."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prompt_transfer.tasks.verbalizers import Verbalizer, stack
from prompt_transfer.utils.errors import UserError


@pytest.fixture
def wordpiece():
    words = ["[PAD]", "[UNK]", "[MASK]", "bad", "good", "un", "##fair", "##able", "fine", "##ly"]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    )


@pytest.fixture
def byte_level():
    """Build a tokenizer in which `good` and ` good` are two tokens, as in RoBERTa and GPT."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("g", "o"), ("go", "o"), ("goo", "d"), ("Ġ", "good"), ("b", "a"), ("ba", "d"), ("Ġ", "bad")]
    tokens = [*letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def build(words, tokenizer, policy="error"):
    return Verbalizer.build("t", words, tokenizer, policy)


def test_one_token_a_class(wordpiece):
    verbalizer = build(["good", "bad"], wordpiece)
    assert verbalizer.token_ids.tolist() == [3, 4]
    assert verbalizer.token_ids.dtype == torch.int64
    assert verbalizer.weights.tolist() == [[0, 1], [1, 0]]
    assert verbalizer.class_logits(torch.tensor([[10.0, 20.0]])).tolist() == [[20.0, 10.0]]
    assert verbalizer.table()[0] == {
        "task": "t",
        "class": 0,
        "label_word": "good",
        "token_ids": [4],
        "pieces": ["good"],
        "policy": "error",
    }


def test_words_stand_inside_a_sentence(byte_level):
    for words in (["good", "bad"], [" good ", "bad"]):
        table = build(words, byte_level).table()
        assert [row["pieces"] for row in table] == [["Ġgood"], ["Ġbad"]]


def test_several_tokens_by_policy(wordpiece):
    with pytest.raises(UserError, match=r"'unfair' is 2 tokens \('un', '##fair'\).*label_words_policy"):
        build(["good", "unfair"], wordpiece)
    first = build(["good", "unfair"], wordpiece, "first")
    assert first.token_ids.tolist() == [4, 5]
    mean = build(["good", "unfairly"], wordpiece, "mean")
    assert mean.token_ids.tolist() == [4, 5, 6, 9]
    logits = mean.class_logits(torch.tensor([[7.0, 1.0, 2.0, 6.0]]))
    assert torch.allclose(logits, torch.tensor([[7.0, 3.0]]))
    assert torch.allclose(mean.weights.sum(1), torch.ones(2))


@pytest.mark.parametrize(
    ("words", "policy", "message"),
    [
        (["good", "good"], "error", "'good' and 'good' are both"),
        (["unfair", "unable"], "first", "'unfair' and 'unable' are both the token 'un'"),
        (["good", "xyz"], "mean", "not in the backbone's vocabulary"),
        (["good", "[MASK]"], "error", "a special token"),
        (["good", " "], "error", "no tokens"),
        (["good", False], "error", "quotes"),
        (["good"], "error", "two or more"),
        (["good", "bad"], "all", "error, first, mean"),
    ],
)
def test_words_that_cannot_be_used(wordpiece, words, policy, message):
    with pytest.raises(UserError, match=message) as caught:
        build(words, wordpiece, policy)
    assert "task t" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shared_pieces_are_fine_for_the_mean(wordpiece):
    verbalizer = build(["unfair", "unable"], wordpiece, "mean")
    assert verbalizer.token_ids.tolist() == [5, 6, 7]
    assert verbalizer.weights.tolist() == [[0.5, 0.5, 0], [0.5, 0, 0.5]]


def test_explicit_ids(wordpiece):
    verbalizer = Verbalizer.from_ids("t", [8, 3], wordpiece, ["x", "y"])
    assert verbalizer.token_ids.tolist() == [3, 8]
    assert verbalizer.label_words == ("x", "y")
    assert verbalizer.class_pieces == (("fine",), ("bad",))
    assert Verbalizer.from_ids("t", [8, 3], wordpiece).label_words == ("fine", "bad")
    for ids, message in (
        ([3, 10], "not in the vocabulary"),
        ([-1, 3], "not in the"),
        ([3, 3], "are both"),
        ([3], "two"),
    ):
        with pytest.raises(UserError, match=message):
            Verbalizer.from_ids("t", ids, wordpiece)
    with pytest.raises(UserError, match="2 token ids, but 1"):
        Verbalizer.from_ids("t", [3, 4], wordpiece, ["x"])


def test_the_ids_of_a_task_win_over_its_words(wordpiece):
    task = SimpleNamespace(
        name="t", label_words=("good", "bad"), label_words_policy="error", token_ids={"bert": (8, 3)}
    )
    assert Verbalizer.for_task(task, wordpiece, "bert").class_ids == ((8,), (3,))
    assert Verbalizer.for_task(task, wordpiece, "roberta").class_ids == ((4,), (3,))


def test_stack_gives_what_each_gives_alone(wordpiece):
    alone = [
        build(["good", "bad"], wordpiece),
        build(["bad", "fine", "unfair"], wordpiece, "mean"),
        build(["fine", "good"], wordpiece),
    ]
    together = stack(alone)
    assert together.token_ids.tolist() == [3, 4, 5, 6, 8]
    assert together.weights.shape == (3, 3, 5)
    assert together.class_mask.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    vocabulary_logits = torch.randn(6, len(wordpiece), generator=torch.Generator().manual_seed(0))
    task_ids = torch.tensor([0, 1, 2, 1, 0, 2])
    logits = together.class_logits(vocabulary_logits[:, together.token_ids], task_ids)
    for row, task in enumerate(task_ids.tolist()):
        one = alone[task]
        expected = one.class_logits(vocabulary_logits[row, one.token_ids])
        assert torch.allclose(logits[row, : one.num_classes], expected)
        assert logits[row, one.num_classes :].isinf().all()


def test_stack_has_finite_gradients(wordpiece):
    together = stack([build(["good", "bad"], wordpiece), build(["bad", "fine", "good"], wordpiece)])
    token_logits = torch.randn(4, len(together.token_ids), requires_grad=True)
    logits = together.class_logits(token_logits, torch.tensor([0, 1, 0, 1]))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1, 0])).backward()
    assert token_logits.grad.isfinite().all()


def test_logits_are_not_rounded_under_autocast(wordpiece):
    verbalizer = build(["good", "bad"], wordpiece).to("cpu")
    logits = torch.tensor([[1.0001, 2.0003]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(verbalizer.class_logits(logits), logits.flip(1))
