"""Options of a backbone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.fields import dtype_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION_MODES = ("full", "shared")
HEADS = ("lm", "embedding")
QUANTIZATIONS = ("int8", "int4", "nf4")


@dataclass(frozen=True)
class BackboneConfig:
    """Options for loading and running a backbone.

    Args:
        name: a built-in backbone (`roberta-nano`), the folder of a Hugging Face model, a GGUF file, a Hub id, or
            `org/repo:file.gguf` on the Hub.
        layout: order of the input. Encoders: `prefix` (prompt, answer slot, text; the default) or `mask_first` (answer
            slot, prompt, text: release 1.0 of Su et al., required by published prompts). Causal LMs:
            `start_answer_last` (prompt, the tokenizer's start token, text; the default if the tokenizer adds one) or
            `answer_last` (no start token). Seq2seq LMs: `encoder`.
        attention: `full` (the prompt sees the text, as in the paper) or `shared` (the prompt sees only itself; faster,
            because its keys and values are computed once per batch). For causal LMs both are the same function;
            encoders lose one or two points on SST-2 with `shared` (results/attention.csv).
        dtype: of the backbone's weights: `float32`, `bfloat16` or `float16` (`fp32`, `bf16`, `fp16`). Prompts and
            optimizer are always float32. `bfloat16+int8` adds a quantization, as prompt files and tables write it.
        quantization: of the weights of linear layers, all except the LM head: `int8` or `int4` (torchao) or `nf4`
            (bitsandbytes); None for the one in `dtype`, if any. Computations are in `dtype`.
        head: `lm`, or `embedding` (answer state times word embeddings) for checkpoints without an LM head.
        dropout: use the backbone's dropout in training.
        gradient_checkpointing: for long inputs: keep only the inputs of the layers and recompute the rest in the
            backward pass. If single examples fit in memory, `--data.max_tokens` saves memory at no cost.
        compile: compile the backbone's layers with `torch.compile`. It takes up to a minute at the start, once for all
            lengths, which does not pay off for short runs on small models.
        revision: of a Hub repository.
        trust_remote_code: run model code that comes with a checkpoint.

    Raises:
        UserError: unknown attention mode, head, dtype or quantization.
    """

    name: str
    layout: str | None = None
    attention: str = "full"
    dtype: str = "float32"
    head: str = "lm"
    dropout: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    revision: str | None = None
    trust_remote_code: bool = False
    quantization: str | None = None

    def __post_init__(self) -> None:
        dtype, _, quantization = self.dtype.partition("+")
        # An explicit quantization wins over that of a prompt file's dtype.
        for name, value in (("dtype", dtype_name(dtype)), ("quantization", self.quantization or quantization or None)):
            object.__setattr__(self, name, value)
        for option, value, allowed in (
            ("attention mode", self.attention, ATTENTION_MODES),
            ("head", self.head, HEADS),
            ("dtype", self.dtype, tuple(DTYPES)),
        ):
            if value not in allowed:
                raise UserError(f"unknown {option} {value!r}: choose one of {', '.join(allowed)}")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise UserError(f"unknown quantization {self.quantization!r}: choose one of {', '.join(QUANTIZATIONS)}")
        if self.quantization is not None and self.compile:
            raise UserError("quantized layers cannot be compiled: remove --model.compile or --model.quantization")

    @property
    def dtype_name(self) -> str:
        """The dtype with its quantization, for prompt files and tables: `bfloat16`, `bfloat16+int8`."""
        return self.dtype if self.quantization is None else f"{self.dtype}+{self.quantization}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return DTYPES[self.dtype]


def is_emulated(dtype: str, device: torch.device) -> bool:
    """Return whether `device` is an x86 CPU without instructions for `dtype`, which is slower than float32 there."""
    dtype = dtype.partition("+")[0]
    if device.type != "cpu" or dtype == "float32":
        return False
    has = torch.cpu.get_capabilities()
    names = {"bfloat16": ("amx_bf16", "avx512_bf16"), "float16": ("amx_fp16", "avx512_fp16")}[dtype]
    return has.get("architecture") == "x86_64" and not any(has.get(name) for name in names)
