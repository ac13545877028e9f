"""The package as a whole: light imports, a complete wheel, and no circular dependencies between rooms."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import prompt_transfer

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "prompt_transfer"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
# Import name -> name on the package index, if different.
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "mlflow": "mlflow-skinny",
    "vl_convert": "vl-convert-python",
}
# Extras whose packages some module imports.
OPTIONAL = ("ray", "dashboard", "gguf", "mlflow", "compare", "quantization", "report", "lm_eval")
HEAVY = ("torch", "transformers", "lightning", "datasets", "pandas", "numpy", "matplotlib", "wandb")


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [_module(path) for path in FILES]


def _imports(path: Path) -> Iterator[str]:
    """Return absolute names of everything a file imports, also inside functions; `from a import b` gives `a.b`."""
    module = _module(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def _requirements(lines: str) -> dict[str, str]:
    """Parse requirements: normalised distribution name -> version specifier."""
    found = {}
    for line in lines.splitlines():
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[\w,]+\])?\s*([<>=!~].*)?", line.partition("#")[0].strip())
        if match:
            found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2] or ""
    return found


# Rooms from the ground up. A room imports only from earlier lines; rooms on one line do not import each other.
FLOORS = (
    ("version",),
    ("utils",),
    ("backbones.kernels",),
    ("backbones",),
    ("tasks",),
    ("prompts",),
    ("prompts.io",),
    ("data.builtin",),
    ("data",),
    ("analysis", "neurons", "projectors"),
    ("pretraining", "modules"),
    ("tracking",),
    ("callbacks",),
    ("studies",),
    ("studies.compare", "studies.projection", "studies.recommend", "studies.sweep", "studies.transfer"),
    ("studies.neurons",),
    ("studies.report",),
    ("commands",),
    ("api", "cli"),
    ("", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Rooms that may import transformers, and the other files that do, each with its reason.
MODEL_ROOMS = ("backbones", "backbones.kernels", "pretraining")
TRANSFORMERS = {"modules/optimization.py": "get_scheduler, the learning rate schedules"}
MOST_PARAMETERS = 8
# Functions with more parameters; the list may only shrink. Constructors are exempt, since their parameters are options.
MANY_PARAMETERS = {
    # The signature that transformers requires of attention functions.
    "backbones/kernels/matmul_attention.py": {"matmul_attention"},
    # Their parameters are the command's options.
    "commands/projecting.py": {"fit_projector"},
    # All inputs that determine a table's tokens.
    "data/tokens.py": {"tokenise"},
}


def _room(name: str) -> str:
    """Return the innermost sub-package of the module or name; for a root module its name, else ""."""
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        if PACKAGE.joinpath(*parts[1:end]).is_dir():
            return ".".join(parts[1:end])
    return parts[1] if len(parts) > 1 and (PACKAGE / f"{parts[1]}.py").is_file() else ""


def _house() -> dict[str, set[tuple[str, str]]]:
    """Map each room to the rooms it imports, each with the importing file; imports inside functions count."""
    house: dict[str, set[tuple[str, str]]] = {}
    for path in FILES:
        room = _room(_module(path))
        imported = {_room(name) for name in _imports(path) if name.split(".")[0] == "prompt_transfer"}
        file = path.relative_to(PACKAGE).as_posix()
        house.setdefault(room, set()).update((other, file) for other in imported if other != room)
    return house


def test_every_room_has_its_floor() -> None:
    assert set(_house()) == set(FLOOR)


def test_no_import_goes_upwards() -> None:
    upwards = [
        f"{file} imports {other or 'the root'}"
        for room, imported in _house().items()
        for other, file in sorted(imported)
        if FLOOR[other] >= FLOOR[room]
    ]
    assert upwards == []


def test_the_root_holds_no_other_modules() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")}
    assert names == {"__init__", "__main__", "cli", "version"}


def test_transformers_stays_in_its_rooms() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if _room(_module(path)) not in MODEL_ROOMS
        and any(name.split(".")[0] == "transformers" for name in _imports(path))
    }
    assert found == set(TRANSFORMERS)


def test_functions_have_few_parameters() -> None:
    many: dict[str, set[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name == "__init__":
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            if sum(one is not None and one.arg not in ("self", "cls") for one in given) > MOST_PARAMETERS:
                many.setdefault(path.relative_to(PACKAGE).as_posix(), set()).add(node.name)
    assert many == MANY_PARAMETERS


@pytest.mark.parametrize(
    "name",
    [
        "__init__.py",
        "cli.py",
        "version.py",
        "utils/old_names.py",
        "utils/errors.py",
        "utils/files.py",
        "utils/results.py",
        "tasks/task.py",
        "tasks/registry.py",
    ],
)
def test_light_modules_stay_light(name: str) -> None:
    module = _module(PACKAGE / name)
    script = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_the_package_imports_nothing_of_it() -> None:
    script = (
        "import sys, prompt_transfer; print(*[name for name in sys.modules if name.startswith('prompt_transfer.')])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", [name for name in MODULES if name != "prompt_transfer.__main__"])
def test_every_module_imports(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.parametrize("name", [name for name in prompt_transfer.__all__ if name != "__version__"])
def test_lazy_names_lead_to_their_classes(name: str) -> None:
    assert getattr(prompt_transfer, name).__name__.rpartition(".")[2] == name
    assert name in dir(prompt_transfer)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Promt'"):
        prompt_transfer.Promt  # noqa: B018


def test_python_dash_m_is_the_command() -> None:
    arguments = [sys.executable, "-m", "prompt_transfer", "--version"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["prompt-transfer", prompt_transfer.__version__]


def test_pyproject_holds_build_system_and_ruff_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project) == {"build-system", "tool"}
    assert set(project["tool"]) == {"ruff"}


def test_a_wheel_would_hold_every_package() -> None:
    options = _setup()["options"]
    tree = {_module(path) for path in FILES if path.name == "__init__.py"}
    others = {"prompt_transfer.configs", "prompt_transfer.checkpoints", "prompt_hub"}
    assert set(options["packages"].split()) == tree | others


@pytest.mark.parametrize("folder", ["configs", "checkpoints"])
def test_a_wheel_would_hold_every_shipped_file(folder: str) -> None:
    patterns = _setup()["options.package_data"][f"prompt_transfer.{folder}"].split()
    shipped = {path for path in (ROOT / folder).rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert shipped, f"{folder}/ is empty or missing, and no wheel can be built without it"
    matched = {path for pattern in patterns for path in (ROOT / folder).glob(pattern)}
    assert shipped <= matched, f"setup.cfg leaves out {sorted(map(str, shipped - matched))}"


def test_every_import_is_declared() -> None:
    declared = _requirements(_setup()["options"]["install_requires"])
    extras = _setup()["options.extras_require"]
    optional = _requirements("\n".join(extras[name] for name in OPTIONAL))
    used = {name.split(".")[0] for path in FILES for name in _imports(path)}
    used -= {"prompt_transfer", *sys.stdlib_module_names}
    undeclared = {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in used} - set(declared) - set(optional)
    assert not undeclared, f"add {sorted(undeclared)} to setup.cfg and requirements.txt"


def test_the_tested_set_pins_what_the_ranges_allow() -> None:
    from packaging.specifiers import SpecifierSet

    ranges = _requirements(_setup()["options"]["install_requires"])
    pins = _requirements((ROOT / "requirements.txt").read_text())
    assert set(pins) == set(ranges)
    for name, pin in pins.items():
        assert re.fullmatch(r"==[\w.]+", pin), f"{name} is not pinned"
        assert pin.removeprefix("==") in SpecifierSet(ranges[name]), f"{name}{pin} lies outside {ranges[name]}"


def test_development_tools_are_pinned() -> None:
    for extra in ("dev", "docs", "notebooks"):
        tools = _requirements(_setup()["options.extras_require"][extra])
        assert tools
        assert all(re.fullmatch(r"==[\w.]+", pin) for pin in tools.values())


def test_a_folder_taken_for_a_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    # A library that imports our folder instead of the package it wants, as transformers does with PEFT.
    (tmp_path / "transformers.py").write_text("from adapters import Adapter\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", "import prompt_transfer; prompt_transfer.FrozenBackbone"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: the folder {tmp_path / 'adapters'} shadows the library adapters: rename it"
