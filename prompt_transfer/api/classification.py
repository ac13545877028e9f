"""`classify`: labels and probabilities of texts with a trained prompt, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch

from prompt_transfer.backbones.builtin import find_shipped
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.data.of_prompt import data_of_prompt, task_of_prompt
from prompt_transfer.modules.label_embeddings import initial_rows, stored_rows
from prompt_transfer.modules.objectives import Classification, make_objective
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.studies.backbones import backbone_options, choose_device
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """The predicted class of a text.

    Attributes:
        text: the text, or both texts of a pair.
        label: the task's own value of the class, such as 1 or "neg".
        word: its label word.
        probability: of the class.
        probabilities: of every class, by label.
    """

    text: str | tuple[str, str]
    label: Any
    word: str
    probability: float
    probabilities: dict[Any, float] = field(repr=False)


def classify(
    texts: Sequence[str],
    prompt: str | Path | Prompt,
    texts_b: Sequence[str] | None = None,
    *,
    task: str | None = None,
    backbone: str | None = None,
    batch_size: int = 128,
) -> list[Prediction]:
    """Classify texts with a prompt, as `prompt-transfer predict` does.

    The backbone stays loaded between calls, on a GPU if there is one.

    Args:
        texts: texts, or the first texts of pairs.
        prompt: a prompt file, the folder of a run, or a loaded prompt.
        texts_b: second texts, for tasks on pairs.
        task: the task with the labels, for prompts of several tasks; its name, or the path of its YAML file.
        backbone: default: the one that the prompt was trained on.
        batch_size: texts of a forward pass.

    Returns:
        One prediction per text, in their order.

    Raises:
        UserError: the file is no prompt or does not fit the backbone, its task is unknown or generates text, or the
            texts do not fit the task.
    """
    if isinstance(texts, str) or isinstance(texts_b, str):
        raise UserError("classify takes a list of texts, not one string: classify([text], ...)")
    loaded = prompt if isinstance(prompt, Prompt) else Prompt.load(find_shipped(str(prompt)))
    facts = loaded.metadata
    data = data_of_prompt(loaded, task_of_prompt(loaded, task), batch_size)
    (known,) = data.tasks
    if known.has_example_scores:
        raise UserError(f"task {known.name} has no classes: use `prompt-transfer predict`")
    data.set_predict_texts(list(texts), None if texts_b is None else list(texts_b))
    name = backbone or facts.get("backbone")
    if not name:
        raise UserError(f"{loaded.path} does not name its backbone: give backbone=")
    options = backbone_options({str(loaded.path or "the prompt"): loaded})
    model = _backbone(name, tuple(sorted(options.items())), str(choose_device("auto")))
    loaded.check(model, model.layout.name, model.attention)
    policy = facts.get("label_words_policy") or None
    objective = cast("Classification", make_objective(model, [known.with_policy(policy)])).to(model.device)
    if loaded.labels_for(known.name, known.stored_words) is not None:
        objective.use_label_rows(*stored_rows([loaded], [known], initial_rows(objective, model)))
    data.connect(model.encoder(loaded.length)).setup("predict")
    with torch.inference_mode():
        bank = model.record(loaded.values.to(model.device))
        parts = [
            objective.predict(bank, {key: value.to(model.device) for key, value in batch.items()})["probabilities"]
            for batch in data.predict_dataloader()
        ]
    shares = torch.cat(parts).float().cpu()
    if not bool(torch.isfinite(shares).all()):
        raise UserError("the backbone's answers are not finite: use a prompt trained in float32")
    given: Sequence[Any] = texts if texts_b is None else list(zip(texts, texts_b, strict=True))
    return [_prediction(known, text, row) for text, row in zip(given, shares.tolist(), strict=True)]


def _prediction(task: Task, text: str | tuple[str, str], shares: list[float]) -> Prediction:
    best = max(range(task.num_classes), key=shares.__getitem__)
    by_label = dict(zip(task.class_labels, shares, strict=True))
    return Prediction(text, task.class_labels[best], task.label_words[best], shares[best], by_label)


@lru_cache(maxsize=2)
def _backbone(name: str, options: tuple[tuple[str, Any], ...], device: str) -> FrozenBackbone:
    return FrozenBackbone(name, **dict(options)).to(torch.device(device))
