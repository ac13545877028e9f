"""`prompts project | fit-projector`: projection of prompts to another backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prompt_transfer.utils import results
from prompt_transfer.utils.errors import UserError
from prompt_transfer.utils.progress import waiting


def project(sources: list[str], projector: str, output: str, overwrite: bool = False) -> None:
    """project prompts to another backbone: project PROMPT... --projector FILE --output FILE

    Args:
        sources: prompt files or folders of prompt files.
        projector: projector file, or the folder of the run that trained it.
        output: new prompt file; for several prompts, a folder in which they keep their names.
        overwrite: replace existing files.
    """
    from prompt_transfer.projectors.file import ProjectorFile
    from prompt_transfer.prompts.prompt import Prompt
    from prompt_transfer.studies.entries import read_folder

    found = ProjectorFile.load(projector)
    several = len(sources) > 1 or (
        Path(sources[0]).is_dir() and not (Path(sources[0]) / "prompt.safetensors").is_file()
    )
    if several:
        prompts: dict[str, Prompt] = {}
        for source in sources:
            mine = read_folder(source) if Path(source).is_dir() else {Path(source).stem: Prompt.load(source)}
            if twice := sorted(prompts.keys() & mine.keys()):
                raise UserError(f"two prompts have the name {twice[0]}: project them separately")
            prompts |= mine
        places = {name: Path(output) / f"{name}.safetensors" for name in prompts}
    else:
        prompts, places = {"": Prompt.load(sources[0])}, {"": Path(output)}
    for place in places.values():
        _check_output(place, overwrite)
    # Project all prompts before writing the first, to write nothing if one does not fit.
    for name, prompt in {name: found.project(prompt) for name, prompt in prompts.items()}.items():
        length, width = prompt.embeddings.shape
        print(f"{prompt.save(places[name])}: {length} x {width} for {found.target.backbone}, by {found.kind}")


def fit_projector(
    source: str,
    target: str,
    output: str,
    kind: Literal["least_squares", "linear_combination", "relative"] = "least_squares",
    ridge: float | None = None,
    center: bool = False,
    top_k: int = 0,
    skip: int = 0,
    anchors: int = 4000,
    nearest: int = 0,
    max_steps: int = 2000,
    layout: str | None = None,
    attention: str = "full",
    overwrite: bool = False,
) -> None:
    """fit a projector in closed form on the vocabularies of two backbones

    Args:
        source: backbone of the prompts to project.
        target: backbone to project to.
        output: projector file.
        kind: least_squares, linear_combination (the same solver without a penalty) or relative (iterative).
        ridge: penalty of the first two kinds; default: least_squares selects it on held-out tokens.
        center: subtract the mean of each embedding table first.
        top_k: number of shared tokens to fit on; 0 for all.
        skip: number of leading shared tokens to skip.
        anchors: number of shared tokens used as anchors by relative; 0 for all.
        nearest: number of nearest anchors per prompt token; 0 for all.
        max_steps: maximum number of steps of relative.
        layout: layout of the projected prompts; default: the target's default layout.
        attention: full or shared attention of the target.
        overwrite: replace an existing file.
    """
    from prompt_transfer.backbones.frozen import FrozenBackbone
    from prompt_transfer.projectors.closed_form import LeastSquares, LinearCombination, Relative
    from prompt_transfer.projectors.file import fit_closed_form

    _check_output(Path(output), overwrite)
    projector: LeastSquares | Relative
    if kind == "relative":
        projector = Relative(anchors=anchors, nearest=nearest, max_steps=max_steps)
    elif kind == "linear_combination":
        projector = LinearCombination(0.0 if ridge is None else ridge, center, top_k, skip)
    else:
        projector = LeastSquares(ridge, center, top_k, skip)
    with waiting(f"{source} to {target}"):
        both = FrozenBackbone(source), FrozenBackbone(target, layout=layout, attention=attention)
        found = fit_closed_form(projector, *both)
    facts = {"projector": found.kind, "source": source, "target": target, **projector.facts}
    results.show([{"key": key, "value": value} for key, value in facts.items()])
    print("held-out error: on shared tokens outside the fit; 0 is perfect, 1 is as good as their mean")
    print(found.save(output))


SUBCOMMANDS: dict[str, Callable[..., Any]] = {"project": project, "fit-projector": fit_projector}


def _check_output(path: Path, overwrite: bool) -> None:
    if path.suffix != ".safetensors":
        raise UserError(f"--output {path} is not a prompt file: give a name that ends in .safetensors")
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists: give another --output, or --overwrite")
