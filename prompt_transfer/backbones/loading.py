"""Load frozen language models from the project, a folder, a GGUF file or the hub; missing tensors are an error."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from prompt_transfer.backbones import attention, generic, gguf, layer_files, sharding, writing
from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.catalogue import NAMED, check_fetched, named_source
from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.family import AUTO_CLASSES, Family
from prompt_transfer.backbones.fingerprint import fingerprint
from prompt_transfer.backbones.tokenization import check_tokenizer, start_ids
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.network import hub_reachable


def resolve(name: str) -> tuple[str, str]:
    """Resolve a backbone name to a source and its origin.

    Names are tried in this order: built-in, catalogue, file or folder, hub.

    Returns:
        The source, and one of: `builtin` and `folder` (a model folder), `fetched` (a GGUF file or folder, possibly not
        fetched yet), `gguf` (a GGUF file, given directly, or the only GGUF file in a folder), `hub` (an id, or
        `org/repo:file.gguf`).

    Raises:
        UserError: the path contains no model.
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
            raise UserError(
                f"the folder {name} contains neither a Hugging Face model (no config.json) nor a GGUF file: give a "
                "model folder"
            )
        return str(file), "gguf"
    if gguf.is_gguf(name) and not gguf.on_hub(name):
        if not path.is_file():
            raise UserError(f"no such GGUF file: {name}; for a file on the hub use org/repo:file.gguf")
        return str(path), "gguf"
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(
            f"no such folder: {name}; give the folder of a Hugging Face model, a hub id or a built-in backbone"
        )
    return name, "hub"


@contextmanager
def quiet_transformers(bars: bool = False) -> Iterator[None]:
    """Silence transformers' warnings, which users cannot act on, and its progress bars.

    Args:
        bars: keep the progress bars, for example for a download.
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
    """Load a model with its LM head, its tokenizer, its family and its fingerprint.

    Args:
        name: built-in name, folder, hub id or GGUF file (see `resolve`).
        head: `lm` requires a pretrained LM head; `embedding` does not.
        dtype: dtype of the weights.
        revision: revision of a hub repository.
        trust_remote_code: run model code from the checkpoint.

    Raises:
        UserError: not found, not reachable, not a language model, damaged, or with missing tensors.
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
            # Read as a dictionary, since building a configuration object of an unknown type may fail.
            places = {key: value for key, value in options.items() if key != "trust_remote_code"}
            facts, _ = PreTrainedConfig.get_config_dict(source, **places)
            model_type = facts.get("model_type", "unknown")
            row = _row(facts, name)
            kind = generic.kind_of(facts, name)
            generic.refuse_contrary(facts, name, kind)
            stated = writing.stated_settings(source, facts, places)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            auto_class = getattr(transformers, AUTO_CLASSES[kind])
            implementation = _attention(row, facts)
            # The dtype in config.json may be narrower than that of the tensors, and float16 would change the
            # fingerprint.
            wide = torch.bfloat16 if dtype is torch.bfloat16 else torch.float32
            model, info = _weights(name, auto_class, source, wide, implementation, options, row is not None)
            if implementation is not None:
                # An implementation named in config.json overrides the argument, and would ignore `prompt_states`.
                model.set_attn_implementation(implementation)
            family = generic.describe(model, model_type, kind) if row is None else row
    except UserError:
        raise
    except Exception as error:  # transformers raises many types; all mean that the checkpoint cannot be used
        raise UserError(_explain(name, origin, error)) from error
    _refuse_random_weights(name, family, head, info, _tied_by_default(model) if family.has_row else [])
    check_tokenizer(name, model, tokenizer, family.kind)
    if family.kind != "masked_lm":
        writing.neutralize(name, model, tokenizer, stated)
    if commit is not None:
        model.config._commit_hash = commit
    mark = fingerprint(model, tokenizer)
    for parameter in model.parameters():
        # `model.to` would round the rotary frequencies too, which changes distant positions.
        parameter.data = parameter.data.to(dtype)
    return model, tokenizer, family, mark


