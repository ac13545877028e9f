"""TaskDataModule: splits, batches, the token cache, and identical data after resuming."""

from __future__ import annotations

import json
import logging
import warnings
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import lightning as L
import numpy as np
import pytest
import torch
from fake_encoder import FakeEncoder
from lightning.pytorch.callbacks import Callback

from prompt_transfer.data.baselines import trivial_score
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.texts import load_texts
from prompt_transfer.data.tokens import cache_path, tokenise
from prompt_transfer.utils.errors import UserError

SIZES = {"train": 37, "validation": 9, "test": 7}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def _task(root: Path, name: str = "toy", pair: bool = False, sizes: dict[str, int] = SIZES) -> str:
    (root / name).mkdir()
    for split, count in sizes.items():
        rows = [
            {"a": f"{split} " + "w " * (i % 11) + str(i), "b": "yes", "label": int(i % 3 == 0)} for i in range(count)
        ]
        (root / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = root / f"{name}.yaml"
    second = "b" if pair else "null"
    file.write_text(
        f"name: {name}\ntype: toy\ncolumns: {{text_a: a, text_b: {second}}}\nlabel_words: [bad, good]\nlocal: {name}\n"
    )
    return str(file)


def _module(root: Path, task: str | list[str] | None = None, **options: Any) -> TaskDataModule:
    module = TaskDataModule(task or _task(root), **{"source": "local", "batch_size": 5, **options})
    return module.connect(FakeEncoder())


def _ids(batch: dict[str, Any]) -> list[int]:
    parts = batch.get("micro_batches", [batch])
    return [number for part in parts for number in part["ids"].tolist()]


# Splits and batches.


def test_splits_and_batches(tmp_path: Path) -> None:
    data = _module(tmp_path, eval_batch_size=4)
    data.setup()
    assert [data.num_examples(split) for split in SIZES] == [37, 9, 7]
    train = list(data.train_dataloader())
    assert [batch["position"] for batch in train] == list(range(1, 9))
    assert sorted(batch["global_count"] for batch in train) == [2, 5, 5, 5, 5, 5, 5, 5]
    assert sorted(number for batch in train for number in _ids(batch)) == list(range(37))
    validation = list(data.val_dataloader())
    assert [len(batch["ids"]) for batch in validation] == [4, 4, 1]
    # Row 8: "validation", 8 times "w", "8", between 1 and 2; the longest row.
    assert validation[0]["ids"][0] == 8
    assert validation[0]["input_ids"][0].tolist() == [1, 13, *[4] * 9, 2]
    assert validation[0]["input_ids"][1].tolist() == [1, 13, *[4] * 8, 2, 0]
    assert validation[0]["labels"].tolist() == [0, 0, 1, 0]
    assert [number for batch in data.predict_dataloader() for number in _ids(batch)] == list(range(7))
    assert data.tasks[0].name == data.data[0].task.name == "toy"


def test_counts_and_majority(tmp_path: Path) -> None:
    data = _module(tmp_path)
    assert data.label_counts("train") == [24, 13]
    assert data.label_counts("test") == [4, 3]
    assert trivial_score(data, "test") == 4 / 7
    limited = _module(tmp_path, str(tmp_path / "toy.yaml"), limit_train=10)
    assert sum(limited.label_counts("train")) == 10


def test_limits_are_seeded_subsets_that_grow(tmp_path: Path) -> None:
    file = _task(tmp_path)

    def used(**options: Any) -> tuple[list[int], list[int]]:
        data = _module(tmp_path, file, **options)
        data.setup("fit")
        return tuple(
            sorted(number for batch in loader for number in _ids(batch))
            for loader in (data.train_dataloader(), data.val_dataloader())
        )

    small, large, other = used(limit_train=8), used(limit_train=20), used(limit_train=8, seed=1)
    assert len(small[0]) == 8
    assert set(small[0]) < set(large[0])
    assert small[0] != other[0]
    assert small[1] == list(range(9))
    assert len(used(limit_eval=4)[1]) == 4


def test_several_tasks(tmp_path: Path) -> None:
    files = [_task(tmp_path), _task(tmp_path, "twin", pair=True, sizes={"train": 12, "validation": 4, "test": 5})]
    data = _module(tmp_path, files, limit_train=20)
    data.setup()
    assert [task.name for task in data.tasks] == ["toy", "twin"]
    train = list(data.train_dataloader())
    parts = [part for batch in train for part in batch["micro_batches"]]
    tasks = torch.cat([part["task_ids"] for part in parts])
    assert torch.bincount(tasks).tolist() == [20, 12]
    assert any(len(part["task_ids"].unique()) == 2 for part in parts)
    ids = torch.cat([part["ids"] for part in parts])
    assert len(ids.unique()) == 32
    assert ((ids >> 32) == tasks).all()
    evaluated = torch.cat([batch["task_ids"] for batch in data.val_dataloader()])
    assert evaluated.tolist() == [0] * 9 + [1] * 4
    predicted = [number for batch in data.predict_dataloader() for number in _ids(batch)]
    assert predicted == [*range(7), *((1 << 32) + number for number in range(5))]
    assert trivial_score(data, "train", 1) == 8 / 12


def test_max_tokens_splits_steps_and_nothing_else(tmp_path: Path) -> None:
    file = _task(tmp_path)
    runs = []
    for options in ({}, {"max_tokens": 40, "pad_multiple": 4}):
        data = _module(tmp_path, file, **options)
        data.setup("fit")
        runs.append(list(data.train_dataloader()))
    assert [sorted(_ids(batch)) for batch in runs[0]] == [sorted(_ids(batch)) for batch in runs[1]]
    assert {len(batch["micro_batches"]) for batch in runs[0]} == {1}
    parts = [part["input_ids"] for batch in runs[1] for part in batch["micro_batches"]]
    assert len(parts) > len(runs[1])
    assert all(len(part) * (part.shape[1] + 3) <= 40 and part.shape[1] % 4 == 0 for part in parts)


def test_describe_is_plain(tmp_path: Path) -> None:
    data = _module(tmp_path, limit_train=10, max_length=8)
    data.setup("fit")
    facts = data.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["tasks"] == ["toy"]
    assert facts["max_length"] == {"toy": 8}
    assert facts["splits"]["toy"]["train"]["rows"] == 10
    assert facts["splits"]["toy"]["train"]["available"] == 37
    # Rows 4 to 8 of the 9 have five "w" or more and reach 8 tokens.
    assert facts["splits"]["toy"]["validation"] == {
        "rows": 9,
        "available": 9,
        "origin": "official",
        "at_max_length": 5,
    }
    assert facts["fingerprints"] == {"toy": data.data[0].fingerprint}


def test_the_runs_random_numbers_are_left_alone(tmp_path: Path) -> None:
    data = _module(tmp_path)
    data.setup("fit")
    before = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(before, torch.get_rng_state())


# Lengths.


def test_lengths_fit_the_model(tmp_path: Path) -> None:
    file = _task(tmp_path)
    data = TaskDataModule(file, source="local").connect(FakeEncoder(20))
    data.setup("fit")
    assert data.describe()["max_length"] == {"toy": 20}
    with pytest.raises(UserError, match=r"max_length 21 is too long: the model has 23 positions, prompt \(2\)"):
        TaskDataModule(file, source="local", max_length=21).connect(FakeEncoder(20)).setup("fit")
    with pytest.raises(UserError, match="leave 7 for text, at least 8 are needed"):
        TaskDataModule(file, source="local").connect(FakeEncoder(7)).setup("fit")
    with pytest.raises(UserError, match="a max_length of 4 leaves no text"):
        TaskDataModule(file, source="local", max_length=4).connect(FakeEncoder()).setup("fit")
    with pytest.raises(UserError, match=r"the longest has 14 positions of text and 3 of prompt .* use 17 or more"):
        TaskDataModule(file, source="local", max_tokens=16).connect(FakeEncoder()).setup("fit")


# Texts to predict.


def test_predict_texts_need_no_data(tmp_path: Path) -> None:
    data = TaskDataModule("sst2", source="hub", eval_batch_size=2).connect(FakeEncoder())
    data.set_predict_texts(["a long one", "short", "x"])
    data.prepare_data()
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch["ids"].tolist() for batch in batches] == [[0, 1], [2]]
    assert batches[0]["input_ids"].tolist() == [[1, 4, 7, 6, 2], [1, 8, 2, 0, 0]]
    assert batches[0]["labels"].tolist() == [-1, -1]
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    data.set_predict_texts(load_texts(tmp_path / "lines.txt", data.tasks[0]))
    assert [batch["ids"].tolist() for batch in data.predict_dataloader()] == [[0, 2]]


