"""Committed notebooks: complete, executed, free of local paths, and consistent with the package's names.

`make test-notebooks` executes them.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from scripts import load_script

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Absolute paths reveal the machine where a notebook was executed.
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|private|mnt|var|opt|usr)/")
# A cell with more statements, besides imports, calls for a function in the package.
STATEMENTS = 10

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def imported(source: str) -> Iterator[tuple[str, str | None]]:
    """Return module and name of every import from this package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.startswith("prompt_transfer"))
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("prompt_transfer"):
            yield from ((str(node.module), alias.name) for alias in node.names)


def test_there_are_four_and_the_readme_names_them() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"notebooks/{path.name}" in readme for path in NOTEBOOKS)


@every_notebook
def test_a_notebook_is_valid_and_its_metadata_are_stable(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert not any(cell.metadata for cell in notebook.cells)
    assert path.stat().st_size < 1_000_000


@every_notebook
def test_a_notebook_was_executed_in_order_without_errors(path: Path) -> None:
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {"error"}.isdisjoint(output.output_type for output in outputs)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2


@every_notebook
def test_a_notebook_shows_no_path_of_a_machine(path: Path) -> None:
    notebook = read(path)
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        output.get("data", {}).pop("image/png", None)
    assert not ABSOLUTE.findall(json.dumps(notebook))


@every_notebook
def test_the_code_of_a_notebook_is_short_and_its_names_exist(path: Path) -> None:
    names = []
    for cell in code_cells(read(path)):
        done = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.stmt)]
        assert sum(not isinstance(node, ast.Import | ast.ImportFrom) for node in done) <= STATEMENTS, cell.source
        names += list(imported(cell.source))
    assert any(name == "PromptHub" for _, name in names) or path.name.startswith("2_")
    # Only the public names of the package.
    assert {module for module, _ in names} == {"prompt_transfer"}
    public = importlib.import_module("prompt_transfer")
    assert {name for _, name in names} <= set(public.__all__)
    assert all(hasattr(public, str(name)) for _, name in names)


@every_notebook
def test_numbers_of_results_are_computed(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert not re.findall(r"\b0\.\d+|\b\d+ points|\d %(?! interval)", cell.source), cell.source


@every_notebook
def test_each_figure_has_text_before_and_after(path: Path) -> None:
    cells = read(path).cells
    for number, cell in enumerate(cells):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            around = cells[number - 1], cells[number + 1]
            assert [other.cell_type for other in around] == ["markdown", "markdown"], cell.source
            assert not around[1].source.startswith("#"), cell.source


@every_notebook
def test_a_notebook_says_what_not_to_conclude(path: Path) -> None:
    texts = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert texts[0].startswith("# ")
    assert any("not to conclude" in text for text in texts)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("nbclient", reason="nbclient is part of the extra `notebooks`")
    return load_script("notebooks/execute.py")


def test_what_is_kept_names_no_folder_no_warning_and_no_moment(script: ModuleType, tmp_path: Path) -> None:
    new = nbformat.v4
    outputs = [
        new.new_output("stream", name="stdout", text=f"{tmp_path}/runs/a\n"),
        new.new_output("stream", name="stderr", text="warning: slow"),
        new.new_output("stream", name="stdout", text="done\n"),
        new.new_output("display_data", {"text/html": f"<b>{tmp_path}/b</b>", "image/png": "aGk="}, metadata={"x": 1}),
    ]
    cell = new.new_code_cell("1", outputs=outputs, metadata={"execution": {"iopub.status.idle": "now"}})
    notebook = new.new_notebook(cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.1"}})
    assert script.tidy(notebook, tmp_path) == ["warning: slow"]
    assert [output.get("text") for output in cell.outputs] == ["runs/a\ndone\n", None]
    assert cell.outputs[1].data == {"text/html": "<b>b</b>", "image/png": "aGk="}
    assert (cell.metadata, cell.outputs[1].metadata) == ({}, {})
    assert notebook.metadata.language_info == {"name": "python"}
    nbformat.validate(notebook)
