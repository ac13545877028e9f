"""Projectors: sizes and maps by hand, closed forms against direct solutions, and files complete or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.cli import main
from prompt_transfer.projectors.closed_form import LeastSquares, LinearCombination, Relative
from prompt_transfer.projectors.file import ProjectorFile, Side, fit_closed_form
from prompt_transfer.projectors.pairs import load_by_task
from prompt_transfer.projectors.projector import MLP, AffineMap, Linear, Projector, Space, TokenMLP, TrainedProjector
from prompt_transfer.projectors.task_vector import TaskVector
from prompt_transfer.projectors.vocabulary import fit_ridge, shared_tokens
from prompt_transfer.prompts import tensor_file
from prompt_transfer.prompts.listing import list_prompts
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError

Tiny = Callable[[str], Path]
SOURCE, TARGET = Space(4, 3), Space(5, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=generator(seed))


def count(projector: Projector) -> int:
    return sum(p.numel() for p in projector.parameters())


@pytest.mark.parametrize(
    ("projector", "expected"),
    [
        # down 4 * 3 * 6 + 6, up 6 * 5 * 2 + 10, norm 2 * 2
        (MLP(bottleneck=6), 78 + 70 + 4),
        (MLP(bottleneck=6, layer_norm=False), 78 + 70),
        # down 3 * 5 + 5, up 5 * 2 + 2, skip 3 * 2
        (TokenMLP(bottleneck=5), 20 + 12 + 6),
        (TokenMLP(bottleneck=5, skip=False), 20 + 12),
        (Linear(), 3 * 2 + 2),
    ],
)
def test_sizes_and_numbers_of_parameters(projector: TrainedProjector, expected: int) -> None:
    projector.build(SOURCE, TARGET, generator())
    assert count(projector) == expected
    found = projector(draw(7, 4, 3))
    assert found.shape == (7, 5 if projector.whole else 4, 2)
    again = type(projector)(**projector.options()).build(SOURCE, TARGET, generator())
    assert torch.equal(again(draw(7, 4, 3)), found)


def test_the_papers_projector_trains_within_four_gigabytes() -> None:
    space = Space(100, 768)
    with torch.device("meta"):
        projector = MLP(768)
        projector.allocate(space, space)
    # 2 * 76,800 * 768 weights, 768 + 76,800 biases, 2 * 768 of the norm
    assert count(projector) == 118_043_904
    # Weights, gradients and two moments of Adam, 4 bytes each.
    assert 16 * count(projector) == 1_888_702_464 < 4e9


def test_an_mlp_by_hand() -> None:
    projector = MLP(bottleneck=1, activation="relu").build(Space(1, 2), Space(1, 2), generator())
    state = {"down": [[1.0, 2.0]], "down_bias": [-1.0], "up": [[1.0], [3.0]], "up_bias": [0.0, 0.0]}
    state |= {"norm": [2.0, 2.0], "norm_bias": [0.5, 0.5]}
    projector.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    # relu(3 + 8 - 1) = 10 -> [10, 30] -> normalised [-1, 1] -> [-1.5, 2.5]
    torch.testing.assert_close(projector(torch.tensor([[[3.0, 4.0]]])), torch.tensor([[[-1.5, 2.5]]]))


def test_standardized_prompts_have_no_common_part_and_the_start_is_the_map() -> None:
    prompts = draw(6, 4, 3) * 0.1 + draw(1, 4, 3, seed=1)
    start = AffineMap(draw(3, 2, seed=2), draw(2, seed=3))
    expected = prompts @ start.weight + start.bias
    for standardize in (False, True):
        linear = Linear("least_squares", standardize).build(SOURCE, TARGET, generator(), prompts, start)
        torch.testing.assert_close(linear(prompts), expected)
        token = TokenMLP(5, start="least_squares", standardize=standardize)
        token.build(SOURCE, TARGET, generator(), prompts, start)
        added = (token(prompts) - expected).square().mean() / expected.square().mean()
        assert 0 < added < 0.01
    whole = MLP(6, standardize=True).build(SOURCE, TARGET, generator(), prompts)
    inputs = (prompts - whole.shift) / whole.scale
    torch.testing.assert_close(inputs.mean(dim=0), torch.zeros(4, 3), atol=1e-5, rtol=0)
    assert float(inputs.square().mean()) == pytest.approx(1.0, abs=1e-4)
    # A single prompt has zero deviation, which must not cause a division by zero.
    alone = MLP(6, standardize=True).build(SOURCE, TARGET, generator(), prompts[:1])
    assert torch.isfinite(alone(prompts)).all()


def test_task_vectors_are_mapped_linearly_from_start_to_start() -> None:
    source, target = Space(4, 3), Space(4, 2)
    initial, learned, map_ = draw(4, 3), draw(2, 4, 3, seed=1), AffineMap(draw(3, 2, seed=2), draw(2, seed=3))
    projector = TaskVector(directions=50).build(source, target, generator(), initial + learned, map_, initial)
    base = initial @ map_.weight + map_.bias
    # Before training every prompt maps to the target's start.
    torch.testing.assert_close(projector(initial + learned), base.expand(2, 4, 2))
    with torch.no_grad():
        projector.up.copy_(draw(8, 50, seed=4))
    torch.testing.assert_close(projector(initial[None])[0], base)
    one, other = projector(initial + learned) - base
    both = projector((initial + learned[0] - 2 * learned[1])[None])[0] - base
    torch.testing.assert_close(both, one - 2 * other, atol=1e-5, rtol=1e-5)
    assert count(projector) == 50 * 4 * 2
    with pytest.raises(UserError, match="4 prompt tokens and their projections 5"):
        TaskVector().build(source, TARGET, generator(), initial + learned, map_, initial)


def test_wrong_options_are_told() -> None:
    for make, message in (
        (lambda: MLP(0), "MLP: bottleneck is 0"),
        (lambda: MLP(activation="elu"), "unknown activation 'elu': choose one of leaky_relu"),
        (lambda: Linear("zero"), "unknown start 'zero'"),
        (lambda: TokenMLP(skip=False, start="least_squares"), "set skip to true"),
        (lambda: LeastSquares(ridge=-1.0), "must be 0 or more"),
        (lambda: Relative(max_steps=0), "all other options above 0"),
    ):
        with pytest.raises(UserError, match=message):
            make()


# Closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [6, 40])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_least_squares_and_linear_combination_are_one_map(tokens: int, ridge: float) -> None:
    source, target, prompt = draw(tokens, 10), draw(tokens, 7, seed=1), draw(5, 10, seed=2)
    found = fit_ridge(source, target, ridge).affine
    table = source.double()
    penalty = ridge * float((table.T @ table).diagonal().mean())
    # The combination itself: the weights X that minimise |X S - P|^2 + penalty |X|^2.
    if ridge:
        weights = prompt.double() @ table.T @ torch.linalg.inv(table @ table.T + penalty * torch.eye(tokens).double())
    else:
        weights = torch.linalg.lstsq(table.T, prompt.double().T, driver="gelsd").solution.T
    torch.testing.assert_close(prompt @ found.weight, (weights @ target.double()).float(), atol=1e-4, rtol=1e-4)


def test_the_penalty_is_chosen_on_tokens_that_it_was_not_fitted_on() -> None:
    source = draw(400, 10)
    exact = fit_ridge(source, source @ draw(10, 7, seed=1) + 3.0, center=True)
    assert exact.ridge == 1e-6
    assert exact.error < 1e-6
    torch.testing.assert_close(exact.affine.bias, torch.full((7,), 3.0), atol=1e-3, rtol=0)
    noise = fit_ridge(source, draw(400, 7, seed=2))
    assert noise.ridge == 1.0
    assert noise.error > 0.9


def test_shared_tokens_stand_for_the_same_text(tiny: Tiny) -> None:
    roberta, bert, t5 = (FrozenBackbone(str(tiny(name))) for name in ("roberta", "bert", "t5"))
    for source, target, piece in ((roberta, bert, "great"), (bert, t5, "▁great"), (t5, roberta, "Ġgreat")):
        found = shared_tokens(source, target)
        assert len(found) >= 100
        place = found.texts.index(" great")
        index = target.tokenizer.convert_tokens_to_ids(piece)
        assert torch.equal(found.target[place], target.embedding_weight[index])
    message = r"share \d+ tokens, of which skip 0 and top_k 10 leave 10; a map from .* needs 32"
    with pytest.raises(UserError, match=message):
        shared_tokens(roberta, bert, top_k=10)


def test_a_backbone_is_mapped_to_itself_as_it_is(tiny_roberta: Path) -> None:
    backbone = FrozenBackbone(str(tiny_roberta))
    prompts = draw(2, 4, 32)
    for projector in (LeastSquares(), LinearCombination()):
        torch.testing.assert_close(projector.fit(backbone, backbone)(prompts), prompts, atol=1e-3, rtol=0)
    relative = Relative().fit(backbone, backbone)
    found = relative(prompts)
    assert torch.nn.functional.cosine_similarity(found, prompts, dim=2).min() > 0.9
    # All have the scale of embeddings, and early stopping used no labels.
    std = backbone.embedding_weight.std()
    torch.testing.assert_close(found.std(dim=2), std.expand(2, 4), atol=1e-4, rtol=0)
    assert relative.steps < relative.max_steps


def test_the_search_finds_what_lies_alike(tiny: Tiny) -> None:
    roberta, bert = FrozenBackbone(str(tiny("roberta"))), FrozenBackbone(str(tiny("bert")))
    prompts = draw(1, 4, 32)
    losses = []
    for steps in (1, 60):
        relative = Relative(max_steps=steps, learning_rate=0.05).fit(roberta, bert)
        with torch.inference_mode():
            rows = torch.nn.functional.normalize(relative(prompts)[0], dim=1)
        given = torch.nn.functional.normalize(prompts[0], dim=1) @ relative.source_anchors.T
        losses.append(float(1 - torch.cosine_similarity(rows @ relative.target_anchors.T, given, dim=1).mean()))
    # Two random tables share little structure.
    assert losses[1] < 0.98 * losses[0]


# Files -------------------------------------------------------------------------------------------------------------


def sides(length: int | None = None) -> tuple[Side, Side]:
    modes = {"layout": "prefix", "attention": "full", "dtype": "float32", "head": "lm"}
    return (
        Side("big-bert", "a" * 16, "bert", 3, length and 4, **modes),
        Side("small-roberta", "b" * 16, "roberta", 2, length and 5, **modes),
    )


def made(projector: TrainedProjector) -> ProjectorFile:
    projector.build(SOURCE, TARGET, generator(), draw(3, 4, 3))
    return ProjectorFile(projector, *sides(4 if projector.whole else None), {"tasks": "imdb,laptop"})


def source_prompt(length: int = 4, width: int = 3, **facts: str) -> Prompt:
    metadata = {"backbone": "big-bert", "fingerprint": "a" * 16, "family": "bert", "task": "sst2", "seed": "3",
                "score": "0.9", "layout": "mask_first"}  # fmt: skip
    return Prompt(draw(length, width), metadata | facts)


@pytest.mark.parametrize(
    "projector",
    [MLP(6, "tanh", standardize=True), TokenMLP(5), TokenMLP(5, skip=False, standardize=True), Linear()],
)
def test_a_file_gives_the_same_projector(projector: TrainedProjector, tmp_path: Path) -> None:
    file = made(projector)
    path = file.save(tmp_path / "projector.safetensors")
    # Loads like a run's folder, and saves byte-identical again.
    loaded = ProjectorFile.load(tmp_path)
    assert torch.equal(loaded.projector(draw(2, 4, 3)), projector(draw(2, 4, 3)))
    assert (loaded.source, loaded.target) == (file.source, file.target)
    assert loaded.projector.describe() == projector.describe()
    assert loaded.metadata["tasks"] == "imdb,laptop"
    assert loaded.digest() == file.digest()
    assert loaded.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert list_prompts(tmp_path) == []


@pytest.mark.parametrize("kind", [LeastSquares, LinearCombination, Relative])
def test_closed_forms_have_files_too(kind: type, tiny: Tiny, tmp_path: Path) -> None:
    roberta, bert = FrozenBackbone(str(tiny("roberta"))), FrozenBackbone(str(tiny("bert")))
    file = fit_closed_form(kind(), roberta, bert)
    loaded = ProjectorFile.load(file.save(tmp_path / "p.safetensors"))
    assert torch.equal(loaded.rows(draw(1, 2, 32)), file.rows(draw(1, 2, 32)))
    assert int(loaded.metadata["shared_tokens"]) >= 100


def test_a_projected_prompt_is_one_of_the_target(tmp_path: Path) -> None:
    file = made(MLP(6))
    file.save(tmp_path / "p.safetensors")
    prompt = source_prompt(label_words='{"sst2": ["bad", "good"]}')
    before = prompt.embeddings.clone()
    found = file.project(prompt)
    assert torch.equal(found.embeddings, file.projector(before[None])[0])
    assert torch.equal(prompt.embeddings, before)
    expected = {"backbone": "small-roberta", "fingerprint": "b" * 16, "family": "roberta", "layout": "prefix",
                "attention": "full", "projected": "true", "task": "sst2", "seed": "3", "source_backbone": "big-bert",
                "prompt_length": "5", "hidden_size": "2"}  # fmt: skip
    assert {key: found.metadata.get(key) for key in expected} == expected
    assert json.loads(found.metadata["label_words"]) == {"sst2": ["bad", "good"]}
    assert "score" not in found.metadata
    assert file.digest() in found.metadata["projector"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            source_prompt(length=9),
            r"\(9 x 3, for big-bert\) does not fit .* big-bert \(4 x 3\) to small-roberta \(5 x 2\)",
        ),
        (source_prompt(width=8), r"\(4 x 8, for big-bert\)"),
        (source_prompt(backbone="other", fingerprint="c" * 16), r"\(4 x 3, for other\) .* maps prompts of big-bert"),
        (source_prompt(fingerprint="c" * 16), r"fingerprints cccccccccccc and aaaaaaaaaaaa"),
    ],
)
def test_a_prompt_that_does_not_fit_is_told_with_both_sides(prompt: Prompt, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(MLP(6)).project(prompt)


def test_row_by_row_any_length_fits() -> None:
    assert made(Linear()).project(source_prompt(length=9)).embeddings.shape == (9, 2)


def rewritten(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Write the file with another header and the remaining tensors."""
    file = ProjectorFile.load(path)
    tensors = dict(file.tensors())
    with path.open("rb") as opened:
        metadata = dict(tensor_file.read_header(opened, path).metadata)
    change(tensors, metadata)
    tensor_file.write(path, tensors, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, _: tensors.pop("up"), "its tensor `up` is missing, that of a MLP of these sizes is 10 x 6"),
        (lambda tensors, _: tensors.update(more=torch.zeros(1)), "its tensor `more` is 1, .* is missing"),
        (lambda tensors, _: tensors.update(down=torch.zeros(6, 11)), "`down` is 6 x 11, .* is 6 x 12"),
        (lambda tensors, _: tensors["up"].fill_(math.nan), r"non-finite values \(up\)"),
        (lambda _, facts: facts.update(projector="GPT"), "has the unknown projector 'GPT'; known are MLP, TokenMLP"),
        (lambda _, facts: facts.update(format_version="9"), "has format_version '9'"),
        (lambda _, facts: facts.update(options='{"bottleneck": 6, "evil": 1}'), "is damaged: its metadata do not"),
        (lambda _, facts: facts.update(source="[1]"), "is damaged: its metadata do not"),
        (
            lambda _, facts: facts.update(source=facts["source"].replace('"hidden_size": 3', '"hidden_size": 1e9')),
            "damaged",
        ),
        (lambda _, facts: facts.pop("target"), "is not a projector file"),
    ],
)
def test_damaged_files_are_refused(change: Callable[[dict, dict], None], message: str, tmp_path: Path) -> None:
    path = made(MLP(6)).save(tmp_path / "p.safetensors")
    rewritten(path, change)
    with pytest.raises(UserError, match=message):
        ProjectorFile.load(path)


