"""Sweeps: the plan, and the executors that start its runs."""

from prompt_transfer.utils.old_names import former

__getattr__ = former(__name__)
