"""Simulated phones that answer as real ones do: some time after a message was accepted they have it, or never will.

What a phone does follows from its number and the notice's id alone, so a run that is repeated goes the same way. `phones.json`
in the home says otherwise for single phones or, under `*`, for all that it does not name:

    {"*": {"outcome": "delivered", "after_s": 20}, "+998901112233": {"outcome": "undeliverable", "after_s": 600}}

`rejected` is said at once, as a gateway says it of a number it will not serve; the others after so many seconds of the clock
of the effects. What was accepted and not yet answered lies in a small database, so no answer is lost by a crash.
"""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import zlib
from typing import TYPE_CHECKING, NamedTuple

from accounting.moments import moment_of, us_of
from connectors.sms import ChannelError, Message, NotTakenError, Receipt

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

OUTCOMES = ("delivered", "undeliverable", "expired", "rejected")
NEVER_IN_THOUSAND = {"undeliverable": 15, "expired": 10, "rejected": 5}  # of the phones; the rest have it delivered
LONGEST_S = 60  # until it is delivered
GIVEN_UP_S = 24 * 3600  # after which a network lets an SMS expire
TABLE = """
CREATE TABLE IF NOT EXISTS message (
    notice_id TEXT PRIMARY KEY, accepted_at INTEGER NOT NULL, status TEXT NOT NULL, due_at INTEGER, is_settled INTEGER NOT NULL
) WITHOUT ROWID, STRICT
"""
UNTIL_FREE_S = 5.0


class Behaviour(NamedTuple):
    """What a phone does with a message, and how long after it was accepted."""

    outcome: str
    after_s: float


class SimulatedPhones:
    """A network of phones. The database holds every message it accepted or rejected."""

    window = 16

    def __init__(self, database: Path, phones: Path) -> None:
        self._told = read_phones(phones)
        self._con = sqlite3.connect(database, isolation_level=None, timeout=UNTIL_FREE_S)
        self._con.execute("PRAGMA journal_mode = WAL")
        self._con.execute("PRAGMA synchronous = FULL")
        self._con.execute(TABLE)

    async def send(self, message: Message, at: dt.datetime) -> Receipt:
        """Take the message, for the phone to answer later."""
        outcome, after_s = self._behaviour(message)
        accepted_at = us_of(at)
        is_rejected = outcome == "rejected"
        due_at = None if is_rejected else accepted_at + int(after_s * 1_000_000)
        row = (message.notice_id, accepted_at, outcome, due_at, is_rejected)
        try:
            self._con.execute("INSERT OR IGNORE INTO message VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            raise NotTakenError(f"The simulated phones cannot take a message: {error}. Make room.") from error
        return self._answer(message.notice_id, outcome, at)

    async def recall(self, notice_ids: Collection[str], at: dt.datetime) -> dict[str, Receipt | None]:
        """The database has every message that came."""
        known: dict[str, Receipt | None] = dict.fromkeys(notice_ids)
        for notice_id in known:
            found = self._con.execute("SELECT status FROM message WHERE notice_id = ?", (notice_id,)).fetchone()
            if found:
                known[notice_id] = self._answer(notice_id, found[0], at)
        return known

    async def receipts(self, at: dt.datetime) -> Sequence[Receipt]:
        """The answers that have fallen due, in the order in which they did."""
        sql = "SELECT notice_id, due_at, status FROM message WHERE NOT is_settled AND due_at <= ? ORDER BY due_at, notice_id"
        found = self._con.execute(sql, (us_of(at),)).fetchall()
        return [Receipt(notice_id, moment_of(due_at), status, "simulated phone") for notice_id, due_at, status in found]

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        """These answers are journalled."""
        with self._con:
            self._con.execute("BEGIN")
            self._con.executemany(
                "UPDATE message SET is_settled = 1 WHERE notice_id = ?", [(r.notice_id,) for r in receipts]
            )

    def close(self) -> None:
        """Close the database."""
        self._con.close()

    def _behaviour(self, message: Message) -> Behaviour:
        told = self._told.get(message.phone) or self._told.get("*")
        return told or behaviour_of(message.phone, message.notice_id)

    @staticmethod
    def _answer(notice_id: str, outcome: str, at: dt.datetime) -> Receipt:
        return Receipt(notice_id, at, "rejected" if outcome == "rejected" else "accepted", "simulated phone")


def behaviour_of(phone: str, notice_id: str) -> Behaviour:
    """What a phone that nobody has said anything of does: a few never answer as one would wish, the others soon."""
    place, edge = zlib.crc32(phone.encode()) % 1000, 0
    for outcome, share in NEVER_IN_THOUSAND.items():
        edge += share
        if place < edge:
            return Behaviour(outcome, GIVEN_UP_S if outcome == "expired" else LONGEST_S)
    return Behaviour("delivered", 1 + zlib.crc32(notice_id.encode()) % LONGEST_S)


def read_phones(path: Path) -> dict[str, Behaviour]:
    """What phones.json says; nothing where there is none. Raises ChannelError naming what is wrong in it."""
    if not path.is_file():
        return {}
    try:
        found = {
            phone: Behaviour(told["outcome"], float(told.get("after_s", 0)))
            for phone, told in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ChannelError(
            f'{path} should read {{"+998901234567": {{"outcome": …, "after_s": …}}}}: {error!r}'
        ) from error
    wrong = [f"{phone}: {told.outcome}" for phone, told in found.items() if told.outcome not in OUTCOMES]
    if wrong:
        raise ChannelError(f"{path}: an outcome is one of {', '.join(OUTCOMES)}; {', '.join(wrong)} is not.")
    return found
