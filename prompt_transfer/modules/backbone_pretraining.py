"""Pretraining of the small built-in backbones."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from prompt_transfer.backbones.loading import quiet_transformers, resolve
from prompt_transfer.data.corpus_batches import IGNORED
from prompt_transfer.errors import UserError
from prompt_transfer.modules.architectures import ARCHITECTURES, Sizes
from prompt_transfer.modules.copying_heads import copying_heads, windows
from prompt_transfer.modules.growth import grow
from prompt_transfer.modules.informed_init import decoder_from_encoder, informed_init

LONGEST_STEP = 30.0  # seconds
# Share of the steps that copy when the first third of the reading is over.
LEAST_COPIES = 0.15
READING = ("copy", "cloze")


class BackbonePretraining(L.LightningModule):
    """A small language model trained from plain text.

    Encoders (RoBERTa, BERT) learn masked tokens, if asked for after a warm-up on the next token with a causal mask;
    GPT-2 learns the next token; T5 v1.1 learns span corruption and prefix language modelling in turns, and prefix
    language modelling alone at the end, since a T5 that has seen sentinels only takes prompts badly (Lester et al.
    2021, "LM adaptation"). Before that its encoder learns by itself, the next token first and masked tokens then: a
    decoder that finds nothing in the encoder yet learns to do without, and the encoder then learns nothing. The decoder
    starts as a copy of the encoder that knows the next token (Rothe et al. 2020).

    Trained on masked tokens alone from random weights, a model of this size stays at the loss of word frequencies for
    a long time. Two ways out: an informed start, or the causal warm-up.

    Args:
        architecture: `roberta`, `bert`, `gpt2` or `t5` (v1.1: gated FFN, output layer of its own).
        hidden_size: H.
        num_layers: L; of T5 in encoder and decoder each.
        num_heads: attention heads.
        intermediate_size: F.
        vocab_size: V.
        max_positions: longest text in positions.
        learning_rate: peak, reached after `warmup_steps`, then falling linearly to `final_share` of it.
        causal_share: share of the budget spent on the next-token objective (encoders, T5's encoder).
        infill_share: share of the budget after that in which T5's encoder fills in masked tokens, in turns with prefix
            language modelling.
        prefix_only_share: share of the budget at its end spent on prefix language modelling alone (T5).
        budget_steps: optimizer steps in all.
        budget_minutes: wall-clock budget; the schedule follows whichever budget is nearer its end.
        informed_start: start from word statistics of the corpus (`informed_init`).
        grow_from: start instead from a smaller RoBERTa, built in or a folder, with the same tokenizer (`growth`).
        start_from: start instead from a model of the same sizes, built in or a folder, with the same tokenizer.
        reading: copy stretches of text and answer clozes most of the time (`data/reading.py`): GPT-2 and T5, which can
            write what they find. Copies come first: whoever cannot copy learns nothing of clozes.
        copies: share of the steps that copy when reading begins; for a start that can copy already, a smaller one.
        plain_text: share of the steps of reading that continue running text. A T5 with a tenth forgets how.
        copying_heads: begin with heads that can copy, set by hand (T5; `modules/copying_heads.py`).
        autocast: matrix products of the training steps in bf16, weights in float32.
    """

    def __init__(
        self,
        architecture: Literal["roberta", "bert", "gpt2", "t5"] = "roberta",
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        intermediate_size: int = 1024,
        vocab_size: int = 8192,
        max_positions: int = 512,
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        final_share: float = 0.02,
        weight_decay: float = 0.05,
        causal_share: float = 0.0,
        infill_share: float = 0.0,
        prefix_only_share: float = 0.34,
        budget_steps: int = 12_000,
        budget_minutes: float | None = None,
        informed_start: bool = True,
        grow_from: str | None = None,
        start_from: str | None = None,
        reading: bool = False,
        copies: float = 0.7,
        plain_text: float = 0.1,
        copying_heads: bool = False,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UserError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        if reading and architecture not in ("gpt2", "t5"):
            raise UserError(f"--model.reading is for gpt2 and t5, which write: {architecture} does not")
        if copying_heads and architecture != "t5":
            raise UserError(f"--model.copying_heads is for t5, whose decoder reads an encoder, not for {architecture}")
        if grow_from and start_from:
            raise UserError("--model.grow_from and --model.start_from are two starts: give one of them")
        self.save_hyperparameters()
        self.architecture = ARCHITECTURES[architecture]
        sizes = Sizes(hidden_size, num_layers, num_heads, intermediate_size, vocab_size, max_positions)
        self.model = self.architecture.build(sizes)
        self.seconds = 0.0
        self.tokens_seen = 0
        self.steps_done = 0
        self.last_objective = ""

    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        shares = [self.global_step / self.hparams.budget_steps]
        if self.hparams.budget_minutes:
            shares.append(self.seconds / 60 / self.hparams.budget_minutes)
        return min(1.0, max(shares))

    def objective(self) -> str:
        """What the step at hand trains on."""
        progress = self.progress()
        if self.hparams.reading:
            # Spread evenly: multiples of the golden ratio.
            turn = self.global_step * 0.6180339887 % 1
            copies = max(LEAST_COPIES, self.hparams.copies - 1.5 * progress)
            if turn >= copies + self.hparams.plain_text:
                return "cloze"
            if turn < copies:
                return "copy"
            return "causal" if self.hparams.architecture == "gpt2" else "prefix"
        if self.hparams.architecture == "t5":
            if progress >= 1 - self.hparams.prefix_only_share:
                return "prefix"
            if progress < self.hparams.causal_share:
                return "causal"
            if progress < self.hparams.causal_share + self.hparams.infill_share:
                return "prefix" if self.global_step % 3 == 2 else "infill"
            return "prefix" if self.global_step % 2 else "span"
        if "masked" in self.architecture.objectives and progress >= self.hparams.causal_share:
            return "masked"
        return "causal"

    def token_loss(self, batch: dict[str, Tensor], objective: str) -> Tensor:
        """Mean cross entropy in nats over the predicted tokens of an objective (see `Architecture`, and `READING`).

        Copies and clozes of GPT-2 count the tokens that are asked for more than the text before them.
        """
        weights = batch.get(f"{objective}_weights")
        if weights is not None:
            return self._weighted_loss(batch, objective, weights)
        if self.hparams.architecture == "t5" and objective in ("infill", "causal"):
            states, labels = self._t5_encoder_states(batch, objective)
        elif objective in ("span", "prefix", *READING):
            states, labels = self._seq2seq_states(batch, objective)
        else:
            states, labels = self._states(batch, objective)
        wanted = labels != IGNORED
        logits = self.model.get_submodule(self.architecture.head)(states[wanted])
        return nn.functional.cross_entropy(logits.float(), labels[wanted])

    def _weighted_loss(self, batch: dict[str, Tensor], objective: str, weights: Tensor) -> Tensor:
        ids, positions, labels = (batch[f"{objective}_{name}"] for name in ("ids", "positions", "labels"))
        states = self.model.get_submodule(self.architecture.body)(ids, position_ids=positions).last_hidden_state
        # Pads stand behind the text, where causal attention keeps them from it.
        labels, weights = labels[:, 1:], weights[:, 1:]
        wanted = labels != IGNORED
        logits = self.model.get_submodule(self.architecture.head)(states[:, :-1][wanted])
        losses = nn.functional.cross_entropy(logits.float(), labels[wanted], reduction="none")
        return (losses * weights[wanted]).sum() / weights[wanted].sum()

    def _states(self, batch: dict[str, Tensor], objective: str) -> tuple[Tensor, Tensor]:
        """States [B, T, H] of the one stack and the labels [B, T] of its positions."""
        mask = batch["attention_mask"]
        if objective == "causal":
            ids, attention = batch["input_ids"], mask
            labels = _next_tokens(ids, mask)
            if "masked" in self.architecture.objectives:
                attention = _below(mask)
        else:
            ids, attention, labels = batch["masked_ids"], mask, batch["labels"]
        body = self.model.get_submodule(self.architecture.body)
        output = body(ids, attention_mask=attention, position_ids=batch["position_ids"])
        return output.last_hidden_state, labels

    def _t5_encoder_states(self, batch: dict[str, Tensor], objective: str) -> tuple[Tensor, Tensor]:
        """States [B, T, H] of T5's encoder by itself and the labels [B, T] of its positions."""
        mask = batch["infill_mask"]
        if objective == "infill":
            ids, attention, labels = batch["infill_ids"], mask, batch["infill_labels"]
        else:
            ids = torch.where(batch["infill_labels"] == IGNORED, batch["infill_ids"], batch["infill_labels"])
            attention, labels = _below(mask), _next_tokens(ids, mask)
        return self.model.encoder(input_ids=ids, attention_mask=attention).last_hidden_state, labels

    def _seq2seq_states(self, batch: dict[str, Tensor], objective: str) -> tuple[Tensor, Tensor]:
        """States [B, S, H] of the decoder and the labels [B, S]."""
        names = {"span": ("input_ids", "attention_mask", "labels"),
                 "prefix": ("prefix_ids", "prefix_mask", "prefix_labels"),
                 **{name: (f"{name}_ids", f"{name}_mask", f"{name}_labels") for name in READING}}  # fmt: skip
        ids, mask, labels = (batch[name] for name in names[objective])
        shifted = self.model.prepare_decoder_input_ids_from_labels(labels)
        encoded = self.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        # Pads stand behind the text of the target, where causal attention keeps them from it.
        output = self.model.decoder(
            input_ids=shifted, encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False
        )
        return output.last_hidden_state, labels

    def on_fit_start(self) -> None:
        # Not `global_step`: Lightning restores that after this hook, so a resumed run would start anew.
        if self.hparams.reading and not self.trainer.datamodule.hparams.clozes:
            raise UserError("--model.reading needs questions to answer: give their number with --data.clozes, as 40000")
        if self.steps_done:
            return
        data = self.trainer.datamodule
        streams = [store["tokens"] for store in data.train_stores]
        if self.hparams.grow_from:
            self._grow(self.hparams.grow_from)
        elif self.hparams.start_from:
            self._start(self.hparams.start_from)
        elif self.hparams.informed_start:
            informed_init(self.model, self.architecture, data.tokens, streams)
        if self.hparams.copying_heads:
            copying_heads(self.model, data.tokens, windows(streams))

    def _grow(self, name: str) -> None:
        small = _read("grow_from", name, AutoModelForMaskedLM)
        try:
            grow(small, self.model)
        except (ValueError, AttributeError) as error:
            raise UserError(f"--model.grow_from {name}: {error}") from error

    def _start(self, name: str) -> None:
        found = _read("start_from", name, type(self.model))
        try:
            self.model.load_state_dict(found.state_dict())
        except RuntimeError as error:
            raise UserError(f"--model.start_from {name} has other sizes or is of another architecture") from error

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.started = time.monotonic()
        progress = self.progress()
        if progress >= 1.0:
            self.trainer.should_stop = True
        warm = min(1.0, (self.global_step + 1) / self.hparams.warmup_steps)
        rate = warm * (1 - (1 - self.hparams.final_share) * progress) * self.hparams.learning_rate
        for group in self.optimizers().param_groups:
            group["lr"] = rate
        return None

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        objective = self.objective()
        if self.hparams.architecture == "t5" and self.last_objective == "causal" and objective != "causal":
            decoder_from_encoder(self.model)
        self.last_objective = objective
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.hparams.autocast):
            loss = self.token_loss(batch, objective)
        # The host waits for the device below in any case, and a loss that is lost here stays lost.
        if not torch.isfinite(loss):
            raise UserError(f"step {self.global_step + 1}: the {objective} loss is NaN or Inf: lower the learning rate")
        mask = batch.get(f"{objective}_mask", batch["attention_mask"])
        seq2seq = self.hparams.architecture == "t5"
        targets = {"span": "labels", "prefix": "prefix_labels"}.get(objective)
        targets = f"{objective}_labels" if seq2seq and objective in READING else targets
        written = int((batch[targets] != IGNORED).sum()) if targets else 0
        self.tokens_seen += int(mask.sum()) + written
        self.log(f"train/{objective}_loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # A process that was suspended within a step has not used its budget.
        self.seconds += min(time.monotonic() - self.started, LONGEST_STEP)
        self.steps_done += 1
        self.trainer.datamodule.batches_trained += 1

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for objective in (*self.architecture.objectives, *(READING if self.hparams.reading else ())):
            self.log(f"held_out/{objective}_loss", self.token_loss(batch, objective), prog_bar=True)
        self.log_dict({"tokens": float(self.tokens_seen), "minutes": self.seconds / 60, "progress": self.progress()})

    def export(self, folder: str | Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write model (bf16) and tokenizer as a Hugging Face folder; the module's own weights stay as they are."""
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
        return torch.optim.AdamW(
            groups, lr=self.hparams.learning_rate, betas=(0.9, 0.98), weight_decay=self.hparams.weight_decay, fused=True
        )


def _read(option: str, name: str, kind: Any) -> PreTrainedModel:
    """The model of a built-in name or folder, in float32; `kind` is its class."""
    source, origin = resolve(name)
    if origin == "hub":
        raise UserError(f"--model.{option} {name} is neither a built-in backbone nor a folder")
    try:
        with quiet_transformers():
            return kind.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    except Exception as error:  # transformers raises many types here; all mean that the model cannot be used
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--model.{option} {name}: the model there cannot be read ({reason})") from error


def _next_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """The token after each position [B, T], `IGNORED` where none follows."""
    labels = torch.where(mask[:, 1:].bool(), ids[:, 1:], IGNORED)
    return nn.functional.pad(labels, (0, 1), value=IGNORED)


def _below(mask: Tensor) -> Tensor:
    """The causal mask [B, 1, T, T] over what `mask` [B, T] has."""
    length = mask.shape[1]
    below = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return below & mask[:, None, None, :].bool()
