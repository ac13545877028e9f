"""Sweeps: the plan of runs, and the executors that start them."""

from prompt_transfer.utils.old_names import former

__getattr__ = former(__name__)