def test_predict_texts_are_checked(tmp_path: Path) -> None:
    data = _module(tmp_path, _task(tmp_path, pair=True))
    data.set_predict_texts(["a"])
    with pytest.raises(UserError, match=r"text 0 .* about pairs and this text has no second one"):
        data.predict_dataloader()
    data.set_predict_texts(["a"], ["b"])
    assert next(iter(data.predict_dataloader()))["input_ids"].tolist() == [[1, 4, 2, 4, 2]]
    for arguments, complaint in ((([],), "no text"), ((["a"], ["b", "c"]), "1 first texts and 2 second")):
        with pytest.raises(UserError, match=complaint):
            data.set_predict_texts(*arguments)


# Token cache.


def test_tokens_are_cached_by_all_that_they_depend_on(tmp_path: Path) -> None:
    file = _task(tmp_path)
    folder = tmp_path / "tokens-here"

    def calls(**options: Any) -> int:
        encoder = FakeEncoder()
        TaskDataModule(file, source="local", cache_dir=str(folder), **options).connect(encoder).setup("validate")
        return encoder.calls

    assert calls() == 1
    assert calls() == 0
    assert calls(batch_size=7, num_workers=0) == 0
    assert calls(max_length=10) == 1
    assert calls(limit_eval=3) == 1
    assert calls(limit_eval=3, seed=1) == 1
    assert len(list((folder / "tokens").iterdir())) == 4


