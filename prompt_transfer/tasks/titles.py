"""Names of tasks in figures and reports: those of the paper; a task without a row keeps its own name."""

from __future__ import annotations

TITLES: dict[str, str] = {
    "imdb": "IMDB",
    "sst2": "SST-2",
    "rotten_tomatoes": "Rotten Tomatoes",
    "movie_rationales": "Movie",
    "tweet_eval_sentiment": "Tweet",
    "ethics_deontology": "deontology",
    "ethics_justice": "justice",
    "boolq": "BoolQ",
    "squad": "SQuAD",
    "nq_open": "NQ-Open",
    "multi_news": "Multi-News",
    "samsum": "SAMSum",
    **{name: name.upper() for name in ("mnli", "snli", "qnli", "rte", "cb", "qqp", "mrpc")},
}
