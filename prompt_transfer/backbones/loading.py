"""Loading a frozen language model from the project, a folder or the hub, with nothing random in it."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from prompt_transfer.backbones import attention, gguf
from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.catalogue import NAMED, check_fetched, named_source
from prompt_transfer.backbones.families import Family, get_family
from prompt_transfer.errors import UserError
from prompt_transfer.network import hub_reachable

# Facts of a configuration that decide what a prompt means to the model; the rest (dropout, versions) does not.
_IDENTITY = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
)


def resolve(name: str) -> tuple[str, str]:
    """What to load for a backbone name: (source, `builtin` | `fetched` | `folder` | `gguf` | `hub`).

    A built-in name wins; then one of the catalogue; then a file or folder; anything else is on the hub. The source of
    `gguf` is the path of a GGUF file, which may be the only one of a folder without a model; that of `fetched` a GGUF
    file or folder, which may not be there yet; that of `hub` an id, or `org/repo:file.gguf`.

    Raises:
        UserError: a path that leads to no model.
    """
    built_in = builtin_backbones()
    if name in built_in:
        return str(built_in[name]), "builtin"
    if (found := named_source(name)) is not None:
        return str(found), "fetched"
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return str(path), "folder"
        file = gguf.only_file(path)
        if file is None:
            raise UserError(f"the folder {name} holds no Hugging Face model (no config.json) and no GGUF file")
        return str(file), "gguf"
    if gguf.is_gguf(name) and not gguf.on_hub(name):
        if not path.is_file():
            raise UserError(f"no such GGUF file: {name}; a file of the hub is written as org/repo:file.gguf")
        return str(path), "gguf"
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"no folder {name}: give the folder of a Hugging Face model, a hub id or a built-in backbone")
    return name, "hub"


@contextmanager
def quiet_transformers(bars: bool = False) -> Iterator[None]:
    """Without the warnings of transformers, which say nothing that a user can mend, and without progress bars.

    Args:
        bars: keep the bars, as for a download.
    """
    verbosity = transformers_logging.get_verbosity()
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not bars:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def load(
    name: str, head: str, dtype: torch.dtype, revision: str | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Family, str]:
    """Model with its LM head, tokenizer, family row and fingerprint.

    Args:
        name: built-in name, folder, hub id or GGUF file (see `resolve`).
        head: `lm`: the pretrained LM head must be there; `embedding`: it is not needed.
        dtype: of the weights.
        revision: of a hub repository.
        trust_remote_code: run model code that comes with the checkpoint.

    Raises:
        UserError: not to be found, not to be reached, of an unknown family, damaged, or without tensors that it needs.
    """
    source, origin = resolve(name)
    commit = None
    if origin == "fetched":
        check_fetched(name)
    if gguf.is_gguf(source):
        path = Path(source)
        if (place := gguf.on_hub(source)) and origin == "hub":
            path, commit = gguf.download(*place, revision)
        with quiet_transformers():
            source, origin = str(gguf.model_folder(path, name)), "gguf"
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if origin != "hub" or not hub_reachable():
        options["local_files_only"] = True
    try:
        with quiet_transformers(bars=origin == "hub"):
            # The plain dictionary: building a configuration of an unknown type may fail for reasons of its own.
            places = {key: value for key, value in options.items() if key != "trust_remote_code"}
            facts, _ = PreTrainedConfig.get_config_dict(source, **places)
            family = get_family(facts.get("model_type", "unknown"), name)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            auto_class = getattr(transformers, family.auto_class)
            # In the checkpoint's own dtype, so that the fingerprint does not depend on the one that is asked for.
            model, info = auto_class.from_pretrained(
                source, dtype="auto", output_loading_info=True, attn_implementation=attention.NAME, **options
            )
    except UserError:
        raise
    except Exception as error:  # transformers raises many types here; all mean that the checkpoint cannot be used
        raise UserError(_explain(name, origin, error)) from error
    _refuse_random_weights(name, family, head, info, _tied_by_default(model))
    _check_tokenizer(name, model, tokenizer)
    if commit is not None:
        model.config._commit_hash = commit
    mark = fingerprint(model, tokenizer)
    for parameter in model.parameters():
        # Not `model.to`: it would round the frequencies of rotary positions too, and far positions would be others.
        parameter.data = parameter.data.to(dtype)
    return model, tokenizer, family, mark


def _check_tokenizer(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    ordinary = len(tokenizer) - len(tokenizer.all_special_ids)
    if ordinary < 2:
        raise UserError(
            f"the backbone {name} has no tokenizer (transformers made an empty one): add its tokenizer files"
        )
    if max(tokenizer.get_vocab().values()) >= rows:
        raise UserError(
            f"tokenizer and model of {name} do not belong together: {len(tokenizer)} tokens, {rows} word embeddings"
        )


def _explain(name: str, origin: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    reason = lines[0][:200] if lines else type(error).__name__
    if "ignore_mismatched_sizes" in reason:
        reason = "its tensors do not have the sizes that its config.json gives"
    if origin == "hub":
        names = [*builtin_backbones(), *(row.name for row in NAMED)]
        close = difflib.get_close_matches(name, names, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        if not hub_reachable():
            reason = "no answer; its cache on this machine does not have it"
        return (
            f"unknown backbone {name!r}{guess}: none that is known by name ({', '.join(names) or 'none'}), "
            f"not a folder, and the hub gave: {reason} (without a network give the folder of a downloaded model with "
            "--model.backbone DIR)"
        )
    return f"cannot load the backbone {name}: {reason}"


def _tied_by_default(model: PreTrainedModel) -> list[str]:
    """The output layer of a T5 v1.1 or mT5 whose checkpoint lacks it: transformers puts the word embeddings there.

    v1.0 ties the two and scales what enters; the others have an output layer of their own, and do not scale.
    """
    config = model.config
    if not config.is_encoder_decoder or getattr(config, "scale_decoder_outputs", False):
        return []
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return ["lm_head.weight"] if tied else []


def _refuse_random_weights(name: str, family: Family, head: str, info: dict[str, Any], tied: list[str]) -> None:
    """transformers fills what a checkpoint lacks with random numbers and warns; here that is an error."""
    heads = tuple(f"{path}." for path in family.head)
    missing = sorted({*info.get("missing_keys", ()), *tied})
    mismatched = sorted(
        str(entry[0] if isinstance(entry, tuple) else entry) for entry in info.get("mismatched_keys", ())
    )
    if head == "embedding":
        missing = [key for key in missing if not key.startswith(heads)]
    if not missing and not mismatched:
        return
    what = ", ".join((missing + mismatched)[:6]) + (" ..." if len(missing + mismatched) > 6 else "")
    hint = (
        "; use a checkpoint with its LM head, or --model.head embedding to score with the word embeddings"
        if any(key.startswith(heads) for key in missing)
        else ""
    )
    raise UserError(f"the checkpoint of {name} lacks tensors, which would be random or of another layer: {what}{hint}")


def text_rules(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over what a fast tokenizer does to a text beside looking its pieces up: spaces, case, frame."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    rules = {name: rules.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "added_tokens")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that tell one backbone from another, whatever name, folder or dtype it was loaded from.

    Over the tokenizer's vocabulary and merges, the configuration's shape and 64 seeded rows of the word embeddings in
    bf16. A quantised GGUF file may keep its embeddings exact and round the layers, so of one the file's digest counts
    too; of an exact one it does not, and the model has one fingerprint in both forms.
    """
    digest = hashlib.sha256()
    file = getattr(model.config, gguf.SOURCE, None)
    if file is not None and file["quantization"] not in gguf.EXACT:
        digest.update(file["sha256"].encode())
    facts = {key: getattr(model.config, key, None) for key in _IDENTITY}
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        merges = json.loads(backend.to_str())["model"].get("merges", [])
        digest.update(json.dumps(merges).encode())
    table = model.get_input_embeddings().weight.detach()
    rows = torch.randperm(table.shape[0], generator=torch.Generator().manual_seed(0))[:64]
    chosen = table[rows.to(table.device)].to(torch.bfloat16).view(torch.int16).cpu()
    digest.update(chosen.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
