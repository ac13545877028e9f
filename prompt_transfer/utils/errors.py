"""The one error type for users, and what no message and no file may tell."""

from __future__ import annotations

import os
import re

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|KEY)$")
# Shorter values are no secrets, and would be found everywhere.
_SHORTEST = 8
SEE_PROMPTS = "see what there is with `prompt-transfer prompts list`"
_LOGIN = re.compile(r"://[^/\s:@]+:[^/\s@]+@")


class UserError(Exception):
    """A mistake of the user's that one line explains: what is wrong and what to do.

    Raised anywhere, caught only in `prompt_transfer.cli`, which prints the line and exits with code 2.
    """

    def _render_traceback_(self) -> list[str]:
        # What IPython shows in place of the frames of the package; `%debug` still goes through them.
        return [f"error: {' '.join(str(self).split())}"]


class LayoutKindError(UserError):
    """A layout that is for another kind of backbone."""


class SettingsChangedError(UserError):
    """What lies in an output folder was made with other data, options or backbone than what shall be added to it."""


def no_such_file(path: object, what: str, hint: str) -> UserError:
    """There is no file at `path`; `what` it should be, and what to do."""
    return UserError(f"no such {what} file: {path}; {hint}")


def is_secret(variable: str) -> bool:
    """Whether an environment variable with this name holds a secret."""
    return _SECRET_NAME.search(variable.upper()) is not None


def without_secrets(text: str) -> str:
    """`text` without values of variables such as HF_TOKEN or WANDB_API_KEY, and without a login in an address."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and is_secret(name):
            text = text.replace(value, f"<{name}>")
    return _LOGIN.sub("://***@", text)
