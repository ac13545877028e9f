"""Safe reader of small `torch.save` files, which are pickles and may contain code or false sizes.

Three checks precede `torch.load(weights_only=True)`. The file must be small. Its sizes must be true: no archive member
is compressed or larger than the file, and no storage of the legacy format is larger than it. Its pickle, scanned
opcode by opcode without execution, may only construct tensors and dictionaries. torch allows more, such as `bytearray`,
which can allocate any amount of memory.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from prompt_transfer.utils.errors import UserError

# A T5-XXL prompt with its optimizer state has 5 MB.
MAX_FILE_BYTES, MAX_PICKLE_BYTES, MAX_MEMBERS, MAX_OPCODES = 64 * 2**20, 2**20, 1_000, 200_000
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ALLOWED = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    *(f"torch {name}Storage" for name in _STORAGES),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5  # magic number, protocol, system, object, storage names
_UNOPENED = "it was not loaded: copy it again from a trusted source"
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "PROTO", "FRAME")
_INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")
_CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")


def read_torch_file(path: Path) -> tuple[Any, str]:
    """Read a `torch.save` file: tensors (on the CPU), numbers and strings in dictionaries and lists.

    Returns:
        The object, and the file's SHA-256 in hexadecimal.

    Raises:
        UserError: the file does not exist, is too large, damaged, not from torch, or contains code (never run).
    """
    data = _read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if data.startswith(b"PK"):
        data = _checked_zip(data, path)
    else:
        _check_legacy(data, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about unusual pickle protocols
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), digest
    except Exception as error:  # the errors of zip, pickle and torch share no base class
        raise UserError(f"{path} is damaged: torch cannot read it; copy it again") from error


def _read_bytes(path: Path) -> bytes:
    try:
        # Checked first because opening a pipe blocks.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a regular file; give a file that torch saved")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}; give a published prompt or its folder") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path} is larger than {MAX_FILE_BYTES} bytes, too large for a prompt; save only the prompt")
    if not data:
        raise UserError(f"{path} is empty; copy it again")
    return data


def _checked_zip(data: bytes, path: Path) -> bytes:
    """Check an archive and return a copy of its checked members, which is all that torch will read."""
    clean = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(clean, "w") as copy:
            members = archive.infolist()
            names = [member.filename for member in members]
            claimed = sum(member.file_size for member in members)
            if claimed > len(data):
                raise UserError(f"{path} claims to hold {claimed} bytes, but has only {len(data)}; {_UNOPENED}")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise UserError(f"{path} is compressed, unlike files of torch; {_UNOPENED}")
            if len(names) > MAX_MEMBERS or len(set(names)) < len(names):
                raise UserError(f"{path} has {len(names)} members, too many or duplicate names; {_UNOPENED}")
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
                raise UserError(f"{path} is a zip archive, but not from torch; give a file that torch saved")
            _scan(io.BytesIO(archive.read(pickles[0])), len(data), path)
            for member in members:
                copy.writestr(member.filename, archive.read(member))
    except UserError:
        raise
    except Exception as error:  # zipfile and pickletools raise errors of many types (OverflowError from a seek)
        raise UserError(f"{path} is truncated or damaged: its archive cannot be read; copy it again") from error
    return clean.getvalue()


def _check_legacy(data: bytes, path: Path) -> None:
    """Check the format before torch 1.6: five consecutive pickles, then the bytes of the storages."""
    file = io.BytesIO(data)
    for number in range(_LEGACY_PICKLES):
        try:
            values = _scan(file, len(data), path, legacy=True)
        except UserError:
            raise
        except Exception as error:  # as above
            problem = "not a file that torch saved" if number == 0 else "truncated or damaged; copy it again"
            raise UserError(f"{path} is {problem}") from error
        if number == 0 and values[:1] != [_LEGACY_MAGIC]:
            raise UserError(f"{path} is a pickle, but not one that torch saved; save the tensor with torch.save")


def _scan(file: BinaryIO, size: int, path: Path, legacy: bool = False) -> list[Any]:
    """Scan the opcodes of one pickle without running it; return their arguments that are not None."""
    ops: list[tuple[str, Any]] = []
    claimed = 0
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in _MEMO:
            continue
        if name in _CALLS and not (name == "GLOBAL" and argument in _ALLOWED):
            called = argument if name in ("GLOBAL", "INST") else " ".join(str(value) for _, value in ops[-2:])
            raise UserError(
                f"{path} holds code ({str(called)[:60].replace(' ', '.')}), which was not run; "
                "only tensors, numbers and strings are read: save only the prompt with torch.save"
            )
        if name == "BINPERSID":
            claimed += _storage_size(ops, legacy, path)
            if claimed > size:
                raise UserError(f"{path} claims to hold {claimed} numbers in {size} bytes; {_UNOPENED}")
        ops.append((name, argument))
        if len(ops) > MAX_OPCODES:
            raise UserError(f"{path} is too large for a prompt: its pickle has more than {MAX_OPCODES} opcodes")
    return [argument for _, argument in ops if argument is not None]


def _storage_size(ops: list[tuple[str, Any]], legacy: bool, path: Path) -> int:
    """Return the number of values in the storage that the last opcodes describe.

    torch allocates that much memory for a storage of the legacy format without checking it. The description is a tuple
    that ends in the size (legacy: size and None), which no other value can imitate.
    """
    end = ["NONE", "TUPLE"] if legacy else ["TUPLE"]
    start = len(ops) - len(end)
    count: int
    kind, count = ops[start - 1] if start > 0 and [name for name, _ in ops[start:]] == end else ("", -1)
    if kind not in _INTEGERS or count < 0:
        raise UserError(f"{path} describes its tensors unlike torch; {_UNOPENED}")
    return count
