"""Where prompt, answer slot and text stand in the input."""

from __future__ import annotations

from dataclasses import dataclass

from prompt_transfer.errors import UserError


@dataclass(frozen=True)
class Layout:
    """An order of the parts with the positions they get.

    Attributes:
        name: as in `--model.layout`.
        kind: of the backbones that it is for.
        answer_first: the answer slot stands before the prompt (True) or after it.
        answer_has_position: the answer slot has the position before the text's first, as a token of the text would
            (True), or no position and token type, as the prompt rows (False).
        positions_after_prompt: positions count answer slot and prompt rows (True) or what has one (False).
    """

    name: str
    kind: str
    answer_first: bool = False
    answer_has_position: bool = True
    positions_after_prompt: bool = False

    def answer_index(self, prompt_length: int) -> int:
        """Index of the answer slot of an encoder in the whole input."""
        return 0 if self.answer_first else prompt_length

    def text_offset(self, prompt_length: int) -> int:
        """How far the text's positions are shifted."""
        return prompt_length + 1 if self.positions_after_prompt else int(self.answer_has_position)


# The first of a kind is its default.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        # A masked token of the text is what the model was pretrained on, so the answer slot stands as one. Without a
        # position it did worse on SST-2 (validation loss 0.655 against 0.642 after 300 steps, half-trained backbone).
        # Prompt rows have no position where the model can do without.
        Layout("prefix", "masked_lm"),
        # Release 1.0 of Su et al. (modelling_roberta.py): published prompts need exactly this.
        Layout("mask_first", "masked_lm", answer_first=True, answer_has_position=False, positions_after_prompt=True),
        # Prompt, text, cue; the last token of all is the answer slot. Positions count from the prompt's first row, as
        # in PEFT's prompt tuning.
        Layout("answer_last", "causal_lm"),
        # Prompt and text in the encoder, the answer slot is the first step of the decoder.
        Layout("encoder", "seq2seq_lm"),
    )
}


def get_layout(name: str | None, kind: str, needs_positions: bool) -> Layout:
    """The layout `name` for a backbone of some kind; None: the kind's default.

    Args:
        needs_positions: every token of the model has a position (rotary ones), so none can go without.

    Raises:
        UserError: there is none of that name, or it is for another kind of backbone.
    """
    own = [layout for layout in LAYOUTS.values() if layout.kind == kind]
    if needs_positions:
        own = [layout for layout in own if layout.answer_has_position]
    if name is None:
        return own[0]
    found = LAYOUTS.get(name)
    choices = ", ".join(sorted(layout.name for layout in own))
    if found is None:
        raise UserError(f"unknown layout {name!r}: choose one of {choices}")
    if found not in own:
        why = f"is for {found.kind} backbones" if found.kind != kind else "needs tokens without a position"
        raise UserError(f"layout {name} {why}, this one is {kind}: choose one of {choices}")
    return found
