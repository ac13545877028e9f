"""`prompts add | scale | mean | transplant`: prompt files made of other prompt files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.prompts.prompt import Prompt


def add(sources: list[str], output: str, factors: list[float] | None = None, overwrite: bool = False) -> None:
    """sum of task vectors on their common start: add FILE FILE... --output FILE

    Args:
        sources: prompt files with the same initial prompt, given without the option's name.
        output: the new prompt file.
        factors: one a prompt, as [1, -1]; left out: 1 each.
        overwrite: replace a file that is there already.
    """
    from prompt_transfer.prompts import arithmetic

    _write(arithmetic.add(_load(sources), factors), output, overwrite)


def scale(sources: list[str], by: float, output: str, overwrite: bool = False) -> None:
    """task vector times a number, -1 negates it: scale FILE --by -1 --output FILE

    Args:
        sources: the prompt file, given without the option's name.
        by: the number.
        output: the new prompt file.
        overwrite: replace a file that is there already.
    """
    from prompt_transfer.prompts import arithmetic

    _write(arithmetic.scale(_one(sources), by), output, overwrite)


def mean(sources: list[str], output: str, overwrite: bool = False) -> None:
    """mean of prompts with one start: mean FILE FILE... --output FILE

    Args:
        sources: prompt files with the same initial prompt, given without the option's name.
        output: the new prompt file.
        overwrite: replace a file that is there already.
    """
    from prompt_transfer.prompts import arithmetic

    _write(arithmetic.mean(_load(sources)), output, overwrite)


def transplant(sources: list[str], onto: str, output: str, overwrite: bool = False) -> None:
    """task vector on another start: transplant FILE --onto FILE --output FILE

    Args:
        sources: the prompt file whose vector is taken, given without the option's name.
        onto: prompt file whose initial prompt is the new start; a prompt without one is itself the start.
        output: the new prompt file.
        overwrite: replace a file that is there already.
    """
    from prompt_transfer.prompts import arithmetic
    from prompt_transfer.prompts.prompt import Prompt

    _write(arithmetic.transplant(_one(sources), Prompt.load(onto)), output, overwrite)


SUBCOMMANDS: dict[str, Callable[..., Any]] = {"add": add, "scale": scale, "mean": mean, "transplant": transplant}


def _load(sources: Sequence[str]) -> list[Prompt]:
    from prompt_transfer.prompts.prompt import Prompt

    return [Prompt.load(source) for source in sources]


def _one(sources: Sequence[str]) -> Prompt:
    if len(sources) != 1:
        raise UserError(f"{len(sources)} prompt files were given: give one")
    return _load(sources)[0]


def _write(prompt: Prompt, output: str, overwrite: bool) -> None:
    path = Path(output)
    if path.suffix != ".safetensors":
        raise UserError(f"--output {output} must be the name of a prompt file, ending in .safetensors")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already: give another --output, or --overwrite")
    print(f"{prompt.save(path)}: {prompt.metadata['arithmetic']}")
