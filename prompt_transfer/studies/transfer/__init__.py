"""Transfer studies: the matrix, indicators that predict it, and convergence from transferred prompts."""

from prompt_transfer.utils.old_names import former

__getattr__ = former(__name__)
