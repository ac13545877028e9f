"""Atomic writes of files and folders (temporary file, sync, rename), and exclusive locks on folders."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_transfer.utils.errors import UserError

LOCK = ".lock"


def cache_folder() -> Path:
    """Return the cache folder: the variable PROMPT_TRANSFER_CACHE, else ``~/.cache/prompt_transfer``."""
    return Path(os.environ.get("PROMPT_TRANSFER_CACHE") or "~/.cache/prompt_transfer").expanduser()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success sync it and rename it to `path`, on error remove it.

    The temporary name keeps the suffix of `path`, since writers such as matplotlib infer the format from it.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder that you may write to") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp creates files that only their owner can read; results are shared.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder in the parent of `path`; on success sync it and rename it, on error remove it.

    If another process created `path` first, its folder stays.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder that you may write to") from error
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for place in sorted(temporary.rglob("*"), reverse=True):
            _sync_folder(place)
        _sync_folder(temporary)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries (or a file's content) to disk, where the file system can open a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically: a reader sees the old file or the new one, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def prove_writable_dir(path: str | Path) -> None:
    """Check that the folder `path` is writable and leave it as it was: for commands that write only at their end.

    Raises:
        UserError: `path` is a file, or the folder cannot be created or written.
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        check_writable_dir(path)
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def check_writable_dir(path: str | Path) -> Path:
    """Create the folder `path` and check that a file can be written there.

    Raises:
        UserError: `path` is a file, or the folder cannot be created or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to the folder {path}: {error.strerror}; give another one with --output"
        ) from error
    return path


@contextmanager
def exclusive_lock(folder: str | Path, name: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `folder`, which is created if missing.

    The system releases the lock when the process ends, even if forked children live on. It works across machines if
    the file system supports locks (NFS does). On exit the lock file is removed, and so are folders created here that
    stayed empty.

    Args:
        folder: folder to lock.
        name: name of the lock file.
        wait: wait for the other process instead of raising.

    Raises:
        UserError: another process holds the lock (without `wait`), or the folder cannot be written.
    """
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    check_writable_dir(folder)
    path = folder / name
    handle = None if sys.platform == "win32" else _acquire_lock(path, wait)
    try:
        yield
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)
        for place in missing:
            with suppress(OSError):
                place.rmdir()


def _acquire_lock(path: Path, wait: bool) -> int | None:
    """Return the descriptor of the locked file; None if the file system does not support locks."""
    import fcntl

    while True:
        handle, current = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False
        try:
            # A lock of the process, not of the open file: worker processes inherit the file and would keep the lock.
            fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            holder = os.read(handle, 200).decode(errors="replace")
            os.close(handle)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                who = f"another process ({holder})" if holder else "another process"
                raise UserError(f"{who} is at work in {path.parent}: wait for it, or give another --output") from error
            problem = f"{path.parent} lies on a file system without locks"
            warnings.warn(f"{problem}: do not run a second command that writes there", stacklevel=4)
            return None
        # The previous holder may have removed the file after it was opened here.
        with suppress(FileNotFoundError):
            current = os.fstat(handle).st_ino == path.stat().st_ino
        if current:
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} on {platform.node()}".encode())
            return handle
        os.close(handle)