def _weights(
    name: str,
    auto_class: Any,
    source: str,
    dtype: torch.dtype,
    implementation: str | None,
    options: dict[str, Any],
    has_row: bool,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model with its loading information; without the weights of its layers if they are to be sharded."""
    if sharding.is_deferred():
        try:
            if not has_row:
                raise layer_files.WholeLoadError("its family is checked on the whole model")
            return layer_files.load(auto_class, source, dtype, implementation, options)
        except layer_files.WholeLoadError as reason:
            sharding.warn_whole(name, str(reason))
    model, info = auto_class.from_pretrained(
        source,
        dtype=dtype,
        output_loading_info=True,
        attn_implementation=implementation,
        # The checkpoint's own generation config may be invalid.
        generation_config=GenerationConfig(),
        # Override calling conventions set in config.json.
        return_dict=True,
        chunk_size_feed_forward=0,
        **options,
    )
    return model, info


def _row(facts: dict[str, Any], name: str) -> Family | None:
    """Return the family's row, adapted to the configuration; None if the family has no row."""
    row = FAMILIES.get(facts.get("model_type", "unknown"))
    if row is None:
        return None
    if row.kind == "causal_lm" and facts.get("use_bidirectional_attention"):
        raise UserError(
            f"{name} is not a causal model, since it uses bidirectional attention (use_bidirectional_attention): use "
            "another backbone"
        )
    if facts.get("attn_logit_softcapping"):
        # Only eager attention applies the soft cap to the attention scores.
        return dataclasses.replace(row, plain=True, layer=None, attention="eager")
    return row


def _attention(row: Family | None, facts: dict[str, Any]) -> str | None:
    """Return the attention implementation for transformers; None for its default."""
    if row is None:
        return "eager" if facts.get("attn_logit_softcapping") else None
    return row.attention if row.plain else attention.NAME


def _explain(name: str, origin: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    reason = lines[0][:200] if lines else type(error).__name__
    if "ignore_mismatched_sizes" in reason:
        reason = "its tensor shapes do not match config.json"
    if origin == "hub":
        names = [*builtin_backbones(), *(row.name for row in NAMED)]
        close = difflib.get_close_matches(name, names, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        cause = (
            f"the hub answered: {reason.rstrip('.')}"
            if hub_reachable()
            else "the hub is unreachable and the model is not in the local cache"
        )
        return (
            f"unknown backbone {name!r}{guess}: it is not a known name ({', '.join(names) or 'none'}) or a folder; "
            f"{cause}. Use --model.backbone DIR with the folder of a downloaded model"
        )
    return f"cannot load the backbone {name}: {reason}"


def _tied_by_default(model: PreTrainedModel) -> list[str]:
    """Return the LM head's tensor name if transformers silently tied it (T5 v1.1, mT5), else an empty list.

    Only T5 v1.0 is trained with tied and scaled embeddings; the others have a separate, unscaled LM head.
    """
    config = model.config
    if not config.is_encoder_decoder or getattr(config, "scale_decoder_outputs", False):
        return []
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return ["lm_head.weight"] if tied else []


def _refuse_random_weights(name: str, family: Family, head: str, info: dict[str, Any], tied: list[str]) -> None:
    """Raise UserError if a checkpoint has missing or mismatched tensors."""
    heads = tuple(f"{path}." for path in family.head)
    missing = sorted({*info.get("missing_keys", ()), *tied})
    mismatched = sorted(
        str(entry[0] if isinstance(entry, tuple) else entry) for entry in info.get("mismatched_keys", ())
    )
    if head == "embedding":
        missing = [key for key in missing if not key.startswith(heads)]
    if not missing and not mismatched:
        return
    names = ", ".join((missing + mismatched)[:6]) + (" ..." if len(missing + mismatched) > 6 else "")
    hint = (
        "; use a checkpoint with its LM head, or --model.head embedding to score with the word embeddings"
        if any(key.startswith(heads) for key in missing)
        else ""
    )
    raise UserError(
        f"the checkpoint of {name} has missing or mismatched tensors, which transformers would initialize randomly or "
        f"tie to another layer: {names}{hint}"
    )


def local_start_ids(name: str, revision: str | None = None) -> tuple[int, ...] | None:
    """Return the tokenizer's `start_ids` without loading the model; None if the tokenizer is not on this machine.

    Args:
        name: a built-in backbone, a folder, or a hub id in the cache.
        revision: revision of a hub repository.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(resolve(name)[0], revision=revision, local_files_only=True)
        # Without tokenizer files transformers returns an empty tokenizer.
        return start_ids(tokenizer) if len(tokenizer) > len(tokenizer.all_special_ids) else None
    except Exception:  # transformers raises many types; all mean that the tokenizer cannot be read
        return None
