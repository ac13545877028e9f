"""The folder of the package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
"""Its parent is the checkout, or `site-packages`."""
