"""Shared fixtures: no network, no stray files, one thread, tiny backbones."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Set these before importing the libraries, which read the environment once. A private cache hides models that a
# developer has downloaded.
_SCRATCH = tempfile.TemporaryDirectory(prefix="prompt_transfer_tests_")
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)
# Cache of real models, for tests marked `real_models`.
REAL_CACHE = os.environ.get("PROMPT_TRANSFER_CACHE")
os.environ.update(
    PROMPT_TRANSFER_CACHE=f"{_SCRATCH.name}/cache",
    HF_HOME=_SCRATCH.name,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="offline",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)

from hypothesis import settings  # noqa: E402
from hypothesis.configuration import set_hypothesis_home_dir  # noqa: E402
from tiny_models import save_tiny  # noqa: E402

set_hypothesis_home_dir(_SCRATCH.name)
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent
_LOOPBACK = ("127.", "::1", "localhost")
_CACHES = {".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv", "__pycache__", "build", "htmlcov"}


class NetworkBlockedError(RuntimeError):
    """An error that is not an `OSError`, so no library mistakes it for an offline network and falls back silently."""


def _is_local(address: object) -> bool:
    # AF_UNIX addresses are strings or bytes; internet addresses are tuples that start with the host.
    return not isinstance(address, tuple) or str(address[0]).startswith(_LOOPBACK)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse connections to other machines."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guard(original: Any) -> Any:
        def guarded(self: socket.socket, address: Any) -> Any:
            if not _is_local(address):
                raise NetworkBlockedError(f"a test tried to connect to {address}")
            return original(self, address)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard(connect))
        patch.setattr(socket.socket, "connect_ex", guard(connect_ex))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Run on one thread: faster for tiny tensors, and sums are the same on every machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _clean_root() -> Iterator[None]:
    """Check that the test wrote nothing into the repository."""
    before = set(os.listdir(ROOT))  # noqa: PTH208
    yield
    left = {
        name
        for name in set(os.listdir(ROOT)) - before - _CACHES  # noqa: PTH208
        if not name.startswith(".coverage") and not name.endswith(".egg-info")
    }
    assert not left, f"the test left {', '.join(sorted(left))} in {ROOT}"


@pytest.fixture(autouse=True, scope="session")
def our_hooks() -> Iterator[list[Any]]:
    """Record the handles of all forward hooks that the package registers during a test."""
    from torch import nn

    handles: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("register_forward_hook", "register_forward_pre_hook"):
            patch.setattr(nn.Module, name, _noted(getattr(nn.Module, name), handles))
        yield handles


def _noted(original: Any, handles: list[Any]) -> Any:
    def register(self: Any, hook: Any, *arguments: Any, **options: Any) -> Any:
        handle = original(self, hook, *arguments, **options)
        if str(getattr(hook, "__module__", "")).startswith("prompt_transfer"):
            handles.append(handle)
        return handle

    return register


@pytest.fixture(autouse=True)
def _no_hook_left(our_hooks: list[Any]) -> Iterator[None]:
    """Check that the test removed all of our hooks; a leftover hook would affect later tests."""
    our_hooks.clear()
    yield
    left = [handle for handle in our_hooks if handle.id in (handle.hooks_dict_ref() or {})]
    for handle in left:
        handle.remove()
    assert not left, f"the test left {len(left)} hooks on modules"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets next to the repository, one sub-folder per task."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: ../shared/data is absent")
    return folder


@pytest.fixture
def occupied() -> Callable[..., Any]:
    """Return a context in which another process holds `files.exclusive_lock` on a folder."""

    @contextmanager
    def at_work(folder: Path, name: str = ".lock") -> Iterator[None]:
        script = (
            "import sys; from prompt_transfer.utils.files import exclusive_lock\n"
            "with exclusive_lock(sys.argv[1], sys.argv[2]): print('there', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", script, str(folder), name]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "there\n"
            yield
            other.communicate()

    return at_work


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Write a task file with a folder of 40 / 10 / 10 rows."""
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    names = ["film", "story", "man", "woman", "dog", "cat", "house", "city", "day", "night"]
    for offset, (split, count) in enumerate((("train", 40), ("validation", 10), ("test", 10))):
        lines = [
            f"the {names[i % 10]} is {('bad', 'good')[i % 2]} {'very ' * (offset + i // 10)},{i % 2}"
            for i in range(count)
        ]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    path = tmp_path / "toy.yaml"
    path.write_text(
        "name: toy\ntype: sentiment\ncolumns: {text_a: text, text_b: null}\nlabel_column: label\n"
        "label_words: [terrible, great]\nmetric: accuracy\nlocal: data/toy\n"
    )
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny random model of a family (see `tests/tiny_models.py`), built once per session."""

    @functools.cache
    def folder(family: str) -> Path:
        return save_tiny(family, tmp_path_factory.mktemp(f"tiny-{family}"))

    return folder


@pytest.fixture(scope="session")
def tiny_roberta(tiny: Callable[[str], Path]) -> Path:
    """Return the folder of a random RobertaForMaskedLM: 2 layers, H 32, F 64, 64 positions.

    Ids: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> 4.
    """
    return tiny("roberta")


@pytest.fixture(scope="session")
def tiny_bert(tiny: Callable[[str], Path]) -> Path:
    """Return the folder of a random BertForMaskedLM: 2 layers, H 32, F 64, 64 positions.

    Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4.
    """
    return tiny("bert")
