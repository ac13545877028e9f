"""Loading a frozen language model from the project, a folder or the hub, with nothing random in it."""

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

from prompt_transfer.backbones import attention, generic, gguf, writing
from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.catalogue import NAMED, check_fetched, named_source
from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.family import AUTO_CLASSES, Family
from prompt_transfer.backbones.fingerprint import fingerprint
from prompt_transfer.backbones.tokenization import check_tokenizer, start_ids
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.network import hub_reachable


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
            model_type = facts.get("model_type", "unknown")
            row = _row(facts, name)
            kind = generic.kind_of(facts, name)
            stated = writing.stated_settings(source, facts, places)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            auto_class = getattr(transformers, AUTO_CLASSES[kind])
            implementation = _attention(row, facts)
            # Not in the dtype that config.json names: it may be narrower than that of the tensors. Nor in float16, in
            # which they would have lost what the fingerprint is made of.
            model, info = auto_class.from_pretrained(
                source,
                dtype=torch.bfloat16 if dtype is torch.bfloat16 else torch.float32,
                output_loading_info=True,
                attn_implementation=implementation,
                # In place of the checkpoint's, which may not even be valid.
                generation_config=GenerationConfig(),
                # What config.json may say otherwise, of how a model is called and not of what it is.
                return_dict=True,
                chunk_size_feed_forward=0,
                **options,
            )
            if implementation is not None:
                # A config.json that names one wins over the argument, and other functions do not see the prompt's
                # states.
                model.set_attn_implementation(implementation)
            family = generic.describe(model, model_type, kind) if row is None else row
    except UserError:
        raise
    except Exception as error:  # transformers raises many types here; all mean that the checkpoint cannot be used
        raise UserError(_explain(name, origin, error)) from error
    _refuse_random_weights(name, family, head, info, _tied_by_default(model) if family.has_row else [])
    check_tokenizer(name, model, tokenizer, family.kind)
    if family.kind != "masked_lm":
        writing.neutralize(name, model, tokenizer, stated)
    if commit is not None:
        model.config._commit_hash = commit
    mark = fingerprint(model, tokenizer)
    for parameter in model.parameters():
        # Not `model.to`: it would round the frequencies of rotary positions too, and far positions would be others.
        parameter.data = parameter.data.to(dtype)
    return model, tokenizer, family, mark


def _row(facts: dict[str, Any], name: str) -> Family | None:
    """The row of a family as its configuration needs it; None where it has none."""
    row = FAMILIES.get(facts.get("model_type", "unknown"))
    if row is None:
        return None
    if row.kind == "causal_lm" and facts.get("use_bidirectional_attention"):
        raise UserError(f"{name} sees texts in both directions (use_bidirectional_attention), so it is no causal model")
    if facts.get("attn_logit_softcapping"):
        # Only the eager attention caps its scores.
        return dataclasses.replace(row, plain=True, layer=None, attention="eager")
    return row


def _attention(row: Family | None, facts: dict[str, Any]) -> str | None:
    """The attention implementation of transformers; None for its own choice."""
    if row is None:
        return "eager" if facts.get("attn_logit_softcapping") else None
    return row.attention if row.plain else attention.NAME


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


def local_start_ids(name: str, revision: str | None = None) -> tuple[int, ...] | None:
    """`start_ids` of a backbone's tokenizer without its model; None where the tokenizer is not on this machine.

    Args:
        name: a built-in backbone, a folder, or a hub id in the cache.
        revision: of a hub repository.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(resolve(name)[0], revision=revision, local_files_only=True)
        # Without tokenizer files transformers makes an empty one.
        return start_ids(tokenizer) if len(tokenizer) > len(tokenizer.all_special_ids) else None
    except Exception:  # transformers raises many types here; all mean that it cannot be read
        return None
