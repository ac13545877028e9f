"""The README of a PEFT adapter: how to load it, and what PEFT leaves to the user (cue, answer slot, label words)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from huggingface_hub import ModelCardData

from prompt_transfer.prompts.io.peft_adapter import check_exportable
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

_AUTO = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}
# What the tokenizer puts before a text, and a text as it continues another: some tokenizers put a blank before each.
_START = """start = tokenizer("a")["input_ids"]
start = start[: start.index(ids("a")[0])]  # what the tokenizer puts before a text
"""
_CONTINUED = """def continued(text):
    return ids("a" + text)[len(ids("a")) :]
"""
_LINE_FEED = """line = ids("\\n")
if tokenizer.convert_ids_to_tokens(line[:1]) == ["▁"]:  # a blank that SentencePiece put before it
    line = continued("\\n")
"""


def adapter_card(prompt: Prompt, backbone: str, is_builtin: bool = False, license: str | None = None) -> str:
    """Markdown for the adapter of a prompt of a causal or sequence-to-sequence backbone.

    Args:
        prompt: the prompt.
        backbone: the name that the adapter gives its base model.
        is_builtin: that is one of the backbones that ship with prompt_transfer.
        license: goes into the head of the card.

    Raises:
        UserError: PEFT cannot express the prompt.
    """
    tasks, unknown = tasks_of(prompt.metadata)
    causal = check_exportable(prompt) == "CAUSAL_LM"
    data = ModelCardData(library_name="peft", license=license, tags=["prompt-tuning", "soft-prompt", "prompt_transfer"])
    rows, width = prompt.embeddings.shape
    names = [*(task.name for task in tasks), *unknown]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# Soft prompt for {inline(', '.join(names) or 'an unnamed task')}, as a PEFT adapter",
        f"{rows} virtual tokens of {width} numbers for `{inline(backbone)}`, trained with prompt_transfer (layout "
        f"`{inline(prompt.metadata.get('layout', 'unknown'))}`).",
        "## What PEFT does not know",
        "The adapter holds the rows in front of the text, nothing else. What follows is yours to do.",
        *(_reading(task, causal, prompt.metadata) for task in tasks),
    ]
    if unknown or not tasks:
        parts.append(
            f"Of the task {inline(', '.join(unknown)) or '(the prompt names none)'} nothing is known here: text form, "
            "label words" + (" and the cue behind the text" if causal else "") + " must be those of its training."
        )
    parts.append(_padding(causal, rows))
    parts += ["## Use", _code(tasks[0] if tasks else None, prompt, backbone, is_builtin)]
    return "\n\n".join(parts) + "\n"


def tasks_of(metadata: Mapping[str, str]) -> tuple[list[Task], list[str]]:
    """The tasks that a prompt was trained on, as they were read in its training, and names of those unknown here."""
    try:
        stored = json.loads(metadata.get("data_task") or "[]")
        words = json.loads(metadata.get("label_words") or "{}")
    except ValueError:
        stored, words = [], {}
    names = stored if isinstance(stored, list) and stored else metadata.get("task", "").split(",")
    words = words if isinstance(words, dict) else {}
    tasks, unknown = [], []
    for name in filter(None, map(str, names)):
        try:
            task = get_task(name)
            task = task.paper_variant() if metadata.get("data_label_words") == "paper" else task
        except UserError:
            unknown.append(name)
            continue
        task = task.with_policy(metadata.get("label_words_policy") or None)
        own = words.get(task.name)
        if isinstance(own, list) and own and list(task.label_words) != own:
            task = replace(task, label_words=tuple(map(str, own)), labels=None, token_ids={})
        tasks.append(task)
    return tasks, unknown


def inline(text: str) -> str:
    """Text of a file from anywhere, fit for a line or a table cell of Markdown."""
    return " ".join(text.split()).replace("|", "/").replace("`", "'").replace("<", "&lt;")[:300]


def _reading(task: Task, causal: bool, facts: Mapping[str, str]) -> str:
    """What stands behind the prompt, and where the answer is."""
    pair = task.text_b is not None and not task.join_texts
    # The columns' names say which of a pair comes first: the paper has the hypothesis there.
    columns = [f"`{inline(column)}`" for column in (task.text_a, task.text_b) if column is not None]
    first = " and ".join(columns) + " with a blank between" if task.join_texts else columns[0]
    if causal:
        texts = f"{first}, a line feed, a blank and {columns[1]}" if pair else first
        cue = f", then the cue ` {task.cue.strip()}` (with its blank)" if task.cue else ", without any cue"
        start = f"{_start(facts)}, " if _start(facts) else ""
        form = (
            f"{start}{texts}{cue}. Each part is tokenised alone, without special tokens, those behind the first as "
            "they continue a text; the last token is the answer slot"
        )
    elif task.seq2seq_frame is not None:
        before, between = (f"the words {words!r}, " if words else "" for words in task.seq2seq_frame)
        texts = f"{before}{first}, {between}{columns[1]}" if pair else f"{before}{first}"
        form = f"{texts}, the end token. Each part is tokenised alone"
    else:
        texts = f"{first}, the end token, {columns[1]}, the end token" if pair else f"{first}, the end token"
        form = f"{texts}. Each part is tokenised alone"
    lines = [f"**{inline(task.name)}**", f"- Input behind the virtual tokens: {form}."]
    if task.is_generation:
        lines.append(f"- The answer is a text of at most {task.max_target_length} tokens: `model.generate`.")
        return "\n".join(lines)
    if not causal:
        lines.append("- The answer is what the first step of the decoder says.")
    ids = task.token_ids.get(facts.get("family", ""))
    words = ", ".join(f"`{inline(word)}`" for word in task.label_words)
    how = {
        "sequence": "the label whose tokens together are likeliest",
        "first": "the label word whose first token has the highest logit",
        "mean": "the label word whose tokens have the highest mean logit",
    }.get(task.label_words_policy, "the label word whose token has the highest logit")
    lines.append(f"- Label words, in the order of the classes: {words}; the answer is {how}.")
    if ids:
        lines.append(f"- Token ids in place of the words' own: {list(ids)}.")
    return "\n".join(lines)


def _start(facts: Mapping[str, str]) -> str:
    """What stands between the virtual tokens and a causal model's text."""
    if facts.get("layout") == "answer_last":
        return ""
    words = "the start token that the tokenizer puts before a text"
    return words if facts.get("layout") == "start_answer_last" else f"{words} (none where it puts none)"


