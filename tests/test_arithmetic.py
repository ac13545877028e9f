"""Prompt arithmetic: exact identities, metadata and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prompt_transfer.cli import main
from prompt_transfer.prompts.arithmetic import add, average, mean, scale, task_vector, transplant
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError

SHAPE = (5, 16)
FACTS = {
    "backbone": "nano", "fingerprint": "f" * 64, "family": "roberta", "layout": "prefix", "attention": "full",
    "seed": "0", "score": "0.9", "metric": "accuracy", "steps": "600",
}  # fmt: skip


def rows(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * scale


START = rows(0, 0.1)


def prompt(task: str, number: int, start: Tensor | None = START, **facts: str) -> Prompt:
    # The numbers differ widely in size, to reveal rounding.
    return Prompt(rows(number) * torch.logspace(-6, 3, SHAPE[1]), {**FACTS, "task": task} | facts, start)


A, B, C = prompt("sst2", 1), prompt("mnli", 2), prompt("qqp", 3)


def test_start_and_vector_give_the_prompt_bit_for_bit() -> None:
    assert torch.equal(add([A]).embeddings, A.embeddings)
    assert torch.equal(scale(A, 1).embeddings, A.embeddings)
    assert torch.equal(scale(A, 0).embeddings, START)
    assert torch.equal(transplant(A, B).embeddings, A.embeddings)
    assert torch.equal(mean([A, A]).embeddings, A.embeddings)
    assert torch.equal((START.double() + task_vector(A)).float(), A.embeddings)


def test_order_does_not_matter() -> None:
    assert torch.equal(add([A, B, C]).embeddings, add([C, A, B]).embeddings)
    assert torch.equal(mean([A, B, C]).embeddings, mean([B, C, A]).embeddings)
    assert torch.equal(add([A, B], [2, -1]).embeddings, add([B, A], [-1, 2]).embeddings)


def test_by_hand() -> None:
    total = add([A, B]).embeddings
    torch.testing.assert_close(total, A.embeddings + B.embeddings - START)
    torch.testing.assert_close(scale(A, -1).embeddings, 2 * START - A.embeddings)
    torch.testing.assert_close(mean([A, B]).embeddings, (A.embeddings + B.embeddings) / 2)
    other = Prompt(rows(9), {**FACTS}, rows(8))
    torch.testing.assert_close(transplant(A, other).embeddings, rows(8) + A.embeddings - START)
    assert torch.equal(transplant(A, other).initial, rows(8))
    # A prompt without an initial prompt is itself the start.
    torch.testing.assert_close(transplant(A, Prompt(rows(9), {**FACTS})).embeddings, rows(9) + A.embeddings - START)
    # Moving a task vector to another start does not change it.
    torch.testing.assert_close(task_vector(transplant(A, other)), task_vector(A), atol=1e-4, rtol=1e-4)


def test_a_sum_with_its_negation_is_the_start() -> None:
    small = [prompt("sst2", 1), prompt("mnli", 2)]
    nothing = add([small[0], scale(small[0], -1)])
    torch.testing.assert_close(nothing.embeddings, START, atol=1e-3, rtol=1e-6)
    assert torch.equal(nothing.initial, START)


def test_metadata_tell_what_was_done() -> None:
    facts = add([A, B], [1, -0.5]).metadata
    assert facts["task"] == "sst2,mnli"
    assert facts["arithmetic"] == "add(1 * the prompt for sst2, -0.5 * the prompt for mnli)"
    assert facts["init"] == facts["arithmetic"]
    assert {key: facts[key] for key in ("backbone", "layout", "attention", "seed")} == {
        "backbone": "nano", "layout": "prefix", "attention": "full", "seed": "0",
    }  # fmt: skip
    # The score, steps or metric of a part do not apply to the result.
    assert not {"score", "metric", "steps"} & set(facts)
    assert "seed" not in mean([A, prompt("sst2", 5, seed="1")]).metadata
    assert add([A, prompt("sst2", 5, projected="true")]).metadata["projected"] == "true"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (prompt("b", 2, fingerprint="e" * 64, backbone="micro"), r"different backbones \(nano, micro\)"),
        (
            Prompt(torch.ones(4, 16), FACTS, torch.ones(4, 16)),
            "one is 5 prompt tokens of width 16, the other 4 prompt tokens of width 16",
        ),
        (prompt("b", 2, layout="mask_first"), "layout prefix, the other with mask_first"),
        (prompt("b", 2, attention="shared"), "attention full, the other with shared"),
        (prompt("b", 2, start=None), "holds no initial prompt"),
        (prompt("b", 2, start=START + 1), "different initial prompts"),
    ],
)
def test_what_does_not_belong_together_is_refused(other: Prompt, message: str) -> None:
    for combine in (add, mean):
        with pytest.raises(UserError, match=message):
            combine([A, other])


def test_other_refusals() -> None:
    for call, message in (
        (lambda: scale(prompt("b", 2, start=None), -1), "no initial prompt"),
        (lambda: transplant(prompt("b", 2, start=None), A), "no initial prompt"),
        (lambda: transplant(A, prompt("b", 2, layout="mask_first")), "layout"),
        (lambda: add([A, B], [1]), "2 prompts and 1 factors"),
        (lambda: mean([]), "no prompt was given"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_full_and_shared_are_one_for_causal_models() -> None:
    causal = {"layout": "answer_last"}
    add([prompt("a", 1, **causal), prompt("b", 2, **causal, attention="shared")])


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], str]:
    for name, one in (("a", A), ("b", B), ("moved", prompt("qqp", 3, start=START + 1))):
        Prompt(one.embeddings, one.metadata, one.initial).save(tmp_path / f"{name}.safetensors")
    return lambda name: str(tmp_path / f"{name}.safetensors")


def test_commands(
    files: Callable[[str], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    out = ["--output", files("out"), "--overwrite"]
    for command, expected in (
        (["add", files("a"), files("b"), *out], add([A, B])),
        (["add", files("a"), files("b"), "--factors", "[1,-1]", *out], add([A, B], [1, -1])),
        (["scale", files("a"), "--by", "-1", *out], scale(A, -1)),
        (["mean", files("a"), files("b"), *out], mean([A, B])),
        (["transplant", files("a"), "--onto", files("moved"), *out], transplant(A, Prompt.load(files("moved")))),
    ):
        assert main(["prompts", *command]) == 0
        made = Prompt.load(files("out"))
        assert torch.equal(made.embeddings, expected.embeddings)
        assert files("a") in made.metadata["source_prompt"]
        assert command[0] in capsys.readouterr().out
    assert main(["prompts", "list", str(Path(files("out")).parent)]) == 0
    assert "transplant" in capsys.readouterr().out


def test_commands_refuse_in_one_line(files: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    for command, message in (
        (["add", files("a"), files("moved"), "--output", files("out")], "different initial prompts"),
        (["add", files("a"), "--output", files("b")], "already exists"),
        (["scale", files("a"), files("b"), "--by", "2", "--output", files("out")], "give one"),
        (["mean", files("a"), "--output", "out"], "give a name that ends in .safetensors"),
    ):
        assert main(["prompts", *command]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not Path(files("out")).exists()


def test_an_average_needs_no_common_start() -> None:
    other = prompt("qqp", 3, rows(9))
    made = average([A, other], [1, 3])
    torch.testing.assert_close(made.embeddings, (A.embeddings + 3 * other.embeddings) / 4)
    assert made.initial is None
    assert made.metadata["task"] == "sst2,qqp"
    assert made.metadata["arithmetic"] == "average(0.25 * the prompt for sst2, 0.75 * the prompt for qqp)"
    assert torch.equal(average([A], [0.3]).embeddings, A.embeddings)
    assert torch.equal(average([A, B, C], [1, 2, 3]).embeddings, average([C, A, B], [3, 1, 2]).embeddings)
    with pytest.raises(UserError, match="different backbones"):
        average([A, prompt("qqp", 3, fingerprint="g" * 64)], [1, 1])
    with pytest.raises(UserError, match="one was trained with layout prefix, the other with mask_first"):
        average([A, prompt("qqp", 3, layout="mask_first")], [1, 1])
    with pytest.raises(UserError, match="2 prompts and 1 weights"):
        average([A, B], [1])