def test_what_is_no_projector_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such projector file"):
        ProjectorFile.load(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is not a projector file"):
        ProjectorFile.load(source_prompt().save(tmp_path / "prompt.safetensors"))
    path = made(MLP(6)).save(tmp_path / "p.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="truncated"):
        ProjectorFile.load(path)


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(Linear()).save(tmp_path / "p.safetensors")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="nothing was changed there"):
            made(MLP(6)).save(path)
    broken = made(Linear())
    broken.projector.weight.data.fill_(math.inf)
    with pytest.raises(UserError, match=r"non-finite values \(weight\); lower the learning rate"):
        broken.save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["p.safetensors"]


# Pairs -------------------------------------------------------------------------------------------------------------


def test_prompts_are_found_by_task_and_paired_by_seed(tmp_path: Path) -> None:
    for task in ("imdb", "mnli"):
        for seed in "01":
            rows = draw(4, 3, seed=len(task) + int(seed) + ord(task[0]))
            Prompt(rows, {"task": task, "seed": seed, "backbone": "b"}).save(
                tmp_path / "s" / f"{task}-{seed}.safetensors"
            )
    for seed in "01":
        Prompt(draw(5, 2, seed=int(seed)), {"task": "imdb", "seed": seed}).save(tmp_path / "t" / f"x{seed}.safetensors")
    for mark in ("projected", "random", "arithmetic"):
        facts = {"task": "imdb", mark: "true", "backbone": "b"}
        Prompt(draw(9, 9), facts).save(tmp_path / "s" / f"{mark}.safetensors")
    sources, targets = load_by_task([str(tmp_path / "s")], "--s"), load_by_task([str(tmp_path / "t")], "--t")
    assert sources.numbers == {"imdb": [0, 1], "mnli": [2, 3]}
    assert sources.partners(targets, [0, 1]) == [0, 1]
    with pytest.raises(UserError, match="no target prompt was trained on mnli: there are prompts for imdb"):
        targets.need(["imdb", "mnli"], "target")
    Prompt(draw(5, 3), {"task": "imdb", "backbone": "b"}).save(tmp_path / "s" / "long.safetensors")
    with pytest.raises(UserError, match="give prompts of one shape"):
        load_by_task([str(tmp_path / "s")], "--s")
    with pytest.raises(UserError, match="found no prompt trained on a single task"):
        load_by_task([str(tmp_path / "s" / "random.safetensors")], "--s")


# The commands ------------------------------------------------------------------------------------------------------


def test_from_the_command_line(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roberta, bert = str(tiny("roberta")), str(tiny("bert"))
    projector = str(tmp_path / "p.safetensors")
    assert main(["prompts", "fit-projector", "--source", roberta, "--target", bert, "--output", projector]) == 0
    backbone = FrozenBackbone(roberta)
    facts = {"backbone": roberta, "fingerprint": backbone.fingerprint, "family": "roberta", "task": "sst2"}
    for name in ("a", "b"):
        Prompt(draw(4, 32, seed=ord(name)), facts).save(tmp_path / "in" / f"{name}.safetensors")
    command = ["prompts", "project", str(tmp_path / "in" / "a.safetensors"), "--projector", projector, "--output"]
    assert main([*command, str(tmp_path / "one.safetensors")]) == 0
    one = Prompt.load(tmp_path / "one.safetensors")
    one.check(FrozenBackbone(bert), "prefix", "full")
    assert main([*command, str(tmp_path / "one.safetensors")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "one.safetensors"), "--overwrite"]) == 0
    assert (
        main(["prompts", "project", str(tmp_path / "in"), "--projector", projector, "--output", str(tmp_path / "out")])
        == 0
    )
    assert torch.equal(Prompt.load(tmp_path / "out" / "a.safetensors").embeddings, one.embeddings)
    assert [row["projected"] for row in list_prompts(tmp_path / "out")] == ["true", "true"]
    # If one prompt does not fit, no file is written.
    Prompt(draw(4, 8), facts).save(tmp_path / "in" / "c.safetensors")
    assert (
        main(["prompts", "project", str(tmp_path / "in"), "--projector", projector, "--output", str(tmp_path / "new")])
        == 2
    )
    assert not (tmp_path / "new").exists()
