"""Layouts: the order of prompt, answer slot and text in the input."""

from __future__ import annotations

from dataclasses import dataclass

from prompt_transfer.utils.errors import LayoutKindError, UserError


@dataclass(frozen=True)
class Layout:
    """An order of the input's parts, and their positions.

    In an encoder, prompt tokens and answer slot have no position embedding and no token type if the model allows it.

    Attributes:
        name: value of `--model.layout`.
        kind: kind of backbone.
        answer_first: the answer slot is before the prompt (True) or after it (False).
        positions_after_prompt: the text's positions start after answer slot and prompt (True), or are the same as
            without a prompt (False).
        start_token: the tokenizer's start tokens are between prompt and text.
    """

    name: str
    kind: str
    answer_first: bool = False
    positions_after_prompt: bool = False
    start_token: bool = False

    def answer_index(self, prompt_length: int) -> int:
        """Return the index of an encoder's answer slot in the whole input."""
        return 0 if self.answer_first else prompt_length

    def text_offset(self, prompt_length: int) -> int:
        """Return the shift of the text's positions."""
        return prompt_length + 1 if self.positions_after_prompt else 0


# The first layout of a kind is the default.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        # The text has the same positions as without a prompt. The answer slot has no position, which is more accurate:
        # pretrained models have never seen a mask at the position of `<s>`. Accuracy (loss) on SST-2 after 200 steps
        # with the slot's position before the text / between `<s>` and the first word / absent:
        # bert-nano 0.509 (majority class) / 0.661 (0.620) / 0.713 (0.572), roberta-nano 0.674 (0.610) / 0.663 (0.610) /
        # 0.687 (0.603).
        Layout("prefix", "masked_lm"),
        # Release 1.0 of Su et al. (modelling_roberta.py), required by its published prompts.
        Layout("mask_first", "masked_lm", answer_first=True, positions_after_prompt=True),
        # Prompt, start token, text, cue; the answer slot is the last token. Positions count from the first prompt
        # token, as in PEFT's prompt tuning. The default if the tokenizer adds a start token, since models pretrained
        # with one are much worse without it; unavailable otherwise.
        Layout("start_answer_last", "causal_lm", start_token=True),
        # The same without a start token.
        Layout("answer_last", "causal_lm"),
        # Prompt and text in the encoder; the answer slot is the decoder's first step.
        Layout("encoder", "seq2seq_lm"),
    )
}


def is_causal(name: str | None) -> bool:
    """Return whether a layout is for causal backbones."""
    return name in LAYOUTS and LAYOUTS[name].kind == "causal_lm"


def get_layout(name: str | None, kind: str, needs_positions: bool, has_start: bool = False) -> Layout:
    """Return a layout by name.

    Args:
        name: None for the default of the kind.
        kind: kind of backbone.
        needs_positions: every token must have a position, as with rotary embeddings.
        has_start: the tokenizer adds a start token before every text.

    Raises:
        UserError: the name is unknown, or the backbone does not support the layout.
    """
    own = [layout for layout in LAYOUTS.values() if layout.kind == kind]
    if needs_positions:
        own = [layout for layout in own if not layout.positions_after_prompt]
    if not has_start:
        own = [layout for layout in own if not layout.start_token]
    if name is None:
        return own[0]
    found = LAYOUTS.get(name)
    choices = ", ".join(sorted(layout.name for layout in own))
    if found is None:
        raise UserError(f"unknown layout {name!r}: choose one of {choices}")
    if found not in own:
        needs = "a tokenizer that adds a start token" if found.start_token else "support for tokens without a position"
        why = (
            f"is for {found.kind} backbones, but this backbone is {kind}"
            if found.kind != kind
            else f"needs {needs}, which this backbone lacks"
        )
        raise LayoutKindError(f"layout {name} {why}: choose one of {choices}")
    return found
