"""The error type for users, and removal of secrets from messages and files."""

from __future__ import annotations

import os
import re

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|KEY)$")
# Shorter values are unlikely to be secrets and would match everywhere.
_SHORTEST = 8
SEE_PROMPTS = "list prompts with `prompt-transfer prompts list`"
_LOGIN = re.compile(r"://[^/\s:@]+:[^/\s@]+@")


class UserError(Exception):
    """A user's mistake, explained in one line: the problem, then the fix.

    Raised anywhere, caught only in `prompt_transfer.cli`, which prints the line and exits with code 2.
    """

    def _render_traceback_(self) -> list[str]:
        # IPython shows this line instead of the traceback; `%debug` still walks the frames.
        return [f"error: {' '.join(str(self).split())}"]


class LayoutKindError(UserError):
    """A layout that belongs to another kind of backbone."""


class SettingsChangedError(UserError):
    """The existing outputs were produced with different data, options or backbone."""


def no_such_file(path: object, what: str, hint: str) -> UserError:
    """Return the error for a missing `what` file at `path`, with a `hint` how to fix it."""
    return UserError(f"no such {what} file: {path}; {hint}")


def install_command(extra: str) -> str:
    """Return the command that installs an extra, quoted for every shell."""
    return f"pip install 'prompt_transfer[{extra}]'"


def is_secret(variable: str) -> bool:
    """Return whether an environment variable with this name holds a secret."""
    return _SECRET_NAME.search(variable.upper()) is not None


def without_secrets(text: str) -> str:
    """Return `text` without the values of variables such as HF_TOKEN or WANDB_API_KEY and without logins in URLs."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and is_secret(name):
            text = text.replace(value, f"<{name}>")
    return _LOGIN.sub("://***@", text)
