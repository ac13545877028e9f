"""The README of a PEFT adapter: how to load it, and the parts that PEFT does not store (cue, answer slot, words)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from huggingface_hub import ModelCardData

from prompt_transfer.backbones.templates import Template
from prompt_transfer.prompts.io.peft_adapter import check_exportable
from prompt_transfer.prompts.prompt import Prompt
from prompt_transfer.tasks.registry import get_task
from prompt_transfer.tasks.task import Task
from prompt_transfer.utils.errors import UserError

_AUTO = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}
# Code for the start tokens, and for a text that continues another: some tokenizers add a space before every text.
_START = """start = tokenizer("a")["input_ids"]
start = start[: start.index(ids("a")[0])]  # start tokens that the tokenizer adds
"""
_CONTINUED = """def continued(text):
    return ids("a" + text)[len(ids("a")) :]
"""
_LINE_FEED = """line = ids("\\n")
if tokenizer.convert_ids_to_tokens(line[:1]) == ["▁"]:  # a space that SentencePiece added
    line = continued("\\n")
"""


def adapter_card(prompt: Prompt, backbone: str, is_builtin: bool = False, license: str | None = None) -> str:
    """Return the Markdown card of an adapter of a causal or sequence-to-sequence backbone.

    Args:
        prompt: the prompt.
        backbone: the adapter's name for its base model.
        is_builtin: whether the backbone ships with prompt_transfer.
        license: license to record in the card.

    Raises:
        UserError: PEFT has no equivalent of the prompt.
    """
    tasks, unknown = tasks_of(prompt.metadata)
    causal = check_exportable(prompt) == "CAUSAL_LM"
    rows, width = prompt.vectors.shape
    size, kind = f"of width {width}", "prompt-tuning"
    if prompt.is_deep:
        layers, _, _, heads, width = prompt.keys_values.shape
        size = f"with keys and values in {layers} layers ({heads} heads of width {width})"
        kind = "prefix-tuning"
    data = ModelCardData(library_name="peft", license=license, tags=[kind, "soft-prompt", "prompt_transfer"])
    names = [*(task.name for task in tasks), *unknown]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# Soft prompt for {inline(', '.join(names) or 'an unnamed task')}, as a PEFT adapter",
        f"{rows} virtual tokens {size} for `{inline(backbone)}`, trained with prompt_transfer (layout "
        f"`{inline(prompt.metadata.get('layout', 'unknown'))}`).",
        "## Not stored by PEFT",
        "The adapter holds only the virtual tokens in front of the text. Your code must do the following.",
        *(_reading(task, causal, prompt.metadata) for task in tasks),
    ]
    if unknown or not tasks:
        parts.append(
            f"The task {inline(', '.join(unknown)) or '(the prompt names none)'} is unknown here: text format, label "
            "words" + (" and the cue after the text" if causal else "") + " must be those of its training."
        )
    parts.append(_padding(causal, rows, prompt.is_deep))
    parts += ["## Use", _code(tasks[0] if tasks else None, prompt, backbone, is_builtin)]
    return "\n\n".join(parts) + "\n"


def tasks_of(metadata: Mapping[str, str]) -> tuple[list[Task], list[str]]:
    """Return a prompt's tasks, with the label words of its training, and the names of unknown tasks."""
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
        if isinstance(own, list) and own and task.stored_words != own:
            sets: Any = tuple(tuple(map(str, word)) if isinstance(word, list) else str(word) for word in own)
            task = replace(task, label_words=sets, other_words=(), labels=None, token_ids={})
        try:
            chat = {"true": True, "false": False}.get(metadata.get("data_chat_template", ""))
            tasks.append(task.with_format(metadata.get("data_template"), chat))
        except UserError:  # the template of another task
            unknown.append(name)
    return tasks, unknown


def inline(text: str) -> str:
    """Escape untrusted text for one line or table cell of Markdown."""
    return " ".join(text.split()).replace("|", "/").replace("`", "'").replace("<", "&lt;")[:300]


