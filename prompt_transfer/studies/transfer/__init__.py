"""Studies of transfer: the matrix, what predicts it, and what a transferred start is worth."""

from prompt_transfer.utils.old_names import former

__getattr__ = former(__name__)
