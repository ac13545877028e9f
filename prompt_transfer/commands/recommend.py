"""`prompts recommend`: rankings of source prompts and the commands that use them."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from prompt_transfer.analysis.selection import RANDOM_ORDER
from prompt_transfer.commands.lightning import absolute_path, quiet, show_warning
from prompt_transfer.commands.parsing import program, split_list
from prompt_transfer.data.readers import data_root
from prompt_transfer.prompts.arithmetic import average
from prompt_transfer.prompts.prompt import UNKNOWN, Prompt
from prompt_transfer.studies.recommend.study import Recommendation, RecommendStudy
from prompt_transfer.studies.recommend.study import recommend as run_study
from prompt_transfer.studies.targets import TargetData
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import exclusive_lock

DATA = TargetData()
# Further rankings in the table of sources.
COLUMNS = ("sample_score", "neuron_overlap", "label_word_overlap", "cosine_average")
SHORT = {"ndcg": "nDCG", "regret_at_1": "Regret@1", "regret_at_3": "Regret@3", "spearman_per_target": "Spearman"}


def recommend(
    task: str,
    prompts: str,
    backbone: str,
    output: str,
    data: TargetData = DATA,
    target: str = "auto",
    steps: int = 100,
    sample: int = 32,
    sample_seeds: int | None = None,
    neurons: str | None = None,
    matrix: str | None = None,
    by: str | None = None,
    k: int = 3,
    use: Literal["best", "average", "mixture"] = "best",
    dtype: str | None = None,
    accelerator: str = "auto",
    seed: int = 0,
    rows: int = 15,
) -> None:
    """rank the prompts of a folder as initializations for a target task

    Writes recommendation.csv (one row per source, one column per ranking; read by `--model.init.recommendation`),
    costs.csv and, with a matrix, quality.csv and judgements.csv to the output folder.

    Args:
        task: target task, a name or the path of a YAML file; several are comma-separated.
        prompts: folder with prompt files of one backbone and length.
        backbone: a built-in backbone, the folder of a Hugging Face model, or a Hub id.
        output: folder for the tables.
        data: source of the target's examples.
        target: prompt to compare sources with: auto (the target's own prompt in the folder, else a briefly tuned one),
            tuned, none, or a prompt file.
        steps: steps of that tuning, of 32 training examples each.
        sample: number of labelled training examples of the target to score all sources on; 0 for none.
        sample_seeds: number of samples to evaluate the score on; null: 5 with a matrix, else 1. The first recommends.
        neurons: folder of captured activations, with the layout of the prompts folder.
        matrix: transfer matrix as CSV, targets as rows, sources as columns; evaluates the rankings.
        by: ranking used for the recommendation, a column of the table; null: the score on the sample if there is one.
        k: number of sources to use.
        use: best (train from each of k, keep the best), average (write their average, weighted by the ranking), or
            mixture (train one prompt on their tasks and the target first). After SPoT (Vu et al. 2022).
        dtype: dtype of the backbone's weights: float32, bfloat16 or float16 (fp32, bf16, fp16); default: the prompts'.
        accelerator: auto, cpu or cuda.
        seed: seed of the samples and the tuning.
        rows: number of sources in the printed tables; recommendation.csv has all.
    """
    if k < 1:
        raise UserError("--k must be 1 or more")
    if rows < 1:
        raise UserError("--rows must be 1 or more")
    quiet()
    warnings.showwarning = show_warning

    study = RecommendStudy(
        backbone=backbone,
        prompts=prompts,
        tasks=split_list(task),
        output=output,
        data=data,
        target=target,
        steps=steps,
        sample=sample,
        sample_seeds=sample_seeds,
        neurons=neurons,
        matrix=matrix,
        by=by,
        dtype=dtype,
        accelerator=accelerator,
        seed=seed,
    )
    with exclusive_lock(output):
        found = run_study(study)
    show(found, rows)
    for line in next_steps(study, found, use, k):
        print(line)
    print(output)


def show(found: Recommendation, limit: int) -> None:
    """Print the best `limit` sources of each target, and the cost and quality of each ranking."""
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
    places = {(one.metadata.get("data_source", ""), one.metadata.get("data_root", "")) for one in prompts}
    root = data_root(study.data.root) if study.data.source == "local" else None
    place = study.data.source, "" if root is None else absolute_path(str(root))
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


def _fit(study: RecommendStudy, like: Prompt, tasks: Sequence[str], start: str | Path = "", output: str = "") -> str:
    """Return a command that trains with the options of the sources."""
    facts = like.metadata
    options = {
        "--model.backbone": study.backbone,
        "--model.prompt_length": facts["prompt_length"],
        "--model.learning_rate": facts.get("learning_rate", ""),
        "--model.dtype": "" if facts.get("dtype") == "float32" else facts.get("dtype", ""),
        "--model.layout": facts.get("layout", ""),
        "--model.attention": facts.get("attention", ""),
        "--data.task": tasks[0] if len(tasks) == 1 else json.dumps(list(tasks)),
        "--data.source": study.data.source,
        "--data.root": study.data.root or "",
        "--model.init": "FromPrompt" if start else "",
        "--model.init.prompt": str(start),
        "--output": output,
    }
    known = [part for option, value in options.items() if value not in ("", UNKNOWN) for part in (option, value)]
    return f"  {shlex.join([program(), 'fit', *known])}"
