"""Writes docs/records.md from accounting.records: `python docs/make_records.py`. A test holds that it is up to date."""

from __future__ import annotations

from pathlib import Path

from accounting.records import EVENTS, FILE_KINDS, RECORDS, Column

HEAD = """# Records and events

Files given to `hisob ingest KIND=FILE` have these columns; one marked ? may be absent or null. Times are ISO 8601 with
an offset (in Parquet `timestamp` with a zone), money is whole tiyin (100 tiyin = 1 soum), energy whole Wh. `received_at`,
where given, says when a record arrived; files are journalled in that order.
"""
EVENTS_HEAD = """# Events

What `hisob tail KIND` prints and the published views hold. An event's id is `partition-ordinal-n`: the journal position that
caused it, and a count.
"""


def table(kind: str, columns: tuple[Column, ...]) -> str:
    """One kind's columns as a Markdown table."""
    rows = [f"## {kind}", "", "| column | type | meaning |", "|---|---|---|"]
    for c in columns:
        choices = f" One of {', '.join(f'`{choice}`' for choice in c.choices)}." if c.choices else ""
        default = f" Default `{c.default}`." if c.default is not None else ""
        rows.append(f"| `{c.name}`{'?' if c.optional else ''} | {c.type} | {c.doc}{choices}{default} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """The whole of docs/records.md."""
    records = [table(kind, tuple(c for c in RECORDS[kind] if not c.internal)) for kind in FILE_KINDS]
    events = [table(kind, columns) for kind, columns in EVENTS.items()]
    return "\n".join([HEAD, *records, EVENTS_HEAD, *events])


if __name__ == "__main__":
    Path(__file__).with_name("records.md").write_text(page())
