"""Reader and writer of PEFT's prompt-tuning adapters, without PEFT: a folder with a JSON and a safetensors file.

Behaviour of PEFT 0.21 (peft_model.py):

- The file holds one tensor, `prompt_embeddings` `[S * P, H]`, S being `num_transformer_submodules`.
- A causal model (S = 1) reads all prompt tokens in front of the text. PEFT passes no position ids, and positions count
  from the first prompt token.
- A sequence-to-sequence model (S = 2, PEFT's default) reads the first P in front of the encoder's text. The other P
  were meant for the decoder; with prompt tuning and P-tuning, neither `forward` nor `generate` reads them.
- `P_TUNING` saves the output of its prompt encoder, and reads it like prompt tuning.

The prompt precedes all of the tokenizer's output, including a start token if it adds one: layout `start_answer_last`.
Adapters of other tools do not record a layout; the base model's tokenizer determines it if it is on this machine.
Otherwise the layout stays open, and the backbone that the prompt is used with decides.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_transfer.prompts.io.torch_file import read_torch_file
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.tensor_file import check_shape, open_file, read_as_float32, read_header, sizes, write
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic

CONFIG_FILE, WEIGHTS_FILE, TORCH_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TENSOR = "prompt_embeddings"
# Layout -> PEFT's task type; PEFT has none for a masked LM with an answer slot.
TASK_TYPES = {"answer_last": "CAUSAL_LM", "start_answer_last": "CAUSAL_LM", "encoder": "SEQ_2_SEQ_LM"}
SUBMODULES = {"CAUSAL_LM": 1, "SEQ_2_SEQ_LM": 2}
PEFT_TYPES = ("PROMPT_TUNING", "P_TUNING")
# Key of the prompt's metadata in the safetensors file; PEFT ignores it.
METADATA_KEY = "prompt_transfer"
MAX_JSON_BYTES = 2**20


def check_exportable(prompt: Prompt) -> str:
    """Return PEFT's task type for a prompt.

    Raises:
        UserError: PEFT has no equivalent of the prompt.
    """
    facts = prompt.metadata
    layout, name = facts.get("layout", UNKNOWN), prompt.path or "the prompt"
    if layout == UNKNOWN and facts.get("peft_task_type") in SUBMODULES:
        return facts["peft_task_type"]
    if layout in ("prefix", "mask_first"):
        raise UserError(
            f"{name} is for a masked LM (layout {layout}): PEFT's prompt tuning has no answer slot, only CAUSAL_LM and "
            "SEQ_2_SEQ_LM have an equivalent; --format numpy writes the bare matrix"
        )
    if layout not in TASK_TYPES:
        raise UserError(f"{name} has the layout {layout[:40]!r}: PEFT supports only {', '.join(TASK_TYPES)}")
    if layout == "encoder" and facts.get("attention", "full") not in ("full", UNKNOWN):
        raise UserError(
            f"{name} was trained with attention {facts['attention'][:40]}: in PEFT the prompt always sees the text, "
            "which is another function in an encoder; train with --model.attention full"
        )
    if prompt.label_embeddings is not None:
        raise UserError(f"{name} has trained label embeddings, which PEFT's prompt tuning lacks: train without them")
    if facts.get("head", "lm") != "lm":
        raise UserError(f"{name} was trained with head {facts['head'][:40]}: PEFT scores only with the LM head")
    return TASK_TYPES[layout]


def write_adapter(prompt: Prompt, folder: str | Path, card: str, backbone: str | None = None) -> Path:
    """Write a prompt as an adapter that `PeftModel.from_pretrained` loads.

    Args:
        prompt: a prompt of a causal or sequence-to-sequence backbone.
        folder: created if missing; existing adapter files in it are replaced.
        card: the text of its README.md.
        backbone: base model to record in the adapter; default: the prompt's own.

    Returns:
        The folder.

    Raises:
        UserError: PEFT has no equivalent of the prompt, or the folder cannot be written.
    """
    task_type, folder = check_exportable(prompt), Path(folder)
    rows = prompt.embeddings
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": backbone or prompt.metadata.get("backbone"),
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": None,  # PEFT takes this and num_layers from the model; prompt tuning uses neither
        "num_layers": None,
        "num_transformer_submodules": SUBMODULES[task_type],
        "num_virtual_tokens": rows.shape[0],
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": prompt.metadata.get("revision") or None,
        "task_type": task_type,
        "token_dim": rows.shape[1],
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }
    # transformers requires `format` in safetensors files.
    facts = {"format": "pt", METADATA_KEY: json.dumps(prompt.metadata, sort_keys=True)}
    write(folder / WEIGHTS_FILE, {TENSOR: rows.repeat(SUBMODULES[task_type], 1)}, facts)
    write_text_atomic(folder / "README.md", card)
    # Written last: until then the folder is not an adapter.
    write_text_atomic(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def read_adapter(folder: str | Path) -> Prompt:
    """Read a prompt-tuning or P-tuning adapter of a causal or sequence-to-sequence model as a prompt.

    Restores the metadata that `write_adapter` stored. Adapters of other tools identify their backbone only by name.

    Raises:
        UserError: another kind of adapter, inconsistent files, or no adapter.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_FILE)
    task_type, length, parts = _check_config(config, folder)
    tensor, path, own = _read_weights(folder)
    check_shape(f"{path}: `{TENSOR}`", tensor.shape)
    if tensor.shape[0] != parts * length or config.get("token_dim") not in (None, tensor.shape[1]):
        raise UserError(
            f"{folder} is damaged: {CONFIG_FILE} says {parts} x {length} virtual tokens of {config.get('token_dim')} "
            f"numbers, {path.name} holds {sizes(tensor.shape)}"
        )
    if "layout" in own and TASK_TYPES.get(own["layout"]) != task_type:
        raise UserError(f"{folder} contradicts itself: task_type {task_type}, but a prompt of layout {own['layout']}")
    dropped = "none" if parts == 1 else "equal" if torch.equal(tensor[:length], tensor[length:]) else "different"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    base = config.get("base_model_name_or_path")
    layout = own.get("layout") or _layout(task_type, base, config.get("revision"))
    facts = {"fingerprint": UNKNOWN, "attention": "full", "source": "peft", **own}
    facts |= {"layout": layout} if layout else {}
    facts |= {
        "backbone": base if isinstance(base, str) and base else own.get("backbone", UNKNOWN),
        "source_name": folder.absolute().name,
        "source_path": str(folder),
        "source_sha256": digest,
        "peft_type": config["peft_type"],
        "peft_task_type": task_type,
        "peft_second_half": dropped,
    }
    if isinstance(config.get("revision"), str):
        facts["revision"] = config["revision"]
    if "family" not in facts and (family := _family(facts["backbone"])):
        facts["family"] = family
    try:
        return Prompt(tensor[:length].clone(), facts, path=path)
    except UserError as error:
        raise UserError(f"{path} is not a usable prompt: {str(error).split(';')[0]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        UserError: the file does not exist, is too large, or is not a JSON object.
    """
    with open_file(path, "configuration", "give the folder of a PEFT adapter") as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise UserError(f"{path} is larger than {MAX_JSON_BYTES} bytes, too large for a configuration")
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not a JSON object") from error
    return values


def _check_config(config: dict[str, Any], folder: Path) -> tuple[str, int, int]:
    """Return the task type, the number of virtual tokens P and the number of submodules S."""
    kind, task_type = str(config.get("peft_type"))[:40], str(config.get("task_type"))[:40]
    if kind not in PEFT_TYPES:
        raise UserError(f"{folder} is a PEFT adapter of type {kind}; only {' and '.join(PEFT_TYPES)} are prompts")
    if task_type not in SUBMODULES:
        raise UserError(f"{folder} is for the task type {task_type}; only {' and '.join(SUBMODULES)} can be imported")
    if config.get("modules_to_save"):
        raise UserError(f"{folder} is not only a prompt: it also holds model weights ({CONFIG_FILE}: modules_to_save)")
    length, parts = config.get("num_virtual_tokens"), config.get("num_transformer_submodules")
    parts = SUBMODULES[task_type] if parts is None else parts
    allowed = range(1, SUBMODULES[task_type] + 1)
    if type(length) is not int or length < 1 or type(parts) is not int or parts not in allowed:
        raise UserError(
            f"{folder} is damaged: {str(length)[:40]} virtual tokens, {str(parts)[:40]} submodules for {task_type}"
        )
    return task_type, length, parts


def _read_weights(folder: Path) -> tuple[Tensor, Path, dict[str, str]]:
    """Return an adapter's tensor, its file, and the metadata if `write_adapter` wrote it."""
    path = folder / WEIGHTS_FILE
    if not path.exists() and (folder / TORCH_FILE).exists():
        path = folder / TORCH_FILE
        content, _ = read_torch_file(path)
        names = [str(name)[:60] for name in content] if isinstance(content, dict) else []
        _check_names(names, path)
        if not isinstance(content[TENSOR], Tensor) or not content[TENSOR].is_floating_point():
            raise UserError(f"{path} is damaged: `{TENSOR}` is not a floating-point tensor")
        return content[TENSOR].float(), path, {}
    with open_file(path, "adapter", f"a PEFT adapter has it next to its {CONFIG_FILE}") as file:
        header = read_header(file, path)
        _check_names([name[:60] for name in header.tensors], path)
        check_shape(f"{path}: `{TENSOR}`", header.tensors[TENSOR]["shape"])
        tensor = read_as_float32(file, header, TENSOR, path)
    try:
        own = json.loads(header.metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        own = None
    if not isinstance(own, dict) or not all(isinstance(value, str) for value in own.values()):
        raise UserError(f"{path} is damaged: its metadata {METADATA_KEY!r} are not those of a prompt")
    return tensor, path, own


def _check_names(names: list[str], path: Path) -> None:
    if names != [TENSOR]:
        found = ", ".join(map(repr, names[:5])) or "nothing"
        raise UserError(f"{path} holds {found}; the adapter of a prompt holds only `{TENSOR}`")


def _layout(task_type: str, base: Any, revision: Any) -> str | None:
    """Return the layout of another tool's adapter; None if the tokenizer that decides is not on this machine."""
    if task_type == "SEQ_2_SEQ_LM":
        return "encoder"
    from prompt_transfer.backbones.loading import local_start_ids

    revision = revision if isinstance(revision, str) else None
    start = local_start_ids(base, revision) if isinstance(base, str) and base else None
    return None if start is None else "start_answer_last" if start else "answer_last"


def _family(backbone: str) -> str | None:
    """Return the architecture of a backbone in a local folder; None for any other, which would have to be loaded."""
    try:
        kind = read_json(Path(backbone).expanduser() / "config.json").get("model_type")
    except (UserError, ValueError, RuntimeError):  # ValueError: not a path; RuntimeError: no home folder
        return None
    return kind if isinstance(kind, str) else None
