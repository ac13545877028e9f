"""Objectives of training and evaluation: classification by label words, and text generation.

Shape letters: B batch, T text tokens, P prompt tokens, S target tokens, C classes, K tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.prompt_inputs import PromptBank
from prompt_transfer.tasks.metrics import example_scores, make_metrics
from prompt_transfer.tasks.registry import Task
from prompt_transfer.tasks.verbalizers import Verbalizer, VerbalizerStack, label_sequences, stack
from prompt_transfer.utils.errors import UserError

SPLITS = ("validation", "test")
# (split, ids [B]) -> the reference texts of each example.
References = Callable[[str, Tensor], list[list[str]]]


class Objective(nn.Module):
    """Loss, predictions and metrics of the tasks of a run, all of one kind.

    Args:
        backbone: the frozen backbone.
        tasks: of the run; their order gives the task numbers.
    """

    def __init__(self, backbone: FrozenBackbone, tasks: list[Task]) -> None:
        super().__init__()
        self.tasks = tasks
        # Not a submodule: the LightningModule owns the backbone.
        self._backbone = [backbone]
        self.metrics = nn.ModuleDict({split: nn.ModuleList([make_metrics(task) for task in tasks]) for split in SPLITS})
        # Lightning's own mean would floor the number of examples per process.
        # NaNs are reported elsewhere; checking here would synchronize the device.
        self.mean_loss = MeanMetric(nan_strategy="disable")

    @property
    def backbone(self) -> FrozenBackbone:
        """The frozen backbone."""
        return self._backbone[0]

    def losses(self, prompt: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of each example [B] in nats."""
        raise NotImplementedError

    def predict(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Return predictions for a batch: `ids`, `task_ids` [B], and the outputs of the kind of task."""
        raise NotImplementedError

    def outputs(self, prompt: Tensor, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Return the backbone's outputs for an evaluation: tensors [B, ...] or lists, one entry per example."""
        raise NotImplementedError

    def count(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], split: str, references: References, keep: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """Update the metrics of `split`; return the losses [B] and a record of the examples, complete with `keep`."""
        raise NotImplementedError

    def evaluate(
        self, prompt: Tensor, batch: dict[str, Tensor], split: str, references: References, keep: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run the backbone with `prompt`, and `count` its outputs."""
        return self.count(self.outputs(prompt, batch), batch, split, references, keep)

    def task_metrics(self, split: str) -> list[MetricCollection]:
        """Return the metrics of every task on `validation` or `test`."""
        return [cast("MetricCollection", metrics) for metrics in cast("nn.ModuleList", self.metrics[split])]

    def compute(self, split: str) -> list[dict[str, Tensor]]:
        """Return every task's metrics since the last call, and reset them."""
        found = []
        for metrics in self.task_metrics(split):
            found.append(metrics.compute())
            metrics.reset()
        return found


class Classification(Objective):
    """Cross-entropy over the label words: at the answer slot or, with the policy `sequence`, as whole texts."""

    token_ids: Tensor
    word_weights: Tensor
    class_mask: Tensor
    predicted: Tensor
    sequences: Tensor | None

    def __init__(self, backbone: FrozenBackbone, tasks: list[Task]) -> None:
        super().__init__(backbone, tasks)
        in_sequence = {task.label_words_policy == "sequence" for task in tasks}
        if len(in_sequence) > 1:
            raise UserError(
                "tasks with label_words_policy sequence and others cannot be mixed in one run: give all of them "
                "one policy with --model.label_words_policy"
            )
        if in_sequence == {True}:
            if not backbone.writes:
                raise UserError(
                    f"label_words_policy sequence needs a backbone that generates text (built in: gpt2-nano, t5-nano), "
                    f"but {backbone.id} predicts one word: use label words of one token, or the policy first or mean"
                )
            sequences, class_mask = label_sequences(tasks, backbone.encoder(1))
            self.register_buffer("sequences", sequences, persistent=False)
        else:
            self.verbalizers = [Verbalizer.for_task(task, backbone.tokenizer, backbone.family.name) for task in tasks]
            stacked = stack(self.verbalizers)
            self.sequences, class_mask = None, stacked.class_mask
            self.register_buffer("token_ids", stacked.token_ids, persistent=False)
            self.register_buffer("word_weights", stacked.weights, persistent=False)
        self.register_buffer("class_mask", class_mask, persistent=False)
        self.register_buffer("predicted", torch.zeros_like(class_mask, dtype=torch.long), persistent=False)

    def logits(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> Tensor:
        """Return class logits [B, C], C the most classes of any task; -inf beyond a task's classes."""
        if self.sequences is None:
            return self._class_logits(prompt, batch, [batch["task_ids"]])[0]
        targets = self.sequences[batch["task_ids"]]
        size, classes, length = targets.shape
        repeated = {"target_ids": targets.reshape(size * classes, length)}
        for name in ("input_ids", "attention_mask", "prompt_ids", "text_ids"):
            if name in batch:
                # With `text_ids` the texts are shared, not one per example.
                once = "text_ids" in batch and name in ("input_ids", "attention_mask")
                repeated[name] = batch[name] if once else batch[name].repeat_interleave(classes, dim=0)
        found = self.backbone.target_log_probs(prompt, repeated).sum(dim=1).view(size, classes)
        return found.masked_fill(~self.class_mask[batch["task_ids"]], float("-inf"))

    def logits_of_tasks(
        self, prompt: Tensor | PromptBank, batch: dict[str, Tensor], asked: Sequence[int]
    ) -> list[Tensor]:
        """Return `logits` for each task in `asked`, as if all examples were of it; label words share a forward pass."""
        tasks = [torch.full_like(batch["task_ids"], task) for task in asked]
        if self.sequences is not None:
            return [self.logits(prompt, {**batch, "task_ids": task}) for task in tasks]
        return self._class_logits(prompt, batch, tasks)

    def _class_logits(
        self, prompt: Tensor | PromptBank, batch: dict[str, Tensor], tasks: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return logits [B, C] at the answer slot for each of the task indices [B]."""
        words = self.backbone(prompt, batch, self.token_ids)
        stacked = VerbalizerStack(self.token_ids, self.word_weights, self.class_mask)
        return [stacked.class_logits(words, task) for task in tasks]

    def losses(self, prompt: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.logits(prompt, batch), batch["labels"], reduction="none")

    def predict(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Return `ids`, `task_ids` [B] and `probabilities` [B, C]."""
        probabilities = self.logits(prompt, batch).softmax(dim=1)
        return {"ids": batch["ids"], "task_ids": batch["task_ids"], "probabilities": probabilities}

    def choices(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> Tensor:
        """Return the predicted class of each example [B]; -1 if a logit is NaN or +Inf (invalid argmax)."""
        logits = self.logits(prompt, batch)
        return logits.argmax(dim=1).masked_fill((logits.isnan() | logits.isposinf()).any(dim=1), -1)

    def outputs(self, prompt: Tensor, batch: dict[str, Tensor]) -> dict[str, Any]:
        return {"logits": self.logits(prompt, batch)}

    def count(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], split: str, references: References, keep: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        logits = outputs["logits"]
        predictions = logits.argmax(dim=1)
        for index, metrics in enumerate(self.task_metrics(split)):
            rows = batch["task_ids"] == index
            if rows.any():  # torchmetrics rejects empty updates
                metrics.update(predictions[rows], batch["labels"][rows])
        counted = (batch["task_ids"], predictions)
        self.predicted.index_put_(counted, torch.ones_like(predictions), accumulate=True)
        losses = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        self.mean_loss.update(losses)
        return losses, {**{name: batch[name] for name in ("ids", "task_ids", "labels")}, "predictions": predictions}

    def only_predictions(self, counts: Tensor) -> list[tuple[Task, str]]:
        """Return the tasks with a single predicted class and its label word; `counts` [K, C] covers all processes."""
        return [
            (task, task.label_words[int(row.argmax())])
            for task, row in zip(self.tasks, counts, strict=True)
            if int((row > 0).sum()) == 1
        ]


class Generation(Objective):
    """Mean cross-entropy over the tokens of the target text; scored on generated text.

    Args:
        num_beams: 1 is greedy decoding.
    """

    def __init__(self, backbone: FrozenBackbone, tasks: list[Task], num_beams: int = 1) -> None:
        super().__init__(backbone, tasks)
        self.num_beams = num_beams
        if not backbone.writes:
            raise UserError(
                f"{tasks[0].name} needs generated text, but {backbone.id} predicts one word: use a causal or "
                "sequence-to-sequence backbone (gpt2-nano and t5-nano are built in)"
            )

    def losses(self, prompt: Tensor, batch: dict[str, Tensor]) -> Tensor:
        found = self.backbone.target_log_probs(prompt, batch)
        return -found.sum(dim=1) / (batch["target_ids"] >= 0).sum(dim=1).clamp_min(1)

    def _write(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> list[str]:
        longest = max(task.max_target_length for task in self.tasks)
        written = self.backbone.generate(prompt, batch, max_new_tokens=longest, num_beams=self.num_beams)
        return self.backbone.decode(written)

    def predict(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Return `ids`, `task_ids` [B] and `texts`, a list of B."""
        return {"ids": batch["ids"], "task_ids": batch["task_ids"], "texts": self._write(prompt, batch)}

    def outputs(self, prompt: Tensor, batch: dict[str, Tensor]) -> dict[str, Any]:
        return {"texts": self._write(prompt, batch), "losses": self.losses(prompt, batch)}

    def count(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], split: str, references: References, keep: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        texts, right = outputs["texts"], references(split, batch["ids"])
        scores = torch.zeros(len(texts), max(len(task.metrics) for task in self.tasks))
        for index, (task, metrics) in enumerate(zip(self.tasks, self.task_metrics(split), strict=True)):
            rows = (batch["task_ids"] == index).nonzero().flatten().tolist()
            if rows:
                answers = [texts[row] for row in rows], [right[row] for row in rows]
                metrics.update(*answers)
                found = example_scores(task, *answers).values() if keep else ()
                for column, values in enumerate(found):
                    scores[rows, column] = torch.from_numpy(values).float()
        self.mean_loss.update(outputs["losses"])
        return outputs["losses"], {
            "ids": batch["ids"],
            "task_ids": batch["task_ids"],
            "scores": scores,
            "texts": texts,
        }


def make_objective(backbone: FrozenBackbone, tasks: list[Task], num_beams: int = 1) -> Objective:
    """Return the objective of `tasks`.

    Raises:
        UserError: tasks of both kinds, or a backbone without the ability that they need.
    """
    kinds = {task.is_generation for task in tasks}
    if len(kinds) > 1:
        raise UserError("classification and generation tasks cannot be mixed in one run: train them separately")
    return Generation(backbone, tasks, num_beams) if kinds == {True} else Classification(backbone, tasks)
