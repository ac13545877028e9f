"""Parser of the folder names of Su et al.'s (2022) published prompts, which are their only metadata.

Release 1.0 overwrites prompt token 0 of RoBERTa and BERT prompts with the mask's embedding (modelling_roberta.py):
their layout is `mask_first`. T5 prompts are in the encoder.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils.errors import UserError


class PublishedBackbone(NamedTuple):
    """The hub id, family name and width H of a backbone."""

    id: str
    family: str
    width: int


# Spelled as in the folder names. T5XXL is version 1.1: its FFN is gated and 10,240 wide.
BACKBONES = {
    "Roberta": PublishedBackbone("FacebookAI/roberta-base", "roberta", 768),
    "RobertaLarge": PublishedBackbone("FacebookAI/roberta-large", "roberta", 1024),
    "Bert": PublishedBackbone("google-bert/bert-base-uncased", "bert", 768),
    "BertMedium": PublishedBackbone("google/bert_uncased_L-8_H-512_A-8", "bert", 512),
    "BertLarge": PublishedBackbone("google-bert/bert-large-uncased", "bert", 1024),
    "T5": PublishedBackbone("google-t5/t5-base", "t5", 768),
    "T5Small": PublishedBackbone("google-t5/t5-small", "t5", 512),
    "T5Large": PublishedBackbone("google-t5/t5-large", "t5", 1024),
    "T5XXL": PublishedBackbone("google/t5-v1_1-xxl", "t5", 4096),
}
# Spelling in the folder names -> task name. `recastner`, an early task of the authors, is not in the registry.
TASKS = {
    "IMDB": "imdb",
    "SST2": "sst2",
    "laptop": "laptop",
    "restaurant": "restaurant",
    "movierationales": "movie_rationales",
    "movie": "movie_rationales",
    "tweetevalsentiment": "tweet_eval_sentiment",
    "MNLI": "mnli",
    "QNLI": "qnli",
    "snli": "snli",
    "ethicsdeontology": "ethics_deontology",
    "ethicsjustice": "ethics_justice",
    "QQP": "qqp",
    "MRPC": "mrpc",
    "squad": "squad",
    "nq_open": "nq_open",
    "multi_news": "multi_news",
    "samsum": "samsum",
    "recastner": "recastner",
}
RANDOM = "random"
_NAME = re.compile(
    r"(?P<task>\w+?)(?:_base_(?P<projector>emotion|nli)|_(?P<trained>trained))?Prompt"
    r"(?:_cross_model_(?P<origin>[A-Za-z0-9]+)_to_(?P<target>[A-Za-z0-9]+)|(?P<backbone>[A-Z][A-Za-z0-9]*)(?P<end>_\w+)?)"
)


def has_published_name(name: str) -> bool:
    """Return whether `name` has the form of a published folder's name."""
    return _NAME.fullmatch(name) is not None


def parse_name(name: str) -> dict[str, str]:
    """Parse the name of a published folder into metadata.

    `<task>Prompt<Backbone>` may have further parts: `_proj`, `_base_emotion`, `_base_nli`, `_tanh` and
    `_cross_model_<Backbone>_to_<Backbone>` for projected prompts (`projected`, with `source_backbone` and `projector`
    if the name has them), `_trained` for a prompt trained further from a projected one, and an epoch number.

    Returns:
        backbone, family, layout, and if applicable task, label_words (JSON), random, projected, source_backbone,
        projector, init, epoch.

    Raises:
        UserError: unknown task, backbone or suffix.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(
            f"{name[:80]!r} names no task and backbone: rename the folder to <task>Prompt<Backbone>, such as "
            "IMDBPromptRoberta"
        )
    backbone = _backbone(found["backbone"] or found["target"], name)
    facts = {
        "backbone": backbone.id,
        "family": backbone.family,
        "layout": "encoder" if backbone.family == "t5" else "mask_first",
        **_task_facts(found["task"], name),
    }
    end = found["end"] or ""
    if found["origin"]:
        facts |= {"projected": "true", "source_backbone": _backbone(found["origin"], name).id}
    if found["projector"]:
        tanh = "_tanh" if end == "_tanh" else ""
        end = end.removeprefix(tanh)
        facts |= {"projected": "true", "projector": found["projector"] + tanh}
    if end == "_proj":
        facts["projected"] = "true"
    elif re.fullmatch(r"_\d+", end):
        facts["epoch"] = end[1:]
    elif end:
        raise UserError(f"{name}: unknown suffix {end!r}: it may mean other label words or another layout")
    if found["trained"]:
        facts["init"] = "projected prompt"
    return facts


def _backbone(name: str, whole: str) -> PublishedBackbone:
    if name not in BACKBONES:
        raise UserError(f"{whole}: unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def _task_facts(name: str, whole: str) -> dict[str, str]:
    if name == RANDOM:
        return {"random": "true"}
    if name not in TASKS:
        raise UserError(f"{whole}: unknown task {name!r}; release 1.0 has {', '.join(TASKS)}, {RANDOM}")
    task = TASKS[name]
    words = get_task(task).paper_variant().label_words if task in task_names() else ()
    return {"task": task} | ({"label_words": json.dumps({task: list(words)})} if words else {})
