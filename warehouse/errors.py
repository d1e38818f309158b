"""What can go wrong with the warehouse, said to the person who called."""

from __future__ import annotations


class WarehouseError(Exception):
    """The warehouse cannot do what was asked; the message says why and what to do next."""


class BusyError(WarehouseError):
    """Somebody else holds what is needed: worth trying again later."""


def first_line(error: Exception) -> str:
    """What an exception says first."""
    return str(error).partition("\n")[0]
