"""The projection study: scores of projectors with their controls."""

from prompt_transfer.utils.old_names import former

__getattr__ = former(__name__)
