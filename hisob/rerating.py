"""What all that re-rates has in common: a picture that is up to date, and posting what is due.

Each works out what has to be posted from the published database, so that has to hold all that is journalled, its own last
adjustments among them: else it would post them twice. Whoever settles and loads the home already is waited for; where
nobody does, it is done here. One re-rating at a time. The ids of adjustments are made of what they put right and a
count, so the same one posted twice, by whatever crash, is one: the ledger ignores the same content, and refuses another.
"""

from __future__ import annotations

import json
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hisob.by_hand import journal_of
from hisob.errors import HisobError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterator, Sequence

    from connectors.home import Home
    from hisob.settings import Settings

WAITS_S, LOOKS_EVERY_S = 600.0, 0.2  # for others who settle and load the home
AT_ONCE = 50_000  # adjustments in one transaction of the journal
SHOWN = 10


@dataclass(frozen=True)
class Posting:
    """An adjustment to be posted: credit +, charge −."""

    account_id: str
    adjustment_id: str
    amount_tiyin: int
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What was worked out, as of the last tick loaded. `accounts`: how many were looked at."""

    as_of: dt.datetime | None
    accounts: int
    postings: tuple[Posting, ...]
    posted: bool


# ---- a picture that is up to date ------------------------------------------------------------------------------------


@contextmanager
def alone(home: Home) -> Iterator[None]:
    """Be the only one on the home that re-rates. Raises AlreadyRunningError, naming the other's pid."""
    from connectors.locks import hold

    with hold(home.run / "rerate.lock", "another re-rating"):
        yield


def bring_up_to_date(home: Home, settings: Settings) -> None:
    """Have all that is journalled by now settled, loaded and published. Raises HisobError where others do not get on."""
    ends = journal_ends(home)
    until = time.monotonic() + WAITS_S
    while not is_published_up_to(home, ends):
        if time.monotonic() > until:
            raise HisobError(
                f"What is journalled on {home.path} is not settled and published after {WAITS_S:.0f} s. Look at hisob status;"
                " once hisob settle and hisob load have caught up, the same call goes on from there."
            )
        if is_settled_up_to(home, ends) or not settle_here(home, settings):
            load_here(home, ends)


def journal_ends(home: Home) -> dict[int, int]:
    """Where each partition of the journal ends."""
    from connectors.log.sqlite import open_log

    with closing(open_log(home.journal, readonly=True)) as journal:
        return {partition: journal.end(partition) for partition in range(journal.partitions)}


def is_settled_up_to(home: Home, ends: dict[int, int]) -> bool:
    """Whether settle has come this far."""
    from connectors.log.sqlite import open_log

    with closing(open_log(home.events, readonly=True)) as events:
        settled = events.committed("settle")
    return all(settled.get(str(partition), 0) >= end for partition, end in ends.items())


def is_published_up_to(home: Home, ends: dict[int, int]) -> bool:
    """Whether the published database goes this far, and is of this version of Hisob."""
    from warehouse.audit import NotPublishedError, open_published
    from warehouse.load import covered_positions, definitions_of
    from warehouse.views import definitions_digest

    try:
        with open_published(home) as con:
            covered = covered_positions(con)["journal"]
            is_of_now = definitions_of(con) == definitions_digest(len(ends))
    except NotPublishedError:
        return False
    return is_of_now and all(covered.get(partition, 0) >= end for partition, end in ends.items())


def settle_here(home: Home, settings: Settings) -> bool:
    """Settle the journal; False: somebody does it already."""
    from connectors.locks import AlreadyRunningError
    from streams.settle import run_settle

    try:
        if not run_settle(home, drain=True, snapshot_every_s=settings.snapshot_seconds):
            raise HisobError(
                "Stopped. What is settled stays, and nothing is posted twice: the same call goes on from there."
            )
    except AlreadyRunningError:
        return False
    return True


def load_here(home: Home, ends: dict[int, int]) -> None:
    """Load and publish once settle has come this far; else, or while another load is at it, wait a little."""
    from hisob.commands.load import load_now
    from warehouse.errors import BusyError

    if not is_settled_up_to(home, ends):
        time.sleep(LOOKS_EVERY_S)
        return
    try:
        load_now(home)
    except BusyError:
        time.sleep(LOOKS_EVERY_S)


