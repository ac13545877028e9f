"""Short tuning: a prompt trained for a few steps represents a target task that has no prompt of its own.

SPoT uses such an early prompt as task embedding (Vu et al. 2022, after 10,000 steps).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch

from prompt_transfer.callbacks.export import PromptExport
from prompt_transfer.callbacks.progress import StepProgress
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.modules.prompt_tuning import PromptTuning
from prompt_transfer.prompts.prompt import Prompt, vectors_of
from prompt_transfer.studies.targets import TargetData
from prompt_transfer.tasks.definition import format_metadata
from prompt_transfer.utils.errors import UserError

BATCH_SIZE = 32


@dataclass(frozen=True)
class ShortTuning:
    """Short training of target prompts.

    Args:
        steps: optimizer steps of 32 examples.
        seed: seed of the initialization; `data.seed` determines the order of the data.
        accelerator: auto, cpu or cuda.
    """

    steps: int
    seed: int = 0
    accelerator: str = "auto"

    def prompt(
        self, module: PromptTuning, task: str, data: TargetData, words: str, path: Path, start: torch.Tensor | None
    ) -> Prompt:
        """Train a prompt, or load the one saved by an earlier call with the same inputs.

        Args:
            module: module with the backbone; its current prompt is replaced.
            task: name of the target, or path of its YAML file.
            data: data source.
            words: default or paper.
            path: path of the prompt file.
            start: vectors [P, W] of an initial prompt; None: use the module's initializer.

        Returns:
            The prompt; its metadata entry `tuning_seconds` includes reading and tokenizing the examples.
        """
        began = time.perf_counter()
        rows = self.steps * BATCH_SIZE
        source = TaskDataModule(
            task, data.source, data.root, BATCH_SIZE, max_length=data.max_length, max_tokens=data.max_tokens,
            limit_train=rows, limit_eval=1, label_words=words,
            seed=data.seed, cache_dir=data.cache_dir, special_tokens=data.special_tokens,
            template=data.template, chat_template=data.chat_template,
        )  # fmt: skip
        module.connect(source.tasks)
        made, generator = module.start(module.init, self.seed)
        origin, start = (module.init.describe(), made) if start is None else ("the start of the sources", start)
        facts = {
            "data_task": json.dumps([task]),
            "data_source": str(source.selection.source),
            **{"data_root": data.root or "", "data_seed": str(data.seed), "seed": str(self.seed)},
            "data_label_words": words,
            "label_words_policy": module.hparams.label_words_policy or "",
            "data_max_length": "" if data.max_length is None else str(data.max_length),
            "data_special_tokens": data.special_tokens,
            **format_metadata(data.template, data.chat_template),
        }
        if (known := self._known(path, module, start, facts)) is not None:
            return known
        module.build(start, generator)
        trainer = L.Trainer(
            accelerator=self.accelerator,
            devices=1,
            max_steps=self.steps,
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[PromptExport(path, facts), StepProgress()],
        )
        trainer.fit(module, datamodule=source)
        prompt = Prompt.load(path)
        prompt.metadata["init"] = origin
        prompt.metadata["tuning_seconds"] = f"{time.perf_counter() - began:.2f}"
        prompt.save(path)
        return prompt

    def _known(self, path: Path, module: PromptTuning, start: torch.Tensor, facts: dict[str, str]) -> Prompt | None:
        if not path.is_file():
            return None
        try:
            prompt = Prompt.load(path)
        except UserError:
            return None
        backbone = module.backbone
        same = facts | {
            **{"fingerprint": backbone.fingerprint, "layout": backbone.layout.name, "attention": backbone.attention},
            **{"dtype": backbone.dtype_name, "steps": str(self.steps)},
            "label_words": json.dumps({task.name: task.stored_words for task in module.tasks}),
        }
        fits = all(prompt.metadata.get(key) == value for key, value in same.items())
        same_start = prompt.initial is not None and torch.equal(vectors_of(prompt.initial), start)
        return prompt if fits and same_start and "tuning_seconds" in prompt.metadata else None


def common_start(prompts: list[Prompt]) -> torch.Tensor | None:
    """Return the vectors [P, W] of the prompts' common initial prompt; None if they differ or a file lacks it."""
    first = prompts[0].initial
    if first is None:
        return None
    shared = all(prompt.initial is not None and torch.equal(prompt.initial, first) for prompt in prompts)
    return vectors_of(first) if shared else None
