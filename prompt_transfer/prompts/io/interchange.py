"""Import of PEFT adapters (`peft_adapter.py`) and of the prompts that Su et al. (2022) published with their code.

Releases 1.0 and 2.0 keep each prompt in a folder `<task>Prompt<Backbone>` as `task_prompt`, a bare tensor `[100, H]`,
or as `<epoch>.pkl` or `<epoch>_task_prompt.pkl`, a dictionary with the tensor under `model`.

Release 1.0 overwrites prompt token 0 of RoBERTa and BERT prompts with the mask's embedding (modelling_roberta.py:202),
so it drifted without effect: it is dropped, and 99 prompt tokens remain. T5 prompts keep all 100.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prompt_transfer.prompts.io import peft_adapter
from prompt_transfer.prompts.io.published import BACKBONES, has_published_name, parse_name
from prompt_transfer.prompts.io.torch_file import read_torch_file
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.prompts.tensor_file import check_shape, sizes
from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import atomic_path, write_text_atomic

PUBLISHED_ROWS = 100
FILE_NAME = "task_prompt"
SUFFIXES = (".pkl", ".pt", ".pth", ".bin")
ADAPTER_FILES = (peft_adapter.CONFIG_FILE, peft_adapter.WEIGHTS_FILE, peft_adapter.TORCH_FILE)
# In tokens, including special tokens; release 1.0 truncates at 128 without them, at 384 for T5's generation tasks.
MAX_LENGTH, MAX_LENGTH_GENERATION = "130", "386"


@dataclass(frozen=True)
class Outcome:
    """The import of one source: `prompt`, saved in the output folder as `name`, or an `error` message."""

    source: Path
    name: str
    prompt: Prompt | None = None
    error: str | None = None


def read_published(path: Path) -> Prompt:
    """Read one published file as a prompt `[99, H]` (RoBERTa, BERT) or `[100, H]` (T5).

    Args:
        path: the file; its name or its folder's names task and backbone (see `parse_name`).

    Raises:
        UserError: an unknown name, an unsafe file (see `read_torch_file`), or not a prompt of that backbone.
    """
    whole = _read_whole(path)
    dropped = json.loads(whole.metadata["dropped_rows"])
    return Prompt(whole.embeddings[len(dropped) :], whole.metadata)


def read_published_rows(path: Path) -> Tensor:
    """Read the whole published tensor, float32 `[100, H]`, with the dead token 0 of RoBERTa and BERT prompts.

    Use it only to compare with numbers computed from all 100: token 0 had no effect in training.

    Raises:
        UserError: as `read_published`.
    """
    return _read_whole(path).embeddings


def _read_whole(path: Path) -> Prompt:
    """Read the whole tensor, with the metadata of the prompt without the dropped tokens."""
    name = source_name(path)
    facts = parse_name(name)
    width = next(row.width for row in BACKBONES.values() if row.id == facts["backbone"])
    content, digest = read_torch_file(path)
    tensor = _tensor(content, path)
    check_shape(f"{path}: the tensor", tensor.shape)
    if tensor.shape != (PUBLISHED_ROWS, width):
        raise UserError(
            f"{path} is {sizes(tensor.shape)}, a published prompt of {facts['backbone']} is "
            f"{PUBLISHED_ROWS} x {width}; check that it is in the right folder"
        )
    if not tensor.is_floating_point():
        raise UserError(f"{path} holds {str(tensor.dtype).removeprefix('torch.')}, a prompt has floating-point values")
    dropped = [0] if facts["layout"] == "mask_first" else []
    generation = facts.get("task") in task_names() and get_task(facts["task"]).is_generation
    metadata = {
        "fingerprint": UNKNOWN,
        "attention": "full",
        "source": "published",
        "source_name": name,
        "source_path": str(path),
        "source_sha256": digest,
        "dropped_rows": json.dumps(dropped),
        "data_label_words": "paper",
        "data_source": "hub",
        "data_max_length": MAX_LENGTH_GENERATION if generation else MAX_LENGTH,
    }
    metadata |= facts | _history(content, path)
    try:
        # Token 0 is checked too: NaN anywhere means a damaged file or failed training.
        return Prompt(tensor.float(), metadata, path=path)
    except UserError as error:
        raise UserError(f"{path} is not a usable prompt: {str(error).split(';')[0]}") from error


def source_name(path: Path) -> str:
    """Return the published name of a file: its own if it has one (`IMDBPromptRoberta.pt`), else its folder's."""
    return path.stem if has_published_name(path.stem) else path.absolute().parent.name


