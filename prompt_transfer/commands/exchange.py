"""`prompts export | push | pull`: exchange of prompts with other tools and the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prompt_transfer.commands.parsing import program
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.prompts.prompt import Prompt


def export(
    sources: list[str],
    output: str,
    format: Literal["peft", "numpy", "embeddings"] = "peft",
    backbone: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> None:
    """convert a prompt for other tools: export PROMPT --format peft --output DIR

    peft: a prompt-tuning adapter for PeftModel.from_pretrained, with a README that documents the input format; causal
    and sequence-to-sequence prompts only. embeddings: prompt_embeds.safetensors, as the model's inputs_embeds takes it,
    and serving.json with the input's layout, template and label words as token ids; loads the backbone. numpy: the
    matrix as prompt.npy and its metadata as prompt.json.

    Args:
        sources: prompt file.
        output: folder for the files.
        format: peft, embeddings or numpy.
        backbone: name of the base model to record (peft) or to load (embeddings); default: the prompt's backbone.
        license: licence identifier of the Hub for the README (apache-2.0).
        overwrite: replace existing files.
    """
    from prompt_transfer.backbones.builtin import builtin_backbones
    from prompt_transfer.prompts.io.adapter_card import adapter_card
    from prompt_transfer.prompts.io.interchange import write_numpy
    from prompt_transfer.prompts.io.peft_adapter import check_exportable, write_adapter
    from prompt_transfer.prompts.prompt import Prompt
    from prompt_transfer.prompts.tensor_file import sizes

    if len(sources) != 1:
        raise UserError(f"got {len(sources)} prompt files: export PROMPT --format peft --output DIR")
    prompt, folder = Prompt.load(sources[0]), Path(output)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise UserError(f"{folder} already exists and is not empty: give another --output, or --overwrite")
    name = backbone or prompt.metadata.get("backbone", "unknown")
    if format == "embeddings":
        _export_embeddings(prompt, name, folder)
    elif format == "numpy":
        write_numpy(prompt, folder)
    else:
        check_exportable(prompt)
        write_adapter(prompt, folder, adapter_card(prompt, name, name in builtin_backbones(), license), name)
    print(f"{folder}: {sizes(prompt.values.shape)} for {name}, format {format}")


def _export_embeddings(prompt: Prompt, name: str, folder: Path) -> None:
    from prompt_transfer.data.serving import write_embeddings
    from prompt_transfer.studies.backbones import load_backbone

    if name == "unknown":
        raise UserError(f"{prompt.label} does not name its backbone, which the embeddings need: give --backbone")
    facts = write_embeddings(prompt, load_backbone(name, {prompt.label: prompt}, accelerator="cpu"), folder)
    if facts["unknown_tasks"]:
        print(f"note: {', '.join(facts['unknown_tasks'])}: unknown here, so {folder} has no text format for it")


def push(
    sources: list[str],
    repo: str,
    private: bool = False,
    revision: str | None = None,
    results: str | None = None,
    license: str | None = None,
    backbone: str | None = None,
) -> None:
    """upload prompts with a model card to the Hugging Face Hub: push PROMPT... --repo USER/NAME

    Needs a token with write access (`hf auth login`, or the environment variable HF_TOKEN), which is neither printed
    nor stored.

    Args:
        sources: prompt files or folders of runs.
        repo: USER/NAME; created if missing.
        private: create a private repository; an existing public one is an error.
        revision: target branch; created if missing.
        results: table of scores and baselines for the card; default: results.csv or results.parquet in the prompt's
            folder.
        license: licence identifier of the Hub for the card (apache-2.0).
        backbone: Hub id to store in the prompts, for backbones in a local folder.
    """
    from prompt_transfer.backbones.builtin import builtin_backbones
    from prompt_transfer.prompts.io.repository import push as upload

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
    """download prompts from the Hugging Face Hub: pull USER/NAME --output DIR

    Accepts this project's prompt files and PEFT adapters. All files are checked before any is written.

    Args:
        sources: the repository.
        output: folder for the prompt files.
        revision: branch, tag or commit; the prompts' metadata record the commit.
        overwrite: replace existing prompt files.
    """
    from prompt_transfer.prompts.io.repository import pull as download

    if len(sources) != 1:
        raise UserError(f"got {len(sources)} repositories: pull USER/NAME --output DIR")
    found = download(sources[0], output, revision=revision, overwrite=overwrite)
    rows = []
    for path, prompt in found.prompts.items():
        facts = prompt.metadata
        shown = {key: facts.get(key, "") for key in ("task", "backbone", "layout")}
        rows.append({"file": str(path), **shown, "rows": prompt.length})
    results.show(rows)
    for name, why in found.refused.items():
        print(f"refused: {name}: {why}")
    print(f"{len(rows)} pulled from {sources[0]} at {found.commit} into {output}")


SUBCOMMANDS: dict[str, Callable[..., Any]] = {"export": export, "push": push, "pull": pull}
