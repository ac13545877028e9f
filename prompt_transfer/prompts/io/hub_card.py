"""The card of a hub repository of prompts: facts, scores with baselines, and usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCardData

from prompt_transfer.prompts.io.adapter_card import inline
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.prompts.tensor_file import sizes
from prompt_transfer.utils.errors import UserError

# Marks a generated card, which may be replaced; a card written by hand may not.
MARK = "<!-- written by prompt_transfer: `prompts push` replaces this card -->"
OWN = "this prompt"
_BASELINES = ("random prompt", "majority class", "lead of the text")


@dataclass(frozen=True)
class Entry:
    """A prompt of the repository.

    Attributes:
        file: its path in the repository.
        prompt: the prompt in that file.
        scores: see `scores_of`.
    """

    file: str
    prompt: Prompt
    scores: list[dict[str, Any]] = field(default_factory=list)


def scores_of(path: Path, table: str | Path | None = None) -> list[dict[str, Any]]:
    """Read a prompt's scores and their baselines from a table of results.

    Args:
        path: the prompt file.
        table: a table, or its folder, that `test`, `validate`, `fit` or `transfer` wrote; None looks in the prompt's
            folder and returns nothing if it has no table.

    Returns:
        Rows with task, split, metric, `what` (`this prompt` or a baseline), value, low, high, n; random prompts as one
        row, their mean. Empty if the table does not contain the prompt.

    Raises:
        UserError: `table` is given and cannot be read.
    """
    place = path.parent if table is None else Path(table)
    found = [place] if place.is_file() else [place / f"results.{end}" for end in ("parquet", "csv")]
    file = next((one for one in found if one.is_file()), None)
    if file is None:
        if table is None:
            return []
        raise UserError(f"no results table in {table}: give a results.csv or results.parquet")
    try:
        frame = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
    except (ValueError, OSError) as error:  # the base classes of pandas' and pyarrow's errors
        raise UserError(f"the table {file} cannot be read: {error}") from error
    if not {"task", "metric", "value", "prompt"} <= set(frame.columns):
        raise UserError(f"{file} is not a results table: it lacks the columns task, metric, value or prompt")
    return _rows_of(frame, path)


def _rows_of(frame: pd.DataFrame, path: Path) -> list[dict[str, Any]]:
    frame = frame.assign(**{name: None for name in ("what", "split", "low", "high", "n") if name not in frame})
    mine = frame["prompt"].map(lambda value: isinstance(value, str) and _same_file(value, path))
    tasks = set(frame.loc[mine, "task"])
    columns = ["task", "split", "metric", "what", "value", "low", "high", "n"]
    parts = [frame.loc[mine].assign(what=OWN)]
    if "majority" in frame:  # `fit` and `transfer` write it as a column
        parts.append(
            frame.loc[mine & frame["majority"].notna()].assign(
                what="majority class", value=frame["majority"], low=None, high=None
            )
        )
    others = frame.loc[~mine & frame["what"].isin(_BASELINES) & frame["task"].isin(tasks)]
    for _, group in others.groupby(["task", "split", "metric", "what"], dropna=False, sort=False):
        row = group.iloc[[0]].assign(value=group["value"].mean())
        # One random prompt's interval is not that of the mean.
        parts.append(row if len(group) == 1 else row.assign(what=f"{len(group)} random prompts", low=None, high=None))
    rows = pd.concat([part[columns].astype(object) for part in parts if len(part)]) if tasks else frame[columns][:0]
    rows = rows.sort_values("task", kind="stable").drop_duplicates()
    records = rows.to_dict("records")
    return [{str(key): None if pd.isna(value) else value for key, value in row.items()} for row in records]


def _same_file(value: str, path: Path) -> bool:
    # `--prompt` also accepts a run folder.
    given = Path(value)
    return path.resolve() in (given.resolve(), (given / "prompt.safetensors").resolve())


def hub_card(repo: str, entries: Sequence[Entry], license: str | None, builtin: frozenset[str]) -> str:
    """Return the Markdown card of the repository `repo`.

    Args:
        repo: USER/NAME.
        entries: all prompts in the repository.
        license: license to record in the card.
        builtin: names of the backbones that ship with the project and are not on the hub.
    """
    backbones = sorted({entry.prompt.metadata.get("backbone", "") for entry in entries})
    # The hub accepts only its own ids as base models.
    known = [name for name in backbones if name.count("/") == 1 and not name.startswith(("/", "."))]
    data = ModelCardData(
        base_model=known or None, library_name="prompt_transfer", license=license, tags=["prompt-tuning", "soft-prompt"]
    )
    rows = [_facts(entry) for entry in entries]
    lines = [
        f"---\n{data.to_yaml()}\n---",
        MARK,
        f"# Soft prompts: {inline(repo.partition('/')[2])}",
        "Virtual tokens for the input of a frozen language model, trained with prompt_transfer. A prompt works with "
        "the backbone that it was trained on; the fingerprint identifies equal copies of it.",
        _table(rows),
    ]
    for entry in entries:
        lines += _section(entry)
    first = entries[0]
    lines += [
        "## Use",
        "```bash\n"
        f"prompt-transfer prompts pull {repo} --output prompts\n"
        f"prompt-transfer test --prompt prompts/{first.file}\n"
        "```",
        "```python\n"
        "from prompt_transfer import Prompt\n\n"
        f'prompt = Prompt.load("prompts/{first.file}")\n'
        "print(prompt.values.shape, prompt.metadata)\n"
        "```",
    ]
    if own := sorted(set(backbones) & builtin):
        lines.append(f"Backbones that ship with prompt_transfer and are not on the hub: {', '.join(own)}.")
    return "\n\n".join(lines) + "\n"


def _facts(entry: Entry) -> dict[str, str]:
    facts = entry.prompt.metadata
    made = [name for name in ("random", "projected") if facts.get(name) == "true"]
    made += ["arithmetic"] if facts.get("arithmetic") else []
    return {
        "file": f"`{entry.file}`",
        "task": facts.get("task", ""),
        "backbone": facts.get("backbone", ""),
        "fingerprint": facts.get("fingerprint", "")[:16],
        "size": sizes(entry.prompt.values.shape),
        "layout": facts.get("layout", ""),
        "attention": facts.get("attention", ""),
        **({"kind": " ".join(made)} if made else {}),
    }


def _section(entry: Entry) -> list[str]:
    """Return the section on the training and scores of one prompt."""
    facts = entry.prompt.metadata
    lines = [f"## {inline(entry.file)}"]
    made = [f"{name} {inline(facts[name])}" for name in ("seed", "steps", "train_rows", "init") if facts.get(name)]
    if made:
        lines.append(f"Trained: {'; '.join(made)}.")
    if entry.scores:
        lines += ["Scores and baselines:", _table([_scored(row) for row in entry.scores])]
    elif facts.get("score"):
        lines.append(
            f"Score: {inline(facts.get('metric', ''))} {_number(facts['score'])} on {inline(facts.get('split', '?'))}, "
            "which also selected the best step; no baselines were available when it was pushed."
        )
    else:
        lines.append("No score is known.")
    return lines


def _scored(row: Mapping[str, Any]) -> dict[str, str]:
    interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    shown = {key: str(row[key] or "") for key in ("task", "split", "metric", "what")}
    count = "" if row["n"] is None else f"{row['n']:.0f}"
    value = "" if row["value"] is None else f"{row['value']:.3f}"
    return {**shown, "value": value, "95 % interval": interval, "rows": count}


def _number(text: str) -> str:
    try:
        return f"{float(text):.3f}"
    except ValueError:  # metadata are not validated
        return inline(text)


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # The `file` column is not escaped: its backticks are ours.
    cells = [[row.get(key, "") if key == "file" else inline(row.get(key, "")) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells])
