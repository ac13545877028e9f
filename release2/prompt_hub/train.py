"""The script of release 2.0: train a prompt, score it on its task and on another one, show its neurons.

    python -m prompt_hub.train --output_dir outputs --dataset sst2 --learning_rate 1e-2 --num_train_epochs 3
    python -m prompt_hub.train options.json

Options are those of `PromptTrainingArguments`; `--target_dataset` (default: rotten_tomatoes) is the second task.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompt_hub.hub import PromptHub
from prompt_hub.training_args import PromptTrainingArguments
from prompt_transfer import UserError

WORDS = {"true": True, "false": False, "none": None, "null": None}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code: 2 for a user's mistake."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(__doc__)
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _run(_options(given))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _run(options: dict[str, Any]) -> None:
    target = options.pop("target_dataset", "rotten_tomatoes")
    overwrite = bool(options.pop("overwrite_output_dir", False))
    args = PromptTrainingArguments(**options)
    hub = PromptHub(args=args)
    hub.train_prompt(args.backbone, args.dataset, overwrite=overwrite)
    hub.eval_prompt(args.backbone, args.dataset)
    hub.cross_task_eval(args.backbone, args.dataset, target)
    hub.activated_neuron(args.backbone, args.dataset)


def _options(given: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command line: `--name value`, `--name=value`, `--name` for true, or one JSON file."""
    if len(given) == 1 and given[0].endswith(".json"):
        path = Path(given[0])
        try:
            options = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}; give a JSON file of options") from None
        if not isinstance(options, dict):
            raise UserError(f"{path} holds no options: give a JSON object")
        return options
    options, rest = {}, list(given)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or name == "--":
            raise UserError(f"{name!r} is no option: give --name value")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        options[name.removeprefix("--").replace("-", "_")] = _value(value)
    return options


def _value(text: str) -> Any:
    """Parse a number, true, false or none; return other text unchanged."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
