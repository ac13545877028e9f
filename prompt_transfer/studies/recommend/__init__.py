"""Which prompts to start from on a new task."""

from prompt_transfer.utils.old_names import former

__getattr__ = former(__name__)
