"""`prompts recommend`: rankings of source prompts and the commands that use them."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prompt_transfer.commands.messages import quiet, show_warning
from prompt_transfer.commands.parsing import program
from prompt_transfer.studies.recommend.settings import RecommendStudy
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import exclusive_lock

if TYPE_CHECKING:
    from prompt_transfer.prompts.prompt import Prompt
    from prompt_transfer.studies.recommend.study import Recommendation

# Further rankings in the table of sources.
COLUMNS = ("sample_score", "neuron_overlap", "label_word_overlap", "cosine_average")
SHORT = {"ndcg": "nDCG", "regret_at_1": "Regret@1", "regret_at_3": "Regret@3", "spearman_per_target": "Spearman"}


def recommend(
    study: RecommendStudy, k: int = 3, use: Literal["best", "average", "mixture"] = "best", rows: int = 15
) -> None:
    """rank the prompts of a folder as initializations for a target task

    Writes recommendation.csv (one row per source, one column per ranking; read by `--model.init.recommendation`),
    costs.csv and, with a matrix, quality.csv and judgements.csv to the output folder.

    Args:
        study: what is ranked.
        k: number of sources to use.
        use: best (train from each of k, keep the best), average (write their average, weighted by the ranking), or
            mixture (train one prompt on their tasks and the target first). After SPoT (Vu et al. 2022).
        rows: number of sources in the printed tables; recommendation.csv has all.
    """
    if k < 1:
        raise UserError("--k must be 1 or more")
    if rows < 1:
        raise UserError("--rows must be 1 or more")
    quiet()
    warnings.showwarning = show_warning
    from prompt_transfer.studies.recommend.study import recommend as run_study

    with exclusive_lock(study.output):
        found = run_study(study)
    show(found, rows)
    for line in next_steps(study, found, use, k):
        print(line)
    print(study.output)


def show(found: Recommendation, limit: int) -> None:
    """Print the best `limit` sources of each target, and the cost and quality of each ranking."""
    from prompt_transfer.analysis.selection import RANDOM_ORDER

    same = (found.table["source"] == found.table["prompt"]).all()
    names = [found.by, *(name for name in COLUMNS if name in found.table and name != found.by)]
    for target, part in found.table.groupby("target", sort=False):
        # Ties share a place.
        places = part[found.by].rank(ascending=False, method="min").astype("Int64").astype(object)
        shown = part.assign(place=places.where(places.notna(), None))
        columns = ["place", "source", *([] if same else ["prompt"]), *names]
        more = f", the first {limit} of {len(part)}" if len(part) > limit else ""
        rows: list[dict[str, Any]] = shown.head(limit).to_dict("records")  # type: ignore[assignment]
        spare = [*(() if same else ("prompt",)), *reversed(names[1:])]
        everything: list[dict[str, Any]] = part.to_dict("records")  # type: ignore[assignment]
        results.show(rows, f"sources for {target}, by {found.by}{more}", columns, everything, spare)
    costs: list[dict[str, Any]] = found.costs.to_dict("records")  # type: ignore[assignment]
    title = "cost of rankings in seconds per target"
    if len(found.quality):
        means = found.quality.pivot(index="ranking", columns="statistic", values="mean")
        nothing = {"ranking": RANDOM_ORDER, "seconds": 0.0, "needs": "nothing"}
        costs = [
            row | {short: float(means.loc[row["ranking"], name]) for name, short in SHORT.items()}
            for row in [*costs, nothing]
        ]
        costs.sort(key=lambda row: -row["nDCG"])
        targets, seeds = (int(found.quality[name].max()) for name in ("targets", "seeds"))
        title += f", and quality: mean over {targets} targets, {seeds} samples"
    results.show(costs, title)
    for note in found.notes:
        print(f"note: {note}")
    print(f"all {len(found.costs)} rankings of the sources: recommendation.csv")


def next_steps(study: RecommendStudy, found: Recommendation, use: str, k: int) -> list[str]:
    """Return lines with the commands that use the recommendation; `average` also writes its prompts."""
    from prompt_transfer.prompts.arithmetic import average
    from prompt_transfer.prompts.prompt import Prompt

    lines = []
    for task, (target, part) in zip(study.tasks, found.table.groupby("target", sort=False), strict=True):
        best = part.dropna(subset=found.by).head(k)
        prompts = [Prompt.load(path) for path in best["path"]]
        if not prompts:
            lines.append(f"{target}: {found.by} ranks no source")
        elif use == "mixture":
            lines += _mixture(study, str(target), task, prompts)
        elif use == "average":
            path = Path(study.output) / f"{target}-average.safetensors"
            # The weights that FromPrompt gives to a recommendation.
            average(prompts, [max(float(value), 0.0) for value in best[found.by]]).save(path)
            lines += [f"{target}, from the average of {len(prompts)}:", _fit(study, prompts[0], [task], path)]
        else:
            which = "from the best one" if len(prompts) == 1 else f"train from {len(prompts)}, keep the best"
            outputs = [str(Path(study.output) / f"{target}-from-{place}") for place in range(1, len(prompts) + 1)]
            runs = zip(best["path"], outputs, strict=True)
            lines += [f"{target}, {which}:", *(_fit(study, prompts[0], [task], path, output) for path, output in runs)]
            if len(prompts) > 1:
                lines.append(f"  select one of the {len(prompts)} by its validation score, and report its test score")
    return lines


def _mixture(study: RecommendStudy, target: str, task: str, prompts: Sequence[Prompt]) -> list[str]:
    """Return commands to train a prompt on the sources' tasks and the target, then one on the target from it."""
    from prompt_transfer.data.readers import data_root

    places = {(one.metadata.get("data_source", ""), one.metadata.get("data_root", "")) for one in prompts}
    source = study.data.source or _source([task])
    root = data_root(study.data.root) if source == "local" else None
    place = source, "" if root is None else str(Path(root).expanduser().resolve())
    if places != {place}:
        where = " ".join(place).strip()
        return [f"{target}: no mixture, since a run has one data source and not all sources were trained on {where}"]
    tasks = [name for one in prompts for name in json.loads(one.metadata.get("data_task") or "[]")]
    mixed = str(Path(study.output) / f"{target}-mixture")
    return [
        f"{target}, from a prompt for the mixture of {len(prompts)} and itself:",
        _fit(study, prompts[0], list(dict.fromkeys([*tasks, task])), output=mixed),
        _fit(study, prompts[0], [task], mixed),
    ]


