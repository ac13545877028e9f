"""Linear probe of a frozen backbone's features, compared with a tuned prompt.

The probe is a logistic regression on mean-pooled last hidden states, fitted on the training split; the prompt was tuned
on the same examples. Both are scored on the validation split.

    python benchmarks/linear_probe.py --prompt runs/sst2/prompt.safetensors --root ../shared/data --output FILE.json
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.commands.parsing import call
from prompt_transfer.data.baselines import trivial_score
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.verbalizers import Verbalizer
from prompt_transfer.utils.files import write_text_atomic

REGULARISATION = (0.01, 0.1, 1.0)


def features(backbone: FrozenBackbone, loader: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean-pooled states `[n, H]` and labels `[n]` of all batches."""
    rows, labels = [], []
    for batch in loader:
        for part in batch.get("micro_batches", [batch]):
            rows.append(backbone.text_features(part).numpy())
            labels.append(part["labels"].numpy())
    return np.concatenate(rows), np.concatenate(labels)


@torch.no_grad()
def prompt_accuracy(backbone: FrozenBackbone, prompt: Prompt, data: TaskDataModule) -> float:
    """Return the prompt's accuracy on the validation split."""
    verbalizer = Verbalizer.for_task(data.tasks[0], backbone.tokenizer, backbone.family.name)
    right = count = 0
    for batch in data.val_dataloader():
        logits = verbalizer.class_logits(backbone(prompt.embeddings, batch, verbalizer.token_ids))
        right += int((logits.argmax(dim=1) == batch["labels"]).sum())
        count += len(logits)
    return right / count


def linear_probe(prompt: str, root: str | None = None, source: str = "local", output: str | None = None) -> None:
    """Compare a prompt with a logistic regression on the same frozen backbone.

    Args:
        prompt: prompt file; its metadata give the backbone and task.
        root: folder of local data.
        source: hub, local or builtin.
        output: JSON file for the results.
    """
    loaded = Prompt.load(prompt)
    facts = loaded.metadata
    backbone = FrozenBackbone(facts["backbone"], layout=facts["layout"], attention=facts["attention"])
    data = TaskDataModule(facts["task"], source, root)  # type: ignore[arg-type]
    data.connect(backbone.encoder(loaded.embeddings.shape[0]))
    data.setup("fit")
    started = time.perf_counter()
    train, train_labels = features(backbone, data.train_dataloader())
    validation, labels = features(backbone, data.val_dataloader())
    scaler = StandardScaler().fit(train)
    scores = {}
    for strength in REGULARISATION:
        model = LogisticRegression(C=strength, max_iter=500).fit(scaler.transform(train), train_labels)
        scores[str(strength)] = float(model.score(scaler.transform(validation), labels))
    best = max(scores.values())
    tuned = prompt_accuracy(backbone, loaded, data)
    result = {
        "task": facts["task"],
        "backbone": facts["backbone"],
        "training_examples": len(train_labels),
        "validation_examples": len(labels),
        "majority": trivial_score(data, "validation"),
        "logistic_regression": scores,
        "prompt": tuned,
        "prompt_minus_regression": tuned - best,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    text = json.dumps(result, indent=2)
    print(text)
    if output:
        write_text_atomic(Path(output), text + "\n")


if __name__ == "__main__":
    import sys

    call(linear_probe, "linear_probe", sys.argv[1:])
