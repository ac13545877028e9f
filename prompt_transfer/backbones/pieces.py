"""An input format as a list of pieces, for programs that build the input without `TextEncoder`."""

from __future__ import annotations

from typing import Any

from prompt_transfer.backbones.encoder import TextEncoder
from prompt_transfer.backbones.templates import Template, split_blank


def input_pieces(
    encoder: TextEncoder,
    *,
    pairs: bool,
    cue: str = "",
    seq2seq_frame: tuple[str, str] | None = None,
    template: Template | None = None,
) -> list[dict[str, Any]]:
    """Return the parts of the input that follow the prompt, in order.

    Arguments as in `TextEncoder.encode`.

    Returns:
        Pieces of two kinds. ``{"ids": [...]}``: token ids. ``{"text": name, "prefix": str, "strip": bool, "follows":
        bool}``: the text (stripped if `strip`) after the prefix, tokenized without special tokens; with `follows` as
        the continuation of other words (`tokenization.following`).
    """
    start, between, end = encoder._frame(cue, seq2seq_frame, template)
    if template is None:
        continues = encoder.kind == "causal_lm"
        first = _text("text_a")
        second = _text("text_b", " " if continues else "", strip=continues, follows=continues)
    else:
        names = ("text_b", "text_a") if template.swapped else ("text_a", "text_b")
        kept, blank = split_blank(template.before)
        first = _text(names[0], blank, follows=bool(kept))
        second = _text(names[1], split_blank(template.between)[1], follows=True)
    pieces: list[dict[str, Any]] = [{"ids": start}, first]
    pieces += [{"ids": between}, second] if pairs else []
    return [piece for piece in [*pieces, {"ids": end}] if piece.get("ids") != []]


def _text(name: str, prefix: str = "", *, strip: bool = False, follows: bool = False) -> dict[str, Any]:
    return {"text": name, "prefix": prefix, "strip": strip, "follows": follows}
