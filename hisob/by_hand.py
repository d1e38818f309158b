"""Records given by hand: what `hisob policy`, `order` and `pay` have in common.

Each is journalled with its author, its reason and an id of its own, made of the moment: so a call repeated by mistake
is another record under another id, which can be seen and taken back, and never one that is silently taken for the
first.
"""

from __future__ import annotations

import datetime as dt
import getpass
import re
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.errors import HisobError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectors.home import Home
    from hisob.settings import Settings
    from streams.arrivals import Arrivals, Place

PRODUCER = "by-hand"
Author = Annotated[str | None, typer.Option("--author", help="Who answers for it.", show_default="the login name")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever asks in years to come.")]


@contextmanager
def journal_of(home: Home) -> Iterator[Arrivals]:
    """The way into the journal."""
    from streams.arrivals import Arrivals

    with closing(Arrivals(home, PRODUCER)) as arrivals:
        yield arrivals


def take(arrivals: Arrivals, kind: str, row: dict[str, Any]) -> Place:
    """Journal one record; where it stands. Raises HisobError (exit 2), and takes nothing, if it breaks the contract."""
    for column in ("author", "reason"):
        if column in row and not row[column].strip():
            raise HisobError(f"--{column} is empty: it is there for whoever asks in years to come.", exit_code=2)
    try:
        return arrivals.take({kind: [row]})[kind][0]
    except ValueError as error:
        raise HisobError(f"Not journalled: {error}.", exit_code=2) from error


def moment_of(arrivals: Arrivals, settings: Settings) -> dt.datetime:
    """The present moment, by the clock of the home."""
    if settings.clock == "journal" and (tick := arrivals.last_tick()):
        return tick
    return dt.datetime.now(dt.UTC)


def check_account(arrivals: Arrivals, account_id: str) -> None:
    """Raise HisobError (exit 2) if no such account has arrived."""
    if not arrivals.knows_account(account_id):
        raise HisobError(
            f"There is no account {account_id!r} in the journal. Nothing was journalled: look at the id, or ingest the"
            " account first (hisob ingest account=FILE).",
            exit_code=2,
        )


def author_or_login(author: str | None) -> str:
    """Who answers for it."""
    if author is not None:
        return author
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a user without a name, as in some containers
        raise HisobError("This login has no name: say who answers for it, with --author NAME.", exit_code=2) from error


def new_id(what: str) -> str:
    """An id of its own: made of the time of day, to the microsecond."""
    return f"{what}-{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S-%f}"


def parse_moment(text: str, option: str) -> dt.datetime:
    """A moment with its offset. Raises HisobError (exit 2)."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise HisobError(
            f"{option} {text!r} is not understood: write it with its offset, as 2025-05-01T10:00:00+05:00.", exit_code=2
        )
    return moment


def parse_soum(text: str) -> int:
    """An amount in soum, such as 12500, 12500.50 or 12,500, as tiyin. Raises HisobError (exit 2)."""
    if not text.strip("0,.") or not re.fullmatch(r"(\d+|\d{1,3}(,\d{3})+)(\.\d{1,2})?", text, re.ASCII):
        raise HisobError(
            f"{text!r} is no amount in soum: write 12500, or 12500.50; a tiyin is the hundredth of a soum.", exit_code=2
        )
    whole, _, part = text.replace(",", "").partition(".")
    return int(whole) * 100 + int(part.ljust(2, "0"))
