"""Execute the notebooks of this folder from scratch, in a temporary folder.

`make test-notebooks` fails if a cell fails; `make notebooks` (`--save`) stores the outputs in the files, without paths,
times, progress and warnings, which depend on the machine. Two notebooks run at a time, with one thread each.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

FOLDER = Path(__file__).resolve().parent
CELL_SECONDS = 600
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class Executed(NamedTuple):
    """A notebook after execution.

    Attributes:
        notebook: the notebook with its outputs; None if a cell failed.
        seconds: duration.
        error: the failed cell and its error.
        left_out: text written to standard error.
    """

    notebook: Any
    seconds: float
    error: str = ""
    left_out: tuple[str, ...] = ()


def execute_tidily(path: Path, folder: Path, seconds: int) -> Executed:
    """Execute a notebook in `folder` and remove machine-dependent outputs; a cell may take at most `seconds`."""
    began = time.monotonic()
    try:
        notebook = execute(path, folder, seconds)
    except (CellExecutionError, CellTimeoutError, RuntimeError) as error:
        return Executed(None, time.monotonic() - began, str(error))
    took = time.monotonic() - began
    return Executed(notebook, took, left_out=tuple(tidy(notebook, folder)))


def execute(path: Path, folder: Path, seconds: int) -> Any:
    """Execute a notebook in `folder` and return it; a cell may take at most `seconds`."""
    notebook = nbformat.read(path, as_version=4)
    folder.mkdir()
    os.environ |= {"PROMPT_TRANSFER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(
        notebook, timeout=seconds, startup_timeout=seconds, kernel_name="python3", record_timing=False,
        # Silence warnings about unencrypted connections: they stay on this machine.
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute()
    return notebook


def tidy(notebook: Any, folder: Path) -> list[str]:
    """Remove machine-dependent outputs in place; return the text written to standard error."""
    left_out = []
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        outputs: list[Any] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                left_out.append(output.text)
                continue
            if output.output_type == "stream" and outputs and outputs[-1].output_type == "stream":
                outputs[-1].text += output.text
                continue
            if "metadata" in output:
                output.metadata = {}
            outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                output.text = _plain(output.text, folder)
            for kind, content in output.get("data", {}).items():
                if isinstance(content, str) and kind.startswith("text/"):
                    output.data[kind] = _plain(content, folder)
        cell.outputs = outputs
    return left_out


def _plain(text: str, folder: Path) -> str:
    """Make paths relative to the folder and the program, and remove terminal colours."""
    text = text.replace(str(Path(sys.executable).with_name("prompt-transfer")), "prompt-transfer")
    return re.sub(rf"{re.escape(str(folder))}/?|\x1b\[[\d;]*m", "", text)


def main() -> int:
    """Execute all notebooks; return 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    parser.add_argument(
        "--seconds", type=int, default=CELL_SECONDS, help="time limit per cell; raise it on a busy machine"
    )
    parser.add_argument("--processes", type=int, default=2, help="notebooks at a time")
    parser.add_argument("--save", action="store_true", help="store the outputs in the files")
    arguments = parser.parse_args()
    # Use this checkout instead of an installed package, a fixed table width, and inline figures.
    os.environ |= {"PYTHONPATH": str(FOLDER.parent), "JUPYTER_COLUMNS": "110", "HF_HUB_OFFLINE": "1"}
    os.environ.pop("MPLBACKEND", None)
    failed = False
    # Each process starts kernels with an environment of its own.
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool,
    ):
        os.environ["IPYTHONDIR"] = f"{scratch}/ipython"
        folder = Path(scratch).resolve()
        tasks = {
            pool.submit(execute_tidily, path, folder / path.stem, arguments.seconds): path
            for path in arguments.notebooks
        }
        for task in as_completed(tasks):
            path, done = tasks[task], task.result()
            if done.notebook is None:
                failed = True
                print(f"{path.name} failed after {done.seconds:.0f} s\n{done.error}", file=sys.stderr)
                continue
            print(f"{path.name}: {done.seconds:.0f} s", flush=True)
            for text in done.left_out:
                print(f"  on standard error: {text.strip()}", file=sys.stderr)
            if arguments.save:
                nbformat.validate(done.notebook)
                nbformat.write(done.notebook, path)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
