"""`prompts`: list, inspect and import prompt files, and derive new ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prompt_transfer.commands.arithmetic import SUBCOMMANDS
from prompt_transfer.commands.exchange import SUBCOMMANDS as EXCHANGE
from prompt_transfer.commands.parsing import subcommand
from prompt_transfer.commands.projecting import SUBCOMMANDS as PROJECTING
from prompt_transfer.commands.recommend import recommend
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError


def list_prompts(folder: str = "runs") -> None:
    """list the prompt files in a folder: list [FOLDER]

    Args:
        folder: folder with prompt files, at any depth.
    """
    from prompt_transfer.prompts.listing import list_prompts as find

    if not Path(folder).is_dir():
        raise UserError(f"no such folder: {folder}; give a folder with prompt files: prompt-transfer prompts list DIR")
    found = find(folder)
    names = _backbones(row["backbone"] for row in found if not row["error"])
    rows = [_short(row, folder) | {"backbone": names[row["backbone"]]} for row in found if not row["error"]]
    columns = [column for column in LIST_COLUMNS if any(row.get(column) for row in rows)]
    # Values shared by all prompts go to the title.
    common = {column: rows[0][column] for column in columns if len({row[column] for row in rows}) == 1}
    common = {key: value for key, value in common.items() if key in ("backbone", "rows", "mode") and len(rows) > 1}
    title = ", ".join(f"{key} {value}" for key, value in common.items())
    results.show(rows, f"all: {title}" if title else None, [one for one in columns if one not in common],
                 [_values(row) for row in found])  # fmt: skip
    for row in found:
        if row["error"]:
            print(f"not a prompt: {' '.join(row['error'].split())}")


# Subcommand -> usage of its positional argument.
POSITIONAL = {
    **{"list": "[FOLDER]", "inspect": "PROMPT", "import": "SOURCE...", "add": "PROMPT...", "scale": "PROMPT"},
    **{"mean": "PROMPT...", "transplant": "PROMPT", "project": "PROMPT...", "export": "PROMPT", "push": "PROMPT..."},
    "pull": "USER/NAME",
}
LONG = re.compile(r"\b\d\.\d{6,}\b")
LIST_COLUMNS = ("path", "task", "backbone", "rows", "mode", "kind", "score", "seed")


def _short(row: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the values that distinguish prompts, in short form; `prompts inspect` shows all."""
    path = Path(row["path"]).relative_to(folder)
    number = row["score"]
    with suppress(ValueError):  # metadata of a file can hold any text
        number = f"{float(number):.3f}"
    return {
        # A run folder names the prompt in it, as for --prompt.
        "path": str(path.parent if path.name == "prompt.safetensors" and path.parent.name else path),
        "task": row["task"],
        "rows": int(row["prompt_length"]),
        "kind": " ".join(filter(None, [row.get("source"), _marks(row)])),
        "mode": f"{row['layout']} {row['attention']}{' deep' if row['method'] == 'deep_prompt' else ''}".strip(),
        "score": f"{row['metric']} {number}".strip() if number else "",
        "seed": row["seed"],
    }


