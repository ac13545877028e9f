"""Fuzz the readers of untrusted files: they may only raise UserError, never hang, run code or exhaust memory.

    python benchmarks/fuzz_importers.py --output results/fuzz.json                 # 100,000 files
    python benchmarks/fuzz_importers.py --output one.json --only 4711 --keep DIR   # one of them again, kept in DIR

The script generates published prompts in both formats of `torch.save`, and prompts, projectors and neuron files in
safetensors. File i depends only on the seed and i. Bytes are flipped, cut, duplicated and spliced; headers and pickles
are also changed inside otherwise valid files, because checksums catch most other damage first. Some pickles contain
calls, which must never run.

Each chunk of files is read in a separate process, which makes crashes of the interpreter visible too.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import facts, write
from safetensors.torch import save as to_safetensors

from prompt_transfer.neurons import files as neurons
from prompt_transfer.projectors.closed_form import LeastSquares
from prompt_transfer.projectors.file import ProjectorFile, Side
from prompt_transfer.projectors.projector import MLP, Linear, Space, TokenMLP
from prompt_transfer.prompts.io.interchange import read_published
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.utils.errors import UserError

CPU_SECONDS, WALL_SECONDS = 5.0, 120.0  # for one file
MEMORY_MIB = 256  # additional address space that one file may take
# Audit events that no file may cause.
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir", "os.remove",
             "os.rename", "subprocess.Popen", "socket.connect", "shutil.rmtree", "ctypes.dlopen")  # fmt: skip
NUMBERS = [0, 1, 2, 7, 8, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1, -1, -8]
TEXTS = ['"F32"', '"F64"', '"BF16"', '"I8"', '"BOOL"', '"F8_E4M3"', '"X"', "null", "[]", "{}", "1e309", "true", '"a"']


class Stuck(BaseException):
    """Raised if a file takes too long."""


class Call:
    """An object that pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


# Files to begin with -------------------------------------------------------------------------------------------------


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Return kind -> valid files."""
    generator = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def prompt(initial: bool, **metadata: str) -> bytes:
        path = folder / "seed.safetensors"
        Prompt(rows(4, 8), {"task": "sst2", "backbone": "x", **metadata}, rows(4, 8) if initial else None).save(path)
        return path.read_bytes()

    def projector(kind: Any, whole: bool, target: int = 6) -> bytes:
        sides = [
            Side("a", "f", "roberta", 8, 4 if whole else None),
            Side("b", "g", "bert", target, 4 if whole else None),
        ]
        spaces = Space(4 if whole else 1, 8), Space(4 if whole else 1, target)
        kind.allocate(*spaces)
        with torch.no_grad():
            for value in kind.state_dict().values():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
        path = folder / "seed.safetensors"
        ProjectorFile(kind, *sides, {"objective": "both"}).save(path)
        return path.read_bytes()

    def saved(value: Any, new: bool) -> bytes:
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=new)
        return file.getvalue()

    checkpoint = {"model": rows(100, 512).half(), "trained_epoch": 3, "global_step": 70}
    small = {"model": {"weight": rows(3, 4)}, "optimizer": {"step": 3, "lr": [0.1]}, "name": "x"}
    shared = rows(6, 4)
    values = [rows(100, 512).half(), rows(5, 3), checkpoint, small, torch.nn.Parameter(rows(2, 2)),
              [shared[:3], shared[1:].T], {"model": rows(4).to(torch.bfloat16)}]  # fmt: skip
    layers = {"activations": rows(2, 6), "mean/sst2": rows(2, 6), "leep/sst2": rows(1)}
    return {
        "zip": [saved(value, True) for value in values],
        "legacy": [saved(value, False) for value in values],
        "prompt": [prompt(True), prompt(False, score="0.5"), prompt(True, data_task='["a"]', label_words="{}")],
        "projector": [
            projector(Linear(), False), projector(TokenMLP(3), False), projector(MLP(3), True),
            projector(LeastSquares(), False),
        ],
        "neurons": [to_safetensors(layers, {"prompt": "1f", "backbone": "2e"})],
    }  # fmt: skip


# Mutations -----------------------------------------------------------------------------------------------------------


def damaged(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Change bytes at random; in long files mostly near both ends, where the metadata are."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        size = len(found)
        if size < 2:
            break
        place = draw.randrange(size)
        if size > 2000 and draw.random() < 0.8:
            place = draw.choice((draw.randrange(600), size - 1 - draw.randrange(600)))
        length = draw.choice((1, 2, 4, 8, draw.randrange(1, 64)))
        way = draw.randrange(9)
        if way == 0:
            found[place] ^= 1 << draw.randrange(8)
        elif way == 1:
            found[place] = draw.choice((0, 1, 255, 127, 128, draw.randrange(256)))
        elif way == 2:
            del found[place:]
        elif way == 3:
            del found[place : place + length]
        elif way == 4:
            found[place:place] = found[place : place + length]
        elif way == 5:
            found[place:place] = draw.randbytes(length)
        elif way == 6:
            number = draw.choice(NUMBERS) % 2**64
            found[place : place + length] = number.to_bytes(8, draw.choice(("little", "big")))[:length]
        elif way == 7:
            start = draw.randrange(len(other))
            found[place : place + length] = other[start : start + length]
        else:
            found += draw.randbytes(length)
    return bytes(found)


def safetensors_header(data: bytes, draw: random.Random) -> bytes:
    """Change the JSON header, with a correct length and unchanged data."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length].decode(), data[8 + length :]
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = [found.span() for found in re.finditer(r'-?\d+|\\?"[^"\\]*\\?"|\[[^\]]*\]', header)]
        if not places:
            break
        start, end = draw.choice(places)
        new = draw.choice([str(draw.choice(NUMBERS)), draw.choice(TEXTS), "", header[slice(*draw.choice(places))]])
        header = header[:start] + new + header[end:]
    if draw.random() < 0.05:
        header = "[" * draw.choice((10, 5000, 200_000)) + header
    text = header.encode()
    return len(text).to_bytes(8, "little") + text + rest


