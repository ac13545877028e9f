"""Options of a command, read from the signature of its function and from the study's dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from prompt_transfer.utils.fields import Defaults, Option

if TYPE_CHECKING:
    from docstring_parser import Docstring

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """An option of a command.

    Attributes:
        field: parameter of the function, or field of its dataclass.
        name: name of the option.
        kind: type that the parser checks.
        default: default value, or `REQUIRED`.
        read: makes the field's value of the option's.
        of_study: whether the option is a field of the dataclass.
    """

    field: str
    name: str
    kind: Any
    default: Any
    read: Callable[[Any], Any] | None = None
    of_study: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether the option alone means true."""
        return self.default is False


class Signature:
    """The options of a typed function.

    If its first parameter is a dataclass without a default, the dataclass's fields are options too.

    Args:
        function: the function; a dataclass counts as a function of its fields.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        hints = get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())
        self.study: type | None = None
        self.parameters: list[Parameter] = []
        if own and own[0].default is REQUIRED and is_dataclass(study := _bare(hints[own[0].name])):
            assert isinstance(study, type)
            self.study, self.keyword = study, own.pop(0).name
            defaults = next(
                (extra for extra in _extras(hints[self.keyword]) if isinstance(extra, Defaults)), Defaults()
            )
            self.parameters += _fields(study, defaults.values)
        self.parameters += [_parameter(one.name, hints[one.name], one.default) for one in own]

    @cached_property
    def text(self) -> Docstring:
        """The function's docstring."""
        from docstring_parser import parse

        return parse(self.function.__doc__ or "")

    @property
    def description(self) -> str:
        """The docstring of the function without its arguments, in one paragraph."""
        head, rest = self.text.short_description or "", self.text.long_description or ""
        return f"{head.rstrip('.')}. {' '.join(rest.split())}" if rest else head

    @cached_property
    def helps(self) -> dict[str, str]:
        """Field -> help."""
        from docstring_parser import parse

        texts = [self.text] if self.study is None else [parse(self.study.__doc__ or ""), self.text]
        return {
            name.strip(): " ".join((one.description or "").split())
            for text in texts
            for one in text.params
            for name in one.arg_name.split(",")
        }

    def call(self, values: Mapping[str, Any]) -> Any:
        """Call the function with the values of its options."""
        own: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        for one in self.parameters:
            value = values[one.name]
            if one.read is not None and value is None:
                continue  # the field's default, which may be of another type than the option's
            place = settings if one.of_study else own
            place[one.field] = value if one.read is None else one.read(value)
        if self.study is not None:
            own[self.keyword] = self.study(**settings)
        return self.function(**own)


def _fields(study: Any, defaults: Mapping[str, Any]) -> list[Parameter]:
    hints = get_type_hints(study, include_extras=True)
    found = []
    for field in fields(study):
        default = field.default if field.default is not MISSING else REQUIRED
        if field.default_factory is not MISSING:
            default = field.default_factory()
        found.append(_parameter(field.name, hints[field.name], defaults.get(field.name, default), of_study=True))
    return found


def _parameter(field: str, hint: Any, default: Any, of_study: bool = False) -> Parameter:
    option = next((extra for extra in _extras(hint) if isinstance(extra, Option)), Option())
    kind = option.type or _bare(hint)
    if option.read is not None and isinstance(default, tuple | list):
        default = ",".join(default) or None
        kind = kind if default else kind | None
    elif isinstance(default, tuple):
        default = list(default)
    return Parameter(field, option.name or field, kind, default, option.read, of_study)


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _extras(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()