def test_a_damaged_cache_file_is_made_again(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"id": range(50), "text_a": ["a bb"] * 50, "text_b": [""] * 50})
    file = cache_path(tmp_path, "x", {})
    first = tokenise(rows, FakeEncoder(), 16, pairs=False, cache_file=file)
    whole = file.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"nonsense"):
        file.write_bytes(damage)
        again = tokenise(rows, FakeEncoder(), 16, pairs=False, cache_file=file)
        assert np.array_equal(first.values, again.values)
        assert file.read_bytes() == whole


def test_cached_rows_without_tokens_are_made_again(tmp_path: Path) -> None:
    class Older(FakeEncoder):
        def encode(self, *args: Any, **options: Any) -> list[list[int]]:
            return [ids if len(ids) > 2 else [] for ids in super().encode(*args, **options)]

    rows = datasets.Dataset.from_dict({"id": [0, 1], "text_a": ["", "a b"], "text_b": [""] * 2, "label": [0, 1]})
    file = cache_path(tmp_path, "x", {})
    tokenise(rows, Older(), 16, pairs=False, cache_file=file)
    for encoder, calls in ((FakeEncoder(), 1), (FakeEncoder(), 0)):
        assert tokenise(rows, encoder, 16, pairs=False, cache_file=file).lengths.tolist() == [2, 4]
        assert encoder.calls == calls


def _tokenise_in_process(file: str) -> int:
    rows = datasets.Dataset.from_dict({"id": range(999), "text_a": ["a bb"] * 999, "text_b": [""] * 999})
    return int(tokenise(rows, FakeEncoder(), 16, pairs=False, cache_file=Path(file)).values.sum())


def test_two_processes_may_write_the_same_cache_file(tmp_path: Path) -> None:
    file = str(cache_path(tmp_path, "x", {}))
    with get_context("fork").Pool(2) as pool:
        sums = pool.map(_tokenise_in_process, [file] * 6, chunksize=1)
    # 1, "a" -> 4, "bb" -> 5, 2
    assert sums == [12 * 999] * 6
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [Path(file).name]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(UserError, match=r"cannot use the token cache .*--data.cache_dir"):
        _module(tmp_path, cache_dir=str(tmp_path / "blocked")).setup("fit")


# Errors.


