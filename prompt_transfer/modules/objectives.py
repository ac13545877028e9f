"""Objectives of training and evaluation: classification by label words, and text generation.

Shape letters: B batch, T text tokens, P prompt tokens, S target tokens, C classes, K tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.label_rows import head_rows, score_rows
from prompt_transfer.backbones.prompt_inputs import PromptBank
from prompt_transfer.data.batches import cross_prompts
from prompt_transfer.modules.choices import ChoiceScoring
from prompt_transfer.modules.objective import SPLITS, Objective, References
from prompt_transfer.tasks.metrics import example_scores
from prompt_transfer.tasks.registry import Task
from prompt_transfer.tasks.verbalizers import Verbalizer, VerbalizerStack, label_sequences, sequence_weights, stack
from prompt_transfer.utils.errors import UserError

__all__ = ["SPLITS", "ChoiceScoring", "Classification", "Generation", "Objective", "References", "make_objective"]


class Classification(Objective):
    """Cross-entropy over the label words: at the answer slot or, with the policy `sequence`, as whole texts."""

    token_ids: Tensor
    word_weights: Tensor
    class_mask: Tensor
    predicted: Tensor
    sequences: Tensor | None
    sequence_weights: Tensor | None
    # Log-probabilities [N, K, C] of the classes on content-free texts (`prior_of`); None: no calibration.
    prior: Tensor | None = None
    # Trained rows of the LM head and where they apply (`use_label_rows`); None: label words.
    _label_rows: tuple[Tensor, Tensor | None] | None = None

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
            weights = sequence_weights(tasks)
            self.register_buffer("sequence_weights", weights, persistent=False)
            class_mask = class_mask if weights is None else (weights > 0).any(dim=2)
        else:
            spaced = backbone.encoder(1).is_spaced
            self.verbalizers = [
                Verbalizer.for_task(task, backbone.tokenizer, backbone.family.name, spaced(task.format))
                for task in tasks
            ]
            stacked = stack(self.verbalizers)
            self.sequences, class_mask = None, stacked.class_mask
            self.register_buffer("token_ids", stacked.token_ids, persistent=False)
            self.register_buffer("word_weights", stacked.weights, persistent=False)
        self.register_buffer("class_mask", class_mask, persistent=False)
        self.register_buffer("predicted", torch.zeros_like(class_mask, dtype=torch.long), persistent=False)

    def logits(self, prompt: Tensor | PromptBank, batch: dict[str, Tensor]) -> Tensor:
        """Return class logits [B, C], C the most classes of any task; -inf beyond a task's classes.

        With a `prior` they are calibrated: its log-probabilities are subtracted, which divides the probabilities by it.
        """
        if self.sequences is None:
            return self._class_logits(prompt, batch, [batch["task_ids"]])[0]
        targets = self.sequences[batch["task_ids"]]
        size, words, length = targets.shape
        repeated = {"target_ids": targets.reshape(size * words, length)}
        for name in ("input_ids", "attention_mask", "prompt_ids", "text_ids"):
            if name in batch:
                # With `text_ids` the texts are shared, not one per example.
                once = "text_ids" in batch and name in ("input_ids", "attention_mask")
                repeated[name] = batch[name] if once else batch[name].repeat_interleave(words, dim=0)
        found = self.backbone.target_log_probs(prompt, repeated).sum(dim=1).view(size, words)
        if self.sequence_weights is not None:
            found = (found.unsqueeze(1) * self.sequence_weights[batch["task_ids"]]).sum(dim=2)
        found = found.masked_fill(~self.class_mask[batch["task_ids"]], float("-inf"))
        return self._calibrated(found, batch, batch["task_ids"])

    def _calibrated(self, logits: Tensor, batch: dict[str, Tensor], tasks: Tensor) -> Tensor:
        if self.prior is None:
            return logits
        prompts = batch["prompt_ids"] if "prompt_ids" in batch else torch.zeros_like(tasks)
        return logits - self.prior[prompts, tasks]

    @torch.no_grad()
    def prior_of(self, prompt: Tensor | PromptBank, free: dict[str, Tensor]) -> Tensor:
        """Return the log of the mean class probabilities on content-free texts [N, K, C], one row per prompt.

        Contextual calibration (Zhao et al. 2021) divides by these probabilities.

        Args:
            prompt: [P, H], [N, P, H] or a bank of N prompts.
            free: a batch of content-free texts of every task.
        """
        self.prior = None
        # [N, P, H] or, of deep prompts, [N, L, 2, P, kv_heads, head_dim].
        several = isinstance(prompt, PromptBank) or prompt.ndim in (3, 6)
        count = len(prompt) if several else 1
        batch = cross_prompts(free, torch.arange(count, device=free["ids"].device))
        logs = self.logits(prompt, batch).log_softmax(dim=1).view(count, len(free["ids"]), -1)
        parts = [logs[:, free["task_ids"] == index] for index in range(len(self.tasks))]
        means = [part.logsumexp(dim=1) - math.log(part.shape[1]) for part in parts]
        return torch.stack(means, dim=1).masked_fill(~self.class_mask, 0.0)

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
        stacked = VerbalizerStack(self.token_ids, self.word_weights, self.class_mask)
        if self._label_rows is None:
            words = self.backbone(prompt, batch, self.token_ids)
            return [self._calibrated(stacked.class_logits(words, task), batch, task) for task in tasks]
        states = self.backbone.answer_states(prompt, batch)
        words = self.backbone.score(states, self.token_ids)
        found = [self._with_label_rows(stacked.class_logits(words, task), states, batch, task) for task in tasks]
        return [self._calibrated(logits, batch, task) for logits, task in zip(found, tasks, strict=True)]

    def use_label_rows(self, rows: Tensor | None, known: Tensor | None = None) -> None:
        """Score classes by trained rows of the LM head instead of the label words.

        Args:
            rows: [N, K, C, H'], one entry per prompt, or a parameter [K, C, H'] of the only prompt; None: use the label
                words.
            known: [N, K], where the rows apply; None: everywhere.
        """
        # In a tuple: a parameter belongs to the LightningModule.
        self._label_rows = None if rows is None else (rows, known)

    def _with_label_rows(self, logits: Tensor, states: Tensor, batch: dict[str, Tensor], tasks: Tensor) -> Tensor:
        assert self._label_rows is not None
        rows, known = self._label_rows
        rows = (rows if rows.ndim == 4 else rows.unsqueeze(0)).to(states.device)
        bias = self.word_weights @ head_rows(self.backbone, self.token_ids)[1]
        prompts = batch["prompt_ids"] if "prompt_ids" in batch else torch.zeros_like(tasks)
        found = score_rows(self.backbone, states, rows[prompts, tasks], bias[tasks])
        if known is not None:
            found = torch.where(known.to(states.device)[prompts, tasks].unsqueeze(1), found, logits)
        return found.masked_fill(~self.class_mask[tasks], float("-inf"))

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
                groups = {"groups": batch["groups"][rows]} if "groups" in batch else {}
                metrics.update(predictions[rows], batch["labels"][rows], **groups)
        counted = (batch["task_ids"], predictions)
        self.predicted.index_put_(counted, torch.ones_like(predictions), accumulate=True)
        losses = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        self.mean_loss.update(losses)
        kept = ("ids", "task_ids", "labels", *(["groups"] if "groups" in batch else []))
        record = {**{name: batch[name] for name in kept}, "predictions": predictions}
        return losses, {**record, "probabilities": logits.float().softmax(dim=1)} if keep else record

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
    forms = {(task.is_generation, task.is_choice) for task in tasks}
    if len(forms) > 1:
        raise UserError(
            "classification, multiple-choice and generation tasks cannot be mixed in one run: train them separately"
        )
    if tasks[0].is_choice:
        return ChoiceScoring(backbone, tasks)
    return Generation(backbone, tasks, num_beams) if tasks[0].is_generation else Classification(backbone, tasks)
