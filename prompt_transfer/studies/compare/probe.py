"""Linear probe: logistic regression on frozen features of the text, without a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.datamodule import TaskDataModule
from prompt_transfer.data.tokens import ID_BITS
from prompt_transfer.studies.backbones import choose_device
from prompt_transfer.tasks.metrics import class_metric
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import atomic_path

# Inverse strengths of the L2 penalty to choose from, on the validation split.
REGULARIZATION = (0.001, 0.01, 0.1, 1.0, 10.0)
MAX_ITERATIONS = 1000


class Features:
    """Features [B, H] of a frozen backbone.

    Args:
        backbone: already on its device.
        kind: `mean` (of the text's last states) or `answer` (the state at the answer slot, without a prompt).
    """

    def __init__(self, backbone: FrozenBackbone, kind: str) -> None:
        self.backbone, self.kind = backbone, kind

    @torch.no_grad()
    def of(self, batch: dict[str, Tensor]) -> NDArray[np.float32]:
        """Return the features of a batch."""
        batch = {name: value.to(self.backbone.device) for name, value in batch.items()}
        if self.kind == "mean":
            found = self.backbone.text_features(batch)
        else:
            empty = torch.empty(0, self.backbone.hidden_size, device=self.backbone.device)
            found = self.backbone.answer_states(empty, batch)
        return found.float().cpu().numpy()

    def all(
        self, batches: Iterable[dict[str, Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Return features [n, H], labels and ids [n] of all batches."""
        parts = [(self.of(part), part["labels"].numpy(), part["ids"].numpy()) for part in _parts(batches)]
        features, labels, ids = (np.concatenate(values) for values in zip(*parts, strict=True))
        return features, labels, ids


def _parts(batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        yield from batch.get("micro_batches", [batch])


@dataclass(frozen=True)
class Probe:
    """A fitted probe: class scores are `weight ((x - mean) / scale) + bias`.

    Attributes:
        features: the features x.
        mean, scale: [H], of the training features.
        weight, bias: [C, H] and [C].
        regularization: the chosen inverse strength of the penalty.
        trained_parameters: number of fitted coefficients.
        validation: score on the validation split.
    """

    features: Features
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    regularization: float
    trained_parameters: int
    validation: float = 0.0

    @property
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The stored tensors."""
        return {name: getattr(self, name) for name in ("mean", "scale", "weight", "bias")}

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(value.nbytes for value in self.tensors.values())

    def save(self, path: Path) -> None:
        """Write the probe as a safetensors file."""
        facts = {"features": self.features.kind, "regularization": repr(self.regularization)}
        with atomic_path(path) as temporary:
            save_file(self.tensors, temporary, metadata=facts)

    def classes(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the predicted classes [n]."""
        scores = (features - self.mean) / self.scale @ self.weight.T + self.bias
        return scores.argmax(axis=1).astype(np.int64)

    def predict(self, batches: Iterable[dict[str, Any]]) -> pd.DataFrame:
        """Return `id`, `label` and `answer` (the predicted class) of all examples, ordered by id."""
        features, labels, ids = self.features.all(batches)
        answers = self.classes(features).astype("float32")
        frame = pd.DataFrame({"id": ids & (2**ID_BITS - 1), "label": labels, "answer": answers})
        return frame.sort_values("id", ignore_index=True)


def fit_probe(backbone: FrozenBackbone, data: TaskDataModule, kind: str, steps: int, accelerator: str) -> Probe:
    """Fit a probe to the examples of the first `steps` training batches, each once.

    Args:
        backbone: moved to its device.
        data: set up for training.
        kind: see `Features`.
        steps: optimizer steps of the methods that it is compared with.
        accelerator: auto, cpu or cuda.

    Raises:
        UserError: the training examples have only one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features = Features(backbone.to(choose_device(accelerator)), kind)
    task = data.tasks[0]
    # The loader ends after one epoch: later ones repeat its examples.
    train, labels, _ = features.all(islice(data.train_dataloader(), steps))
    validation, wanted, _ = features.all(data.val_dataloader())
    if len(np.unique(labels)) < 2:
        raise UserError(f"the {len(labels)} training examples of {task.name} have one class only: train on more")
    scaler = StandardScaler().fit(train)
    best: Probe | None = None
    for strength in REGULARIZATION:
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(scaler.transform(train), labels)
        weight, bias = _per_class(model, task.num_classes)
        probe = Probe(
            features,
            mean=scaler.mean_.astype(np.float32),
            scale=scaler.scale_.astype(np.float32),
            weight=weight.astype(np.float32),
            bias=bias.astype(np.float32),
            regularization=strength,
            trained_parameters=model.coef_.size + model.intercept_.size,
        )
        score = class_metric(task.metric, probe.classes(validation), wanted, task.num_classes)
        if best is None or score > best.validation:
            best = replace(probe, validation=score)
    assert best is not None
    return best


def _per_class(model: Any, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weights [C, H] and biases [C] of every class; a class without training examples is never chosen."""
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        # scikit-learn keeps one row for two classes.
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros(1), bias])
    rows, biases = np.zeros((classes, weight.shape[1])), np.full(classes, -np.inf)
    rows[model.classes_], biases[model.classes_] = weight, bias
    return rows, biases
