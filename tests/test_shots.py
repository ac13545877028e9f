"""Few-shot runs: K examples of each class, drawn by seed, in training and validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml
from fake_encoder import FakeEncoder
from test_cli import error_of, fit

from prompt_transfer.api.arguments import PromptTrainingArguments
from prompt_transfer.api.prompt_hub import PromptHub
from prompt_transfer.cli import main
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.shots import draw
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

THREE = Task(name="t", type="x", text_a="a", label_words=("no", "maybe", "yes"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    datasets.disable_progress_bars()


def module(task: str | list[str], **options: Any) -> TaskDataModule:
    return TaskDataModule(task, **{"source": "local", "batch_size": 4, **options}).connect(FakeEncoder())


def written(root: Path, name: str, train: list[int], validation: list[int]) -> str:
    """Write a task of two classes with these labels."""
    (root / name).mkdir()
    for split, labels in (("train", train), ("validation", validation), ("test", [0, 1])):
        rows = [json.dumps({"a": f"{split} {'w ' * number}", "label": one}) for number, one in enumerate(labels)]
        (root / name / f"{split}.jsonl").write_text("\n".join(rows))
    path = root / f"{name}.yaml"
    path.write_text(f"name: {name}\ntype: x\ncolumns: {{text_a: a}}\nlabel_words: [bad, good]\nlocal: {name}\n")
    return str(path)


def test_each_class_is_drawn_from_the_first_of_a_permutation() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    order = np.random.default_rng(3).permutation(10)
    expected = sorted(
        int(place) for number in range(3) for place in [one for one in order if labels[one] == number][:2]
    )
    assert draw(THREE, "train", labels, 2, 3).tolist() == expected
    # More shots keep the fewer ones.
    assert set(expected) < set(draw(THREE, "train", labels, 3, 3).tolist())
    assert draw(THREE, "train", labels, 2, 4).tolist() != expected


def test_a_class_with_too_few_examples_is_an_error_that_names_it() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    told = (
        "task t: 3 train examples of each class are asked for, but class 'maybe' has 1, 'yes' has 2: "
        "use --data.shots 1 or less"
    )
    with pytest.raises(UserError) as caught:
        draw(THREE, "train", labels, 3, 0)
    assert str(caught.value) == told
    with pytest.raises(UserError, match=r"'yes' has 0: use --data.validation_shots all$"):
        draw(THREE, "validation", labels[:4], 1, 0)


def test_training_and_validation_have_k_examples_of_each_class(toy: Path) -> None:
    data = module(str(toy), shots=3)
    assert (data.label_counts("train"), data.label_counts("validation"), data.label_counts("test")) == (
        [3, 3],
        [3, 3],
        [5, 5],
    )
    data.setup("fit")
    assert sum(batch["global_count"] for batch in data.train_dataloader()) == 6
    assert sum(len(batch["ids"]) for batch in data.val_dataloader()) == 6
    assert data.describe()["shots"] == {"train": 3, "validation": 3}
    assert module(str(toy), shots=3, validation_shots="all").label_counts("validation") == [5, 5]
    assert module(str(toy), shots=3, validation_shots=1).label_counts("validation") == [1, 1]
    # The same seed draws the same examples, also in another process' module; another seed draws others.
    ids = [module(str(toy), shots=3, seed=seed).selection.rows("train")["id"][:] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_tokens_of_other_shots_and_seeds_are_not_reused(toy: Path) -> None:
    def tokens(**options: Any) -> list[int]:
        data = module(str(toy), **options)
        data.setup("fit")
        return data.tokens("train").ids.tolist()

    found = [tokens(shots=2), tokens(shots=3), tokens(shots=2, seed=1), tokens()]
    assert [len(ids) for ids in found] == [4, 6, 4, 40]
    assert found[0] != found[2]


def test_two_processes_train_on_the_same_few_examples(toy: Path) -> None:
    seen = []
    for rank in range(2):
        data = module(str(toy), shots=3)
        data.setup("fit")
        data._rank_and_world = lambda rank=rank: (rank, 2)  # type: ignore[method-assign]
        batches = list(data.train_dataloader())
        assert sorted(batch["global_count"] for batch in batches) == [2, 4]
        seen += [number for batch in batches for part in batch["micro_batches"] for number in part["ids"].tolist()]
    assert sorted(seen) == sorted(module(str(toy), shots=3).selection.rows("train")["id"][:])


def test_every_task_of_a_run_has_its_own_shots(tmp_path: Path) -> None:
    one = written(tmp_path, "one", [0, 1] * 6, [0, 1] * 3)
    other = written(tmp_path, "other", [0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    data = module([one, other], shots=2)
    assert [data.label_counts("train", index) for index in range(2)] == [[2, 2], [2, 2]]
    # A held-out task is not trained on, and its validation split selects.
    data = module([one, other], shots=2, held_out=["other"])
    assert [len(data.selection.rows("train", index)) for index in range(2)] == [4, 0]
    assert data.label_counts("validation", 1) == [2, 2]
    with pytest.raises(UserError, match=r"^task other: 3 validation examples .* class 'bad' has 2, 'good' has 2: use"):
        module([one, other], shots=3).label_counts("validation", 1)


def test_a_generation_task_has_k_examples_in_all() -> None:
    data = TaskDataModule("builtin_questions", shots=5)
    assert [len(data.selection.rows(split)) for split in ("train", "validation")] == [5, 5]
    with pytest.raises(
        UserError, match=r"^task builtin_questions: 1000000 train examples are asked for, but there are"
    ):
        TaskDataModule("builtin_questions", shots=10**6).selection.rows("train")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shots": 0}, "--data.shots must be 1 or more, not 0"),
        ({"shots": 2, "validation_shots": 0}, "--data.validation_shots must be 1 or more, not 0"),
        ({"shots": 2, "limit_train": 9}, "--data.shots and --data.limit_train exclude each other"),
        ({"validation_shots": 4}, "--data.validation_shots 4 is an option of few-shot runs: give --data.shots too"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], told: str, toy: Path) -> None:
    with pytest.raises(UserError, match=told):
        module(str(toy), **options)


def test_a_run_shows_its_counts_and_records_its_shots(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    few = ["--data.shots", "4", "--data.validation_shots", "2", "--data.seed", "5"]
    assert fit(toy, tiny_roberta, output, *few) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "few-shot examples (--data.seed 5)"
    assert lines[1] == "  toy: train 8 (4 terrible, 4 great); validation 4 (2 terrible, 2 great)"
    assert yaml.safe_load((output / "config.yaml").read_text())["data"]["shots"] == 4
    facts = Prompt.load(output).metadata
    assert (facts["data_shots"], facts["data_validation_shots"], facts["train_rows"]) == ("4", "2", "8")
    (row,) = pd.read_csv(output / "results.csv").to_dict("records")
    assert (row["shots"], row["n"]) == (4, 4)
    # A resumed run keeps its examples, and takes no others.
    assert main(["fit", "--output", str(output), "--resume", "--trainer.max_steps", "6"]) == 0
    assert "train 8 (4 terrible, 4 great)" in capsys.readouterr().out
    resume = ["fit", "--output", str(output), "--resume", "--trainer.max_steps", "8", "--data.shots", "5"]
    assert "the training data changed (rows, examples)" in error_of(capsys, main(resume))
    # `test` scores the whole split.
    assert main(["test", "--prompt", str(output), "--random_prompts", "0", "--output", str(tmp_path / "test")]) == 0
    assert set(pd.read_csv(tmp_path / "test" / "results.csv")["n"]) == {10}


def test_too_few_examples_leave_no_folder(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = error_of(capsys, fit(toy, tiny_roberta, tmp_path / "run", "--data.shots", "6"))
    assert "class 'terrible' has 5, 'great' has 5: use --data.validation_shots 5 or less or" in told
    assert not (tmp_path / "run").exists()


def test_the_hub_trains_on_few_shots(
    toy: Path, tiny_roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"prompt_len": 3, "max_steps": 2, "batch_size": 4, "progress": False, "data_source": "local"}
    args = PromptTrainingArguments(str(tmp_path / "hub"), str(toy), str(tiny_roberta), shots=2, **options)
    result = PromptHub(args=args).train_prompt()
    assert "train 4 (2 terrible, 2 great); validation 4 (2 terrible, 2 great)" in capsys.readouterr().out
    assert (Prompt.load(result.path).metadata["train_rows"], result.table["n"].tolist()) == ("4", [4])
    # Without shots the stored options are those of earlier releases.
    whole = PromptTrainingArguments(str(tmp_path / "hub"), str(toy), str(tiny_roberta), **options)
    assert "shots" not in whole.prompt_config(str(tiny_roberta), str(toy))["data"]
    with pytest.raises(UserError, match=r"^shots is 0: give a whole number"):
        PromptTrainingArguments("hub", str(toy), str(tiny_roberta), shots=0)
