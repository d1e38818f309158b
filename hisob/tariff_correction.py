"""A wrong tariff that was used already: the right one journalled, the past re-rated, the difference posted to each account.

The right versions are in force from each account's last measured register on, as any tariff that arrives late; what
was charged before is worked out anew as if they had been there from their `effective_on` (`warehouse.rerate`), and the
difference is one adjustment an account. So each balance is what it would have been, had they been there from the start.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from accounting.moments import TASHKENT
from hisob.by_hand import journal_of
from hisob.errors import HisobError
from hisob.rerating import Outcome, Posting, because, carry_out, kwh

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import duckdb

    from connectors.home import Home
    from hisob.settings import Settings
    from hisob.tariff_book import Finding
    from warehouse.rerate import Version

NAMED = 3  # tariffs that a reason names


def read_right(path: Path, home: Home, rise_percent: float) -> tuple[list[Version], list[Finding]]:
    """The right versions of a file, and what `tariff check` warns of. Raises HisobError (exit 2) for what is at fault."""
    from connectors.files import FileError
    from connectors.files.check import Checker
    from connectors.files.formats import inspect_file, read_whole
    from connectors.files.stage import as_staged
    from connectors.names import Names
    from hisob.tariff_book import check_file, journal_book
    from warehouse.rerate import Version

    try:
        findings = check_file(path, journal_book(home), rise_percent)
        now_us = int(dt.datetime.now(dt.UTC).timestamp() * 1_000_000)
        raw = read_whole(inspect_file(path), "tariff")
    except FileError as error:
        raise HisobError(str(error), exit_code=2) from error
    faults = [f for f in findings if f.severity == "fault" and f.reason != "overlapping_versions"]
    if faults:
        said = "; ".join(f"{f.where}: {f.reason}: {f.text}" for f in faults)
        raise HisobError(f"{path} is not right yet, and nothing was journalled: {said}", exit_code=2)
    rows = as_staged("tariff", Checker("tariff", path.name, partitions=1, until=now_us).check(raw).good, Names())
    versions: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        versions.setdefault((row["tariff"], row["effective_on"]), []).append(row)
    for (tariff, day), own in versions.items():
        if len(own) != own[0]["blocks"]:
            raise HisobError(f"{path} has {tariff} of {day} more than once: leave the one that is right.", exit_code=2)
    warnings = [f for f in findings if f.severity != "fault"]
    return [Version(tariff, day, tuple(own)) for (tariff, day), own in versions.items()], warnings


def correct(
    home: Home, settings: Settings, right: Sequence[Version], *, author: str, reason: str | None, dry_run: bool
) -> Outcome:
    """Put these tariffs right. With dry_run nothing is journalled: it is worked out from what is published."""
    return carry_out(
        home,
        settings,
        lambda: work_out(home, right, reason),
        author,
        dry_run=dry_run,
        first=lambda: journal_missing(home, right),
    )


def journal_missing(home: Home, right: Sequence[Version]) -> bool:
    """Journal those that are not in force yet; whether there were any."""
    from warehouse.rerate import open_overlay, read_versions

    with open_overlay(home) as con:
        missing = missing_versions(read_versions(con), right)
    if missing:
        journal_versions(home, missing)
    return bool(missing)


def missing_versions(known: Sequence[Version], right: Iterable[Version]) -> list[Version]:
    """Those that are not in force yet. Raises HisobError for one that another has taken the place of since."""
    missing = []
    for version in right:
        same = [
            v
            for v in known
            if (v.tariff, v.effective_on) == (version.tariff, version.effective_on) and not v.is_repetition
        ]
        if same and same[-1].digest == version.digest:
            continue
        if any(v.digest == version.digest and v.sources == version.sources for v in same):
            raise HisobError(
                f"{version.tariff} of {version.effective_on} is journalled with these prices, but another version of that day"
                " arrived after it and counts. Correct with that one; or, if these are right after all, give them again"
                " under another `source` (the decision that puts them back)."
            )
        missing.append(version)
    return missing


def journal_versions(home: Home, versions: Iterable[Version]) -> None:
    """Journal the right versions."""
    from connectors.files.formats import columns_of

    names = [column.name for column in columns_of("tariff")]
    rows = [{name: row.get(name) for name in names} for version in versions for row in version.rows]
    with journal_of(home) as arrivals:
        arrivals.take({"tariff": rows})


def work_out(home: Home, right: Sequence[Version], reason: str | None) -> Outcome:
    """What has to be posted, by what is published."""
    from warehouse.changes import put_accounts_right
    from warehouse.rerate import TARIFF, accounts_on, last_tick, open_overlay, put_tariffs_right, rerate

    what = f"{TARIFF}:{'+'.join(sorted(version.digest for version in right))}"
    first = min(version.effective_on for version in right)
    since = dt.datetime.combine(first, dt.time(), TASHKENT)
    with open_overlay(home) as con:
        put_tariffs_right(con, as_journalled(con, right))
        accounts = accounts_on(con, {version.tariff for version in right})
        put_accounts_right(con, accounts)
        rerated = rerate(con, accounts, what, since)
        tariffs = tariffs_of(con)
        as_of = last_tick(con)
    days: dict[str, list[dt.date]] = {version.tariff: [] for version in right}
    for version in right:
        days[version.tariff].append(version.effective_on)
    postings = []
    for r in rerated:
        if r.due_tiyin:
            own = [tariff for tariff in days if tariff in tariffs[r.account_id]]
            named = " and ".join(own) if len(own) <= NAMED else "several tariffs"
            day = min(d for tariff in own for d in days[tariff])
            text = because(f"Right prices of {named} from {day}: {kwh(r.usage_wh)} kWh used since", r.due_tiyin, reason)
            postings.append(Posting(r.account_id, f"{what}:{r.times + 1}", r.due_tiyin, text))
    return Outcome(as_of, len(rerated), tuple(postings), posted=False)


def as_journalled(con: duckdb.DuckDBPyConnection, right: Iterable[Version]) -> list[Version]:
    """The right versions as the journal has them, where it has them: with their place, and their own sources."""
    from warehouse.rerate import read_versions

    known = {version.digest: version for version in read_versions(con) if not version.is_repetition}
    return [known.get(version.digest, version) for version in right]


def tariffs_of(con: duckdb.DuckDBPyConnection) -> dict[str, set[str]]:
    """The tariffs of each account that was re-rated."""
    found = con.execute(
        "SELECT account_id, list(DISTINCT tariff) FROM journal.account SEMI JOIN concerned USING (account_id) GROUP BY 1"
    )
    return {account: set(tariffs) for account, tariffs in found.fetchall()}
