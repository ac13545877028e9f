"""What LightningModules with a prompt in front of a frozen backbone share: tasks, evaluation, prediction."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.tokens import named_rows
from prompt_transfer.modules.objectives import Classification, Objective, make_objective
from prompt_transfer.tasks.registry import Task
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.nonfinite import FirstNonFinite


class PromptedModule(L.LightningModule):
    """Scores `current_prompt` on the tasks of the datamodule.

    A subclass sets `backbone` and saves the hyperparameters `label_words_policy` and `num_beams`.

    Attributes:
        tasks: of the run, in the order of their numbers.
        objective: what they are trained and scored on.
        keep_records: set by those who want every prediction of an evaluation, not only its metrics.
        records: one dict a batch, of all processes once the evaluation has ended.
        answered: where the answers of an evaluation were not finite first; places are example ids.
    """

    backbone: FrozenBackbone
    objective: Objective

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Task] = []
        self.keep_records = False
        self.records: list[dict[str, Any]] = []
        self.answered = FirstNonFinite()

    def current_prompt(self) -> Tensor:
        """The prompt [P, H] that is scored."""
        raise NotImplementedError

    def connect(self, tasks: list[Task]) -> None:
        """Build what `tasks` are trained and scored on."""
        tasks = [task.with_policy(self.hparams.label_words_policy) for task in tasks]
        if tasks == self.tasks:
            return
        self.tasks = tasks
        self.objective = make_objective(self.backbone, tasks, self.hparams.num_beams)
        self.objective.to(self.device)

    def evaluation_step(self, batch: dict[str, Tensor], split: str) -> None:
        """Feed the metrics of `split`."""
        references = self.trainer.datamodule.targets
        keep = self.keep_records
        losses, record = self.objective.evaluate(self.current_prompt(), batch, split, references, keep)
        self.answered.observe_rows("loss", losses, batch["ids"])
        self._keep(record)
        self.observe(record, batch, split)

    def observe(self, record: dict[str, Any], batch: dict[str, Tensor], split: str) -> None:
        """Take what a subclass wants of the objective's record of an evaluation batch."""

    def _keep(self, record: dict[str, Any]) -> None:
        if self.keep_records:
            kept = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in record.items()}
            self.records.append(kept)

    def evaluation_end(self, split: str) -> None:
        """Log every task's metrics and `<split>/score`, the mean of those that select (`selects`).

        Raises:
            UserError: an answer was not finite, so that the scores would be wrong.
        """
        self.check_answers(split)
        self.log_scores(self.objective, split, split, prog_bar=len(self.tasks) == 1)
        self.gather_records()

    def check_answers(self, split: str) -> None:
        """Call `handle_nonfinite` for each prompt whose answers were not finite: the argmax of NaNs is a class too."""
        for number, (what, example) in self.answered.found(self.gather).items():
            self.handle_nonfinite(
                number, f"the {what} on the {split} split is NaN or Inf, first in {self.row_numbers([example])}"
            )
        self.answered.reset()

    def row_numbers(self, examples: Sequence[int]) -> str:
        """Example ids as row numbers of their tasks, for messages."""
        return named_rows(examples, [task.name for task in self.tasks])

    def handle_nonfinite(self, number: int, trouble: str) -> None:
        """What becomes of prompt `number`, of which something is not finite any more.

        Raises:
            UserError: there is no other that could go on.
        """
        raise UserError(f"{trouble}: its scores would be wrong; try --model.dtype float32, or another prompt")

    @property
    def gather(self) -> Any:
        """[..] -> [processes, ..], or None where there is one process."""
        return self.all_gather if self.trainer.world_size > 1 else None

    def log_scores(self, objective: Objective, split: str, prefix: str, prog_bar: bool = False) -> Tensor:
        """Log what `objective` has counted below `prefix`; the mean of the metrics that select."""
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
            self._warn_of_one_class(objective, prefix)
        return score

    @property
    def score_name(self) -> str:
        """What the mean of the metrics is logged as; the best `score` is kept."""
        return "score"

    def selects(self, task: Task) -> bool:
        """Whether a task counts in the score: where some are held out from training, they alone do."""
        held_out = getattr(self.trainer.datamodule, "held_out", ())
        return not held_out or task.name in held_out

    def named_scores(self, logged: Mapping[str, Tensor], split: str) -> dict[str, dict[str, float]]:
        """Of all that was logged what the last evaluation on `split` gave: prompt -> name of the metric -> value.

        A prompt is called like its file without the suffix.
        """
        prefix = f"{split}/"
        found = {name: float(value) for name, value in logged.items() if name.startswith(prefix)}
        return {"prompt": {name.removeprefix(prefix): value for name, value in found.items()}} if found else {}

    def gather_records(self) -> None:
        """Put the records of all processes together, on each of them."""
        if self.keep_records and self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, self.records)
            self.records = [record for part in parts for record in part]

    def _warn_of_one_class(self, objective: Classification, prefix: str) -> None:
        split, _, name = prefix.partition("/")
        whose = f" behind the prompt {name}" if name else ""
        counts = objective.predicted
        if self.trainer.world_size > 1:
            counts = self.all_gather(counts).sum(dim=0)
        if self.trainer.is_global_zero and not self.trainer.sanity_checking and self.global_step > 0:
            for task, word in objective.only_predictions(counts):
                warnings.warn(
                    f"step {self.global_step}: every {split} example of {task.name}{whose} "
                    f"is predicted {word!r}; if this stays, try another learning rate or more steps",
                    stacklevel=2,
                )
        objective.predicted.zero_()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(batch, "validation")

    def on_validation_epoch_end(self) -> None:
        self.evaluation_end("validation")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        self.evaluation_end("test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """`ids`, `task_ids` [B] and `probabilities` [B, C], or `texts` where the task is to write."""
        output = self.objective.predict(self.current_prompt(), batch)
        if "probabilities" in output:
            self.answered.observe_rows("answer", output["probabilities"].sum(dim=1), batch["ids"])
        self._keep(output)
        return output

    def on_predict_epoch_end(self) -> None:
        self.check_answers("predict")
        self.gather_records()
