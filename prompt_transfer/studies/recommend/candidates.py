"""Former home of `RecommendStudy`."""

from __future__ import annotations

from prompt_transfer.studies.recommend.study import RecommendStudy

__all__ = ["RecommendStudy"]