def test_options_that_cannot_be(tmp_path: Path) -> None:
    file = _task(tmp_path)
    for option in ("batch_size", "eval_batch_size", "limit_train", "limit_eval", "max_tokens", "pad_multiple"):
        with pytest.raises(UserError, match=rf"--data.{option} must be 1 or more, not 0"):
            TaskDataModule(file, source="local", **{option: 0})
    with pytest.raises(UserError, match=r"--data.seed must be 0 or more"):
        TaskDataModule(file, source="local", seed=-1)
    with pytest.raises(UserError, match="unknown split 'dev'"):
        TaskDataModule(file, source="local", predict_split="dev")
    with pytest.raises(UserError, match="unknown split 'dev'"):
        _module(tmp_path, file).num_examples("dev")
    with pytest.raises(UserError, match="each task once"):
        TaskDataModule([file, file], source="local")
    with pytest.raises(UserError, match="each task once"):
        TaskDataModule([], source="local")
    with pytest.raises(UserError, match="connect"):
        TaskDataModule(file, source="local").setup("fit")


def test_source_and_task_go_together(tmp_path: Path) -> None:
    from prompt_transfer.data.builtin import BUILTIN_TASKS

    name = BUILTIN_TASKS[0].name
    assert TaskDataModule(name).tasks == [BUILTIN_TASKS[0]]
    with pytest.raises(UserError, match=f"task {name} is built in; use --data.source builtin"):
        TaskDataModule(name, source="local")
    with pytest.raises(
        UserError, match=r"sst2 is not built in; use --data.source hub, or --data.source local --data.root"
    ):
        TaskDataModule("sst2")
    toy = _task(tmp_path)
    with pytest.raises(UserError, match=r"toy is not built in; use --data.source local$"):
        TaskDataModule(toy, source="builtin")
    # The folder in its YAML file implies the source.
    assert TaskDataModule(toy).selection.source == "local"


def test_trainer_options_that_would_change_what_batch_size_means(tmp_path: Path) -> None:
    data = _module(tmp_path)
    connector = SimpleNamespace(use_distributed_sampler=True)
    data.trainer = SimpleNamespace(world_size=2, accumulate_grad_batches=1, _accelerator_connector=connector)
    with pytest.raises(UserError, match="use_distributed_sampler false"):
        data.setup("fit")
    data.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=4)
    with pytest.raises(UserError, match=r"--data.max_tokens"):
        data.setup("fit")


# Lightning: training, stopping and resuming.