def _reading(task: Task, causal: bool, facts: Mapping[str, str]) -> str:
    """Describe the input that follows the prompt, and where to read the answer."""
    pair = task.text_b is not None and not task.join_texts
    # Column names show which text comes first: the paper puts the hypothesis first.
    columns = [f"`{inline(column)}`" for column in (task.text_a, task.text_b) if column is not None]
    first = " and ".join(columns) + " separated by a space" if task.join_texts else columns[0]
    template = _template(task, facts)
    if template:
        start = f"{_start(facts)}, " if causal and _start(facts) else ""
        end = "" if causal else ", and the end token"
        form = f"{start}the text `{inline(repr(template))}` with {' and '.join(columns)} in its fields{end}"
    elif causal:
        texts = f"{first}, a line feed, a space and {columns[1]}" if pair else first
        cue = f", then the cue ` {task.cue.strip()}` (with its space)" if task.cue else ", without a cue"
        start = f"{_start(facts)}, " if _start(facts) else ""
        form = (
            f"{start}{texts}{cue}. Each part is tokenised separately, without special tokens, and parts after the "
            "first as the continuation of a text; the last token is the answer slot"
        )
    elif task.seq2seq_frame is not None:
        before, between = (f"the words {words!r}, " if words else "" for words in task.seq2seq_frame)
        texts = f"{before}{first}, {between}{columns[1]}" if pair else f"{before}{first}"
        form = f"{texts}, the end token. Each part is tokenised separately"
    else:
        texts = f"{first}, the end token, {columns[1]}, the end token" if pair else f"{first}, the end token"
        form = f"{texts}. Each part is tokenised separately"
    lines = [f"**{inline(task.name)}**", f"- Input after the virtual tokens: {form}."]
    if task.is_choice:
        lines.append(f"- The answer is the option with the highest {task.choice_score} of its tokens' log-likelihoods.")
        return "\n".join(lines)
    if task.is_generation:
        lines.append(f"- The answer is a text of at most {task.max_target_length} tokens: `model.generate`.")
        return "\n".join(lines)
    if not causal:
        lines.append("- The answer is the output of the first decoder step.")
    ids = task.token_ids.get(facts.get("family", ""))
    words = ", ".join(" or ".join(f"`{inline(word)}`" for word in own) for own in task.class_words)
    how = {
        "sequence": "the label with the most likely token sequence",
        "first": "the label word whose first token has the highest logit",
        "mean": "the label word whose tokens have the highest mean logit",
    }.get(task.label_words_policy, "the label word whose token has the highest logit")
    if task.other_words:
        how = f"{how}, where a class of several words has the mean of their scores"
    lines.append(f"- Label words, in the order of the classes: {words}; the answer is {how}.")
    if ids:
        lines.append(f"- Token ids to use instead of the words' own: {list(ids)}.")
    return "\n".join(lines)


def _template(task: Task | None, facts: Mapping[str, str]) -> str:
    """Return the template of a prompt's training, as rendered; "" for the default format."""
    given = facts.get("data_template") or facts.get("data_chat_template")
    if task is None or (task.format is None and not given):
        return ""
    return json.loads(facts.get("templates") or "{}").get(task.name, "")


def _start(facts: Mapping[str, str]) -> str:
    """Describe the tokens between the virtual tokens and a causal model's text."""
    if facts.get("layout") == "answer_last":
        return ""
    words = "the start token that the tokenizer adds"
    return words if facts.get("layout") == "start_answer_last" else f"{words} (none if it adds none)"


def _padding(causal: bool, rows: int, deep: bool) -> str:
    if causal:
        return (
            "Pad on the **right** and read the logits at the last token that is not padding: PEFT accepts no position "
            "ids, so padding on the left would shift the text's positions (in `generate` too: give it texts of equal "
            "length, or one at a time). "
            + ("" if deep else "PEFT's logits include the positions of the virtual tokens in front.")
        )
    return (
        f"PEFT's format for sequence-to-sequence models has two halves: {rows} virtual tokens for the encoder and "
        f"{rows} for the decoder. Prompt tuning reads only the first; here the second is a copy of it."
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
        *_input(task, causal, bool(_start(facts)), _template(task, facts)),
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
            # A causal model's output includes its input.
            f"print(tokenizer.decode(written[0{', tokens.shape[1] :' if causal else ''}], skip_special_tokens=True))",
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _input(task: Task | None, causal: bool, start: bool, template: str) -> list[str]:
    pair = task is not None and task.text_b is not None and not task.join_texts
    lines = ['text = "the film is good"', *(['second = "the story is good"'] if pair else [])]
    if template:
        fields = "text_a=text, text_b=second" if pair else "text_a=text"
        lines.append(f"whole = ids({template.rstrip(' ')!r}.format({fields}))")
        # A chat template may begin with the start token.
        parts = ["(whole if whole[: len(start)] == start else start + whole)" if causal and start else "whole"]
        parts += [] if causal else ["[tokenizer.eos_token_id]"]
    elif causal:
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
    if task is None or task.is_choice or task.label_words_policy == "sequence":
        return ["print(logits.topk(5))  # of the next token"]
    chosen = task.token_ids.get(facts.get("family", ""))
    if chosen:
        scores = f"scores = logits[torch.tensor({list(chosen)})]"
    else:
        which = "[:1]" if task.label_words_policy == "first" else ""
        template = _template(task, facts)
        bare = causal and template and not Template.parse(template, task.pairs).answer_is_spaced
        ids = '(f"\\n{word}")[len(ids("\\n")) :]' if bare else '(f" {word}")'
        encode = f"ids{ids}" if bare or not causal else f"continued{ids}"
        one = f"logits[{encode}{which}].mean()"
        if task.other_words:
            one = f"torch.stack([{one} for word in own]).mean() for own in words"
            return [f"words = {task.class_words!r}", f"scores = torch.stack([{one}])",
                    "print(words[int(scores.argmax())][0])"]  # fmt: skip
        scores = f"scores = torch.stack([{one} for word in words])"
    return [f"words = {list(task.label_words)!r}", scores, "print(words[int(scores.argmax())])"]
