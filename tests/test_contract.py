"""The batch contract, and PromptTuning on loaders and data modules that are not ours."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from own_rows import rows
from torch.utils.data import DataLoader

from prompt_transfer import PromptTuning, Task, TaskDataModule, check_batch
from prompt_transfer.data.contract import BatchRules
from prompt_transfer.modules.prompt_ensemble import PromptEnsemble
from prompt_transfer.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


def batch(**changes: Any) -> dict[str, Any]:
    made = {
        "input_ids": torch.tensor([[0, 7, 2], [0, 2, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "labels": torch.tensor([1, 0]),
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def test_a_batch_is_completed() -> None:
    found = check_batch(
        batch(attention_mask=torch.tensor([[True, True, True], [True, True, False]]), sentence=["a", "b"])
    )
    assert {name: value.tolist() for name, value in found.items()} == {
        "input_ids": [[0, 7, 2], [0, 2, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [1, 0],
        "task_ids": [0, 0],
        "ids": [0, 1],
    }
    assert all(value.dtype == torch.int64 for value in found.values())
    without = check_batch(batch(labels=None), BatchRules(answers=False))
    assert without["labels"].tolist() == [-1, -1]


RULES = BatchRules(classes=[2], vocabulary=10, longest=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": None}, r"input_ids \[B, T\] is missing; it has attention_mask, labels"),
        ({"attention_mask": None}, r"attention_mask \[B, T\] is missing"),
        ({"labels": None}, r"labels \[B\] is missing"),
        ({"input_ids": [[0, 7, 2], [0, 2, 1]]}, r"input_ids must be a tensor \[B, T\], not list"),
        ({"input_ids": torch.zeros(2, 3)}, r"input_ids must be int64, not float32; use .long\(\)"),
        ({"attention_mask": torch.ones(2, 3)}, "attention_mask must be int64, not float32"),
        ({"labels": torch.tensor([[1], [0]])}, r"labels must be \[B\], not \[2, 1\]"),
        ({"labels": torch.tensor([1])}, r"labels is \[1\], but input_ids has 2 examples"),
        ({"attention_mask": torch.ones(2, 2).long()}, "but input_ids has 2 examples of 3 positions"),
        (
            {"attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])},
            r"example 1 .* token after padding: pad on the right",
        ),
        ({"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, r"example 1 .* 0 throughout"),
        ({"attention_mask": torch.tensor([[1, 1, 2], [1, 1, 0]])}, "values other than 0 and 1"),
        ({"labels": torch.tensor([1, 2])}, "labels has 2 in example 1 .* classes 0 to 1"),
        ({"labels": torch.tensor([-1, 0])}, "labels has -1 in example 0"),
        ({"input_ids": torch.full((2, 3), 10)}, "input_ids has 10, outside of the token ids of the backbone, 0 to 9"),
        ({"task_ids": torch.tensor([0, 1])}, "task_ids has 1, outside of the numbers of the tasks, 0 to 0"),
        (
            {"input_ids": torch.zeros(2, 4).long(), "attention_mask": torch.ones(2, 4).long()},
            "an example of 4 tokens, but prompt and answer slot leave 3 positions",
        ),
    ],
)
def test_a_fault_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        check_batch(batch(**changes), RULES)
    assert "\n" not in str(found.value)


def test_a_batch_is_a_dict() -> None:
    with pytest.raises(UserError, match="a batch must be a dict with input_ids, attention_mask and labels, not tuple"):
        check_batch((torch.zeros(1), torch.zeros(1)))


# PromptTuning --------------------------------------------------------------------------------------------------------


def trainer(**options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, **({"max_steps": 3} | quiet | options))


class Mine(L.LightningDataModule):
    """A data module of a user: it yields batches, and names its task if it has the attribute."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def loader_of(model: PromptTuning, count: int = 24, **options: Any) -> DataLoader[Any]:
    listed: Any = rows(count)
    return DataLoader(listed, batch_size=8, collate_fn=model.collate(**options))