def changed_pickle(data: bytes, other: bytes, draw: random.Random, marker: Path) -> bytes:
    """Insert a call into a pickle, or change its bytes."""
    if draw.random() < 0.3:
        call = draw.choice((
            Call(os.mkdir, str(marker)), Call(os.system, f"touch {marker}"), Call(eval, f"open({str(marker)!r}, 'w')"),
            Call(bytearray, 2**40), Call(getattr, "x", "upper"), Call(exec, "import this"),
            Call(__import__, "antigravity"),
        ))  # fmt: skip
        inside = pickle.dumps(draw.choice((call, [call], {"model": call})), draw.choice((0, 1, 2, 3, 4)))
        if draw.random() < 0.5:
            return inside
        # Inserted into the original pickle without its STOP opcode.
        place = draw.randrange(2, len(data))
        return data[:place] + inside[2 if inside[:1] == b"\x80" else 0 : -1] + data[place:]
    return damaged(data, other, draw)


def zip_pickle(data: bytes, other: bytes, draw: random.Random, marker: Path) -> bytes:
    """Change the pickle, or sizes, names or types of members, in an archive with correct checksums."""
    whole = io.BytesIO()
    with (
        warnings.catch_warnings(action="ignore"),  # duplicate member names
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        zipfile.ZipFile(whole, "w") as copy,
    ):
        for member in archive.infolist():
            content, name = archive.read(member), member.filename
            if name.endswith("data.pkl"):
                content = changed_pickle(content, other, draw, marker)
            elif draw.random() < 0.05:
                content = content[: draw.randrange(len(content) + 1)]
            if draw.random() < 0.02:
                name = draw.choice(("../" + name, name + "x", "/" + name, name.replace("archive", "a/b"), "data.pkl"))
            kind = zipfile.ZIP_DEFLATED if draw.random() < 0.02 else zipfile.ZIP_STORED
            for _ in range(2 if draw.random() < 0.02 else 1):
                copy.writestr(name, content, kind)
    return whole.getvalue()