def _source(tasks: Sequence[str]) -> str:
    """Return the source of tasks without `--data.source`."""
    from prompt_transfer.data.own import is_table
    from prompt_transfer.data.selection import default_source
    from prompt_transfer.tasks.registry import get_task

    return default_source([get_task(task) for task in tasks if not is_table(task)])


def _fit(study: RecommendStudy, like: Prompt, tasks: Sequence[str], start: str | Path = "", output: str = "") -> str:
    """Return a command that trains with the options of the sources."""
    from prompt_transfer.prompts.prompt import PROMPT, UNKNOWN

    facts = like.metadata
    options = {
        "--model.backbone": study.backbone,
        "--model.method": "" if like.method == PROMPT else like.method,
        "--model.prompt_length": facts["prompt_length"],
        "--model.learning_rate": facts.get("learning_rate", ""),
        "--model.dtype": "" if facts.get("dtype") == "float32" else facts.get("dtype", ""),
        "--model.layout": facts.get("layout", ""),
        "--model.attention": facts.get("attention", ""),
        "--data.task": tasks[0] if len(tasks) == 1 else json.dumps(list(tasks)),
        "--data.source": study.data.source or _source(tasks),
        "--data.root": study.data.root or "",
        "--model.init": "FromPrompt" if start else "",
        "--model.init.prompt": str(start),
        "--output": output,
    }
    known = [part for option, value in options.items() if value not in ("", UNKNOWN) for part in (option, value)]
    return f"  {shlex.join([program(), 'fit', *known])}"
