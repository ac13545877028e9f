"""PromptHub: the walk-through of release 2.0, state kept in files only, and error messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from prompt_transfer import PromptHub, PromptTrainingArguments, UserError
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands import training
from prompt_transfer.neurons.capture import capture_prompts
from prompt_transfer.projectors.file import ProjectorFile
from prompt_transfer.prompts.prompt import Prompt

VERBS = {
    "train_prompt": ["backbone", "task", "overwrite"],
    "eval_prompt": ["backbone", "task"],
    "cross_task_eval": ["backbone", "source_task", "target_task"],
    "cross_model_train": ["source_model", "target_model", "task", "overwrite"],
    "cross_model_eval": ["source_model", "target_model", "task", "trained_on"],
    "activated_neuron": ["backbone", "task"],
    "neuron_similarity": ["backbone", "task1", "task2"],
    "mask_activated_neuron": ["backbone", "task", "ratio", "scope"],
    "plot_neuron": ["backbone", "task"],
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def small(output: Path, dataset: str, backbone: str, **options: Any) -> PromptTrainingArguments:
    usual = {"prompt_len": 4, "max_steps": 2, "eval_steps": 1, "batch_size": 4, "max_length": 20, "limit_train": 16,
             "limit_eval": 10, "accelerator": "cpu", "progress": False}  # fmt: skip
    return PromptTrainingArguments(str(output), dataset, backbone, **{**usual, **options})


@pytest.fixture
def other_toy(toy: Path) -> Path:
    """Write a second task over the same rows."""
    path = toy.with_name("rooms.yaml")
    path.write_text(toy.read_text().replace("name: toy", "name: rooms").replace("terrible, great", "bad, good"))
    return path


@pytest.fixture
def hub(tmp_path: Path, toy: Path, tiny_roberta: Path) -> PromptHub:
    return PromptHub(args=small(tmp_path / "out", str(toy), str(tiny_roberta)))


def test_the_walk_through_of_release_2(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Names, order and return values follow the README of release 2.0, with built-in parts instead of roberta-base,
    # sst2, rotten_tomatoes and roberta-large, and a few steps instead of three epochs.
    monkeypatch.chdir(tmp_path)
    args = small(Path("outputs"), "builtin_movies", "roberta-nano", learning_rate=1e-2)
    trainer = PromptHub(args=args)
    train_results = trainer.train_prompt()
    eval_results = trainer.eval_prompt()
    trainer.train_prompt("roberta-nano", "builtin_restaurants")
    cross_task_eval_results = trainer.cross_task_eval("roberta-nano", "builtin_movies", "builtin_restaurants")
    trainer.cross_model_train(source_model="roberta-nano", target_model=str(tiny_bert), task="builtin_movies")
    cross_model_eval_results = trainer.cross_model_eval(
        source_model="roberta-nano", target_model=str(tiny_bert), task="builtin_movies"
    )
    before_relu, after_relu = trainer.activated_neuron("roberta-nano", "builtin_movies")
    cos_sim = trainer.neuron_similarity(backbone="roberta-nano", task1="builtin_movies", task2="builtin_restaurants")
    eval_metric, mask = trainer.mask_activated_neuron(args.backbone, args.dataset, ratio=0.2)
    picture = trainer.plot_neuron()

    assert vars(trainer) == {"args": args}
    run = Path("outputs/prompts/roberta-nano/builtin_movies")
    prompt = Prompt.load(run)
    assert train_results.path == run / "prompt.safetensors"
    assert prompt.embeddings.shape == (4, 256)
    assert prompt.metadata["learning_rate"] == "0.01"
    assert train_results.value == pytest.approx(float(prompt.metadata["score"]))

    assert (eval_results.task, eval_results.source, eval_results.n) == ("builtin_movies", "builtin_movies", 10)
    assert (eval_results.own, eval_results.relative) == (eval_results.value, 1.0)
    assert eval_results.split == "test (official)"
    assert eval_results.low <= float(eval_results) <= eval_results.high
    # Two kinds of random prompts, one of each, and the majority class of ten rows.
    assert list(eval_results.table["kind"]) == ["trained", "random", "random", "majority"]
    assert eval_results.random == pytest.approx(eval_results.table["value"].iloc[1:3].mean())
    assert eval_results.baseline >= 0.5

    cross = cross_task_eval_results
    assert (cross.source, cross.task) == ("builtin_movies", "builtin_restaurants")
    assert cross.own == pytest.approx(float(trainer.eval_prompt(task="builtin_restaurants")))
    assert cross.relative == pytest.approx(cross.value / cross.own)

    pair = f"roberta-nano-to-{tiny_bert.name}"
    projector = ProjectorFile.load(f"outputs/projectors/{pair}/builtin_movies")
    assert (projector.source.hidden_size, projector.target.hidden_size) == (256, 32)
    made = Prompt.load(f"outputs/projected/{pair}/builtin_movies/builtin_movies/builtin_movies-from-{pair}.safetensors")
    assert torch.equal(made.embeddings, projector.project(prompt).embeddings)
    assert cross_model_eval_results.backbone == str(tiny_bert)
    assert cross_model_eval_results.control is not None
    assert cross_model_eval_results.own is None

    # RoBERTa's activation is GELU; 0.2 of the neurons of each layer.
    torch.testing.assert_close(torch.nn.functional.gelu(before_relu), after_relu)
    other = trainer.activated_neuron("roberta-nano", "builtin_restaurants").after > 0
    mine = after_relu > 0
    both = float((mine & other).sum() / (mine.sum() * other.sum()).sqrt())
    assert float(cos_sim) == pytest.approx(both)
    assert len(cos_sim.layers) == len(after_relu)
    assert mask.sum(dim=1).tolist() == [round(0.2 * mask.shape[1])] * len(mask)
    for values, masked in zip(after_relu, mask, strict=True):
        assert values[masked].min() >= values[~masked].max()
    assert eval_metric.masked == int(mask.sum())
    assert eval_metric.unmasked == pytest.approx(eval_results.value)
    assert eval_metric.drop == pytest.approx(eval_metric.unmasked - eval_metric.value)
    assert picture.path == Path("outputs/figures/roberta-nano/neurons-builtin_movies.png")
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert "its own masked" in capsys.readouterr().out


def test_there_are_nine_verbs() -> None:
    found = {
        name: list(inspect.signature(verb).parameters)[1:]
        for name, verb in inspect.getmembers(PromptHub, inspect.isfunction)
        if not name.startswith("_")
    }
    assert found == VERBS


def test_what_is_done_is_not_done_twice(
    hub: PromptHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = hub.train_prompt()
    stored = Prompt.load(first.path).embeddings
    runs: list[list[str]] = []
    original = training.run

    def noted(command: str, arguments: list[str]) -> None:
        runs.append(arguments)
        original(command, arguments)

    monkeypatch.setattr(training, "run", noted)
    random_numbers = torch.get_rng_state()
    again = PromptHub(hub.args).train_prompt()
    assert runs == []
    assert "is reused" in capsys.readouterr().out
    assert (again.value, again.path) == (first.value, first.path)
    # `fit` can read its options file too.
    options = yaml.safe_load(first.path.parent.with_name("toy.yaml").read_text())
    assert (options["model"]["prompt_length"], options["trainer"]["max_steps"]) == (4, 2)
    hub.args.max_steps = 3
    with pytest.raises(UserError, match=r"trainer.max_steps 2, not 3: train_prompt\(.*, overwrite=True\)"):
        hub.train_prompt()
    # A stopped run has no results yet and resumes from its checkpoint.
    hub.args.max_steps = 2
    (first.path.parent / "results.csv").unlink()
    hub.train_prompt()
    assert runs[0][-1] == "--resume"
    hub.train_prompt(overwrite=True)
    assert runs[1][-1] == "--overwrite"
    assert torch.equal(Prompt.load(first.path).embeddings, stored)
    assert torch.equal(torch.get_rng_state(), random_numbers)


def test_a_refused_run_changes_nothing(hub: PromptHub, tmp_path: Path) -> None:
    first = hub.train_prompt()
    options = first.path.parent.with_name("toy.yaml")
    before = options.read_text(), first.path.read_bytes()
    hub.args.prompt_options = {"model": {"layout": "prefixed"}}
    with pytest.raises(UserError, match="prefixed"):
        hub.train_prompt(overwrite=True)
    assert (options.read_text(), first.path.read_bytes()) == before
    with pytest.raises(UserError, match=r"unknown backbone 'roberta-nanno'.*did you mean 'roberta-nano'"):
        hub.train_prompt("roberta-nanno")
    assert sorted(path.name for path in (tmp_path / "out/prompts").iterdir()) == [first.path.parent.parent.name]


def test_a_prompt_that_is_trained_anew_is_looked_at_anew(hub: PromptHub, tiny_roberta: Path) -> None:
    hub.train_prompt()
    old, score = hub.activated_neuron(), hub.eval_prompt()
    hub.args.seed, hub.args.limit_eval = 1, 8
    path = hub.train_prompt(overwrite=True).path
    new = hub.activated_neuron()
    assert not torch.equal(old.after, new.after)
    alone = capture_prompts(FrozenBackbone(str(tiny_roberta)), [Prompt.load(path).embeddings])
    torch.testing.assert_close(new.after, alone["activations"][0])
    # Scoring other rows does not fail on the study's existing outputs.
    assert (score.n, hub.eval_prompt().n) == (10, 8)
    assert hub.mask_activated_neuron(ratio=0.5)[0].n == 8
    hub.args.limit_eval = 6
    found, mask = hub.mask_activated_neuron(ratio=0.25, scope="all")
    assert (found.n, found.masked, int(mask.sum())) == (6, 32, 32)
    # A quarter of 2 x 64 neurons: the highest over all layers; the random mask has as many.
    assert new.after[mask].min() >= new.after[~mask].max()
    assert found.table.set_index("mask")["masked"].to_dict() == {"none": 0, "own": 32, "random": 32}


def test_another_backbone_and_several_tasks(
    hub: PromptHub, other_toy: Path, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    target, rooms = str(tiny("bert")), str(other_toy)
    for task in (None, rooms):
        hub.train_prompt(task=task)
    hub.args.projector, hub.args.random_prompts = "Linear", 2
    both = [hub.args.dataset, rooms]
    made = hub.cross_model_train(target_model=target, task=both)
    assert made.path.parent.name == "toy+rooms"
    assert ProjectorFile.load(made.path).kind == "Linear"
    assert list(made.table["task"]) == ["toy", "rooms"]
    assert made.value == pytest.approx(made.table["value"].mean())
    with pytest.raises(UserError, match=r"trained on toy\+rooms: give trained_on"):
        hub.cross_model_eval(target_model=target)
    hub.train_prompt(target)
    score = hub.cross_model_eval(target_model=target, trained_on=both)
    kinds = score.table.set_index("prompt")["kind"]
    assert {"constant-1", "constant-2"} <= set(kinds.index)
    controls = score.table[score.table["prompt"].str.startswith("constant-")]["value"]
    drawn = score.table[(score.table["kind"] == "random") & score.table["prompt"].str.startswith("random ")]["value"]
    assert (len(controls), len(drawn)) == (2, 4)
    assert (score.control, score.random) == (pytest.approx(controls.mean()), pytest.approx(drawn.mean()))
    assert score.own == pytest.approx(float(hub.eval_prompt(target)))
    # Retraining a source prompt makes the projector outdated.
    hub.args.learning_rate = 0.3
    hub.train_prompt(task=rooms, overwrite=True)
    hub.args.learning_rate = None
    with pytest.raises(UserError, match="other source prompts"):
        hub.cross_model_train(target_model=target, task=both)


def test_what_is_missing_is_told_with_the_call_that_makes_it(hub: PromptHub, other_toy: Path) -> None:
    backbone, toy = hub.args.backbone, hub.args.dataset
    call = f"train_prompt({backbone!r}, {toy!r}) trains it"
    for verb in (
        hub.eval_prompt,
        hub.activated_neuron,
        hub.mask_activated_neuron,
        hub.plot_neuron,
        lambda: hub.cross_task_eval(target_task="sst2"),
        lambda: hub.neuron_similarity(task2=str(other_toy)),
        lambda: hub.cross_model_train(target_model="bert-nano"),
        lambda: hub.cross_model_eval(target_model="bert-nano"),
    ):
        with pytest.raises(UserError) as caught:
            verb()
        assert call in str(caught.value), verb
        # A notebook shows one line instead of the traceback.
        assert caught.value._render_traceback_() == [f"error: {caught.value}"]
    hub.train_prompt()
    with pytest.raises(UserError, match=r"cross_model_train\(.*'bert-nano', .*\) trains it"):
        hub.cross_model_eval(target_model="bert-nano")
    with pytest.raises(UserError, match=r"there are prompts for toy"):
        hub.eval_prompt(task=str(other_toy))


def test_wrong_arguments_are_refused_at_once(hub: PromptHub, tmp_path: Path) -> None:
    for options, words in (
        ({"prompt_len": 0}, "prompt_len is 0"),
        ({"learning_rate": "high"}, "learning_rate is 'high'"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"seed": True}, "seed is True"),
        ({"data_source": "web"}, "data_source is 'web'"),
        ({"accelerator": "tpu"}, "accelerator is 'tpu'"),
        ({"random_prompts": 0}, "random_prompts is 0"),
        ({"prompt_options": {"model": {"seeds": [0, 1]}}}, "prompt_options cannot set model.seeds"),
        ({"projector_options": {"model": {"projector": Path("mlp")}}}, "projector_options cannot be written as YAML"),
    ):
        with pytest.raises(UserError, match=words):
            small(tmp_path, "builtin_movies", "roberta-nano", **options)
    with pytest.raises(UserError, match=r"unknown task 'builtin_movie' \(did you mean builtin_movies"):
        small(tmp_path, "builtin_movie", "roberta-nano")
    with pytest.raises(UserError, match="unknown task 'sst'"):
        hub.train_prompt(task="sst")
    with pytest.raises(UserError, match="PromptTrainingArguments"):
        PromptHub({"output_dir": "out"})  # type: ignore[arg-type]
    for verb, words in (
        (hub.cross_task_eval, "target_task"),
        (hub.neuron_similarity, "task2"),
        (hub.cross_model_train, "target_model"),
        (hub.cross_model_eval, "target_model"),
    ):
        with pytest.raises(UserError, match=f"give {words}"):
            verb()
    with pytest.raises(UserError, match=r"ratio is 1\.5"):
        hub.mask_activated_neuron(ratio=1.5)
    with pytest.raises(UserError, match="scope is 'model'"):
        hub.mask_activated_neuron(scope="model")


def test_where_the_rows_come_from(tmp_path: Path, toy: Path) -> None:
    from prompt_transfer.tasks.registry import get_task

    args = small(tmp_path, "sst2", "roberta-nano")
    sst2, movies, own = get_task("sst2"), get_task("builtin_movies"), get_task(toy)
    assert [args.source_of(task) for task in (sst2, movies, own)] == ["hub", "builtin", "local"]
    args.data_root = "DATA"
    assert [args.source_of(task) for task in (sst2, movies)] == ["local", "builtin"]
    args.data_source = "hub"
    assert args.source_of(sst2) == "hub"
    config = args.prompt_config("roberta-nano", "sst2")
    assert (config["data"]["source"], config["data"]["root"]) == ("hub", "DATA")


def test_a_prompt_of_the_command_line_is_used_too(hub: PromptHub, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "prompts" / Path(hub.args.backbone).name / "toy"
    options = {"--data.task": hub.args.dataset, "--data.source": "local", "--model.backbone": hub.args.backbone,
               "--model.prompt_length": "3", "--data.max_length": "20", "--trainer.max_steps": "1"}  # fmt: skip
    training.run("fit", [word for pair in options.items() for word in pair] + ["--output", str(folder)])
    assert hub.eval_prompt().n == 10
    with pytest.raises(UserError, match="unknown options"):
        hub.train_prompt()


def test_results_are_tables_and_numbers(hub: PromptHub) -> None:
    trained = hub.train_prompt()
    assert isinstance(trained.table, pd.DataFrame)
    assert float(trained) == trained.value
    assert "table=" not in repr(trained)
    assert trained.majority == 0.5