def legacy_pickle(data: bytes, other: bytes, draw: random.Random, marker: Path) -> bytes:
    """Change one of the pickles of the legacy format, located by their STOP opcodes."""
    if draw.random() < 0.5:
        return changed_pickle(data[:600], other, draw, marker) + data[600:]
    inside = pickle.dumps({"model": Call(os.mkdir, str(marker))}, 2)
    ends = [found.end() for found in re.finditer(rb"\.\x80\x02", data[:900])]
    if len(ends) < 3:
        return inside
    # Keep the magic number, protocol and system; replace the object.
    return data[: ends[2] - 2] + inside + data[ends[2] - 2 :]


READERS: dict[str, Callable[[Path], Any]] = {
    "zip": read_published, "legacy": read_published, "prompt": Prompt.load, "projector": ProjectorFile.load,
    "neurons": neurons.read,
}  # fmt: skip


class Fuzz:
    """Generator and reader of mutated files.

    Args:
        folder: folder for the current file, best in memory (/dev/shm).
        seed: seed of all mutations.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.marker = folder / "executed"
        self.whole = seeds(folder)
        self.kinds = list(self.whole)
        # A published prompt's folder name gives its task and backbone.
        (folder / "SST2PromptT5Small").mkdir(exist_ok=True)
        self.paths = {
            kind: folder / ("SST2PromptT5Small/task_prompt" if kind in ("zip", "legacy") else f"{kind}.safetensors")
            for kind in self.kinds
        }
        self.armed, self.seen = False, ""
        sys.addaudithook(self._audit)
        for kind in self.kinds:  # imports and caches first
            for data in self.whole[kind]:
                self.outcome(kind, data)
        self.limit = 0

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event in FORBIDDEN and not self.seen:
            self.seen = f"{event} {str(arguments)[:80]}"

    def make(self, number: int) -> tuple[str, bytes]:
        """Return the kind and bytes of file `number`."""
        draw = random.Random(f"{self.seed} {number}")
        kind = self.kinds[number % len(self.kinds)]
        data, other = draw.choice(self.whole[kind]), draw.choice(self.whole[draw.choice(self.kinds)])
        if draw.random() < 0.4:
            return kind, damaged(data, other, draw)
        if kind == "zip":
            return kind, zip_pickle(data, other, draw, self.marker)
        if kind == "legacy":
            return kind, legacy_pickle(data, other, draw, self.marker)
        return kind, safetensors_header(data, draw)

    def outcome(self, kind: str, data: bytes) -> str:
        """Return `accepted`, `refused`, or a description of the failure."""
        path = self.paths[kind]
        path.write_bytes(data)
        self.seen, self.armed = "", True
        try:
            with alarms():
                READERS[kind](path)
            found = "accepted"
        except UserError as error:
            found = "refused" if str(error).strip() else "crash: a UserError without a message"
        except Stuck:
            found = "hang"
        except BaseException as error:
            found = f"crash: {type(error).__name__}: {str(error)[:120]}"
        finally:
            self.armed = False
        if self.seen or self.marker.exists():
            shutil.rmtree(self.marker, ignore_errors=True)
            self.marker.unlink(missing_ok=True)
            return f"executed: {self.seen or 'the marker exists'}"
        return found

    def read(self, number: int) -> tuple[str, str]:
        """Read file `number`; return its kind and outcome, including excessive memory."""
        kind, data = self.make(number)
        if not self.limit:
            self.limit = peak_mib() + MEMORY_MIB
        found = self.outcome(kind, data)
        if (peak := peak_mib()) > self.limit:
            self.limit = peak + MEMORY_MIB
            found = f"memory: {peak} MiB of address space ({found})"
        return kind, found


@contextmanager
def alarms() -> Iterator[None]:
    """Raise `Stuck` after a limit of CPU time and of wall-clock time."""

    def stop(number: int, frame: Any) -> None:
        raise Stuck

    handlers = [(kind, signal.signal(kind, stop)) for kind in (signal.SIGPROF, signal.SIGALRM)]
    limits = (signal.ITIMER_PROF, CPU_SECONDS), (signal.ITIMER_REAL, WALL_SECONDS)
    timers = [(timer, signal.setitimer(timer, seconds)) for timer, seconds in limits]
    try:
        yield
    finally:
        for timer, _ in timers:
            signal.setitimer(timer, 0)
        for kind, handler in handlers:
            signal.signal(kind, handler)
        # Restore earlier timers.
        for timer, before in timers:
            signal.setitimer(timer, *before)


def peak_mib() -> int:
    """Return the peak address space of this process, or its peak memory if that is unavailable."""
    try:
        return int(re.search(r"VmPeak:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024  # type: ignore[index]
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# The run -------------------------------------------------------------------------------------------------------------


def count(fuzz: Fuzz, numbers: range, keep: Path | None) -> dict[str, Any]:
    """Read some files; return counts of outcomes by kind, and a line per failure."""
    counts: Counter[str] = Counter()
    wrong = []
    for number in numbers:
        kind, found = fuzz.read(number)
        word = found.partition(":")[0]
        counts[f"{kind} {word}"] += 1
        if word not in ("accepted", "refused"):
            wrong.append(f"file {number} ({kind}): {found}")
        if keep is not None and (word not in ("accepted", "refused") or len(numbers) == 1):
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{number}.{kind}").write_bytes(fuzz.make(number)[1])
    return {"counts": counts, "wrong": wrong}


def _send(fuzz: Fuzz, numbers: range, keep: Path | None, pipe: Any) -> None:
    pipe.send(count(fuzz, numbers, keep))
    pipe.close()


def in_process(fuzz: Fuzz, numbers: range, keep: Path | None) -> dict[str, Any]:
    """Run `count` in a separate process."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(fuzz, numbers, keep, there))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        child.join()
        how = f"the process that read files {numbers.start} to {numbers.stop - 1} ended with {child.exitcode}"
        return {"counts": Counter({"all crash": 1}), "wrong": [how]}
    finally:
        child.join()


