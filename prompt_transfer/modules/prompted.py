"""Base of the LightningModules that score a prompt on a frozen backbone: tasks, evaluation, prediction."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.prompt_inputs import PromptBank
from prompt_transfer.data.contract import BatchRules, check_batch
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.tokens import named_rows
from prompt_transfer.modules.objectives import Classification, Objective, References, make_objective
from prompt_transfer.tasks.registry import Task, get_task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.nonfinite import FirstNonFinite


class PromptedModule(L.LightningModule):
    """A prompt (`current_prompt`) that is scored on the tasks of the datamodule.

    A subclass sets `backbone` and saves the hyperparameters `label_words_policy` and `num_beams`.

    Attributes:
        tasks: of the run, in the order of their numbers.
        objective: loss, predictions and metrics of the tasks.
        calibrate: divide class probabilities by those on content-free texts, in `validate`, `test` and `predict`.
        keep_records: keep every prediction of an evaluation, not only the metrics.
        records: one dict per batch; those of all processes after the evaluation.
        answered: tracks the first non-finite answers of an evaluation; places are example ids.
    """

    backbone: FrozenBackbone
    prompt_length: int
    objective: Objective

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Task] = []
        self.keep_records = False
        self.calibrate = False
        self.records: list[dict[str, Any]] = []
        self.answered = FirstNonFinite()
        # The prompt prepared for many batches, while predicting.
        self._bank: PromptBank | None = None
        # Examples so far in the batches of a loader that does not number them.
        self._numbered = 0

    def current_prompt(self) -> Tensor:
        """Return the prompt [P, H] that is scored; a deep prompt is [L, 2, P, kv_heads, head_dim]."""
        raise NotImplementedError

    def connect(self, tasks: list[Task]) -> None:
        """Build the objective and metrics of `tasks`."""
        tasks = [task.with_policy(self.hparams.label_words_policy) for task in tasks]
        if tasks == self.tasks:
            return
        self.tasks = tasks
        self.objective = make_objective(self.backbone, tasks, self.hparams.num_beams)
        self.objective.to(self.device)

    # Data ------------------------------------------------------------------------------------------------------

    def run_tasks(self) -> list[Task]:
        """Return the tasks of the run: those that the data module names as `tasks` or `task`.

        Raises:
            UserError: it names none.
        """
        data = self.trainer.datamodule
        named = getattr(data, "tasks", None) or getattr(data, "task", None) or []
        tasks = [named] if isinstance(named, str | Task) else list(named)
        if not tasks:
            which = "a DataLoader does" if data is None else f"the data module {type(data).__name__} does"
            raise UserError(
                f"{which} not say which classes it has: give their words, PromptTuning(label_words=[...]), or set the "
                "attribute `task` of the data module to a prompt_transfer.Task"
            )
        return [task if isinstance(task, Task) else get_task(task) for task in tasks]

    @property
    def has_own_batches(self) -> bool:
        """Whether the batches come from a `TaskDataModule`, which needs no checks."""
        return isinstance(self.trainer.datamodule, TaskDataModule)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check and complete a batch of any other data module or loader (`prompt_transfer.data.contract`)."""
        return batch if self.has_own_batches else self.accepted(batch)

    def accepted(self, batch: Any) -> Any:
        """Return a checked batch with all entries; in training as one optimizer step.

        Raises:
            UserError: the batch breaks the contract.
        """
        if not self.trainer.training:
            return self._checked(batch)
        step = batch if isinstance(batch, Mapping) and "micro_batches" in batch else {"micro_batches": [batch]}
        parts = [self._checked(part) for part in step["micro_batches"]]
        count = torch.tensor(sum(len(part["ids"]) for part in parts), device=self.device)
        count = count if self.gather is None else self.gather(count).sum()
        position = step.get("position", self.trainer.global_step + 1)
        return {"micro_batches": parts, "position": position, "global_count": step.get("global_count", int(count))}

    def _checked(self, batch: Any) -> dict[str, Tensor]:
        encoder = self.backbone.encoder(self.prompt_length)
        vocabulary = self.backbone.model.get_input_embeddings().weight.shape[0]
        classes = [task.num_classes for task in self.tasks]
        rules = BatchRules(classes, vocabulary, encoder.text_budget(), not self.trainer.predicting)
        checked = check_batch(batch, rules)
        if "ids" not in batch:
            # Each process gets every n-th example.
            ranks = self.trainer.world_size
            checked["ids"] = (self._numbered + checked["ids"]) * ranks + self.trainer.global_rank
            self._numbered += len(checked["ids"])
        return checked

    def complete(self, batch: Any) -> Any:
        """Return `accepted(batch)` if the data module replaces `on_before_batch_transfer` by its own hook."""
        checked = isinstance(batch, Mapping) and ({"ids", "task_ids", "labels"} <= batch.keys() or "position" in batch)
        return batch if checked else self.accepted(batch)

    def on_validation_epoch_start(self) -> None:
        self._numbered = 0

    def on_test_epoch_start(self) -> None:
        self._numbered = 0

    def on_predict_epoch_start(self) -> None:
        self._numbered = 0

    def references(self, batch: dict[str, Tensor]) -> References:
        """Return the function that gives the reference texts of examples, for generation tasks.

        The references of a loader without `targets` are its target texts.
        """
        own = getattr(self.trainer.datamodule, "targets", None)
        return own or (lambda split, ids: [[text] for text in self.backbone.decode(batch["target_ids"])])

    # Evaluation ------------------------------------------------------------------------------------------------
    def calibrate_answers(self) -> None:
        """Calibrate the classes for the current prompt, if `calibrate` is on.

        Raises:
            UserError: the tasks have no label words.
        """
        if not self.calibrate:
            return
        if not isinstance(self.objective, Classification):
            raise UserError(f"{self.tasks[0].name} has no label words to calibrate: leave out --calibrate")
        free = {name: value.to(self.device) for name, value in self.trainer.datamodule.content_free().items()}
        self.objective.prior = self.objective.prior_of(self.current_prompt(), free)

    def on_validation_start(self) -> None:
        self.calibrate_answers()

    def on_test_start(self) -> None:
        self.calibrate_answers()

    def on_predict_start(self) -> None:
        self.calibrate_answers()
        # The prompt does not change between the batches.
        self._bank = self.backbone.record(self.current_prompt())

    def on_predict_end(self) -> None:
        self._bank = None

    def evaluation_step(self, batch: dict[str, Tensor], split: str) -> None:
        """Update the metrics of `split`."""
        references = self.references(batch)
        keep = self.keep_records
        losses, record = self.objective.evaluate(self.current_prompt(), batch, split, references, keep)
        self.answered.observe_rows("loss", losses, batch["ids"])
        self._keep(record)
        self.observe(record, batch, split)

    def observe(self, record: dict[str, Any], batch: dict[str, Tensor], split: str) -> None:
        """Process the objective's record of an evaluation batch; a hook for subclasses."""

    def _keep(self, record: dict[str, Any]) -> None:
        if self.keep_records:
            kept = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in record.items()}
            self.records.append(kept)

    def evaluation_end(self, split: str) -> None:
        """Log every task's metrics and `<split>/score`, the mean over the tasks that select (`selects`).

        Raises:
            UserError: an answer was not finite, which would make the scores wrong.
        """
        self.check_answers(split)
        self.log_scores(self.objective, split, split, prog_bar=len(self.tasks) == 1)
        self.gather_records()

    def check_answers(self, split: str) -> None:
        """Call `handle_nonfinite` for each prompt with non-finite answers, whose argmax would count as a class."""
        for number, (quantity, example) in self.answered.found(self.gather).items():
            self.handle_nonfinite(
                number, f"the {quantity} on the {split} split is NaN or Inf, first in {self.row_numbers([example])}"
            )
        self.answered.reset()

    def row_numbers(self, examples: Sequence[int]) -> str:
        """Format example ids as row numbers of their tasks, for messages."""
        return named_rows(examples, [task.name for task in self.tasks])

    def handle_nonfinite(self, number: int, trouble: str) -> None:
        """Handle a prompt whose values became non-finite.

        Raises:
            UserError: no other prompt is left to continue with.
        """
        raise UserError(f"{trouble}: its scores would be wrong; try --model.dtype float32, or another prompt")

    @property
    def gather(self) -> Any:
        """A function [..] -> [processes, ..]; None if there is one process."""
        return self.all_gather if self.trainer.world_size > 1 else None

    def log_scores(self, objective: Objective, split: str, prefix: str, prog_bar: bool = False) -> Tensor:
        """Log the metrics of `objective` under `prefix`, and return the mean of those that select."""
        scores = []
        for task, values in zip(self.tasks, objective.compute(split), strict=True):
            start = prefix if len(self.tasks) == 1 else f"{prefix}/{task.name}"
            self.log_dict({f"{start}/{name}": value for name, value in values.items()}, prog_bar=prog_bar)
            if self.selects(task):
                scores.append(values[task.metric])
        score = torch.stack([value.float() for value in scores]).mean()
        self.log(f"{prefix}/{self.score_name}", score)
        self.log(f"{prefix}/loss", objective.mean_loss.compute())
        objective.mean_loss.reset()
        if isinstance(objective, Classification):
            self._warn_single_class(objective, prefix)
        return score

    @property
    def score_name(self) -> str:
        """Log name of the mean of the metrics; the best `score` is kept."""
        return "score"

    def selects(self, task: Task) -> bool:
        """Whether a task counts in the score: only held-out tasks if there are any, else all."""
        held_out = getattr(self.trainer.datamodule, "held_out", ())
        return not held_out or task.name in held_out

    def named_scores(self, logged: Mapping[str, Tensor], split: str) -> dict[str, dict[str, float]]:
        """Return the last evaluation's metrics on `split` per prompt: prompt -> metric -> value.

        A prompt's name is that of its file without the suffix.
        """
        prefix = f"{split}/"
        found = {name: float(value) for name, value in logged.items() if name.startswith(prefix)}
        return {"prompt": {name.removeprefix(prefix): value for name, value in found.items()}} if found else {}

    def gather_records(self) -> None:
        """Gather the records of all processes on each of them."""
        if self.keep_records and self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, self.records)
            self.records = [record for part in parts for record in part]

    def _warn_single_class(self, objective: Classification, prefix: str) -> None:
        split, _, name = prefix.partition("/")
        whose = f" with the prompt {name}" if name else ""
        counts = objective.predicted
        if self.trainer.world_size > 1:
            counts = self.all_gather(counts).sum(dim=0)
        if self.trainer.is_global_zero and not self.trainer.sanity_checking and self.global_step > 0:
            for task, word in objective.only_predictions(counts):
                warnings.warn(
                    f"step {self.global_step}: every {split} example of {task.name}{whose} "
                    f"is predicted {word!r}; if this persists, try another learning rate or more steps",
                    stacklevel=2,
                )
        objective.predicted.zero_()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(self.complete(batch), "validation")

    def on_validation_epoch_end(self) -> None:
        self.evaluation_end("validation")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(self.complete(batch), "test")

    def on_test_epoch_end(self) -> None:
        self.evaluation_end("test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Return `ids`, `task_ids` [B] and `probabilities` [B, C], or `texts` for generation tasks."""
        batch = self.complete(batch)
        output = self.objective.predict(self.current_prompt() if self._bank is None else self._bank, batch)
        if "probabilities" in output:
            self.answered.observe_rows("answer", output["probabilities"].sum(dim=1), batch["ids"])
        if "options" in output:
            self.answered.observe_rows("answer", output.pop("answered"), batch["ids"])
        self._keep(output)
        return output

    def on_predict_epoch_end(self) -> None:
        self.check_answers("predict")
        self.gather_records()
