"""`PromptTrainingArguments` with the defaults of release 2.0."""

from __future__ import annotations

from typing import Any

import prompt_transfer


class PromptTrainingArguments(prompt_transfer.PromptTrainingArguments):
    """Settings of a `PromptHub` with the names and defaults of release 2.0.

    Defaults: roberta-base, sst2, 3 epochs of batches of 8, texts of 128 tokens, seed 42. The default learning rate is
    that of the backbone's family: transformers' 5e-5 barely moves a prompt.

    Args:
        output_dir: folder of all inputs and outputs of the hub.
        dataset: the default task, in any case.
        backbone: the default backbone.
        arguments: those of `prompt_transfer.PromptTrainingArguments` and of transformers' `TrainingArguments`.

    Raises:
        UserError: an invalid value, or an argument without an equivalent.
    """

    def __init__(
        self, output_dir: str = "outputs", dataset: str = "sst2", backbone: str = "roberta-base", **arguments: Any
    ) -> None:
        dataset = str(dataset)
        if not dataset.endswith((".yaml", ".yml")):
            dataset = dataset.lower()
        defaults: dict[str, Any] = {"num_train_epochs": 3, "seed": 42}
        if "max_length" not in arguments:
            defaults["max_source_length"] = 128
        if "batch_size" not in arguments:
            defaults["per_device_train_batch_size"] = 8
        super().__init__(output_dir, dataset, backbone, **(defaults | arguments))