def memory_folder() -> Path | None:
    """Return the folder of the in-memory file system, or None without one."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


OUTCOMES = ("accepted", "refused", "crash", "hang", "executed", "memory")


def fuzzed(files: int, seed: int = 0, keep: Path | None = None, chunk: int | None = 5000) -> dict[str, Any]:
    """Fuzz `files` files and return the report; `chunk` None reads all of them in this process."""
    report = read_all(Fuzz, OUTCOMES, range(files), chunk, seed, keep)
    return {**report, "limits": {"cpu_seconds": CPU_SECONDS, "address_space_mib": MEMORY_MIB}}


def read_all(
    make: Callable[[Path, int], Any],
    outcomes: Sequence[str],
    numbers: range,
    chunk: int | None,
    seed: int,
    keep: Path | None,
) -> dict[str, Any]:
    """Read numbered files and return the report.

    Args:
        make: makes generator and reader from a folder and the seed.
        outcomes: all outcomes of a file.
        numbers: numbers of the files.
        chunk: files of one process; None: read all of them in this process.
        seed: seed of all files.
        keep: folder for files that fail.
    """
    started = time.perf_counter()
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory_folder()) as folder:
        fuzz = make(Path(folder), seed)
        step = chunk or max(1, len(numbers))
        for part in (numbers[first : first + step] for first in range(0, len(numbers), step)):
            found = in_process(fuzz, part, keep) if chunk else count(fuzz, part, keep)
            counts += found["counts"]
            wrong += found["wrong"]
    found_outcomes = Counter(dict.fromkeys(outcomes, 0))
    for name, number in counts.items():
        found_outcomes[name.split()[1]] += number
    return {
        "files": len(numbers), "seed": seed, **found_outcomes, "by_kind": dict(sorted(counts.items())),
        "wrong": wrong[:50],
        "microseconds_a_file": round(1e6 * (time.perf_counter() - started) / max(1, len(numbers))),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="results/fuzz.json")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="read only this file, in this process")
    parser.add_argument("--keep", type=Path, help="folder for files that fail")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = facts("mutated files, fed to all readers of files of others", ("torch", "safetensors"))
    if options.only is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            report |= count(Fuzz(Path(folder), options.seed), range(options.only, options.only + 1), options.keep)
    else:
        report |= fuzzed(options.files, options.seed, options.keep)
    write(options.output, report)
    print(json.dumps({key: value for key, value in report.items() if key not in ("machine", "versions")}, indent=2))
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
