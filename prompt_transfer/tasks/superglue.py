"""The rows of SuperGLUE (Wang et al. 2019) that need more than two columns or have options; CB and BoolQ are in
``catalogue.py``, RTE is GLUE's.

Metrics are those of the paper: accuracy; for MultiRC F1 over all answers (F1a, here ``f1``) and exact match over
questions (EM, here ``group_exact_match``); for ReCoRD token F1 and exact match of the best option.
"""

from __future__ import annotations

from prompt_transfer.tasks.task import HubSource, Task

ID, REVISION = "aps/super_glue", "3de24cf8022e94f4ee4b9d55a6f539891524d646"
UNLABELLED = "test labels are -1 or missing on the hub: the split counts as missing"


def super_glue(config: str) -> HubSource:
    """Return the hub source of a SuperGLUE task; unverified, as all rows."""
    splits = {name: name for name in ("train", "validation", "test")}
    return HubSource(id=ID, config=config, revision=REVISION, splits=splits, verified=False, note=UNLABELLED)


SUPERGLUE = (
    Task(
        name="wic",
        type="word_sense",
        text_a="{word}: {sentence1}",
        text_b="sentence2",
        labels=(0, 1),
        label_words=("no", "yes"),
        hub=super_glue("wic"),
        max_length=128,
    ),
    Task(
        name="wsc",
        type="coreference",
        text_a="text",
        text_b="{span2_text} is {span1_text}",
        labels=(0, 1),
        label_words=("no", "yes"),
        hub=super_glue("wsc.fixed"),
        max_length=128,
    ),
    Task(
        name="copa",
        type="qa",
        text_a="premise",
        text_b="question",
        values={"question": {"cause": "What was the cause?", "effect": "What happened as a result?"}},
        choices=("choice1", "choice2"),
        hub=super_glue("copa"),
        max_target_length=48,
    ),
    Task(
        name="multirc",
        type="qa",
        text_a="paragraph",
        text_b="{question} {answer}",
        labels=(0, 1),
        label_words=("no", "yes"),
        metric="f1",
        metrics=("f1", "group_exact_match"),
        group="{idx[paragraph]}-{idx[question]}",
        hub=super_glue("multirc"),
        max_length=384,
    ),
    Task(
        name="record",
        type="qa",
        text_a="passage",
        text_b="query",
        label_column="answers",
        choices=("entities",),
        metric="squad_f1",
        metrics=("squad_f1", "exact_match"),
        hub=super_glue("record"),
        max_length=384,
        max_target_length=24,
    ),
)
