"""Comparison of label values, which tables write in different ways."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def label_key(value: Any) -> str | None:
    """Return a comparison key: 1, 1.0, "1" and "1.0" are equal, as are True and "true"; None for a missing label."""
    if type(value) is int:
        return str(value)
    text = "" if value is None else str(value).strip()
    if text in ("", "nan", "<NA>") and not (isinstance(value, str) and text):
        return None
    if text.lower() in ("true", "false"):
        return text.lower()
    return re.sub(r"\.0+$", "", text) if re.fullmatch(r"-?\d+\.0+", text) else text


def label_clash(labels: Sequence[Any], dropped: Sequence[Any] = ()) -> str | None:
    """Return the fault of labels that rows cannot distinguish, and its remedy; None if all are different.

    Args:
        labels: the value of each class.
        dropped: values whose rows are dropped; they may repeat each other.
    """
    seen: dict[str | None, Any] = {}
    for value in labels:
        key = label_key(value)
        if key in seen:
            return (
                f"labels {list(labels)} must be different values, but {seen[key]!r} and {value!r} are read as the same "
                "label: keep one of them, or rename one in the data"
            )
        seen[key] = value
    both = next((value for value in dropped if label_key(value) in seen), None)
    if both is None:
        return None
    return (
        f"drop_labels has {both!r}, which is read as the label {seen[label_key(both)]!r} of a class: remove it from "
        "drop_labels, or from labels with its word"
    )
