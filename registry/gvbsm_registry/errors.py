"""The one error type that a user of gvbsm can cause."""

from __future__ import annotations


class GvbsmError(Exception):
    """Something the user can put right.

    The message is one line that says what is wrong, where (recipe key, file, plugin and distribution) and
    what to do. The command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
