"""Paths of the installed package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
"""The package's folder; its parent is the checkout or `site-packages`."""