def import_sources(sources: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> list[Outcome]:
    """Import published prompts and PEFT adapters, each as `<name of its folder>.safetensors` in `output`.

    If two folders have the same name, the deeper one is prefixed with its parent's name. A refused prompt does not stop
    the import of the others.

    Args:
        sources: files, prompt folders, or folders that contain such folders at any depth.
        output: created with the first saved prompt.
        overwrite: replace files in `output`.

    Raises:
        UserError: a source does not exist or has nothing to import, or `output` cannot be written.
    """
    outcomes: list[Outcome] = []
    taken: set[str] = set()
    for path, problem in _find(sources):
        name = source_name(path / FILE_NAME if problem else path)
        name = name if name not in taken else f"{path.absolute().parent.parent.name}-{name}"
        clash = name in taken
        taken.add(name)
        target = Path(output) / f"{name}.safetensors"
        try:
            if problem:
                raise UserError(problem)
            if clash:
                raise UserError(f"another source has the same name {name}; import it into another --output")
            if target.exists() and not overwrite:
                raise UserError(f"{target} exists; --overwrite replaces it")
            prompt = peft_adapter.read_adapter(path.parent) if _is_adapter(path) else read_published(path)
        except UserError as error:
            outcomes.append(Outcome(path, name, error=str(error)))
            continue
        prompt.save(target)
        outcomes.append(Outcome(path, name, prompt))
    return outcomes


def write_numpy(prompt: Prompt, folder: str | Path) -> None:
    """Write `prompt.npy` (float32, in the prompt's shape, for `numpy.load`) and `prompt.json` (metadata) to `folder`.

    Raises:
        UserError: the folder cannot be written.
    """
    with atomic_path(Path(folder) / "prompt.npy") as temporary:
        np.save(temporary, prompt.values.numpy())
    text = json.dumps(prompt.metadata, indent=2, sort_keys=True)
    write_text_atomic(Path(folder) / "prompt.json", text + "\n")


def _is_adapter(path: Path) -> bool:
    return path.name == peft_adapter.CONFIG_FILE


def _find(sources: Sequence[str | Path]) -> list[tuple[Path, str | None]]:
    """Return the files to import, shallow ones first; a folder with an ambiguous choice comes with an error message."""
    found: dict[Path, tuple[Path, str | None]] = {}
    for source in map(Path, sources):
        if source.is_file():
            # An adapter's weights cannot be read without its configuration.
            config = source.with_name(peft_adapter.CONFIG_FILE)
            source = config if source.name in ADAPTER_FILES and config.is_file() else source
            found.setdefault(source.resolve(), (source, None))
            continue
        if not source.is_dir():
            raise UserError(
                f"no such file or folder: {source}; give a published prompt, a PEFT adapter or a folder of them"
            )
        folders: dict[Path, list[Path]] = defaultdict(list)
        adapters = sorted(file for file in source.rglob(peft_adapter.CONFIG_FILE) if file.is_file())
        # PEFT's training checkpoints also contain optimizer states, in files with the same suffixes.
        taken = {file.parent for file in adapters}
        found.update((file.resolve(), (file, None)) for file in adapters)
        for file in source.rglob("*"):
            if (file.name == FILE_NAME or file.suffix in SUFFIXES) and file.is_file() and file.parent not in taken:
                folders[file.parent].append(file)
        if not folders and not adapters:
            raise UserError(
                f"no prompt in {source}: none of its files is named {FILE_NAME}, *.pkl, *.pt or "
                f"{peft_adapter.CONFIG_FILE}"
            )
        for folder in sorted(folders, key=lambda path: (len(path.parts), str(path))):
            named = [file for file in sorted(folders[folder]) if has_published_name(file.stem)]
            others = [file for file in folders[folder] if file not in named]
            chosen = [file for file in others if file.name == FILE_NAME] or others
            if len(chosen) > 1:
                text = f"{folder} holds {len(chosen)} checkpoints ({FILE_NAME} is missing); give one of the files"
                found.setdefault(folder.resolve(), (folder, text))
            for file in named + (chosen if len(chosen) == 1 else []):
                found.setdefault(file.resolve(), (file, None))
    return list(found.values())


def _tensor(content: Any, path: Path) -> Tensor:
    """Return the tensor itself, or the one under `model` in a checkpoint."""
    if isinstance(content, dict) and "model" in content:
        content = content["model"]
        if isinstance(content, dict) and len(content) == 1:
            content = next(iter(content.values()))
    if isinstance(content, Tensor):
        return content
    if isinstance(content, dict) and {"best_prompt", "prompt_model.template.soft_embeds"} & content.keys():
        raise UserError(
            f"{path} was trained with position embeddings on its prompt tokens: that layout is not supported"
        )
    keys = f"a dictionary of {[str(key)[:40] for key in content][:5]}" if isinstance(content, dict) else "no tensor"
    raise UserError(f"{path} holds {keys}; a published prompt is a tensor, or a dictionary with one under 'model'")


def _history(content: Any, path: Path) -> dict[str, str]:
    """Return a checkpoint's epoch and steps, from its content or file name, as metadata."""
    facts = {}
    number = re.match(r"\d+", path.stem)
    if number:
        facts["epoch"] = number[0]
    above = path.absolute().parent.parent.name
    if "_from_" in above:  # RobertaLarge_from_chimin holds a second run by a co-author
        facts["run"] = above
    if isinstance(content, dict):
        for key, name in (("trained_epoch", "epoch"), ("global_step", "steps")):
            if isinstance(content.get(key), int):
                facts[name] = str(content[key])
    return facts
