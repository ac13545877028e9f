"""Pretraining of the small built-in backbones."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prompt_transfer.pretraining.architectures import ARCHITECTURES
from prompt_transfer.pretraining.evidence import LOSSES, Evidence
from prompt_transfer.pretraining.objectives import READING
from prompt_transfer.pretraining.options import PretrainingOptions
from prompt_transfer.pretraining.start import begin
from prompt_transfer.pretraining.t5 import T5
from prompt_transfer.utils.errors import UserError

MAX_STEP_SECONDS = 30.0


class BackbonePretraining(L.LightningModule):
    """A small language model trained on plain text.

    Encoders (RoBERTa, BERT) learn masked tokens, optionally after a warm-up on the next token; GPT-2 learns the next
    token; T5 v1.1 learns span corruption and prefix language modelling (`t5.T5`). From random weights, a model of this
    size stays at the loss of word frequencies for a long time if trained on masked tokens alone; an informed start or
    the causal warm-up avoids this.

    Args:
        architecture: `roberta`, `bert`, `gpt2` or `t5` (v1.1: gated FFN, untied output layer).
        options: the fields of `PretrainingOptions`.

    Raises:
        UserError: an unknown architecture, or options that it does not support or that contradict each other.
    """

    def __init__(self, architecture: Literal["roberta", "bert", "gpt2", "t5"] = "roberta", **options: Any) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UserError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        self.architecture = ARCHITECTURES[architecture]
        # The command line reads names, types and help of the options from this call.
        self.options = PretrainingOptions(**options)
        self.architecture.check(self.options)
        self.save_hyperparameters({"architecture": architecture, **asdict(self.options)})
        self.model = self.architecture.build(self.options)
        # Discarded in `export`.
        self.evidence = Evidence(self.options.hidden_size, self.options.num_layers) if self.options.evidence else None
        self.seconds = 0.0
        self.tokens_seen = 0
        self.steps_done = 0
        self.last_objective = ""

    def progress(self) -> float:
        """Return the spent share of the budget, 0 to 1."""
        return self.options.progress(self.global_step, self.seconds)

    def objective(self) -> str:
        """Return the objective of the current step."""
        return self.architecture.objective(self.options, self.global_step, self.progress())

    def token_loss(self, batch: dict[str, Tensor], objective: str, states: Tensor | None = None) -> Tensor:
        """Return the mean cross entropy in nats over the predicted tokens; arguments as in `Architecture.loss`."""
        return self.architecture.loss(self.model, batch, objective, states)

    def evidence_losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the decoder's states [B, S, H] on clozes, and the losses of `Evidence` by name."""
        assert self.evidence is not None
        assert isinstance(self.architecture, T5)
        output, encoded = self.architecture.decode(self.model, batch, "cloze")
        first = output.cross_attentions[0][:, :, 0].mean(dim=1)
        losses = self.evidence(encoded, first, batch["cloze_repeated"], batch["cloze_begins"])
        return output.last_hidden_state, dict(zip(LOSSES, losses, strict=True))

    def on_fit_start(self) -> None:
        if self.options.reading and not self.trainer.datamodule.hparams.clozes:
            raise UserError("--model.reading needs questions to answer: give their number with --data.clozes, as 40000")
        # Not `global_step`: Lightning restores it only after this hook.
        if not self.steps_done:
            begin(self.model, self.evidence, self.architecture, self.options, self.trainer.datamodule)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.started = time.monotonic()
        progress = self.progress()
        if progress >= 1.0:
            self.trainer.should_stop = True
        for group in self.optimizers().param_groups:
            group["lr"] = self.options.rate(self.global_step, progress)
        return None

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        objective = self.objective()
        self.architecture.switch(self.model, self.last_objective, objective)
        self.last_objective = objective
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.autocast):
            with_evidence = self.evidence is not None and objective == "cloze"
            states, hints = self.evidence_losses(batch) if with_evidence else (None, {})
            loss = self.token_loss(batch, objective, states)
        # `count_tokens` synchronizes with the device in any case, and a non-finite loss does not recover.
        if not torch.isfinite(loss):
            raise UserError(f"step {self.global_step + 1}: the {objective} loss is NaN or Inf: lower the learning rate")
        self.tokens_seen += self.architecture.count_tokens(batch, objective)
        self.log(f"train/{objective}_loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}_loss": value for name, value in hints.items()})
        return loss + self.options.evidence * sum(hints.values())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # The time of a process suspended within a step does not count.
        self.seconds += min(time.monotonic() - self.started, MAX_STEP_SECONDS)
        self.steps_done += 1
        self.trainer.datamodule.batches_trained += 1

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for objective in (*self.architecture.objectives, *(READING if self.options.reading else ())):
            self.log(f"held_out/{objective}_loss", self.token_loss(batch, objective), prog_bar=True)
        if self.evidence:
            _, hints = self.evidence_losses(batch)
            self.log_dict({f"held_out/{name}_loss": value for name, value in hints.items()})
        self.log_dict({"tokens": float(self.tokens_seen), "minutes": self.seconds / 60, "progress": self.progress()})

    def export(self, folder: str | Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write model (bf16) and tokenizer as a Hugging Face folder; the module's own weights are unchanged."""
        model = copy.deepcopy(self.model).to(torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["budget"] = {"seconds": self.seconds, "tokens_seen": self.tokens_seen, "steps_done": self.steps_done}
        checkpoint["budget"]["last_objective"] = self.last_objective

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, value in checkpoint["budget"].items():
            setattr(self, name, value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        rate, decay = self.options.learning_rate, self.options.weight_decay
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)
