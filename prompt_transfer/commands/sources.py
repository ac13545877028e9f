"""Constructors' parameters, read from source files: help and typing errors need no import of torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from prompt_transfer.commands.help import COMPLEX, NAMES, join_kinds

PACKAGE = "prompt_transfer"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Declared:
    """A parameter of a constructor.

    Attributes:
        name: its name.
        kind: name of its type in the pages of help.
        default: source text of its default; None if it is required.
        text: from the docstring.
    """

    name: str
    kind: str
    default: str | None
    text: str = ""


def trainer() -> list[Declared]:
    """Return the parameters of Lightning's Trainer."""
    spec = find_spec("lightning")
    assert spec is not None
    assert spec.submodule_search_locations
    return parameters(Path(spec.submodule_search_locations[0]) / "pytorch" / "trainer" / "trainer.py", "Trainer")


def of_class(path: str) -> list[Declared]:
    """Return the constructor's parameters of a class of this package, given as `modules.prompt_tuning.PromptTuning`.

    Parameters that the constructor passes on (`**options`) are those of the class that it calls with them.
    """
    module, _, name = path.rpartition(".")
    return parameters(_file(f"{PACKAGE}.{module}"), name)


def subclasses(module: str, base: str) -> list[str]:
    """Return the classes of a module of this package, given as `prompts.initializers`, that derive from `base`."""
    classes = [node for node in _tree(_file(f"{PACKAGE}.{module}")).body if isinstance(node, ast.ClassDef)]
    return [node.name for node in classes if base in map(_source, node.bases)]


def parameters(path: Path, name: str) -> list[Declared]:
    """Return the parameters of the constructor of class `name` in a source file, in the parser's order."""
    tree = _tree(path)
    node = next(one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name)
    texts = _texts(node)
    init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if init is None:
        found = [one for base in _bases(path, node) for one in parameters(*base)]
        found += [
            Declared(field.target.id, kind_of(path, field.annotation), _source(field.value))
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        ]
    else:
        texts |= _texts(init)
        arguments = [*init.args.args[1:], *init.args.kwonlyargs]
        positional = init.args.defaults
        defaults = [None] * (len(init.args.args) - 1 - len(positional)) + list(positional) + list(init.args.kw_defaults)
        found = [
            Declared(one.arg, kind_of(path, one.annotation), _source(default))
            for one, default in zip(arguments, defaults, strict=True)
        ]
        if init.args.kwarg is not None:
            known = {one.name for one in found}
            found += [one for one in _passed_on(path, node, init) if one.name not in known]
    return [replace(one, text=texts.get(one.name, one.text)) for one in found]


def _passed_on(path: Path, node: ast.ClassDef, init: ast.FunctionDef) -> Iterator[Declared]:
    """Yield the parameters that `**options` of a constructor stands for."""
    assert init.args.kwarg is not None
    for call in ast.walk(init):
        if not isinstance(call, ast.Call) or not any(
            one.arg is None and isinstance(one.value, ast.Name) and one.value.id == init.args.kwarg.arg
            for one in call.keywords
        ):
            continue
        if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__":
            homes = list(_bases(path, node))
        elif isinstance(call.func, ast.Name) and (home := _home(path, call.func.id)):
            homes = [home]
        else:
            continue
        given = {one.arg for one in call.keywords}
        for found in (parameters(*home) for home in homes):
            yield from (one for one in found[len(call.args) :] if one.name not in given)


def _bases(path: Path, node: ast.ClassDef) -> Iterator[tuple[Path, str]]:
    for base in node.bases:
        if isinstance(base, ast.Name) and (home := _home(path, base.id)):
            yield home


def _home(path: Path, name: str) -> tuple[Path, str] | None:
    """Return the file of this package that defines a name used in a file; None for names of libraries."""
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return path, name
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            return path, name
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _home(_file(str(node.module)), alias.name)
    return None


def kind_of(path: Path, node: ast.expr | None) -> str:
    """Return the name of an annotation's type in the pages of help."""
    if isinstance(node, ast.Name):
        if node.id in NAMES:
            return NAMES[node.id]
        home = _home(path, node.id) if path.is_relative_to(ROOT) else None
        if home is not None:
            for one in _tree(home[0]).body:
                if (
                    isinstance(one, ast.Assign)
                    and isinstance(one.targets[0], ast.Name)
                    and one.targets[0].id == home[1]
                ):
                    return kind_of(home[0], one.value)
    if isinstance(node, ast.BinOp):
        return join_kinds(kind_of(path, one) for one in (node.left, node.right) if _source(one) != "None")
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            return "{" + ",".join(str(one.value) for one in inner if isinstance(one, ast.Constant)) + "}"
        if node.value.id in ("Union", "Optional"):
            return join_kinds(kind_of(path, one) for one in inner if _source(one) != "None")
        if node.value.id in ("list", "Sequence"):
            return "LIST"
    return COMPLEX


def _texts(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    from docstring_parser import parse

    return {
        name.strip(): " ".join((one.description or "").split())
        for one in parse(ast.get_docstring(node) or "").params
        for name in one.arg_name.split(",")
    }


def _source(node: ast.expr | None) -> str | None:
    return None if node is None else ast.unparse(node)


def _file(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
