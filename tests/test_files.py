"""File writing: files are whole or absent, checks that folders are writable, and full disks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from prompt_transfer.cli import main
from prompt_transfer.data.tokens import tokenise
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.files import (
    atomic_path,
    check_writable_dir,
    exclusive_lock,
    prove_writable_dir,
    write_text_atomic,
)

ROOT = Path(__file__).resolve().parent.parent


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    write_text_atomic(path, "old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "f.txt", []

    def note(handle: int) -> None:
        seen.append((Path(f"/proc/self/fd/{handle}").resolve(), path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    write_text_atomic(path, "new")
    (temporary, early), (folder, late) = seen
    assert (temporary.parent, temporary.suffix, early) == (tmp_path, ".txt", False)
    assert (folder, late) == (tmp_path, True)


@pytest.mark.parametrize("prove", [check_writable_dir, prove_writable_dir])
def test_a_file_in_the_way_of_a_folder(prove, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(UserError, match="cannot write to the folder"):
            prove(place)


def test_a_proof_leaves_no_folder_behind(tmp_path: Path) -> None:
    prove_writable_dir(tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept").mkdir()
    prove_writable_dir(tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["tasks", "list"]])
def test_a_full_disk_behind_a_redirection_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "prompt_transfer", *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: No space left on device; free space, or choose another place to write to"
    ]


def test_prompts_list_goes_past_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pipes (which would block forever), folders, dead links and broken files do not stop the listing."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "dead.safetensors").symlink_to("/nowhere")
    (tmp_path / "[bold]").mkdir()
    (tmp_path / "[bold]" / "text.safetensors").write_text("hello")
    assert main(["prompts", "list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "[bold]/text.safetensors" in out
    assert "dead.safetensors" in out
    assert "pipe" not in out


def test_prompts_are_listed_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    metadata = {"task": "sst2", "backbone": "/somewhere/roberta-nano", "layout": "prefix", "attention": "full"}
    scored = metadata | {"metric": "accuracy", "score": "0.72821", "seed": "0"}
    Prompt(torch.zeros(20, 4), scored).save(tmp_path / "runs" / "sst2-seed0" / "prompt.safetensors")
    Prompt(torch.zeros(20, 4), {"score": "much", "task": "a\nb"}).save(tmp_path / "bare.safetensors")
    (tmp_path / "cut.safetensors").write_text("{")
    assert main(["prompts", "list", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:5])) <= 80
    assert lines[0].strip() == "all: rows 20"
    assert lines[4].split() == ["runs/sst2-seed0", "sst2", "roberta-nano", "prefix", "full", *scored_words]
    assert lines[-1].startswith(f"not a prompt: {tmp_path}/cut.safetensors is not a safetensors file")


scored_words = ["accuracy", "0.728", "0"]


def test_backbones_of_one_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    for number, backbone in enumerate([str(tmp_path / "a" / "tiny"), str(tmp_path / "b" / "tiny"), "x/roberta"]):
        Prompt(torch.zeros(2, 4), {"task": "sst2", "backbone": backbone}).save(f"p{number}.safetensors")
    assert main(["prompts", "list", "."]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[2] for line in printed.splitlines() if line.startswith("p")] == [
        "backbone",
        "a/tiny",
        "b/tiny",
        "roberta",
    ]


def test_a_full_disk_below_the_token_cache_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`datasets` closes the file after a failed write, which raises again and hides the reason."""
    rows = Dataset.from_dict({"id": [0], "text_a": ["a"], "text_b": [""]})

    def full(*_: object, **__: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise ValueError("I/O operation on closed file")  # noqa: B904

    monkeypatch.setattr(Dataset, "map", full)
    with pytest.raises(UserError, match=r"cannot use the token cache .*: No space left on device"):
        tokenise(rows, None, 8, pairs=False, cache_file=tmp_path / "a.arrow")  # type: ignore[arg-type]


def test_a_folder_belongs_to_one_process(tmp_path: Path, occupied: Callable[..., Any]) -> None:
    folder = tmp_path / "a" / "b"
    with occupied(folder):
        with pytest.raises(UserError, match=rf"process \(\d+ on .+\) is at work in {folder}"), exclusive_lock(folder):
            pass
        # Another name is another lock.
        with exclusive_lock(folder, ".other"):
            pass
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def test_a_lock_leaves_what_was_written(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "a"):
        (tmp_path / "a" / "result").write_text("1")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_a_kill_ends_the_lock_though_forked_processes_live(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from prompt_transfer.utils.files import exclusive_lock\n"
        "with exclusive_lock(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True)\n"
        "    time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            holder.kill()
            holder.wait()
            os.kill(child, 0)
            with exclusive_lock(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
    assert not list(tmp_path.iterdir())