def _padding(causal: bool, rows: int) -> str:
    if causal:
        return (
            "Pad on the **right** and read the logits at the last token that is no padding: PEFT takes no position "
            "ids, so padding on the left would move the text to other positions (in `generate` too: give it texts of "
            "one length, or one at a time). PEFT puts the rows in front of the text; its logits "
            "have them in front as well."
        )
    return (
        f"PEFT's format for sequence-to-sequence models has two halves, {rows} rows for the encoder and {rows} for the "
        "decoder. Prompt tuning reads the first alone; the second is a copy of it here."
    )


def _code(task: Task | None, prompt: Prompt, backbone: str, is_builtin: bool) -> str:
    facts = prompt.metadata
    task_type = check_exportable(prompt)
    causal, auto = task_type == "CAUSAL_LM", _AUTO[task_type]
    lines = ["import torch", "from peft import PeftModel", f"from transformers import {auto}, AutoTokenizer", ""]
    if is_builtin:
        lines.insert(2, "from prompt_transfer.backbones.builtin import builtin_backbones")
        lines.append(f"base = str(builtin_backbones()[{backbone!r}])  # ships with prompt_transfer")
    else:
        lines.append(f"base = {backbone!r}")
    lines += [
        'adapter = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(base)",
        f"model = PeftModel.from_pretrained({auto}.from_pretrained(base), adapter).eval()",
        "",
        "",
        "def ids(text):",
        '    return tokenizer(text, add_special_tokens=False)["input_ids"]',
        "",
        "",
        *([*_CONTINUED.splitlines(), "", ""] if causal else []),
        *(_START.splitlines() if causal and _start(facts) else []),
        *_input(task, causal, bool(_start(facts))),
    ]
    if task is None or not task.is_generation:
        step = "" if causal else ", decoder_input_ids=torch.tensor([[model.config.decoder_start_token_id]])"
        lines += [
            "with torch.no_grad():",
            f"    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens){step}).logits[0, -1]",
        ]
        lines += _answer(task, facts, causal)
    else:
        length = task.max_target_length
        lines += [
            f"written = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), "
            f"max_new_tokens={length})",
            # A causal model gives its input back as well.
            f"print(tokenizer.decode(written[0{', tokens.shape[1] :' if causal else ''}], skip_special_tokens=True))",
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _input(task: Task | None, causal: bool, start: bool) -> list[str]:
    pair = task is not None and task.text_b is not None and not task.join_texts
    lines = ['text = "the film is good"', *(['second = "the story is good"'] if pair else [])]
    if causal:
        parts = [*(["start"] if start else []), "ids(text)"]
        lines += _LINE_FEED.splitlines() if pair else []
        parts += ["line", 'continued(" " + second)'] if pair else []
        parts += [f"continued({' ' + task.cue.strip()!r})"] if task is not None and task.cue else []
    else:
        end = "[tokenizer.eos_token_id]"
        frame = None if task is None else task.seq2seq_frame
        first = [] if frame is None else [f"ids({frame[0]!r})"]
        between = end if frame is None else f"ids({frame[1]!r})"
        parts = [*first, "ids(text)", *([between, "ids(second)"] if pair else []), end]
    return [*lines, f"tokens = torch.tensor([{' + '.join(parts)}])"]


def _answer(task: Task | None, facts: Mapping[str, str], causal: bool) -> list[str]:
    if task is None or task.label_words_policy == "sequence":
        return ["print(logits.topk(5))  # of the next token"]
    chosen = task.token_ids.get(facts.get("family", ""))
    if chosen:
        scores = f"scores = logits[torch.tensor({list(chosen)})]"
    else:
        which = "[:1]" if task.label_words_policy == "first" else ""
        encode = "continued" if causal else "ids"
        scores = f'scores = torch.stack([logits[{encode}(f" {{word}}"){which}].mean() for word in words])'
    return [f"words = {list(task.label_words)!r}", scores, "print(words[int(scores.argmax())])"]
