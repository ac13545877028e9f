"""Pretraining of the small built-in backbones."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from prompt_transfer.pretraining.architectures import ARCHITECTURES, ModelSizes
from prompt_transfer.pretraining.corpus_batches import IGNORED
from prompt_transfer.pretraining.evidence import Evidence
from prompt_transfer.pretraining.informed_init import decoder_from_encoder
from prompt_transfer.pretraining.start import begin
from prompt_transfer.utils.errors import UserError

LONGEST_STEP = 30.0  # seconds
# Share of the steps that copy when the first third of the reading is over.
LEAST_COPIES = 0.15
READING = ("copy", "cloze")
EVIDENCE = ("repeated", "begins", "looks")


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
        head_size: numbers of an attention head, of T5 alone; null: H over the heads.
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
        start_from: start instead from a model of the same sizes, built in or a folder, with the same tokenizer. A T5
            may have more heads of the same size than that one (`growth.add_heads`).
        reading: copy stretches of text and answer clozes most of the time (`reading.py`): GPT-2 and T5, which can
            write what they find. Copies come first: whoever cannot copy learns nothing of clozes.
        copies: share of the steps that copy when reading begins; for a start that can copy already, a smaller one.
        plain_text: share of the steps of reading that continue running text. A T5 with a tenth forgets how.
        copying_heads: begin with heads that can copy, set by hand (T5; `copying_heads.py`).
        matching_heads: begin with heads that find what a question repeats of its text, in place of the encoder's last
            three (T5, with reading; `matching_heads.py`).
        evidence: weight of three losses of single states beside that of a cloze (T5; `evidence.py`).
        autocast: matrix products of the training steps in bf16, weights in float32.
    """

    def __init__(
        self,
        architecture: Literal["roberta", "bert", "gpt2", "t5"] = "roberta",
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        head_size: int | None = None,
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
        matching_heads: bool = False,
        evidence: float = 0.0,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UserError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        if reading and architecture not in ("gpt2", "t5"):
            raise UserError(f"--model.reading is for gpt2 and t5, which write: {architecture} does not")
        of_t5 = {"copying_heads": copying_heads, "matching_heads": matching_heads, "evidence": evidence}
        for option in (name for name, value in of_t5.items() if value and architecture != "t5"):
            raise UserError(f"--model.{option} is for t5, whose decoder reads an encoder, not for {architecture}")
        if head_size and architecture != "t5":
            raise UserError(f"--model.head_size is for t5: heads of a {architecture} share its hidden size")
        if copying_heads and head_size and head_size * num_heads != hidden_size:
            raise UserError("--model.copying_heads needs heads that are together as wide as the model: see head_size")
        if (matching_heads or evidence) and not reading:
            raise UserError("--model.matching_heads and --model.evidence are for questions: give --model.reading true")
        if matching_heads and (num_layers < 3 or num_heads < 4):
            raise UserError("--model.matching_heads needs three layers and four heads, of which it sets three")
        if grow_from and start_from:
            raise UserError("--model.grow_from and --model.start_from are two starts: give one of them")
        self.save_hyperparameters()
        self.architecture = ARCHITECTURES[architecture]
        sizes = ModelSizes(hidden_size, num_layers, num_heads, intermediate_size, vocab_size, max_positions, head_size)
        self.model = self.architecture.build(sizes)
        # Thrown away when the model is written.
        self.evidence = Evidence(hidden_size, num_layers) if evidence else None
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

    def token_loss(self, batch: dict[str, Tensor], objective: str, written: Tensor | None = None) -> Tensor:
        """Mean cross entropy in nats over the predicted tokens of an objective (see `Architecture`, and `READING`).

        Copies and clozes of GPT-2 count the tokens that are asked for more than the text before them. `written` are the
        states of T5's decoder [B, S, H], where they are known already.
        """
        weights = batch.get(f"{objective}_weights")
        if weights is not None:
            return self._weighted_loss(batch, objective, weights)
        if self.hparams.architecture == "t5" and objective in ("infill", "causal"):
            states, labels = self._t5_encoder_states(batch, objective)
        elif objective in ("span", "prefix", *READING):
            labels = batch[self._names(objective)[2]]
            states = self._decode(batch, objective)[0].last_hidden_state if written is None else written
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
                if self.model.config._attn_implementation == "eager":
                    attention = _added(attention)
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
            attention = _added(_below(mask))
            labels = _next_tokens(ids, mask)
        return self.model.encoder(input_ids=ids, attention_mask=attention).last_hidden_state, labels

    def _names(self, objective: str) -> tuple[str, str, str]:
        """What a batch calls ids and mask of T5's encoder and the labels."""
        before = {"span": "", "prefix": "prefix_"}.get(objective, f"{objective}_")
        return (
            f"{before}ids" if before else "input_ids",
            f"{before}mask" if before else "attention_mask",
            f"{before}labels",
        )

    def _decode(self, batch: dict[str, Tensor], objective: str) -> tuple[Any, tuple[Tensor, ...]]:
        """What T5's decoder gives, with attention, and its encoder's states: what layers read, and what it puts out."""
        ids, mask, labels = (batch[name] for name in self._names(objective))
        encoded = self.model.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        # Pads stand behind the text of the target, where causal attention keeps them from it.
        output = self.model.decoder(
            input_ids=self.model.prepare_decoder_input_ids_from_labels(labels), encoder_hidden_states=encoded[-1],
            encoder_attention_mask=mask, use_cache=False, output_attentions=True,
        )  # fmt: skip
        return output, encoded

    def evidence_losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """States of the decoder [B, S, H] on clozes, and the losses of `Evidence` by name."""
        assert self.evidence is not None
        output, encoded = self._decode(batch, "cloze")
        first = output.cross_attentions[0][:, :, 0].mean(dim=1)
        losses = self.evidence(encoded, first, batch["cloze_repeated"], batch["cloze_begins"])
        return output.last_hidden_state, dict(zip(EVIDENCE, losses, strict=True))

    def on_fit_start(self) -> None:
        # Not `global_step`: Lightning restores that after this hook, so a resumed run would start anew.
        if self.hparams.reading and not self.trainer.datamodule.hparams.clozes:
            raise UserError("--model.reading needs questions to answer: give their number with --data.clozes, as 40000")
        if self.steps_done:
            return
        begin(self.model, self.evidence, self.architecture, self.hparams, self.trainer.datamodule)

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
            told = self.evidence is not None and objective == "cloze"
            states, hints = self.evidence_losses(batch) if told else (None, {})
            loss = self.token_loss(batch, objective, states)
        # The host waits for the device below in any case, and a loss that is lost here stays lost.
        if not torch.isfinite(loss):
            raise UserError(f"step {self.global_step + 1}: the {objective} loss is NaN or Inf: lower the learning rate")
        mask = batch.get(f"{objective}_mask", batch["attention_mask"])
        seq2seq = self.hparams.architecture == "t5"
        writes = seq2seq and objective in ("span", "prefix", *READING)
        written = int((batch[self._names(objective)[2]] != IGNORED).sum()) if writes else 0
        self.tokens_seen += int(mask.sum()) + written
        self.log(f"train/{objective}_loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}_loss": value for name, value in hints.items()})
        return loss + self.hparams.evidence * sum(hints.values())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # A process that was suspended within a step has not used its budget.
        self.seconds += min(time.monotonic() - self.started, LONGEST_STEP)
        self.steps_done += 1
        self.trainer.datamodule.batches_trained += 1

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for objective in (*self.architecture.objectives, *(READING if self.hparams.reading else ())):
            self.log(f"held_out/{objective}_loss", self.token_loss(batch, objective), prog_bar=True)
        if self.evidence:
            _, hints = self.evidence_losses(batch)
            self.log_dict({f"held_out/{name}_loss": value for name, value in hints.items()})
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


def _next_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """The token after each position [B, T], `IGNORED` where none follows."""
    labels = torch.where(mask[:, 1:].bool(), ids[:, 1:], IGNORED)
    return nn.functional.pad(labels, (0, 1), value=IGNORED)


def _below(mask: Tensor) -> Tensor:
    """The causal mask [B, 1, T, T] over what `mask` [B, T] has."""
    length = mask.shape[1]
    below = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return below & mask[:, None, None, :].bool()


def _added(mask: Tensor) -> Tensor:
    """The bool mask as the numbers that eager attention adds to its scores."""
    return torch.where(mask, 0.0, torch.finfo(torch.float32).min)
