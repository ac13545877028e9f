"""The architectures that can be pretrained, by name."""

from __future__ import annotations

from prompt_transfer.pretraining.encoders import Bert, Roberta
from prompt_transfer.pretraining.gpt2 import Gpt2
from prompt_transfer.pretraining.objectives import Architecture
from prompt_transfer.pretraining.t5 import T5

ARCHITECTURES: dict[str, Architecture] = {one.name: one for one in (Roberta(), Bert(), Gpt2(), T5())}
