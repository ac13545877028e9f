"""The study of projectors."""

from prompt_transfer.utils.old_names import former

__getattr__ = former(__name__)
