"""PromptTuning: the LightningModule that trains a soft prompt in front of a frozen backbone."""

from __future__ import annotations

import json
import warnings
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import get_scheduler

from prompt_transfer.backbones.encoder import TextEncoder
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.errors import UserError
from prompt_transfer.metrics import make_metrics
from prompt_transfer.prompts.initializers import FromPrompt, Initializer, Vocabulary
from prompt_transfer.prompts.prompt import Prompt, library_versions
from prompt_transfer.prompts.reparameterizations import Plain, Reparameterization
from prompt_transfer.tasks import Task
from prompt_transfer.verbalizers import Verbalizer, VerbalizerStack, stack

# Those of transformers that need nothing but their length.
SCHEDULES = ("linear", "constant", "constant_with_warmup", "cosine", "polynomial", "inverse_sqrt")


class PromptTuning(L.LightningModule):
    """Trains `prompt_length` x H numbers; the backbone stays bit-equal.

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a hub id.
        prompt_length: P, rows of the prompt.
        layout: `prefix` (prompt, answer slot, text) or `mask_first` (release 1.0 of Su et al.).
        attention: `full` (the prompt sees the text) or `shared` (it sees only itself; faster).
        init: how the prompt starts; default: embeddings of random vocabulary tokens.
        reparameterization: what is trained in place of the prompt itself; folded into a plain prompt on export.
        optimizer: default AdamW without weight decay.
        learning_rate: of the default optimizer; default: that of the backbone's family.
        schedule: name of a transformers schedule (`linear`, `constant_with_warmup`, `cosine`, ...) over all steps.
        warmup_steps: optimizer steps of that schedule's warm-up.
        scheduler: a scheduler of your own, stepped every optimizer step, in place of `schedule`.
        dtype: of the backbone's weights (`float32`, `bfloat16`, `float16`); prompt and optimizer are float32 always.
        head: `lm`, or `embedding` for checkpoints without an LM head.
        backbone_dropout: use the backbone's dropout in training.
        revision: of a hub repository.
        trust_remote_code: run model code that comes with a checkpoint.
    """

    def __init__(
        self,
        backbone: str = "roberta-nano",
        prompt_length: int = 20,
        layout: str = "prefix",
        attention: str = "full",
        init: Initializer | None = None,
        reparameterization: Reparameterization | None = None,
        optimizer: OptimizerCallable | None = None,
        learning_rate: float | None = None,
        schedule: str = "linear",
        warmup_steps: int = 0,
        scheduler: LRSchedulerCallable | None = None,
        dtype: str = "float32",
        head: str = "lm",
        backbone_dropout: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if prompt_length < 1:
            raise UserError(f"prompt_length is {prompt_length}: a prompt needs at least one token")
        if optimizer is not None and learning_rate is not None:
            raise UserError("learning_rate is that of the default optimizer: with --model.optimizer give its own lr")
        if learning_rate is not None and not learning_rate > 0:
            raise UserError(f"learning_rate is {learning_rate}: give a number above 0 (null: the family's default)")
        if warmup_steps < 0:
            raise UserError(f"warmup_steps is {warmup_steps}: give 0 or more")
        if schedule not in SCHEDULES:
            raise UserError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
        self.init = init or Vocabulary()
        self.reparameterization = reparameterization or Plain()
        self._optimizer, self._scheduler = optimizer, scheduler
        self.backbone = FrozenBackbone(
            backbone,
            layout=layout,
            attention=attention,
            dtype=dtype,
            head=head,
            dropout=backbone_dropout,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        # Plain types only: Lightning loads checkpoints with weights_only.
        self.save_hyperparameters(
            {
                "backbone": backbone,
                "prompt_length": prompt_length,
                "layout": layout,
                "attention": attention,
                "init": self.init.describe(),
                "reparameterization": self.reparameterization.describe(),
                "learning_rate": learning_rate or self.backbone.family.learning_rate,
                "schedule": schedule,
                "warmup_steps": warmup_steps,
                "dtype": dtype,
                "head": head,
                "backbone_dropout": backbone_dropout,
                "revision": revision,
            }
        )
        self.prompt_length = prompt_length
        self.tasks: list[Task] = []
        # Set by those who want every prediction of an evaluation, not only its metrics.
        self.keep_records = False
        self.records: list[dict[str, Tensor]] = []
        # Only what is trained is saved (`state_dict`), so the backbone is missing from every checkpoint.
        self.strict_loading = False

    # Set-up ----------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> TextEncoder:
        """What the datamodule tokenises with."""
        return self.backbone.encoder(self.prompt_length)

    def setup(self, stage: str) -> None:
        """Learn the tasks of the datamodule and make the initial prompt."""
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise UserError(
                f"--trainer.precision {self.trainer.precision} would cast the prompt and its optimizer too; "
                "use --model.dtype bfloat16 for the backbone's weights"
            )
        self.connect(self.trainer.datamodule.tasks)
        if not self.reparameterization.is_built:
            # Its own generator: the start of a prompt depends on the seed alone, not on what was drawn before.
            seed = int(torch.initial_seed() % 2**63)
            generator = torch.Generator().manual_seed(seed)
            words = [word for task in self.tasks for word in task.label_words]
            shape = (self.prompt_length, self.backbone.hidden_size)
            self.build(self.init(self.backbone, shape, generator, words), generator)

    def connect(self, tasks: list[Task]) -> None:
        """Build verbalizers and metrics for `tasks`."""
        if tasks == self.tasks:
            return
        self.tasks = tasks
        self.verbalizers = [
            Verbalizer.for_task(task, self.backbone.tokenizer, self.backbone.family.name) for task in tasks
        ]
        stacked = stack(self.verbalizers)
        self.register_buffer("token_ids", stacked.token_ids, persistent=False)
        self.register_buffer("word_weights", stacked.weights, persistent=False)
        self.register_buffer("class_mask", stacked.class_mask, persistent=False)
        self.register_buffer("predicted", torch.zeros_like(stacked.class_mask, dtype=torch.long), persistent=False)
        self.metrics: nn.ModuleDict = nn.ModuleDict(
            {split: nn.ModuleList([make_metrics(task) for task in tasks]) for split in ("validation", "test")}
        )

    def build(self, initial: Tensor, generator: torch.Generator | None = None) -> None:
        """Start from the prompt `initial` [P, H]."""
        self.prompt_length = initial.shape[0]
        self.register_buffer("initial_prompt", initial.detach().clone().float(), persistent=True)
        self.reparameterization.build(initial.float(), self.backbone, generator or torch.Generator().manual_seed(0))
        self.reparameterization.to(self.device)

    # The forward pass ------------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Tensor], prompt: Tensor | None = None) -> Tensor:
        """Class logits [B, C] at the answer slot, C the most classes of any task; -inf where a task has fewer.

        Args:
            batch: see `prompt_transfer.data.batches`.
            prompt: [P, H] in place of the module's own.
        """
        prompt = self.reparameterization() if prompt is None else prompt
        words = self.backbone(prompt, batch, self.token_ids)
        return VerbalizerStack(self.token_ids, self.word_weights, self.class_mask).class_logits(
            words, batch["task_ids"]
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean cross entropy over the examples of all ranks; micro-batches only save memory."""
        parameters = [p for p in self.reparameterization.parameters() if p.requires_grad]
        count = batch["global_count"] / self.trainer.world_size
        *early, last = batch["micro_batches"]
        gradients = [torch.zeros_like(p) for p in parameters]
        total = torch.zeros((), device=self.device)
        for micro in early:
            loss = nn.functional.cross_entropy(self(micro), micro["labels"], reduction="sum") / count
            for sum_, gradient in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
                sum_ += gradient
            total += loss.detach()
        loss = nn.functional.cross_entropy(self(last), last["labels"], reduction="sum") / count
        total += loss.detach()
        if early:
            # A term of value zero whose gradient is that of the micro-batches whose graphs are gone already.
            carried = torch.stack([(g * p).sum() for g, p in zip(gradients, parameters, strict=True)]).sum()
            loss = loss + carried - carried.detach()
        self.trainer.datamodule.batch_done(batch["position"])
        self.log("train/loss", total, prog_bar=True, batch_size=batch["global_count"], sync_dist=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norms that tell why a prompt does not train."""
        # The loggers write when the number of the step that now ends is a multiple.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps:
            return
        gradients = [p.grad.norm() for p in self.reparameterization.parameters() if p.grad is not None]
        with torch.no_grad():
            prompt = self.reparameterization()
            self.log_dict(
                {
                    "train/gradient_norm": torch.stack(gradients).norm(),
                    "train/prompt_norm": prompt.norm(dim=1).mean(),
                    "train/distance_from_initial": (prompt - self.initial_prompt).norm(),
                }
            )

    def task_metrics(self, split: str) -> list[MetricCollection]:
        """The metrics of every task on `validation` or `test`."""
        return [cast("MetricCollection", metrics) for metrics in cast("nn.ModuleList", self.metrics[split])]

    def evaluation_step(self, batch: dict[str, Tensor], split: str) -> None:
        """Feed the metrics of `split`."""
        logits = self(batch)
        predictions = logits.argmax(dim=1)
        loss = nn.functional.cross_entropy(logits, batch["labels"])
        size = len(batch["labels"])
        self.log(f"{split}/loss", loss, on_epoch=True, batch_size=size, sync_dist=True, add_dataloader_idx=False)
        for index in range(len(self.tasks)):
            rows = batch["task_ids"] == index
            if rows.any():  # torchmetrics' accuracy refuses an empty update
                self.task_metrics(split)[index].update(predictions[rows], batch["labels"][rows])
        counted = (batch["task_ids"], predictions)
        self.predicted.index_put_(counted, torch.ones_like(predictions), accumulate=True)
        if self.keep_records:
            names = ("ids", "task_ids", "labels")
            self.records.append({**{name: batch[name].cpu() for name in names}, "predictions": predictions.cpu()})

    def evaluation_end(self, split: str) -> None:
        """Log every task's metrics and `<split>/score`, the mean of those that select."""
        scores = []
        for task, metrics in zip(self.tasks, self.task_metrics(split), strict=True):
            values = metrics.compute()
            metrics.reset()
            prefix = split if len(self.tasks) == 1 else f"{split}/{task.name}"
            self.log_dict({f"{prefix}/{name}": value for name, value in values.items()}, prog_bar=len(self.tasks) == 1)
            scores.append(values[task.metric])
        self.log(f"{split}/score", torch.stack([score.float() for score in scores]).mean())
        self._warn_of_one_class(split)
        self.gather_records()

    def gather_records(self) -> None:
        """Put the records of all processes together, on each of them."""
        if self.keep_records and self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, self.records)
            self.records = [record for part in parts for record in part]

    def _warn_of_one_class(self, split: str) -> None:
        counts = self.predicted
        if self.trainer.world_size > 1:
            counts = self.all_gather(counts).sum(dim=0)
        for task, row in zip(self.tasks, counts, strict=True):
            alone = self.trainer.is_global_zero and not self.trainer.sanity_checking and self.global_step > 0
            if not alone or int((row > 0).sum()) != 1:
                continue
            word = task.label_words[int(row.argmax())]
            warnings.warn(
                f"step {self.global_step}: every {split} example of {task.name} is predicted {word!r}; "
                "if this stays, try another learning rate or more steps",
                stacklevel=2,
            )
        self.predicted.zero_()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(batch, "validation")

    def on_validation_epoch_end(self) -> None:
        self.evaluation_end("validation")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        self.evaluation_end("test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """`ids` [B], `task_ids` [B] and `probabilities` [B, C]."""
        output = {"ids": batch["ids"], "task_ids": batch["task_ids"], "probabilities": self(batch).softmax(dim=1)}
        if self.keep_records:
            self.records.append({name: tensor.cpu() for name, tensor in output.items()})
        return output

    def on_predict_epoch_end(self) -> None:
        self.gather_records()

    # Optimizer -------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        parameters = [p for p in self.reparameterization.parameters() if p.requires_grad]
        if self._optimizer is None:
            # Weight decay would pull a prompt to zero, where no word embedding is; release 1.0 has none either.
            optimizer = torch.optim.AdamW(parameters, lr=self.hparams.learning_rate, weight_decay=0.0)
        else:
            optimizer = self._optimizer(parameters)
        if self._scheduler is not None:
            scheduler = self._scheduler(optimizer)
        else:
            steps = self.trainer.estimated_stepping_batches
            if steps == float("inf"):
                raise UserError("give --trainer.max_steps or --trainer.max_epochs: the schedule must know its length")
            scheduler = get_scheduler(self.hparams.schedule, optimizer, self.hparams.warmup_steps, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Files -----------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Everything but the backbone."""
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if not key.startswith("backbone.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state_all()
        checkpoint["fingerprint"] = self.backbone.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("fingerprint") != self.backbone.fingerprint:
            raise UserError(
                f"this checkpoint was trained on {checkpoint['hyper_parameters'].get('backbone')}, "
                f"another backbone than {self.backbone.id}"
            )
        state = checkpoint["state_dict"]
        if not self.reparameterization.is_built:
            self.build(state["initial_prompt"])
        expected = {name: tensor.shape for name, tensor in self.state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        if expected != found:
            other = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            raise UserError(
                f"this checkpoint does not fit the options given with it ({', '.join(other)} differ): go on with the "
                "prompt length and reparameterization that it was trained with, or start anew with --overwrite"
            )
        torch.set_rng_state(checkpoint["rng"].cpu())
        if torch.cuda.is_available() and checkpoint.get("cuda_rng"):
            torch.cuda.set_rng_state_all([state.cpu() for state in checkpoint["cuda_rng"]])

    def prompt(self) -> Prompt:
        """The prompt as it is now, folded, with the metadata that the module knows."""
        tasks = self.tasks
        metadata = {
            "backbone": self.backbone.id,
            "fingerprint": self.backbone.fingerprint,
            "family": self.backbone.family.name,
            "layout": self.backbone.layout.name,
            "attention": self.backbone.attention,
            "dtype": self.backbone.dtype_name,
            "head": self.backbone.head,
            "task": ",".join(task.name for task in tasks),
            "label_words": json.dumps({task.name: list(task.label_words) for task in tasks}),
            "init": self.init.describe(),
            "reparameterization": self.reparameterization.describe(),
            "revision": self.backbone.revision or "",
            "versions": library_versions(),
        }
        if isinstance(self.init, FromPrompt):
            metadata["source_prompt"] = ",".join(self.init.prompt)
        folded = self.reparameterization.fold().float().cpu()
        return Prompt(folded, metadata, self.initial_prompt.float().cpu())
