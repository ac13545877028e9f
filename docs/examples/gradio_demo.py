"""A web page that shows the class probabilities of a text under a prompt.

    python docs/examples/gradio_demo.py [FILE or FOLDER ...]

Needs Gradio: pip install 'prompt_transfer[demo]'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import prompt_transfer
from prompt_transfer.backbones.builtin import find_shipped
from prompt_transfer.prompts.listing import list_prompts

DEFAULT = "checkpoints/prompts/roberta-nano"
INSTALL = "the demo needs Gradio: pip install 'prompt_transfer[demo]'"


def find_prompts(sources: list[str]) -> list[str]:
    """Return the given prompt files and those in the given folders."""
    found: list[str] = []
    for source in sources:
        path = Path(find_shipped(source))
        if not path.exists():
            raise SystemExit(f"no such file or folder: {source}; give prompt files or folders of prompts")
        found += [str(row["path"]) for row in list_prompts(path) if not row["error"]] if path.is_dir() else [str(path)]
    if not found:
        raise SystemExit(f"no prompt in {', '.join(sources)}; train one: prompt-transfer quickstart")
    return found


def probabilities(prompt: str, text: str, second: str = "") -> dict[str, float]:
    """Return label word -> probability for a text, or for a pair of texts."""
    loaded = prompt_transfer.Prompt.load(prompt)
    (prediction,) = prompt_transfer.classify([text], loaded, [second] if second.strip() else None)
    words = json.loads(loaded.metadata.get("label_words") or "{}").get(loaded.metadata.get("task"))
    names = [word if isinstance(word, str) else word[0] for word in words or map(str, prediction.probabilities)]
    return dict(zip(names, prediction.probabilities.values(), strict=True))


def build(prompts: list[str]) -> Any:
    """Return the Gradio interface for some prompt files."""
    try:
        import gradio
    except ImportError as error:
        raise SystemExit(INSTALL) from error

    def answer(prompt: str, text: str, second: str) -> dict[str, float]:
        try:
            return probabilities(prompt, text, second)
        except prompt_transfer.UserError as error:
            raise gradio.Error(str(error)) from error

    return gradio.Interface(
        answer,
        [
            gradio.Dropdown(prompts, value=prompts[0], label="prompt"),
            gradio.Textbox(label="text"),
            gradio.Textbox(label="second text (tasks on pairs)"),
        ],
        gradio.Label(label="probability of each class"),
        title="prompt_transfer",
    )


if __name__ == "__main__":
    build(find_prompts(sys.argv[1:] or [DEFAULT])).launch()
