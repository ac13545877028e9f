"""Names of the prompts that Su et al. (2022) published: all that is known of one is the name of its folder.

Release 1.0 writes the mask's embedding over row 0 of the prompts of RoBERTa and BERT (modelling_roberta.py), so their
layout is `mask_first`. T5's prompts stand in the encoder.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from prompt_transfer.tasks.registry import get_task, task_names
from prompt_transfer.utils.errors import UserError


class PublishedBackbone(NamedTuple):
    """The hub id, the family's name and the width H of a backbone."""

    id: str
    family: str
    width: int


# As the folders spell them. The authors say T5XXL, its FFN is gated and 10,240 wide: that is version 1.1.
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
# As the folders spell them -> the registry. `recastner`, an early task of theirs, is in no registry.
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
    """Whether `name` has the form of a published folder's."""
    return _NAME.fullmatch(name) is not None


def parse_name(name: str) -> dict[str, str]:
    """What the name of a published folder says, as metadata.

    `<task>Prompt<Backbone>` may carry what else the authors wrote into it: `_proj`, `_base_emotion`, `_base_nli`,
    `_tanh` and `_cross_model_<Backbone>_to_<Backbone>` for prompts that a projector made (`projected`, with
    `source_backbone` and `projector` where the name says them), `_trained` for one that was trained on from such a
    start, and the number of an epoch.

    Returns:
        backbone, family, layout, and where they apply task, label_words (JSON), random, projected, source_backbone,
        projector, init, epoch.

    Raises:
        UserError: the name says no task or backbone that is known, or has another ending.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(
            f"{name[:80]!r} names no task and backbone: a published prompt lies in a folder <task>Prompt<Backbone>, "
            "such as IMDBPromptRoberta; rename the folder"
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
        raise UserError(f"{name}: {end!r} is no known ending: it may mean other label words or another layout")
    if found["trained"]:
        facts["init"] = "projected prompt"
    return facts


def _backbone(name: str, whole: str) -> PublishedBackbone:
    if name not in BACKBONES:
        raise UserError(f"{whole}: {name!r} is none of the backbones that are known ({', '.join(BACKBONES)})")
    return BACKBONES[name]


def _task_facts(name: str, whole: str) -> dict[str, str]:
    if name == RANDOM:
        return {"random": "true"}
    if name not in TASKS:
        raise UserError(f"{whole}: {name!r} is none of the tasks of release 1.0 ({', '.join(TASKS)}, {RANDOM})")
    task = TASKS[name]
    words = get_task(task).paper_variant().label_words if task in task_names() else ()
    return {"task": task} | ({"label_words": json.dumps({task: list(words)})} if words else {})
