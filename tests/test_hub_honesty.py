"""PromptHub shows no result that is another one's: changed settings, several seeds, wrong names, reused folders."""

from __future__ import annotations

import copy
import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from prompt_transfer import Prompt, PromptHub, PromptTrainingArguments, UserError
from prompt_transfer.api.returns import Score, Similarity
from prompt_transfer.commands import training


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path: Path, toy: Path, tiny_roberta: Path) -> PromptHub:
    args = PromptTrainingArguments(
        tmp_path / "out", toy, tiny_roberta, prompt_len=4, max_steps=2, eval_steps=1, batch_size=4, max_length=20,
        limit_train=16, limit_eval=10, accelerator="cpu", progress=False,
    )  # fmt: skip
    return PromptHub(args)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the runs of `fit`."""
    found: list[list[str]] = []
    original = training.run

    def noted(command: str, arguments: list[str]) -> None:
        found.append(arguments)
        original(command, arguments)

    monkeypatch.setattr(training, "run", noted)
    return found


def test_a_result_of_other_settings_is_announced(hub: PromptHub, capsys: pytest.CaptureFixture[str]) -> None:
    toy = hub.args.dataset
    hub.train_prompt()
    verbs: list[Callable[[], Any]] = [
        hub.eval_prompt,
        lambda: hub.cross_task_eval(target_task=toy),
        hub.activated_neuron,
        lambda: hub.neuron_similarity(task2=toy),
        lambda: hub.mask_activated_neuron(ratio=0.5),
        hub.plot_neuron,
    ]
    # Settings of the evaluation, and cosmetic ones, are no other settings.
    hub.args.limit_eval, hub.args.random_prompts, hub.args.progress = 8, 2, True
    capsys.readouterr()
    assert hub.eval_prompt().n == 8
    assert "was trained with" not in capsys.readouterr().err
    hub.args.prompt_len, hub.args.max_steps, hub.args.eval_steps = 6, 3, 2
    hub.args.prompt_options = {"model": {"attention": "shared"}}
    for verb in verbs:
        capsys.readouterr()
        verb()
        message = capsys.readouterr().err
        assert (
            "was trained with model.prompt_length 4, not 6, trainer.max_steps 2, not 3, trainer.val_check_interval 1, "
            "not 2, model.attention None, not shared; train_prompt("
        ) in message
        # One line for each prompt that is read.
        assert message.count("was trained with") == 1 + ("task2" in str(verb.__code__.co_consts))


def test_a_prompt_of_the_command_line_is_compared_too(hub: PromptHub, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hub.store.prompt_run(hub.args.backbone, hub.args.dataset)
    options = {"--data.task": hub.args.dataset, "--data.source": "local", "--model.backbone": hub.args.backbone,
               "--model.prompt_length": "3", "--data.batch_size": "4", "--data.limit_train": "16",
               "--trainer.max_steps": "2"}  # fmt: skip
    training.run("fit", [word for pair in options.items() for word in pair] + ["--output", str(folder)])
    hub.eval_prompt()
    assert "was trained with model.prompt_length 3, not 4; train_prompt(" in capsys.readouterr().err
    hub.args.prompt_len = 3
    hub.eval_prompt()
    assert "was trained with" not in capsys.readouterr().err


def test_an_unfinished_run_is_announced(hub: PromptHub, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hub.train_prompt().path.parent
    # A killed run has its best prompt so far, and no results.
    (folder / "results.csv").unlink()
    capsys.readouterr()
    hub.eval_prompt()
    assert f"in {folder} has not finished; train_prompt(" in capsys.readouterr().err


def test_several_seeds_in_one_folder(hub: PromptHub, tmp_path: Path, runs: list[list[str]]) -> None:
    prompts, scores, overlaps = {}, {}, {}
    for seed in (0, 1):
        hub.args.seed = seed
        prompts[seed] = hub.train_prompt().path
        scores[seed] = hub.eval_prompt()
        overlaps[seed] = hub.activated_neuron().after
        hub.mask_activated_neuron(ratio=0.5)
        hub.plot_neuron()
    for hub.args.seed in (0, 1):
        assert hub.train_prompt().path == prompts[hub.args.seed]
    assert len(runs) == 2
    assert [path.parent.name for path in prompts.values()] == ["toy", "toy-seed1"]
    assert [Prompt.load(path).metadata["seed"] for path in prompts.values()] == ["0", "1"]
    assert [score.table["prompt"].iloc[0] for score in scores.values()] == ["toy", "toy-seed1"]
    assert not torch.equal(overlaps[0], overlaps[1])
    out, model = tmp_path / "out", Path(hub.args.backbone).name
    assert sorted(path.name for path in (out / "masks" / model).iterdir()) == ["toy", "toy-seed1"]
    assert sorted(path.name for path in (out / "figures" / model).iterdir()) == [
        "neurons-toy-seed1.png", "neurons-toy.png",
    ]  # fmt: skip
    hub.args.seed = 2
    with pytest.raises(UserError, match=r"no prompt of .* with seed 2 in .*there are prompts for toy, toy-seed1"):
        hub.eval_prompt()


def test_a_folder_of_an_earlier_version_keeps_its_seed(hub: PromptHub, runs: list[list[str]]) -> None:
    hub.args.seed = 1
    folder = hub.train_prompt().path.parent
    # Earlier versions used the folder without a suffix for any seed.
    folder.rename(folder.with_name("toy"))
    folder.with_name("toy-seed1.yaml").rename(folder.with_name("toy.yaml"))
    assert hub.train_prompt().path.parent.name == "toy"
    assert hub.eval_prompt().n == 10
    hub.args.seed = 0
    for verb in (hub.eval_prompt, hub.activated_neuron):
        with pytest.raises(UserError, match=r"has seed 1, not 0: set args.seed to 1"):
            verb()
    with pytest.raises(UserError, match="seed_everything 1, not 0"):
        hub.train_prompt()
    assert not hub.store.has_prompt(hub.args.backbone, hub.args.dataset)
    assert len(runs) == 1


def test_cosmetic_options_are_no_other_run(
    hub: PromptHub, toy: Path, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.train_prompt()
    monkeypatch.chdir(toy.parent)
    hub.args.progress, hub.args.accelerator, hub.args.dataset = True, "auto", "toy.yaml"
    hub.args.prompt_options = {"trainer": {"log_every_n_steps": 1}, "data": {"num_workers": 0, "eval_batch_size": 3}}
    hub.train_prompt()
    assert len(runs) == 1
    hub.args.prompt_options = {"trainer": {"gradient_clip_val": 1.0}}
    with pytest.raises(UserError, match=r"trainer.gradient_clip_val None, not 1.0"):
        hub.train_prompt()


def test_other_label_words_are_another_run(hub: PromptHub, toy: Path) -> None:
    hub.train_prompt()
    toy.write_text(toy.read_text().replace("terrible, great", "bad, good"))
    with pytest.raises(UserError, match="the label words terrible, great, not bad, good"):
        hub.train_prompt()


def test_an_outdated_projector_is_announced(
    hub: PromptHub, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.args.projector = "Linear"
    hub.train_prompt()
    hub.cross_model_train(target_model=str(tiny_bert))
    hub.cross_model_eval(target_model=str(tiny_bert))
    assert "was trained with" not in capsys.readouterr().err
    hub.args.projector = "MLP"
    hub.cross_model_eval(target_model=str(tiny_bert))
    assert "the projector was trained with model.projector.class_path Linear, not MLP" in capsys.readouterr().err
    hub.args.projector, hub.args.learning_rate = "Linear", 0.3
    hub.train_prompt(overwrite=True)
    capsys.readouterr()
    hub.cross_model_eval(target_model=str(tiny_bert))
    assert "the projector was trained with other source prompts" in capsys.readouterr().err


def test_two_models_with_one_folder_name_are_not_confused(
    hub: PromptHub, tmp_path: Path, tiny_roberta: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.train_prompt()
    moved = tmp_path / "moved" / tiny_roberta.name
    shutil.copytree(tiny_roberta, moved)
    hub.args.backbone = str(moved)
    hub.eval_prompt()
    assert "was trained with" not in capsys.readouterr().err
    other = tmp_path / "other" / tiny_roberta.name
    shutil.copytree(tiny_bert, other)
    hub.args.backbone = str(other)
    with pytest.raises(UserError, match="it is for the family roberta, the backbone is bert"):
        hub.eval_prompt()
    with pytest.raises(UserError, match=r"holds a run with model.backbone"):
        hub.train_prompt()


def test_names_in_the_wrong_order(hub: PromptHub) -> None:
    for verb in (hub.train_prompt, hub.eval_prompt, hub.activated_neuron, hub.cross_task_eval, hub.neuron_similarity):
        with pytest.raises(UserError, match=r"'builtin_movies' is a task, not a backbone.*give task='builtin_movies'"):
            verb("builtin_movies", "roberta-nano")
    with pytest.raises(UserError, match="'bert-nano' is a backbone, not a task"):
        hub.eval_prompt(task="bert-nano")
    with pytest.raises(UserError, match="'builtin_movies' is a task, not a backbone"):
        hub.cross_model_train("roberta-nano", "builtin_movies")
    with pytest.raises(UserError, match="PromptTrainingArguments"):
        PromptHub()


def test_settings_are_checked_when_they_are_set(hub: PromptHub) -> None:
    with pytest.raises(UserError, match=r"no setting 'prompt_length' \(did you mean prompt_len\?\)"):
        hub.args.prompt_length = 50
    for name, value in (("max_steps", 0), ("learning_rate", math.inf), ("dataset", "sst"), ("accelerator", "gpu")):
        before = getattr(hub.args, name)
        with pytest.raises(UserError):
            setattr(hub.args, name, value)
        assert getattr(hub.args, name) == before
    with pytest.raises(UserError, match="give it as the argument seed"):
        hub.args.prompt_options = {"seed_everything": 3}


def test_a_mask_of_no_neuron_is_refused(hub: PromptHub) -> None:
    hub.train_prompt()
    with pytest.raises(UserError, match=r"less than one of 64 neurons per layer"):
        hub.mask_activated_neuron(ratio=0.001)
    with pytest.raises(UserError, match="ratio is True"):
        hub.mask_activated_neuron(ratio=True)


def test_an_own_prompt_of_another_kind_is_announced(
    hub: PromptHub, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rooms = toy.with_name("rooms.yaml")
    rooms.write_text(toy.read_text().replace("name: toy", "name: rooms"))
    hub.train_prompt()
    hub.args.prompt_options = {"model": {"attention": "shared"}}
    hub.train_prompt(task=str(rooms))
    hub.args.prompt_options = {}
    capsys.readouterr()
    score = hub.cross_task_eval(target_task=str(rooms))
    assert (score.own, score.relative) == (None, None)
    assert "no score is relative to it" in capsys.readouterr().err


def test_a_missing_own_prompt_is_answered_with_the_call_that_trains_it(
    hub: PromptHub, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rooms = toy.with_name("rooms.yaml")
    rooms.write_text(toy.read_text().replace("name: toy", "name: rooms"))
    hub.train_prompt()
    capsys.readouterr()
    assert hub.cross_task_eval(target_task=str(rooms)).own is None
    lines = [line for line in capsys.readouterr().err.splitlines() if "no prompt was trained on" in line]
    assert len(lines) == 1
    assert f"{str(rooms)!r}) trains one" in lines[0]
    assert "--prompts" not in lines[0]


def test_results_are_numbers() -> None:
    facts = {"backbone": "b", "task": "t", "source": "s", "split": "test", "metric": "accuracy",
             "value": 0.75, "low": 0.5, "high": 1.0, "n": 8, "random": 0.5, "baseline": 0.5, "own": None,
             "relative": None}  # fmt: skip
    score = Score(**facts, table=pd.DataFrame({"value": [0.75]}))
    assert isinstance(score, float)
    assert f"{score:.3f} {score}" == "0.750 0.75"
    assert (score > 0.5, score + 1, round(score, 1), max(score, 0.2), json.dumps([score])) == (
        True, 1.75, 0.8, 0.75, "[0.75]",
    )  # fmt: skip
    assert np.mean([score, score]) == 0.75
    assert pd.DataFrame([{"score": score}])["score"].dtype == np.float64
    assert dict(score) == {**facts, "control": None}
    assert (score["eval_accuracy"], score["accuracy"], score["n"]) == (0.75, 0.75, 8)
    with pytest.raises(KeyError, match="there are backbone, task"):
        score["f1"]
    assert ("eval_accuracy" in score, "accuracy" in score, "n" in score, "f1" in score, 0 in score) == (
        True, True, True, False, False,
    )  # fmt: skip
    assert list(score) == [*score.keys(), "accuracy", "eval_accuracy"]
    assert dict(score.items()) == dict(score)
    assert (score.get("eval_accuracy"), score.get("f1"), score.get("f1", 0.0)) == (0.75, None, 0.0)
    # For pandas it is one number.
    frame = pd.DataFrame({"task": ["a", "b"]})
    frame["score"] = score
    assert list(frame["score"]) == [0.75, 0.75]
    assert repr(score).startswith("Score(backbone='b'")
    for twin in (copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        assert (twin, twin.n, type(twin)) == (0.75, 8, Score)
        assert list(twin.table["value"]) == [0.75]
    same = Similarity(backbone="b", task1="t", task2="u", overlap=0.6, layers=(0.5, 0.7))
    assert same > 0.5
    assert f"{same:.2f}" == "0.60"
    assert dict(same)["layers"] == (0.5, 0.7)


def test_the_methods_return_numbers(hub: PromptHub) -> None:
    trained, score = hub.train_prompt(), hub.eval_prompt()
    masked, _ = hub.mask_activated_neuron(ratio=0.5)
    for number, value in ((trained, trained.value), (score, score.value), (masked, masked.value)):
        assert isinstance(number, float)
        assert number == value
        assert dict(number)["value"] == value