def _backbones(names: Iterable[str]) -> dict[str, str]:
    """Return short names: the last part of a folder or hub id, or the relative path if last parts coincide."""
    every = set(names)
    last = Counter(Path(name).name for name in every)
    return {n: Path(n).name if last[Path(n).name] == 1 else n.removeprefix(f"{Path.cwd()}/") for n in every}


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for `--json`: numbers as numbers, empty strings as None."""
    values: dict[str, Any] = {key: None if value == "" else value for key, value in row.items()}
    for key, kind in (("score", float), ("seed", int)):
        with suppress(TypeError, ValueError):  # metadata of a file can hold any text
            values[key] = kind(values[key])
    return values


def _marks(facts: Mapping[str, str]) -> str:
    """Return the origin of a prompt that was not trained on its task: random, projected or arithmetic."""
    marks = [mark for mark in ("random", "projected") if facts.get(mark) == "true"]
    return " ".join([*marks, *([facts["arithmetic"].partition("(")[0]] if facts.get("arithmetic") else [])])


def inspect(prompt: str, nearest: int = 0) -> None:
    """show the metadata and statistics of a prompt file: inspect PROMPT

    Args:
        prompt: prompt file, or the folder of a run.
        nearest: number of words with the nearest embeddings to show for each prompt token; loads the backbone.
    """
    from prompt_transfer.prompts.listing import describe
    from prompt_transfer.prompts.prompt import Prompt

    facts = describe(Prompt.load(prompt))
    facts |= facts.pop("metadata")
    rows = [{"key": key, "value": value} for key, value in facts.items()]
    # Four digits of a float32 score are enough on screen; `--json` has all.
    texts = [(row, "-" if row["value"] in ("", None) else str(row["value"])) for row in rows]
    short = [row | {"value": LONG.sub(lambda found: f"{float(found[0]):.4f}", text)} for row, text in texts]
    results.show([row if isinstance(row["value"], float) else other for row, other in zip(rows, short, strict=True)],
                 data=rows)  # fmt: skip
    if nearest:
        from prompt_transfer.studies.inspection import nearest_words

        table = nearest_words(prompt, nearest)
        known = table.dropna(axis="columns", how="all").to_dict("records")
        title = "nearest words of each prompt token"
        results.show([{str(key): value for key, value in row.items()} for row in known], title)


def import_prompts(sources: list[str], output: str, overwrite: bool = False) -> None:
    """convert published prompts and PEFT adapters: import SOURCE... --output DIR

    A source is a file written by torch.save, its folder (whose name gives task and backbone: IMDBPromptRoberta), the
    folder of a PEFT adapter (prompt tuning or P-tuning), or a folder of such folders.

    Args:
        sources: files and folders to import.
        output: folder for the prompt files; each is named after its source folder.
        overwrite: replace existing prompt files.
    """
    from prompt_transfer.prompts.io.interchange import import_sources

    outcomes = import_sources(sources, output, overwrite)
    rows, refused = [], []
    same: dict[bytes, str] = {}
    notes = []
    for outcome in outcomes:
        if outcome.prompt is None:
            refused.append({"refused": str(outcome.source), "why": outcome.error})
            continue
        facts = outcome.prompt.metadata
        shown = {key: facts.get(key, "") for key in ("task", "layout")}
        sized = {"backbone": facts["backbone"], "rows": outcome.prompt.length, "width": outcome.prompt.vectors.shape[1]}
        rows.append({"name": outcome.name, **shown, **sized, "kind": _marks(facts)})
        twin = same.setdefault(outcome.prompt.values.numpy().tobytes(), outcome.name)
        if facts.get("peft_second_half") == "different":
            notes.append(f"note: {outcome.name} has separate decoder embeddings, which PEFT ignores: not imported")
        if twin != outcome.name:
            notes.append(f"note: {outcome.name} and {twin} have the same embeddings")
    if not rows:
        if len(refused) > 1:
            results.show(refused)
        more = f" ({len(refused) - 1} more were refused, see above)" if len(refused) > 1 else ""
        raise UserError(f"nothing was imported: {refused[0]['why']}{more}")
    names = _backbones(str(row["backbone"]) for row in rows)
    rows = [row | {"backbone": names[str(row["backbone"])]} for row in rows]
    columns = ("name", "task", "backbone", "rows", "width", "layout", "kind")
    results.show(rows, columns=[column for column in columns if any(row[column] for row in rows)])
    if refused:
        results.show(refused)
    for note in notes:
        print(note)
    print(f"{len(rows)} imported into {output}" + (f", {len(refused)} refused" if refused else ""))


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer prompts`."""
    table: dict[str, Callable[..., Any]] = {
        "list": list_prompts,
        "inspect": inspect,
        "import": import_prompts,
        **SUBCOMMANDS,
        **PROJECTING,
        **EXCHANGE,
        "recommend": recommend,
    }
    subcommand(command, table, arguments, POSITIONAL)
