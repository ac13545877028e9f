"""The options of `BackbonePretraining`, one dataclass per group; on the command line they are flat: `--model.NAME`."""

from __future__ import annotations

from dataclasses import dataclass

from prompt_transfer.utils.errors import UserError

# Share of the steps that copy once the first third of the budget is over.
MIN_COPIES = 0.15
# Fractional parts of multiples of the golden ratio spread objectives evenly over the steps.
GOLDEN_RATIO = 0.6180339887


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of a model.

    Args:
        hidden_size: H.
        num_layers: L; of a T5 in encoder and decoder each.
        num_heads: attention heads.
        head_size: width of an attention head, for T5 only; null: H divided by the heads.
        intermediate_size: F.
        vocab_size: V.
        max_positions: longest text in positions.
    """

    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    head_size: int | None = None
    intermediate_size: int = 1024
    vocab_size: int = 8192
    max_positions: int = 512


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate and budget.

    Args:
        learning_rate: peak, reached after `warmup_steps`, then falling linearly to `final_share` of it.
        warmup_steps: steps of the linear warm-up.
        final_share: final learning rate as a share of the peak.
        weight_decay: weight decay of matrices.
        budget_steps: optimizer steps.
        budget_minutes: wall-clock budget; the schedule follows whichever budget is nearer its end. null: none.
        autocast: run the matrix products of training steps in bf16; weights stay in float32.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_share: float = 0.02
    weight_decay: float = 0.05
    budget_steps: int = 12_000
    budget_minutes: float | None = None
    autocast: bool = False

    def progress(self, step: int, seconds: float) -> float:
        """Return the spent share of the budget, 0 to 1."""
        shares = [step / self.budget_steps]
        if self.budget_minutes:
            shares.append(seconds / 60 / self.budget_minutes)
        return min(1.0, max(shares))

    def rate(self, step: int, progress: float) -> float:
        """Return the learning rate of a step."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return warm * (1 - (1 - self.final_share) * progress) * self.learning_rate


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """Shares of the objectives.

    Args:
        causal_share: share of the budget spent on next-token prediction first (encoders, and the encoder of a T5).
        infill_share: share of the budget after that in which a T5's encoder fills in masked tokens, alternating with
            prefix language modelling.
        prefix_only_share: share of the budget at its end spent on prefix language modelling alone (T5).
        reading: mostly copy stretches of text and answer clozes (`reading.py`), for the generative GPT-2 and T5. Copies
            come first: a model that cannot copy learns nothing from clozes.
        copies: share of the steps that copy at the start of reading; use less for a start that can copy already.
        plain_text: share of the reading steps that continue running text. With a tenth, a T5 forgets how to.
        evidence: weight of three auxiliary losses relative to the cloze loss (T5; `evidence.py`).
    """

    causal_share: float = 0.0
    infill_share: float = 0.0
    prefix_only_share: float = 0.34
    reading: bool = False
    copies: float = 0.7
    plain_text: float = 0.1
    evidence: float = 0.0

    def reading_objective(self, step: int, progress: float, plain: str) -> str:
        """Return `copy`, `cloze`, or `plain` (the objective of running text) for a step of reading."""
        turn = step * GOLDEN_RATIO % 1
        copies = max(MIN_COPIES, self.copies - 1.5 * progress)
        if turn >= copies + self.plain_text:
            return "cloze"
        return "copy" if turn < copies else plain


@dataclass(frozen=True, kw_only=True)
class Start:
    """Initial weights.

    Args:
        informed_start: start from word statistics of the corpus (`informed_init.py`).
        grow_from: start instead from a smaller RoBERTa, built-in or a folder, with the same tokenizer (`growth.py`).
        start_from: start instead from a model of the same sizes, built-in or a folder, with the same tokenizer. A T5
            may have more heads of the same size than that model (`growth.add_heads`).
        copying_heads: start with hand-set heads that copy (T5; `copying_heads.py`).
        matching_heads: replace the encoder's last three heads by hand-set heads that find repetitions of the question
            in the text (T5 with reading; `matching_heads.py`).
    """

    informed_start: bool = True
    grow_from: str | None = None
    start_from: str | None = None
    copying_heads: bool = False
    matching_heads: bool = False


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions(Start, Objectives, Schedule, ModelSizes):
    """All options of `BackbonePretraining` but the architecture.

    Raises:
        UserError: options that contradict each other.
    """

    def __post_init__(self) -> None:
        if self.copying_heads and self.head_size and self.head_size * self.num_heads != self.hidden_size:
            raise UserError("--model.copying_heads needs heads that are together as wide as the model: see head_size")
        if (self.matching_heads or self.evidence) and not self.reading:
            raise UserError("--model.matching_heads and --model.evidence are for questions: give --model.reading true")
        if self.matching_heads and (self.num_layers < 3 or self.num_heads < 4):
            raise UserError("--model.matching_heads needs three layers and four heads, of which it sets three")
        if self.grow_from and self.start_from:
            raise UserError("--model.grow_from and --model.start_from are two starts: give one of them")
