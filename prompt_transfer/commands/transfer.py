"""`transfer`: scores of every prompt on every task."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd

from prompt_transfer.analysis.matrix import BASELINES, from_results
from prompt_transfer.commands.lightning import quiet, show_warning
from prompt_transfer.commands.parsing import call, split_list
from prompt_transfer.studies.targets import EvaluationData
from prompt_transfer.studies.transfer.matrix import show_summary, write_summary
from prompt_transfer.studies.transfer.study import TransferStudy
from prompt_transfer.studies.transfer.study import transfer as run_study
from prompt_transfer.utils import results

DATA = EvaluationData()


def transfer(
    backbone: str,
    prompts: str,
    tasks: str,
    output: str,
    data: EvaluationData = DATA,
    split: str = "test",
    random_prompts: int = 3,
    attention: str | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    label_words_policy: str | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    calibrate: bool = False,
) -> None:
    """score every prompt of a folder on every task

    Args:
        backbone: a built-in backbone, the folder of a Hugging Face model, or a Hub id.
        prompts: folder with prompt files, at any depth.
        tasks: target tasks, comma-separated names or paths of YAML files.
        output: folder for results.parquet, matrix.csv, matrix.png and matrix_clustered.png.
        data: source and number of examples.
        split: test or validation.
        random_prompts: number of random prompts of each kind.
        attention: score only prompts trained with this attention (full or shared).
        layout: score only prompts trained with this layout.
        dtype: dtype of the backbone's weights: float32, bfloat16 or float16 (fp32, bf16, fp16); default: the prompts'.
        label_words_policy: treatment of label words of several tokens; default: the prompts' policy.
        accelerator: auto, cpu or cuda.
        devices: number of processes; each takes a share of every task's examples.
        calibrate: divide class probabilities by those on content-free texts (contextual calibration).
    """

    study = TransferStudy(
        backbone=backbone,
        prompts=prompts,
        tasks=split_list(tasks),
        output=output,
        data=data,
        split=split,
        random_prompts=random_prompts,
        attention=attention,
        layout=layout,
        dtype=dtype,
        label_words_policy=label_words_policy,
        calibrate=calibrate,
        accelerator=accelerator,
        devices=devices,
    )
    frame = run_study(study)
    if frame.empty:
        return  # the first process prints the table
    show(frame)
    matrix = from_results(frame)
    summary = write_summary(matrix, Path(output))
    show_summary(summary)
    print(output)


def show(frame: pd.DataFrame) -> None:
    """Print one row per target: its own prompt, the best other prompt, and the baselines."""
    rows = []
    for target, mine in frame.groupby("task", sort=False):
        trained = mine[mine["kind"] == "trained"].groupby("source")["value"].mean()
        others = trained.drop(str(target), errors="ignore")
        random = mine[mine["kind"] == "random"].groupby("source", sort=False)["value"].mean()
        first = mine.iloc[0]
        baseline = mine[mine["kind"].isin(BASELINES)].iloc[0]
        rows.append(
            {
                "target": target,
                "own": float(trained[target]) if target in trained else None,
                "best other": float(others.max()) if len(others) else None,
                "of": others.idxmax() if len(others) else None,
                **{str(kind).removeprefix("random_"): float(value) for kind, value in random.items()},
                str(baseline["kind"]): float(baseline["value"]),
                "learned": "-" if pd.isna(first["learned"]) else ("yes" if first["learned"] else "no"),
            }
        )
    results.show(rows, title="scores; vocabulary, uniform: means of random prompts")


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer transfer`."""
    quiet()
    warnings.showwarning = show_warning
    call(transfer, command, arguments)
