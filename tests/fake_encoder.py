"""An encoder with readable token ids, used by the data tests instead of a backbone's."""

from __future__ import annotations

END = 2


class FakeEncoder:
    """An encoder with one token per word (3 + its length) between 1 and 2; a 2 separates the texts of a pair.

    Args:
        budget: positions for text.
        causal: end with the cue instead of 2, and let targets share the positions of the text.
    """

    pad_token_id = 0
    extra_positions = 3

    def __init__(self, budget: int = 61, causal: bool = False) -> None:
        self.budget = budget
        self.targets_share_positions = causal
        self.fingerprint = f"fake {causal}"
        self.calls = 0
        self.target_calls = 0

    def text_budget(self) -> int:
        return self.budget

    def encode(
        self, text_a: list[str], text_b: list[str] | None, max_length: int, cue: str = "", seq2seq_frame: object = None
    ) -> list[list[int]]:
        self.calls += 1
        ids = [[1, *words(text)] for text in text_a]
        if text_b is not None:
            ids = [[*a, END, *words(b)] for a, b in zip(ids, text_b, strict=True)]
        tail = words(cue) if self.targets_share_positions else [END]
        return [[*row[: max_length - len(tail)], *tail] for row in ids]

    def encode_targets(self, texts: list[str], max_length: int) -> list[list[int]]:
        self.target_calls += 1
        return [[*words(text)[: max_length - 1], END] for text in texts]


def words(text: str) -> list[int]:
    return [3 + len(word) for word in text.split()]