# ---- posting ---------------------------------------------------------------------------------------------------------


def post(home: Home, postings: Sequence[Posting], author: str, at: dt.datetime | None) -> None:
    """Journal the adjustments. They stand at the last tick that was loaded, so that the same ones are the same content."""
    from hisob.by_hand import moment_of
    from hisob.settings import load_settings

    with journal_of(home) as arrivals:
        moment = at or moment_of(arrivals, load_settings(home))
        for first in range(0, len(postings), AT_ONCE):
            rows = [
                {**asdict(posting), "adjusted_at": moment, "author": author, "received_at": moment}
                for posting in postings[first : first + AT_ONCE]
            ]
            arrivals.take({"adjustment": rows})


def carry_out(
    home: Home,
    settings: Settings,
    work_out: Callable[[], Outcome],
    author: str,
    *,
    dry_run: bool,
    first: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Bring the picture up to date, work out what is due, post it, and see it settled and published.

    first: what is journalled before (True: something was). With dry_run what is published is looked at as it is.
    """
    if dry_run:
        return work_out()
    with alone(home):
        bring_up_to_date(home, settings)
        if first():
            bring_up_to_date(home, settings)
        found = work_out()
        if found.postings:
            post(home, found.postings, author, found.as_of)
            bring_up_to_date(home, settings)
    return replace(found, posted=True)


# ---- what is said ----------------------------------------------------------------------------------------------------


def soum(tiyin: int) -> str:
    """An amount in soum, exact: 1,234.50."""
    return f"{'−' if tiyin < 0 else ''}{abs(tiyin) // 100:,}.{abs(tiyin) % 100:02}"


def kwh(wh: int) -> str:
    """Energy in kWh, exact: 312.5."""
    return f"{wh // 1000:,}" + (f".{wh % 1000:03}".rstrip("0") if wh % 1000 else "")


def because(what: str, amount_tiyin: int, reason: str | None) -> str:
    """The reason of an adjustment: what is put right, how much it is, and what the author had to say."""
    side = "less" if amount_tiyin > 0 else "more"
    return f"{what} cost {soum(abs(amount_tiyin))} soum {side} than was charged" + (f" ({reason})" if reason else "")


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """An outcome for --json."""
    amounts = [posting.amount_tiyin for posting in outcome.postings]
    return {
        "as_of": outcome.as_of.isoformat() if outcome.as_of else None,
        "accounts": outcome.accounts,
        "credit_tiyin": sum(amount for amount in amounts if amount > 0),
        "charge_tiyin": -sum(amount for amount in amounts if amount < 0),
        "posted": outcome.posted,
        "adjustments": [asdict(posting) for posting in outcome.postings],
    }


def tell(outcome: Outcome, *, as_json: bool, dry_run: bool, warnings: Sequence[str] = ()) -> None:
    """What is posted, or would be: sums in both directions, and the largest few."""
    told = as_dict(outcome) | {"warnings": list(warnings)}
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
        return
    for warning in warnings:
        print(f"warning  {warning}")
    when = f", as of {outcome.as_of:%Y-%m-%d %H:%M} UTC" if outcome.as_of else ""
    if not outcome.postings:
        print(f"{outcome.accounts:,} accounts re-rated{when}: nothing is left to be put right.")
        return
    verb = "To be posted" if dry_run else "Posted"
    print(
        f"{outcome.accounts:,} accounts re-rated{when}. {verb}: {len(outcome.postings):,} adjustments, "
        f"{soum(told['credit_tiyin'])} soum to customers, {soum(told['charge_tiyin'])} soum from them."
    )
    print_largest(outcome.postings)
    if dry_run:
        print("Nothing was journalled: the same call without --dry-run posts it.")


def print_largest(postings: Sequence[Posting]) -> None:
    """A table of the largest."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("account", "soum", "reason"):
        table.add_column(name, justify="right" if name == "soum" else "left", overflow="fold")
    for posting in sorted(postings, key=lambda p: (-abs(p.amount_tiyin), p.account_id))[:SHOWN]:
        table.add_row(*(Text(t) for t in (posting.account_id, soum(posting.amount_tiyin), posting.reason)))
    Console(highlight=False).print(table)
    if len(postings) > SHOWN:
        print(f"{len(postings) - SHOWN:,} more are not shown (--json lists them).")
