"""Pages of help: a command's own options first, long groups of options behind `--help_GROUP`."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    import jsonargparse

# Options of groups that every page explains; of the others it lists the names.
ESSENTIAL = (
    *("model.backbone", "model.method", "model.prompt_length", "model.init", "model.learning_rate", "model.attention"),
    *("model.dtype", "model.seeds", "model.prompts", "model.projector", "model.objective", "model.architecture"),
    *("data.task", "data.source", "data.root", "data.shots", "data.batch_size", "data.limit_train", "data.limit_eval"),
    *("data.files", "trainer.max_steps", "trainer.val_check_interval", "trainer.accelerator", "trainer.devices"),
    *("trainer.precision", "wandb.project", "wandb.group", "mlflow.experiment", "mlflow.tracking_uri"),
)
LEFT = 32
# Type -> its name in the pages.
NAMES = {"str": "TEXT", "int": "INT", "float": "NUMBER", "bool": "{true,false}"}
COMPLEX = "VALUE"


@dataclass(frozen=True)
class Entry:
    """An option in a page of help.

    Attributes:
        name: `--output`, or the usage of a positional argument.
        kind: what the option takes: TEXT, INT, NUMBER, LIST, {a,b}, VALUE (a class, or a type of its own), or nothing.
        text: what it does.
        default: its default; empty: none worth printing.
        required: whether the command needs it.
    """

    name: str
    kind: str = ""
    text: str = ""
    default: str = ""
    required: bool = False

    @property
    def choices(self) -> list[str]:
        """The values to choose from; empty for other kinds."""
        return self.kind[1:-1].split(",") if self.kind.startswith("{") else []

    def lines(self, width: int, short: bool) -> list[str]:
        """Return the option and its text in two columns; `short`: only the first sentence."""
        text = first_sentence(self.text) if short else self.text
        facts = "required" if self.required else f"default: {self.default}" if self.default else ""
        # The text says so itself.
        if facts and "default:" in text.lower() and not self.required:
            facts = ""
        text = f"{text.removesuffix('.')} ({facts})".strip() if facts else text
        left = f"  {self.name} {self.kind}".rstrip()
        wrapped = textwrap.wrap(text, max(width - LEFT, 30), break_on_hyphens=False)
        rest = [f"{' ' * LEFT}{line}" for line in wrapped]
        if len(left) > LEFT - 2 or not rest:
            return [left, *rest]
        return [left.ljust(LEFT) + wrapped[0], *rest[1:]]


@dataclass(frozen=True)
class Group:
    """Options with a common prefix.

    Attributes:
        key: the prefix (`data`); empty: the command's own options.
        title: heading.
        entries: its options.
    """

    key: str
    title: str
    entries: list[Entry] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """The help of a command.

    Attributes:
        command: name of the command, with its subcommand.
        usage: what follows the name.
        text: what the command does.
        groups: its options; the command's own ones first.
    """

    command: str
    usage: str
    text: str
    groups: list[Group]

    @property
    def entries(self) -> list[Entry]:
        """All options."""
        return [entry for group in self.groups for entry in group.entries]

    def show(self, arguments: Sequence[str]) -> str | None:
        """Return the help that the arguments ask for; None if they ask for none."""
        for group in self.groups:
            if group.key and f"--help_{group.key}" in arguments:
                return self._whole(group)
        return self._overview() if {"-h", "--help"} & set(arguments) else None

    def _overview(self) -> str:
        width = _width()
        lines = [*_wrapped(f"usage: prompt-transfer {self.command} {self.usage}", width, "    "), ""]
        lines += [*textwrap.wrap(self.text, width), ""] if self.text else []
        for group in self.groups:
            shown = [one for one in group.entries if not group.key or one.name[2:] in ESSENTIAL or one.required]
            more = f" (all: --help_{group.key})" if len(shown) < len(group.entries) else ""
            lines.append(f"{group.title}{more}:")
            for entry in shown:
                lines += entry.lines(width, short=bool(group.key))
            others = [one.name for one in group.entries if one not in shown]
            # Names in one paragraph; of the Trainer's only their number.
            if others and group.key == "trainer":
                lines.append(f"  and {len(others)} more options of Lightning's Trainer")
            elif others:
                lines += _wrapped(f"  also: {', '.join(others)}", width, "        ")
            lines.append("")
        return "\n".join(lines).rstrip()

    def _whole(self, group: Group) -> str:
        width = _width()
        lines = [f"{group.title} of `prompt-transfer {self.command}`:"]
        for entry in group.entries:
            lines += entry.lines(width, short=False)
        return "\n".join(lines)


def of_parser(parser: jsonargparse.ArgumentParser, command: str, text: str, usage: str = "") -> Page:
    """Return the page of a command from its parser.

    Args:
        parser: of the command.
        command: name, with its subcommand.
        text: what it does.
        usage: of a positional argument.
    """
    groups: dict[str, Group] = {"": Group("", "options")}
    for action in parser._actions:
        name = next((option for option in action.option_strings if option.startswith("--")), None)
        if name is None:
            if usage and not action.option_strings:
                groups[""].entries.append(Entry(usage, text=action.help or ""))
            continue
        kind = getattr(action, "_typehint", None) or action.type
        if name.endswith((".help", "+")) or name == "--help" or name.startswith("--print_"):
            continue
        if type(action).__name__ == "_ActionConfigLoad":
            continue  # `--data FILE` is told in the heading
        key = name[2:].partition(".")[0] if "." in name else ""
        title = f"{key} options, or --{key} FILE.yaml"
        flag = action.nargs == "?" and action.const is True
        groups.setdefault(key, Group(key, title)).entries.append(
            Entry(
                name,
                "" if flag else _metavar(action) or kind_of(kind),
                (action.help or "").replace("%%", "%"),
                "" if flag else default_text(action.default),
                bool(action.required),
            )
        )
    needed = [f"{entry.name} {entry.kind}" for entry in groups[""].entries if entry.required]
    needed = [usage] if usage else needed
    return Page(command, " ".join([*needed, "[OPTIONS]"]), text, list(groups.values()))


def _metavar(action: Any) -> str:
    choices = getattr(action, "choices", None)
    return "{" + ",".join(map(str, choices)) + "}" if choices else ""


def kind_of(kind: Any) -> str:
    """Return the name of a type in the pages."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) in (Union, UnionType):
        parts = [kind_of(part) for part in get_args(kind) if part is not type(None)]
        return join_kinds(parts)
    if get_origin(kind) is list:
        return "LIST"
    return NAMES.get(getattr(kind, "__name__", ""), COMPLEX)


def join_kinds(kinds: Iterable[str]) -> str:
    """Return the name of a union of types."""
    found = list(dict.fromkeys(kinds))
    if COMPLEX in found or not found:
        return COMPLEX
    if all(kind.startswith("{") for kind in found):
        return "{" + ",".join(dict.fromkeys(value for kind in found for value in kind[1:-1].split(","))) + "}"
    return "|".join(found)


def default_text(value: Any) -> str:
    """Return a default for a page; empty for none."""
    if value is None or value == [] or value == "" or "==SUPPRESS==" in str(value):
        return ""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def first_sentence(text: str) -> str:
    """Return the text up to the first full stop or semicolon that stands outside of parentheses."""
    for found in re.finditer(r"(?<=[\w)`'\"])[.;](?=\s|$)", text):
        head = text[: found.start()]
        if head.count("(") == head.count(")") and not head.endswith(("e.g", "i.e")):
            return head
    return text


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    first = re.match(r" *", text)
    assert first is not None
    return textwrap.wrap(
        text.strip(), width, initial_indent=first[0], subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, 60), 120)
