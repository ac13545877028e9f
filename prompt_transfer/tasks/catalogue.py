"""The rows of the task registry. Add a task as a row here, or as a user's YAML file (see ``registry.py``).

Label words are one token each (with a leading space) in the vocabularies of our backbones and of RoBERTa. ``paper``
holds the words of release 1.0 of the paper's code, which its published prompts need.

No row has been checked against the hub yet: ids, revisions and columns come from public dataset cards and from public
code that pins the same commits. Hence ``verified=False`` throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prompt_transfer.tasks.superglue import SUPERGLUE, super_glue
from prompt_transfer.tasks.task import CUES, HubSource, PaperWords, Task
from prompt_transfer.tasks.titles import TITLES

_ALL = {"train": "train", "validation": "validation", "test": "test"}
_NO_TEST = {"train": "train", "validation": "validation"}
_PARQUET = "refs/convert/parquet"
_GLUE = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
_UNLABELLED = "test labels are -1 on the hub: the split counts as missing"


def _hub(
    id: str, config: str | None, revision: str | None, splits: Mapping[str, str] = _ALL, note: str = "", **more: Any
) -> HubSource:
    return HubSource(id=id, config=config, revision=revision, splits=splits, verified=False, note=note, **more)


def _glue(config: str, splits: Mapping[str, str] = _ALL) -> HubSource:
    return _hub("nyu-mll/glue", config, _GLUE, splits, _UNLABELLED)


# The fourth class of SemEval-2014, conflict (label 3 in the local format), is dropped: it has few rows.
def _semeval(id: str, revision: str) -> HubSource:
    return _hub(
        id,
        None,
        revision,
        {"train": "train", "test": "test"},
        "SemEval-2014 Task 4, one row an aspect; string labels, 'conflict' is left out; a test split without labels "
        "counts as missing",
        columns={"span": "aspect"},
        labels=("negative", "neutral", "positive", "conflict"),
    )


# Token ids of release 1.0 per family; the words are those of its RoBERTa models (without a leading space).
_PAPER_SENTIMENT = PaperWords(
    ("negative", "positive"), {"roberta": (33407, 22173), "bert": (4997, 3893), "t5": (2841, 1465)}
)
_PAPER_SENTIMENT_3 = PaperWords(
    ("negative", "moderate", "positive"),
    {"roberta": (33407, 19397, 22173), "bert": (4997, 8777, 3893), "t5": (2841, 8107, 1465)},
)
_PAPER_ASPECT = PaperWords(
    ("negative", "moderate", "positive", "conflict"),
    {
        "roberta": (33407, 19397, 22173, 17075),
        "bert": (4997, 8777, 3893, 4736),
        "t5": (2841, 8107, 1465, 4129),
    },
    labels=(0, 1, 2, 3),
    join_texts=True,
)
# Formats of its T5 models; release 1.0 concatenates all other pairs unchanged.
_PAPER_NLI_FRAME = ("hypothesis: ", " [SEP] sentence: premise: ")
_PAPER_NLI = PaperWords(
    ("no", "neutral", "yes"),
    {"roberta": (2362, 12516, 10932), "bert": (2053, 8699, 2748), "t5": (27252, 7163, 3)},
    swap_texts=True,
    seq2seq_frame=_PAPER_NLI_FRAME,
)
_PAPER_QNLI = PaperWords(
    ("no", "yes"),
    {"roberta": (2362, 10932), "bert": (2053, 2748), "t5": (27252, 3)},
    seq2seq_frame=_PAPER_NLI_FRAME,
)
_PAPER_PARAPHRASE = PaperWords(
    ("false", "true"),
    {"roberta": (22303, 29225), "bert": (6270, 2995), "t5": (6136, 1176)},
    seq2seq_frame=("", "<extra_id_0>"),
)
_PAPER_ETHICS = PaperWords(
    ("unacceptable", "acceptable"),
    {"roberta": (897, 32047), "bert": (21873, 11701), "t5": (29452, 9961)},
    seq2seq_frame=("", ""),
)
_PAPER_GENERATION = PaperWords(())
_PAPER_CONTEXT = PaperWords((), seq2seq_frame=("context: ", " SEP question:"))


def _sentiment(
    name: str, text: str, hub: HubSource, words: tuple[str, ...] = ("terrible", "great"), **more: Any
) -> Task:
    paper = _PAPER_SENTIMENT if len(words) == 2 else _PAPER_SENTIMENT_3
    labels = tuple(range(len(words)))
    values = {"paper": paper, **more}
    return Task(name=name, type="sentiment", text_a=text, labels=labels, label_words=words, hub=hub, **values)


def _ethics(name: str, config: str, text_b: str | None, question: str) -> Task:
    # The repository's loading script no longer runs in `datasets`; its CSV files are read directly.
    hub = _hub(
        "hendrycks/ethics",
        config,
        "b8b47c589f8bee77175b8648e5497278b68da48a",
        {"train": "train", "validation": "test", "test": "test_hard"},
        "validation is the paper's test set, test its hard test set, as in the hub's own script",
        file="data/{config}/{split}.csv",
    )
    return Task(
        name=name,
        type="ethics",
        text_a="scenario",
        text_b=text_b,
        labels=(0, 1),
        label_words=("wrong", "right"),
        question=question,
        hub=hub,
        paper=_PAPER_ETHICS,
    )


_SENTIMENT = (
    _sentiment(
        "imdb",
        "text",
        _hub(
            "stanfordnlp/imdb",
            "plain_text",
            "e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
            {"train": "train", "test": "test"},
        ),
        max_length=128,
    ),
    _sentiment("sst2", "sentence", _glue("sst2")),
    _sentiment(
        "rotten_tomatoes",
        "text",
        _hub("cornell-movie-review-data/rotten_tomatoes", None, "aa13bc287fa6fcab6daf52f0dfb9994269ffea28"),
    ),
    _sentiment(
        "movie_rationales",
        "review",
        _hub("eraser-benchmark/movie_rationales", "default", _PARQUET, file="{config}/{split}/*.parquet"),
        max_length=128,
    ),
    _sentiment(
        "tweet_eval_sentiment",
        "text",
        _hub("cardiffnlp/tweet_eval", "sentiment", "b3a375baf0f409c77e6bc7aa35102b7b3534f8be"),
        words=("terrible", "okay", "great"),
    ),
    _sentiment(
        "laptop",
        "text",
        _semeval("tomaarsen/setfit-absa-semeval-laptops", "37989cd748fb801ff9f680bb5c9eec3241b2c422"),
        words=("terrible", "okay", "great"),
        text_b="aspect",
        paper=_PAPER_ASPECT,
        drop_labels=(3,),
    ),
    _sentiment(
        "restaurant",
        "text",
        _semeval("tomaarsen/setfit-absa-semeval-restaurants", "8885372fe73256f96bb60f65b550538ac5c26047"),
        words=("terrible", "okay", "great"),
        text_b="aspect",
        paper=_PAPER_ASPECT,
        drop_labels=(3,),
    ),
)

# `labels` reverses the hub's order if it starts with entailment: class 0 is always "no".
_NLI = (
    Task(
        name="mnli",
        type="nli",
        text_a="premise",
        text_b="hypothesis",
        labels=(2, 1, 0),
        label_words=("no", "maybe", "yes"),
        hub=_glue("mnli", {"train": "train", "validation": "validation_matched"}),
        paper=_PAPER_NLI,
    ),
    Task(
        name="snli",
        type="nli",
        text_a="premise",
        text_b="hypothesis",
        labels=(2, 1, 0),
        label_words=("no", "maybe", "yes"),
        hub=_hub("stanfordnlp/snli", "plain_text", "cdb5c3d5eed6ead6e5a341c8e56e669bb666725b"),
        paper=_PAPER_NLI,
        drop_labels=(-1,),
    ),
    Task(
        name="qnli",
        type="nli",
        text_a="question",
        text_b="sentence",
        labels=(1, 0),
        label_words=("no", "yes"),
        question="Sentence: {text_b}\nQuestion: {text_a}\nDoes the sentence answer the question? Answer:",
        hub=_glue("qnli"),
        paper=_PAPER_QNLI,
        max_length=128,
    ),
    Task(
        name="rte",
        type="nli",
        text_a="sentence1",
        text_b="sentence2",
        labels=(1, 0),
        label_words=("no", "yes"),
        hub=_glue("rte"),
        max_length=128,
    ),
    Task(
        name="cb",
        type="nli",
        text_a="premise",
        text_b="hypothesis",
        labels=(1, 2, 0),
        label_words=("no", "maybe", "yes"),
        metrics=("accuracy", "f1"),
        hub=super_glue("cb"),
        max_length=128,
    ),
)

_ETHICS = (
    _ethics(
        "ethics_deontology",
        "deontology",
        "excuse",
        "{text_a}\n{text_b}\nIs this excuse right or wrong? Answer:",
    ),
    _ethics("ethics_justice", "justice", None, "{text_a}\nIs this reasoning right or wrong? Answer:"),
)

_PARAPHRASE = (
    Task(
        name="qqp",
        type="paraphrase",
        text_a="question1",
        text_b="question2",
        labels=(0, 1),
        label_words=("false", "true"),
        question="Question 1: {text_a}\nQuestion 2: {text_b}\nTrue or false: both questions ask the same. Answer:",
        metrics=("accuracy", "f1"),
        hub=_glue("qqp"),
        paper=_PAPER_PARAPHRASE,
    ),
    Task(
        name="mrpc",
        type="paraphrase",
        text_a="sentence1",
        text_b="sentence2",
        labels=(0, 1),
        label_words=("false", "true"),
        question="Sentence 1: {text_a}\nSentence 2: {text_b}\nTrue or false: both sentences say the same. Answer:",
        metrics=("accuracy", "f1"),
        hub=_glue("mrpc"),
        paper=_PAPER_PARAPHRASE,
    ),
)

_QA = (
    Task(
        name="boolq",
        type="qa",
        text_a="passage",
        text_b="question",
        labels=(0, 1),
        label_words=("no", "yes"),
        hub=super_glue("boolq"),
        max_length=128,
    ),
    Task(
        name="squad",
        type="qa",
        text_a="context",
        text_b="question",
        label_column=None,
        target_column="answers",
        max_target_length=20,
        metric="squad_f1",
        metrics=("squad_f1", "exact_match"),
        hub=_hub("rajpurkar/squad", "plain_text", "7b6d24c440a36b6815f21b70d25016731768db1f", _NO_TEST),
        paper=_PAPER_CONTEXT,
        max_length=384,
    ),
    Task(
        name="nq_open",
        type="qa",
        text_a="question",
        label_column=None,
        target_column="answer",
        max_target_length=20,
        metric="exact_match",
        metrics=("exact_match", "squad_f1"),
        hub=_hub("google-research-datasets/nq_open", "nq_open", "5dd9790a83002ad084ddeb7c420dc716852c6f28", _NO_TEST),
        paper=_PAPER_CONTEXT,
    ),
)

_ROUGE = ("rougeL", "rouge1", "rouge2")
_SUMMARIZATION = (
    Task(
        name="multi_news",
        type="summarization",
        text_a="document",
        label_column=None,
        target_column="summary",
        max_target_length=50,
        metric="rougeL",
        metrics=_ROUGE,
        hub=_hub("alexfabbri/multi_news", "default", _PARQUET, file="{config}/{split}/*.parquet"),
        paper=_PAPER_GENERATION,
        max_length=384,
    ),
    Task(
        name="samsum",
        type="summarization",
        text_a="dialogue",
        label_column=None,
        target_column="summary",
        max_target_length=50,
        metric="rougeL",
        metrics=_ROUGE,
        hub=_hub("knkarthick/samsum", None, None, _ALL, "revision not pinned: no commit of it is known to us"),
        paper=_PAPER_CONTEXT,
        max_length=384,
    ),
)

ROWS: tuple[Task, ...] = tuple(
    replace(row, cue=CUES[row.type], title=TITLES.get(row.name, row.name))
    for row in _SENTIMENT + _NLI + _ETHICS + _PARAPHRASE + _QA + _SUMMARIZATION + SUPERGLUE
)
