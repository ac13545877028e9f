"""Where prompt, answer slot and text stand in the input."""

from __future__ import annotations

from dataclasses import dataclass

from prompt_transfer.utils.errors import LayoutKindError, UserError


@dataclass(frozen=True)
class Layout:
    """An order of the parts with the positions they get.

    Prompt rows and the answer slot of an encoder have no position embedding and no token type, where it can do without.

    Attributes:
        name: as in `--model.layout`.
        kind: of the backbones that it is for.
        answer_first: the answer slot stands before the prompt (True) or after it.
        positions_after_prompt: the text's positions count answer slot and prompt rows (True), or are those that it
            would have by itself (False).
        start_token: the tokens that the tokenizer puts before every text stand between prompt and text.
    """

    name: str
    kind: str
    answer_first: bool = False
    positions_after_prompt: bool = False
    start_token: bool = False

    def answer_index(self, prompt_length: int) -> int:
        """Index of the answer slot of an encoder in the whole input."""
        return 0 if self.answer_first else prompt_length

    def text_offset(self, prompt_length: int) -> int:
        """How far the text's positions are shifted."""
        return prompt_length + 1 if self.positions_after_prompt else 0


# The first of a kind is its default.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        # The text stands as it does without a prompt. A position for the answer slot costs accuracy: a pretrained model
        # has never seen a mask where `<s>` stands. SST-2 after 200 steps, accuracy (loss), answer slot at the position
        # before the text / between `<s>` and the first word / none: bert-nano 0.509 (majority) / 0.661 (0.620) / 0.713
        # (0.572), roberta-nano 0.674 (0.610) / 0.663 (0.610) / 0.687 (0.603).
        Layout("prefix", "masked_lm"),
        # Release 1.0 of Su et al. (modelling_roberta.py): published prompts need exactly this.
        Layout("mask_first", "masked_lm", answer_first=True, positions_after_prompt=True),
        # Prompt, start token, text, cue; the last token of all is the answer slot. Positions count from the prompt's
        # first row, as in PEFT's prompt tuning. Models that were pretrained with a start token answer badly without
        # one, so this is the default wherever the tokenizer adds one, and is left out elsewhere.
        Layout("start_answer_last", "causal_lm", start_token=True),
        # The same without a start token.
        Layout("answer_last", "causal_lm"),
        # Prompt and text in the encoder, the answer slot is the first step of the decoder.
        Layout("encoder", "seq2seq_lm"),
    )
}


def is_causal(name: str | None) -> bool:
    """Whether a layout is one of causal backbones."""
    return name in LAYOUTS and LAYOUTS[name].kind == "causal_lm"


def get_layout(name: str | None, kind: str, needs_positions: bool, has_start: bool = False) -> Layout:
    """The layout `name` for a backbone of some kind; None: the kind's default.

    Args:
        needs_positions: every token of the model has a position (rotary ones), so none can go without.
        has_start: its tokenizer puts a start token before every text.

    Raises:
        UserError: there is none of that name, or it is for another kind of backbone.
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
        needs = "a tokenizer that adds a start token" if found.start_token else "tokens without a position"
        why = f"is for {found.kind} backbones" if found.kind != kind else f"needs {needs}"
        raise LayoutKindError(f"layout {name} {why}, this one is {kind}: choose one of {choices}")
    return found
