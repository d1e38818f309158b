"""`hisob refused`: what was refused, why, what to do next; and the records of it as files, to be offered again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    import duckdb

    from warehouse.refusals import Group, Refusal


def refused(
    context: typer.Context,
    reason: Annotated[str | None, typer.Option(help="Only this reason (docs/refused.md), its records listed.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind of record, its records listed.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Records listed, at most.")] = 20,
    offer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write what is open as files to ingest again, a kind each.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What was refused, by kind and reason, with an example and what to do next.

    Open is what never came in since. --offer writes it in the contract's columns (of rows that could not be understood:
    as they were given, to be mended); nothing is journalled until you ingest the files. From the published database.
    """
    from warehouse.audit import open_published
    from warehouse.refusals import group_refused, list_refused

    check_choice(reason, kind)
    home, _ = home_of(context)
    with open_published(home) as con:
        if offer is not None:
            offer_again(con, context.obj, offer, reason, kind, as_json=as_json)
            return
        groups = group_refused(con, reason, kind)
        records = list_refused(con, reason, kind, limit) if reason or kind else []
    if as_json:
        print(json.dumps({"groups": [group_dict(g) for g in groups], "records": [asdict(r) for r in records]}))
        return
    tell_groups(groups)
    tell_records(records, sum(group.count for group in groups))


def check_choice(reason: str | None, kind: str | None) -> None:
    """Raise HisobError (exit 2) for a reason or kind that there is not."""
    from accounting.records import FILE_KINDS
    from hisob.errors import HisobError
    from hisob.reasons import REASONS

    if reason is not None and reason not in REASONS:
        raise HisobError(f"There is no reason {reason!r}: there are {', '.join(sorted(REASONS))}.", exit_code=2)
    if kind is not None and kind not in FILE_KINDS:
        raise HisobError(f"There is no kind {kind!r}: there are {', '.join(FILE_KINDS)}.", exit_code=2)


def group_dict(group: Group) -> dict[str, object]:
    """A group for --json."""
    from hisob.reasons import REASONS

    reason = REASONS[group.reason]
    return {**asdict(group), "means": reason.means, "next": reason.next_step}


def tell_groups(groups: list[Group]) -> None:
    """Each kind and reason, for a person."""
    from hisob.reasons import REASONS

    if not groups:
        print("Nothing was refused.")
    for group in groups:
        open_ = f"{group.open:,} to be mended" if group.unreadable else f"{group.open:,} open"
        print(f"{group.count:>12,}  {group.record_kind}  {group.reason}  ({open_})")
        print(f"              {REASONS[group.reason].means}; such as {group.example}")
        print(f"              next: {REASONS[group.reason].next_step}")


def tell_records(records: list[Refusal], count: int) -> None:
    """The records one by one."""
    for record in records:
        print(
            f"\n{record.refused_id}  {record.record_kind}  {record.reason}"
            + (f"  {record.detail}" if record.detail else "")
        )
        print(f"    {json.dumps(record.record, ensure_ascii=False)}")
    if records and len(records) < count:
        print(f"\n{len(records):,} of {count:,}; --limit shows more, --offer FOLDER writes what is open.")


# ---- offered again ---------------------------------------------------------------------------------------------------


def offer_again(
    con: duckdb.DuckDBPyConnection, home: Path, folder: Path, reason: str | None, kind: str | None, *, as_json: bool
) -> None:
    """Write the files, and say how to ingest them. What lies in the folder already is not written over."""
    from warehouse.refusals import records_to_offer, rows_to_mend

    records, rows = records_to_offer(con, reason, kind), rows_to_mend(con, reason, kind)
    files = {folder / f"{each}.ndjson": lines for each, lines in records.items()}
    to_mend = {folder / f"{each}-to-mend.ndjson": lines for each, lines in rows.items()}
    write_files(files | to_mend)
    call = " ".join(f"{each}={folder / f'{each}.ndjson'}" for each in records)
    if as_json:
        written = [
            {"file": str(path), "records": len(lines), "to_mend": path in to_mend}
            for path, lines in (files | to_mend).items()
        ]
        print(json.dumps(written, ensure_ascii=False))
        return
    for path, lines in files.items():
        print(f"{len(lines):>12,}  {path}")
    for path, lines in to_mend.items():
        print(f"{len(lines):>12,}  {path}: rows as they were given; correct them, then ingest them, too")
    if records:
        print(f"Once the cause is mended: hisob --home {home} ingest {call}")
    if not files and not to_mend:
        print("Nothing to offer: all that was refused came in since.")


def write_files(files: dict[Path, list[str]]) -> None:
    """Each file whole; all or, where one is there already, none."""
    from hisob.errors import HisobError

    there = [str(path) for path in files if path.exists()]
    if there:
        raise HisobError(
            f"{', '.join(there)} is there already, perhaps mended by hand: name another folder.", exit_code=2
        )
    for path, lines in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
