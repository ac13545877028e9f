"""Tasks: the dataclass, the catalogue, the registry, label words and metrics."""

from prompt_transfer.utils.old_names import former

__getattr__ = former(__name__)