def test_encoded_texts_are_those_of_the_data_module(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    for family in ("roberta", "gpt2", "t5"):
        model = PromptTuning(str(tiny(family)), prompt_length=3, label_words=["bad", "good"])
        data = TaskDataModule.from_rows(rows(24), cache_dir=str(tmp_path)).connect(model.encoder)
        ours = next(iter(data.test_dataloader()))
        texts = dict(enumerate(row["text"] for row in rows(24)))
        found = model.encode([texts[number] for number in ours["ids"].tolist()], ours["labels"].tolist())
        assert set(found) == set(ours) - {"ids"}
        assert all(torch.equal(found[name], ours[name]) for name in found), family


def test_a_loader_trains_as_the_same_batches_of_a_data_module(tiny_roberta: Path) -> None:
    """One step on all rows: order and batching cannot differ."""
    prompts = []
    for number in range(3):
        torch.manual_seed(0)
        model = PromptTuning(str(tiny_roberta), prompt_length=3, label_words=None if number == 2 else ["bad", "good"])
        if number == 2:
            data = TaskDataModule.from_rows(rows(24), validation=rows(24), test=rows(24), batch_size=24)
            trainer(max_steps=1).fit(model, datamodule=data)
        else:
            loader = DataLoader(rows(24), batch_size=24, collate_fn=model.collate())  # type: ignore[arg-type]
            if number:
                trainer(max_steps=1).fit(model, datamodule=Mine(loader))
            else:
                trainer(max_steps=1).fit(model, train_dataloaders=loader, val_dataloaders=loader)
        prompts.append(model.prompt().embeddings)
    assert torch.equal(prompts[0], prompts[1])
    assert torch.allclose(prompts[0], prompts[2], atol=1e-5)
    assert not torch.equal(prompts[0], model.prompt().initial)


def test_the_task_of_a_data_module_is_its_attribute(tiny_roberta: Path) -> None:
    task = Task("mine", "topic", "text", labels=("bad", "good"), label_words=("terrible", "great"))
    helper = PromptTuning(str(tiny_roberta), prompt_length=3, label_words=["bad", "good"])
    data = Mine(loader_of(helper))
    with pytest.raises(UserError, match=r"the data module Mine does not say which classes it has: give their words"):
        trainer().fit(PromptTuning(str(tiny_roberta)), datamodule=data)
    with pytest.raises(UserError, match="a DataLoader does not say which classes"):
        trainer().fit(PromptTuning(str(tiny_roberta)), loader_of(helper))
    data.task = task  # type: ignore[attr-defined]
    model = PromptTuning(str(tiny_roberta), prompt_length=3)
    run = trainer()
    run.fit(model, datamodule=data)
    assert model.tasks == [task]
    assert {"validation/score", "validation/accuracy"} <= run.callback_metrics.keys()
    assert "mine" in model.prompt().metadata["task_definitions"]
    assert run.test(model, datamodule=data, verbose=False)[0].keys() >= {"test/accuracy"}
    with pytest.raises(UserError, match="label_words are given twice"):
        trainer().fit(helper, datamodule=data)


def test_predictions_of_a_loader_are_numbered_over_its_batches(tiny_roberta: Path) -> None:
    model = PromptTuning(str(tiny_roberta), prompt_length=3, label_words=["bad", "good"])
    trainer(max_steps=1).fit(model, loader_of(model))
    unlabelled = [{"text": row["text"]} for row in rows(20)]
    loader = DataLoader(unlabelled, batch_size=8, collate_fn=model.collate())  # type: ignore[arg-type]
    outputs = trainer().predict(model, loader)
    assert torch.cat([one["ids"] for one in outputs]).tolist() == list(range(20))


def test_a_broken_batch_stops_the_run_with_one_line(tiny_roberta: Path) -> None:
    model = PromptTuning(str(tiny_roberta), prompt_length=3, label_words=["bad", "good"])
    collate = model.collate()

    def lacking(name: str) -> Callable[[Any], dict[str, Any]]:
        return lambda found: {key: value for key, value in collate(found).items() if key != name}

    for name in ("attention_mask", "labels"):
        loader = DataLoader(rows(8), batch_size=8, collate_fn=lacking(name))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"batch: {name} .* is missing"):
            trainer().fit(model, loader)
    with pytest.raises(UserError, match="label 'odd' is none of the labels of own: bad, good, 0, 1"):
        model.encode(["a"], ["odd"])
    with pytest.raises(UserError, match="texts is one string"):
        model.encode("a film")
    for words in ("bad", ["bad"], ["bad", "bad"], ["bad", ""]):
        with pytest.raises(UserError, match="label_words must be a list of two or more different words"):
            PromptTuning(str(tiny_roberta), label_words=words)


def test_hooks_of_the_users_data_module_do_not_hide_the_check(tiny_roberta: Path) -> None:
    class Moving(Mine):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    model = PromptTuning(str(tiny_roberta), prompt_length=3, label_words=["bad", "good"])
    trainer().fit(model, datamodule=Moving(loader_of(model)))
    bad = DataLoader(rows(8), batch_size=8, collate_fn=lambda _: {"input_ids": torch.zeros(2, 3)})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="input_ids must be int64"):
        trainer().fit(model, datamodule=Moving(bad))


def test_text_is_generated_from_a_loader(tiny: Callable[[str], Path]) -> None:
    task = Task(
        "say", "qa", "text", label_column=None, target_column="answer", metric="exact_match", max_target_length=4
    )
    model = PromptTuning(str(tiny("t5")), prompt_length=3)
    model.connect([task])
    listed: Any = [{"text": f"the {word}", "answer": word} for word in ("dog", "cat", "man", "day")]
    data = Mine(DataLoader(listed, batch_size=2, collate_fn=model.collate(label="answer")))
    data.task = task  # type: ignore[attr-defined]
    run = trainer()
    run.fit(model, datamodule=data)
    assert 0 <= float(run.callback_metrics["validation/exact_match"]) <= 1


def test_several_prompts_train_on_a_loader(tiny_roberta: Path) -> None:
    model = PromptEnsemble([0, 1], backbone=str(tiny_roberta), prompt_length=3, label_words=["bad", "good"])
    run = trainer()
    run.fit(model, loader_of(model), loader_of(model))
    assert {"validation/seed0/accuracy", "validation/seed1/accuracy"} <= run.callback_metrics.keys()


def test_the_collate_function_travels_to_workers(tiny_roberta: Path) -> None:
    model = PromptTuning(str(tiny_roberta), prompt_length=3, label_words=["bad", "good"])
    copy = pickle.loads(pickle.dumps(model.collate()))
    assert torch.equal(copy(rows(4))["input_ids"], model.collate()(rows(4))["input_ids"])
