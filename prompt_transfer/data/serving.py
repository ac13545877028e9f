"""Prompts for servers: the embeddings as `inputs_embeds` takes them, and all else that the input needs as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.pieces import input_pieces
from prompt_transfer.backbones.tokenization import start_ids
from prompt_transfer.data.of_prompt import data_of_prompt, task_of_prompt
from prompt_transfer.data.tables import Tables
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.tensor_file import write
from prompt_transfer.tasks.definition import stored_tasks
from prompt_transfer.tasks.registry import task_names
from prompt_transfer.tasks.task import Task
from prompt_transfer.tasks.verbalizers import Verbalizer
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import write_text_atomic

EMBEDDINGS_FILE, FACTS_FILE, TENSOR = "prompt_embeds.safetensors", "serving.json", "prompt_embeds"
FORMAT_VERSION = 1


def check_servable(prompt: Prompt, backbone: FrozenBackbone) -> None:
    """Raise UserError if a prompt cannot be given to a model as `inputs_embeds` alone."""
    name, kind = prompt.label, backbone.family.kind
    if prompt.is_deep:
        raise UserError(
            f"{name} is a deep prompt: keys and values of every layer, which inputs_embeds cannot hold; --format peft "
            "writes a prefix-tuning adapter of a causal backbone, --format numpy the bare tensor"
        )
    if kind == "masked_lm":
        raise UserError(
            f"{name} is for a masked LM, whose prompt tokens have no position embeddings: inputs_embeds cannot express "
            "this; use `prompt-transfer predict`, or --format numpy for the bare matrix"
        )
    if kind == "seq2seq_lm" and backbone.attention == "shared":
        raise UserError(
            f"{name} was trained with attention shared: given as inputs_embeds it would see the text, which is another "
            "function in an encoder; train with --model.attention full"
        )
    if prompt.label_embeddings is not None:
        raise UserError(f"{name} has trained label embeddings, which a server's LM head lacks: train without them")
    if backbone.head != "lm":
        raise UserError(f"{name} was trained with head {backbone.head}: a server scores only with the LM head")


def serving_facts(prompt: Prompt, backbone: FrozenBackbone) -> dict[str, Any]:
    """Return all that a server needs besides the embeddings; the fields are documented in docs/pages/files.md.

    Raises:
        UserError: see `check_servable`; also for a damaged task definition.
    """
    check_servable(prompt, backbone)
    names = [name for name in prompt.metadata.get("task", "").split(",") if name]
    encoder, model = backbone.encoder(prompt.length), backbone.model
    defined = stored_tasks(prompt.metadata, prompt.label)
    known = [name for name in names if name in task_names() or name in defined]
    causal = backbone.family.kind == "causal_lm"
    return {
        "format_version": FORMAT_VERSION,
        "backbone": backbone.id,
        "revision": backbone.revision,
        "fingerprint": backbone.fingerprint,
        "family": backbone.family.name,
        "kind": backbone.family.kind,
        "embeddings": {"file": EMBEDDINGS_FILE, "tensor": TENSOR, "shape": list(prompt.embeddings.shape)},
        "trained_in": prompt.metadata.get("dtype") or backbone.dtype_name,
        "layout": backbone.layout.name,
        "start_token_ids": list(start_ids(backbone.tokenizer)) if causal and backbone.layout.start_token else [],
        "embedding_scale": backbone._answers.scale,
        "table_scale": _table_scale(backbone),
        "generation": {
            "eos_token_id": model.generation_config.eos_token_id,
            "pad_token_id": encoder.pad_token_id,
            "decoder_start_token_id": getattr(model.config, "decoder_start_token_id", None),
        },
        "tasks": {name: _task_facts(prompt, backbone, name) for name in known},
        "unknown_tasks": [name for name in names if name not in known],
    }


def write_embeddings(prompt: Prompt, backbone: FrozenBackbone, folder: str | Path) -> dict[str, Any]:
    """Write `prompt_embeds.safetensors` and `serving.json` to a folder; return the contents of the latter.

    Raises:
        UserError: see `serving_facts`; also if the folder cannot be written.
    """
    facts, folder = serving_facts(prompt, backbone), Path(folder)
    # transformers requires `format` in safetensors files.
    write(folder / EMBEDDINGS_FILE, {TENSOR: prompt.embeddings}, {"format": "pt"})
    # Written last: until then the folder is not an export.
    write_text_atomic(folder / FACTS_FILE, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return facts


def _table_scale(backbone: FrozenBackbone) -> float:
    """Return the factor between the model's table of embeddings and its input embeddings: sqrt(H) for Gemma, else 1."""
    table = backbone.model.get_input_embeddings().weight.detach()
    row = int(table.float().norm(dim=1).argmax())
    return round(float(backbone.embedding_weight[row].float().norm() / table[row].float().norm()), 4)


def _task_facts(prompt: Prompt, backbone: FrozenBackbone, name: str) -> dict[str, Any]:
    data = data_of_prompt(prompt, task_of_prompt(prompt, name))
    (task,) = data.tasks
    task = task.with_policy(prompt.metadata.get("label_words_policy") or None)
    tables = Tables(data.selection, backbone.encoder(prompt.length), data.max_length, None, data.special_tokens)
    form = tables.input_format(0)
    length = form.pop("max_length")
    template = form.get("template")
    encoder = tables.encoder
    return {
        "columns": {"text_a": task.text_a, **({} if task.text_b is None else {"text_b": task.text_b})},
        "join_texts": task.join_texts,
        "template": backbone.shown_format(task.format, task.pairs, task.cue),
        "special_tokens": data.special_tokens,
        "input": input_pieces(encoder, **form),  # type: ignore[arg-type]  # the encoder of a backbone
        "max_text_tokens": encoder.text_room(length, **form),  # type: ignore[attr-defined]
        "without_text": encoder.without_text(),  # type: ignore[attr-defined]
        **_answers(task, backbone, template),
    }


def _answers(task: Task, backbone: FrozenBackbone, template: Any) -> dict[str, Any]:
    """Return how to read the answer: generated text, options, or label words as token ids."""
    encoder = backbone.encoder(1)
    if task.is_generation:
        return {"answer": "text", "max_new_tokens": task.max_target_length}
    if task.is_choice:
        return {"answer": "options", "options": list(task.choices), "score": task.choice_score}
    if task.label_words_policy == "sequence":
        ids = [encoder.answer_ids(list(words), template) for words in task.class_words]
    else:
        spaced = encoder.is_spaced(task.format)
        found = Verbalizer.for_task(task, backbone.tokenizer, backbone.family.name, spaced)
        ids = [[list(own) for own in words.values()] for words in found.words]
    return {
        "answer": "label words",
        "labels": list(task.class_labels),
        "label_words": [list(words) for words in task.class_words],
        "label_token_ids": ids,
        "label_words_policy": task.label_words_policy,
    }
