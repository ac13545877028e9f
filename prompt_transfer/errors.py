"""The one error type for users."""


class UserError(Exception):
    """A mistake of the user's that one line explains: what is wrong and what to do.

    Raised anywhere, caught only in `prompt_transfer.cli`, which prints the line and exits with code 2.
    """

    def _render_traceback_(self) -> list[str]:
        # What IPython shows in place of the frames of the package; `%debug` still goes through them.
        return [f"error: {' '.join(str(self).split())}"]


class MadeOtherwiseError(UserError):
    """What lies in an output folder was made with other data, options or backbone than what shall be added to it."""
