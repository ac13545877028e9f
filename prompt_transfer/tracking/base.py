"""The common part of W&B and MLflow runs: identity, options, tags and fault tolerance."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from prompt_transfer.tracking.options import MlflowOptions, WandbOptions, clean

Options = TypeVar("Options", WandbOptions, MlflowOptions)


class BaseTracker(Generic[Options]):
    """A run on a tracking service whose errors become warnings.

    Args:
        job_type: the command.
        name: run name.
        folder: receives the file that identifies a resumable run.
        config: options, and study, task, backbone and seed if known; secrets are removed.
        options: where to log the run, its group and tags.
        tags: additional tags.

    Attributes:
        service: name of the service, for warnings.
        longest_tag: maximum length of a tag, in characters; None for no limit.
    """

    service: ClassVar[str]
    longest_tag: ClassVar[int | None] = None

    def __init__(
        self,
        job_type: str,
        name: str,
        folder: str | Path,
        config: Mapping[str, Any],
        options: Options,
        tags: Sequence[str] = (),
    ) -> None:
        self.job_type: str = job_type
        self.name: str = name
        self.folder: Path = Path(folder)
        self.config: dict[str, Any] = clean(config)
        self.options: Options = options.resolved()
        given: list[str] = [tag.strip() for tag in (self.options.tags or "").split(",")]
        self.tags: list[str] = list(dict.fromkeys(tag[: self.longest_tag] for tag in (*tags, *given) if tag))
        self.run: Any = None

    @contextmanager
    def shielded(self, consequence: str) -> Iterator[None]:
        """Turn any exception into a warning that states the consequence."""
        try:
            yield
        except Exception as error:
            warnings.warn(
                f"{self.service}: {one_line(error)}; {consequence}, files in {self.folder} are complete", stacklevel=3
            )


def one_line(error: BaseException) -> str:
    """Return the first 200 characters of an error's message on one line, or the name of its class."""
    return " ".join(str(error).split())[:200] or type(error).__name__
