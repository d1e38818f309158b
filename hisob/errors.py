"""What goes wrong at the front door, said to the person who called."""

from __future__ import annotations


class HisobError(Exception):
    """A message for the caller: what is the matter and what to do next. exit_code: 2 for wrong use, 1 for all else."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