class Recorder(L.LightningModule):
    """A module that trains one number and records its batches."""

    def __init__(self, tells: bool = True) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(1))
        self.encoder = FakeEncoder()
        self.tells = tells
        self.seen: list[tuple[int, int, int, list[int]]] = []
        self.validated: list[int] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.trainer.current_epoch, batch_idx, batch["position"], _ids(batch)))
        if self.tells:
            self.trainer.datamodule.batch_done(batch["position"])
        return (self.number - 1).square().sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.validated.append(self.trainer.global_step)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return batch["ids"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # The real module calls this too: it makes Lightning start the loader before it restores the checkpoint's loops.
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class KilledError(Exception):
    pass


class KillAt(Callback):
    """A callback that saves a checkpoint at the n-th call of a hook, then fails."""

    def __init__(self, hook: str, count: int, path: str) -> None:
        self.hook, self.count, self.path = hook, count, path

    def _reached(self, hook: str, trainer: L.Trainer) -> None:
        if hook == self.hook and not trainer.sanity_checking:
            self.count -= 1
            if self.count == 0:
                trainer.save_checkpoint(self.path)
                raise KilledError

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._reached("batch", trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._reached("validation", trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._reached("epoch", trainer)


def _fit(
    data: TaskDataModule,
    module: Recorder | None = None,
    ckpt_path: str | None = None,
    kill: KillAt | None = None,
    **options: Any,
) -> Recorder:
    module = module or Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = _trainer(callbacks=[kill] if kill else [], **{"max_epochs": 3, **options})
        try:
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        except KilledError:
            assert kill is not None
    return module


def _trainer(**options: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(accelerator="cpu", devices=1, use_distributed_sampler=False, **quiet, **options)


def _resumed(root: Path, file: str, hook: str, count: int, **options: Any) -> tuple[Recorder, Recorder, Recorder]:
    """Run uninterrupted, killed and resumed training."""
    workers = options.pop("num_workers", 0)
    path = str(root / "killed.ckpt")
    make = lambda: TaskDataModule(file, source="local", batch_size=5, num_workers=workers)  # noqa: E731
    whole = _fit(make(), **options)
    first = _fit(make(), kill=KillAt(hook, count, path), **options)
    rest = _fit(make(), ckpt_path=path, **options)
    return whole, first, rest


# An epoch has 8 batches: 8 kills at the last batch of an epoch, 9 at the first.
@pytest.mark.parametrize(("hook", "count"), [("batch", 3), ("batch", 8), ("batch", 9), ("validation", 1), ("epoch", 2)])
@pytest.mark.parametrize(
    "options", [{}, {"max_epochs": -1, "max_steps": 21}, {"val_check_interval": 3}], ids=["epochs", "steps", "interval"]
)
def test_a_killed_run_goes_on_with_the_next_batch(
    tmp_path: Path, hook: str, count: int, options: dict[str, Any]
) -> None:
    whole, first, rest = _resumed(tmp_path, _task(tmp_path), hook, count, **options)
    assert len(whole.seen) == options.get("max_steps", 24)
    assert len(first.seen) < len(whole.seen)
    # Epoch, batch number, position and example ids equal those of the uninterrupted run.
    assert first.seen + rest.seen == whole.seen


@pytest.mark.parametrize(("hook", "count"), [("batch", 3), ("batch", 8), ("validation", 1)])
def test_prefetching_workers_do_not_move_the_position(tmp_path: Path, hook: str, count: int) -> None:
    whole, first, rest = _resumed(tmp_path, _task(tmp_path), hook, count, num_workers=2, max_epochs=2)
    assert [step[2] for step in whole.seen] == list(range(1, 17))
    assert first.seen + rest.seen == whole.seen


def test_validation_by_steps_over_epochs(tmp_path: Path) -> None:
    options = {"max_epochs": -1, "max_steps": 20, "val_check_interval": 6, "check_val_every_n_epoch": None}
    whole, first, rest = _resumed(tmp_path, _task(tmp_path), "validation", 2, **options)
    assert whole.validated == [6, 12, 18]
    assert first.validated + rest.validated == whole.validated
    assert [step[2:] for step in first.seen + rest.seen] == [step[2:] for step in whole.seen]


def test_short_epochs_go_on_through_the_data(tmp_path: Path) -> None:
    file = _task(tmp_path)
    whole, first, rest = _resumed(tmp_path, file, "batch", 7, limit_train_batches=5)
    assert [step[2] for step in whole.seen] == list(range(1, 16))
    assert sorted(number for step in whole.seen[:8] for number in step[3]) == list(range(37))
    assert first.seen + rest.seen == whole.seen


def test_overfit_batches_repeats_the_same(tmp_path: Path) -> None:
    module = _fit(_module(tmp_path), overfit_batches=2)
    ids = [step[3] for step in module.seen]
    assert ids == ids[:2] * 3


def test_a_new_run_begins_at_the_first_batch(tmp_path: Path) -> None:
    data = _module(tmp_path)
    first, second = _fit(data, max_epochs=1), _fit(data, max_epochs=1)
    assert first.seen == second.seen
    assert data.state_dict()["position"] == 8


def test_state_is_plain_and_checked(tmp_path: Path) -> None:
    file, path = _task(tmp_path), str(tmp_path / "killed.ckpt")
    data = _module(tmp_path, file)
    _fit(data, kill=KillAt("batch", 3, path))
    state = torch.load(path, weights_only=True)["TaskDataModule"]
    assert state == data.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert state["position"] == 3
    with pytest.raises(UserError, match=r"the training data changed \(batch_size\)"):
        _fit(_module(tmp_path, file, batch_size=6), ckpt_path=path)
    with pytest.raises(UserError, match=r"\(rows, examples\)"):
        _fit(_module(tmp_path, file, limit_train=30), ckpt_path=path)


def test_a_module_that_does_not_tell_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="batch_done"):
        _fit(_module(tmp_path), Recorder(tells=False))


def test_predict_in_input_order_without_warnings(tmp_path: Path) -> None:
    data = _module(tmp_path, eval_batch_size=3, predict_split="validation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = _trainer()
        warnings.filterwarnings("error", message=".*(batch sampler|batch indices).*")
        outputs = trainer.predict(Recorder(), datamodule=data)
    assert torch.cat(outputs).tolist() == list(range(9))
