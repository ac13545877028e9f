"""The recommendation study: rankings of source prompts for a new task."""

from prompt_transfer.utils.old_names import former

__getattr__ = former(__name__)
