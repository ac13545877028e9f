"""`prompts add | scale | mean | transplant`: arithmetic on prompt files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_transfer.utils.errors import UserError

if TYPE_CHECKING:
    from prompt_transfer.prompts.prompt import Prompt


def add(sources: list[str], output: str, factors: list[float] | None = None, overwrite: bool = False) -> None:
    """add task vectors to their common initial prompt: add PROMPT... --output FILE

    Args:
        sources: prompt files with the same initial prompt.
        output: new prompt file.
        factors: one factor per prompt, as [1, -1]; default: 1 each.
        overwrite: replace an existing file.
    """
    from prompt_transfer.prompts import arithmetic

    _write(arithmetic.add(_load(sources), factors), output, overwrite)


def scale(sources: list[str], by: float, output: str, overwrite: bool = False) -> None:
    """multiply a task vector by a number (-1 negates it): scale PROMPT --by -1 --output FILE

    Args:
        sources: prompt file.
        by: the factor.
        output: new prompt file.
        overwrite: replace an existing file.
    """
    from prompt_transfer.prompts import arithmetic

    _write(arithmetic.scale(_load_one(sources), by), output, overwrite)


def mean(sources: list[str], output: str, overwrite: bool = False) -> None:
    """average prompts with the same initial prompt: mean PROMPT... --output FILE

    Args:
        sources: prompt files with the same initial prompt.
        output: new prompt file.
        overwrite: replace an existing file.
    """
    from prompt_transfer.prompts import arithmetic

    _write(arithmetic.mean(_load(sources)), output, overwrite)


def transplant(sources: list[str], onto: str, output: str, overwrite: bool = False) -> None:
    """add a task vector to another initial prompt: transplant PROMPT --onto FILE --output FILE

    Args:
        sources: prompt file with the task vector.
        onto: prompt file with the new initial prompt; a prompt without one is used itself.
        output: new prompt file.
        overwrite: replace an existing file.
    """
    from prompt_transfer.prompts import arithmetic
    from prompt_transfer.prompts.prompt import Prompt

    _write(arithmetic.transplant(_load_one(sources), Prompt.load(onto)), output, overwrite)


SUBCOMMANDS: dict[str, Callable[..., Any]] = {"add": add, "scale": scale, "mean": mean, "transplant": transplant}


def _load(sources: Sequence[str]) -> list[Prompt]:
    from prompt_transfer.prompts.prompt import Prompt

    return [Prompt.load(source) for source in sources]


def _load_one(sources: Sequence[str]) -> Prompt:
    if len(sources) != 1:
        raise UserError(f"got {len(sources)} prompt files: give one")
    return _load(sources)[0]


def _write(prompt: Prompt, output: str, overwrite: bool) -> None:
    path = Path(output)
    if path.suffix != ".safetensors":
        raise UserError(f"--output {output} is not a prompt file: give a name that ends in .safetensors")
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists: give another --output, or --overwrite")
    print(f"{prompt.save(path)}: {prompt.metadata['arithmetic']}")
