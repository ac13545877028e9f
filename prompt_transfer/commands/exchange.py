"""`prompts export | push | pull`: prompts for other tools and other people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prompt_transfer.commands.parsing import program
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError


def export(
    sources: list[str],
    output: str,
    format: Literal["peft", "numpy"] = "peft",
    backbone: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> None:
    """a prompt for other tools: export PROMPT --format peft --output DIR

    peft: a prompt-tuning adapter for PeftModel.from_pretrained, with a README that says what stands behind the text;
    causal and sequence-to-sequence prompts. numpy: the bare matrix as prompt.npy, its metadata as prompt.json.

    Args:
        sources: the prompt file, given without the option's name.
        output: folder for the files.
        format: peft or numpy.
        backbone: how the adapter shall call its base model; default: as the prompt does.
        license: for the head of the README, as the hub spells it (apache-2.0).
        overwrite: replace files that are there already.
    """
    from prompt_transfer.backbones.builtin import builtin_backbones
    from prompt_transfer.prompts.io.adapter_card import adapter_card
    from prompt_transfer.prompts.io.interchange import write_numpy
    from prompt_transfer.prompts.io.peft_adapter import check_exportable, write_adapter
    from prompt_transfer.prompts.prompt import Prompt

    if len(sources) != 1:
        raise UserError(f"{len(sources)} prompt files were given: export PROMPT --format peft --output DIR")
    prompt, folder = Prompt.load(sources[0]), Path(output)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise UserError(f"{folder} is there already and not empty: give another --output, or --overwrite")
    name = backbone or prompt.metadata.get("backbone", "unknown")
    if format == "numpy":
        write_numpy(prompt, folder)
    else:
        check_exportable(prompt)
        write_adapter(prompt, folder, adapter_card(prompt, name, name in builtin_backbones(), license), name)
    length, width = prompt.embeddings.shape
    print(f"{folder}: {length} x {width} for {name}, format {format}")


def push(
    sources: list[str],
    repo: str,
    private: bool = False,
    revision: str | None = None,
    results: str | None = None,
    license: str | None = None,
    backbone: str | None = None,
) -> None:
    """prompts to the Hugging Face hub, with a card: push PROMPT... --repo USER/NAME

    Needs a token that may write (`hf auth login`, or the environment variable HF_TOKEN); it is neither shown nor kept.

    Args:
        sources: prompt files or folders of runs, given without the option's name.
        repo: USER/NAME; made where it does not exist.
        private: make it private; one that is public already is an error.
        revision: branch to write to; made where it does not exist.
        results: table of scores and baselines for the card; default: results.csv or results.parquet beside a prompt.
        license: for the head of the card, as the hub spells it (apache-2.0).
        backbone: hub id to write into the prompts, for those trained on a backbone in a folder.
    """
    from prompt_transfer.backbones.builtin import builtin_backbones
    from prompt_transfer.prompts.io.repository import push as upload

    if not sources:
        raise UserError("push needs a prompt file: push PROMPT... --repo USER/NAME")
    done = upload(
        sources,
        repo,
        private=private,
        revision=revision,
        results=results,
        license=license,
        backbone=backbone,
        builtin=frozenset(builtin_backbones()),
    )
    for note in done.notes:
        print(f"note: {note}")
    print(f"{len(done.names)} pushed to {done.url}, commit {done.commit}")
    print(f"next: {program()} prompts pull {repo} --output DIR")


def pull(sources: list[str], output: str, revision: str | None = None, overwrite: bool = False) -> None:
    """prompts from the Hugging Face hub: pull USER/NAME --output DIR

    Takes prompt files of this project and PEFT adapters; everything is checked before anything is put into place.

    Args:
        sources: the repository, given without the option's name.
        output: folder for the prompt files.
        revision: branch, tag or commit; the commit that it is goes into the prompts' metadata.
        overwrite: replace prompt files that are there already.
    """
    from prompt_transfer.prompts.io.repository import pull as download

    if len(sources) != 1:
        raise UserError(f"{len(sources)} repositories were given: pull USER/NAME --output DIR")
    found = download(sources[0], output, revision=revision, overwrite=overwrite)
    rows = []
    for path, prompt in found.prompts.items():
        facts = prompt.metadata
        shown = {key: facts.get(key, "") for key in ("task", "backbone", "layout")}
        rows.append({"file": str(path), **shown, "rows": prompt.embeddings.shape[0]})
    results.show(rows)
    for name, why in found.refused.items():
        print(f"refused: {name}: {why}")
    print(f"{len(rows)} pulled from {sources[0]} at {found.commit} into {output}")


SUBCOMMANDS: dict[str, Callable[..., Any]] = {"export": export, "push": push, "pull": pull}
