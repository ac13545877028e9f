"""Settings of `compare`; importing them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from prompt_transfer.backbones.lora_options import LoraOptions
from prompt_transfer.studies.data import EvaluationData, check_accelerator
from prompt_transfer.utils.errors import UserError

DEFAULT_METHODS = "prompt,deep_prompt,lora,fine_tuning,linear_probe"


@dataclass
class CompareData(EvaluationData):
    """Data of the task, the same for all methods.

    Args:
        limit_train: training examples, a random subset by seed; null for all.
        batch_size: examples of one optimizer step.
        eval_batch_size: examples of one evaluation batch.
        label_words: default or paper; for a table one word per class, as bad,good in the order of the sorted labels.
        shots: few-shot comparison: training examples of each class, or in all for generation tasks, drawn by seed.
        validation_shots: the same for validation: a number, same, or all.
        text: column of the text, if the task is a table.
        text_b: column of the second text, for pairs.
        label: column of the label.
        target: column of the text to generate, instead of a label.
        validation: table with the validation split; null cuts it from the training rows.
        test: table with the test split; null cuts it from the training rows.
    """

    limit_train: int | None = None
    batch_size: int = 32
    eval_batch_size: int = 128
    label_words: str | None = None  # type: ignore[assignment]  # tables have words of their own
    shots: int | None = None
    validation_shots: int | Literal["same", "all"] = "same"
    text: str | None = None
    text_b: str | None = None
    label: str | None = None
    target: str | None = None
    validation: str | None = None
    test: str | None = None

    def check(self) -> None:
        """Raise UserError if a number is out of range."""
        from prompt_transfer.data.shots import parse_shots

        super().check()
        for name in ("limit_train", "batch_size", "eval_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--data.{name} must be 1 or more, not {value}")
        parse_shots(self.shots, self.validation_shots, self.limit_train)

    @property
    def word_set(self) -> str:
        """`default` or `paper`; the words of a table are part of its task."""
        return self.label_words if self.label_words == "paper" else "default"

    @property
    def columns(self) -> dict[str, Any]:
        """The options of a table (`data.own.choose_tasks`)."""
        names = ("text", "text_b", "label", "target", "validation", "test")
        words = None if self.label_words in ("default", "paper") else self.label_words
        return {name: getattr(self, name) for name in names} | {"label_words": words}

    # jsonargparse would import the class of an annotation, and with it torch.
    def module(self, task: str, seed: int) -> Any:
        """Return the `TaskDataModule`; `seed` determines the order of batches, `self.seed` the splits and subsets."""
        from prompt_transfer.data.datamodule import TaskDataModule

        module = TaskDataModule(
            task, self.source, self.root, self.batch_size, self.eval_batch_size, self.max_length, self.max_tokens,
            self.limit_train, self.limit_eval, self.label_words or "default", seed=self.seed, cache_dir=self.cache_dir,
            revision=self.revision, special_tokens=self.special_tokens, template=self.template,
            chat_template=self.chat_template, shots=self.shots, validation_shots=self.validation_shots, text=self.text,
            text_b=self.text_b, label=self.label, target=self.target, validation=self.validation, test=self.test,
        )  # fmt: skip
        module.seed = seed
        return module


@dataclass
class CompareStudy:
    """compare prompts with LoRA, fine-tuning and a linear probe on one task

    All methods read the same tokens in the same order (one order per seed), keep the state with the best validation
    score, and are scored on the same test examples. LoRA and fine-tuning score the same label words at the same answer
    slot as the prompt. Random prompts and the majority class are always included. A stopped command resumes when it is
    run again; further methods and seeds can be added later.

    Args:
        task: a task name, or the path of a task's YAML file or of a table (.csv, .jsonl, .parquet).
        backbone: a built-in backbone, the folder of a Hugging Face model, or a Hub id.
        output: folder for summary.csv, differences.csv, results.parquet, figures, and a folder per method and seed.
        methods: comma-separated: prompt, deep_prompt, lora, fine_tuning, linear_probe.
        seeds: comma-separated; a seed determines initial values and the order of the batches.
        data: source and number of examples.
        max_steps: optimizer steps of every method; the linear probe sees the same examples.
        val_check_interval: steps between two validations.
        learning_rates: for example prompt=0.003,lora=0.001; default: the family's rate for prompts, 1e-3 for LoRA, 1e-4
            for fine-tuning.
        schedule: learning rate schedule over all steps.
        warmup_steps: steps of its warm-up.
        grid: try a third, one and three times each learning rate with the first seed, and keep the one with the best
            validation score.
        prompt_length: prompt tokens.
        lora: rank, scale and layers of the LoRA adapters.
        features: features of the linear probe: mean of the text's last states, or the state at the answer slot.
        keep_weights: keep the fine-tuned models.
        layout: order of prompt, answer slot and text.
        attention: full or shared.
        dtype: dtype of the backbone's weights: float32, bfloat16 or float16; fine-tuning always uses float32.
        label_words_policy: treatment of label words of several tokens.
        accelerator: auto, cpu or cuda.
        same_process: train in this process instead of one process per method and seed; memory is then not measured.

    Raises:
        UserError: a value is invalid.
    """

    task: str
    backbone: str
    output: str
    methods: str = DEFAULT_METHODS
    seeds: str = "0,1,2"
    data: CompareData = field(default_factory=CompareData)
    max_steps: int = 1000
    val_check_interval: int = 100
    learning_rates: str | None = None
    schedule: str = "linear"
    warmup_steps: int = 0
    grid: bool = False
    prompt_length: int = 20
    lora: LoraOptions = field(default_factory=LoraOptions)
    features: Literal["mean", "answer"] = "mean"
    keep_weights: bool = False
    layout: str | None = None
    attention: str = "full"
    dtype: str = "float32"
    label_words_policy: str | None = None
    accelerator: str = "auto"
    same_process: bool = False

    def __post_init__(self) -> None:
        from prompt_transfer.studies.compare.methods import check_methods

        check_methods(self.method_names)
        _ = self.seed_numbers, self.rates
        for name in ("max_steps", "val_check_interval", "prompt_length"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be 1 or more, not {getattr(self, name)}")
        check_accelerator(self.accelerator)
        self.data.check()

    @property
    def method_names(self) -> list[str]:
        """The methods, in the order given."""
        return _items(self.methods)

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds, in the order given.

        Raises:
            UserError: a seed is invalid or given twice.
        """
        given = _items(self.seeds)
        if not given or not all(text.isdecimal() and int(text) < 2**32 for text in given):
            raise UserError(f"--seeds {self.seeds}: give whole numbers from 0 on, such as 0,1,2")
        seeds = [int(text) for text in given]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"--seeds {self.seeds}: give each seed once")
        return seeds

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates given, by method.

        Raises:
            UserError: an unknown method, or no number above 0.
        """
        from prompt_transfer.studies.compare.methods import METHODS

        found = {}
        rated = [name for name, method in METHODS.items() if method.make is not None]
        for pair in _items(self.learning_rates or ""):
            name, _, text = pair.partition("=")
            try:
                value = float(text)
            except ValueError:
                value = 0.0
            if name not in rated or not 0 < value < float("inf"):
                raise UserError(
                    f"--learning_rates {pair}: give METHOD=RATE, a rate above 0 and a method of {', '.join(rated)}"
                )
            found[name] = value
        return found

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Options that all methods' modules share."""
        return {"layout": self.layout, "attention": self.attention, "dtype": self.dtype}

    @property
    def module_options(self) -> dict[str, Any]:
        """Options of the modules that are trained by gradients, except the learning rate."""
        return {
            **self.backbone_options,
            "schedule": self.schedule,
            "warmup_steps": self.warmup_steps,
            "label_words_policy": self.label_words_policy,
        }


def _items(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
