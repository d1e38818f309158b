"""What happened to readings other than an entry: they were refused, held, or are held no longer. From the ledger to events.

The rules leave numbers (rows of INCIDENT). What only events need, the readings' text above all, is made of them at the end
of a body, and nobody has to wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accounting.bill import REASONS
from accounting.ledger import HELD, HELD_REFUSED, HELD_SETTLED, UNCHANGED
from accounting.partition import Partition, time_text
from accounting.state import NONE

if TYPE_CHECKING:
    from accounting.readings import Readings

# A row of INCIDENT, the last tick before it, and of a reading that was held before this body its text.
Incident = tuple[tuple[int, ...], int, str | None]


def report_incidents(p: Partition, first: int) -> None:
    """Take note of the ledger's incidents from `first` on; those that changed nothing are counted."""
    for row in p.ledger.incidents[first : p.ledger.size[1]].tolist():
        ordinal, n, what, held, text = row[0], row[1], row[3], (row[7], row[8]), None
        if what == UNCHANGED:
            p.ignore("reading")
            continue
        if what == HELD:
            p.held_now[ordinal, n] = None
        elif what in (HELD_SETTLED, HELD_REFUSED):
            text = p.held_now.pop(held) if held in p.held_now else p.held_records.pop(held)
        p.incidents.append((row, p.last_tick, text))


def take_incidents(p: Partition, readings: Readings | None) -> list[Incident]:
    """What has happened since the last time. What is held now is remembered with its text."""
    if p.held_now:
        assert readings is not None  # noqa: S101  no other record is held by an incident
        p.held_records |= dict(zip(p.held_now, readings.texts([ordinal for ordinal, _ in p.held_now]), strict=True))
    taken, p.incidents, p.held_now = p.incidents, [], {}
    return taken


def incident_events(number: int, incidents: list[Incident], readings: Readings | None) -> dict[str, list[Any]]:
    """Their events by kind, each kind in order. number: the partition's."""
    events: dict[str, list[Any]] = {"refused": [], "held": [], "released": []}
    unsaid = [row[7] if row[3] == HELD_REFUSED else row[0] for row, _, text in incidents if _is_told(row) and not text]
    texts = iter(readings.texts(unsaid) if readings is not None and unsaid else ())
    for row, last_tick, text in incidents:
        ordinal, n, account, what, reason, last_at, last_wh, held_ordinal, held_n = row
        if _is_told(row):
            detail = f"last measured {last_wh} Wh at {time_text(last_at)}" if account > 0 and last_at != NONE else None
            kind = "held" if what == HELD else "refused"
            events[kind].append((ordinal, n, "reading", REASONS[reason], detail, text or next(texts)))
            n += 1
        if what in (HELD_SETTLED, HELD_REFUSED):
            held_id, outcome = f"{number}-{held_ordinal}-{held_n}", "settled" if what == HELD_SETTLED else "refused"
            events["released"].append((ordinal, n, held_id, None if last_tick == NONE else last_tick, outcome))
    return events


def _is_told(row: tuple[int, ...]) -> bool:
    """Whether the reading's text is told: it was refused or held."""
    return row[3] != HELD_SETTLED
