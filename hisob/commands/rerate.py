"""`hisob rerate`: what was recorded of an account too late, or wrongly, put right by an adjustment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.by_hand import Author
from hisob.commands import AsJson, DryRun, home_of

if TYPE_CHECKING:
    import datetime as dt

    from connectors.home import Home
    from hisob.rerating import Outcome, Posting
    from warehouse.changes import Change

CHANGED, MOVED, EXCHANGED = "A change of tariff or families", "A move", "A meter exchange"


def rerate(
    context: typer.Context,
    account: Annotated[str, typer.Argument(help="The account.")],
    since: Annotated[
        str, typer.Option("--from", metavar="TIME", help="From when, as 2025-05-10T00:00:00+05:00.", show_default=False)
    ],
    tariff: Annotated[
        str | None, typer.Option(help="The tariff it should have had from then on.", rich_help_panel=CHANGED)
    ] = None,
    families: Annotated[
        int | None,
        typer.Option(min=1, help="The families there should have been from then on.", rich_help_panel=CHANGED),
    ] = None,
    moved_out: Annotated[
        bool,
        typer.Option("--moved-out", help="The customer left then: nothing after it is theirs.", rich_help_panel=MOVED),
    ] = False,
    moved_in: Annotated[
        bool,
        typer.Option(
            "--moved-in", help="The customer came then: what the meter counted since is theirs.", rich_help_panel=MOVED
        ),
    ] = False,
    register: Annotated[
        int | None,
        typer.Option(min=0, metavar="WH", help="The meter's register at the move.", rich_help_panel=MOVED),
    ] = None,
    exchanged: Annotated[
        bool, typer.Option("--exchanged", help="The meter was exchanged then.", rich_help_panel=EXCHANGED)
    ] = False,
    old_register: Annotated[
        int | None, typer.Option(min=0, metavar="WH", help="What the old meter showed.", rich_help_panel=EXCHANGED)
    ] = None,
    new_register: Annotated[
        int | None, typer.Option(min=0, metavar="WH", help="What the new one began with.", rich_help_panel=EXCHANGED)
    ] = None,
    old_meter: Annotated[
        str | None, typer.Option(help="The old meter; unless given, the account's.", rich_help_panel=EXCHANGED)
    ] = None,
    new_meter: Annotated[
        str | None, typer.Option(help="The new one; unless given, the same id goes on.", rich_help_panel=EXCHANGED)
    ] = None,
    dry_run: DryRun = False,
    author: Author = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, beside what is put right.")] = None,
    as_json: AsJson = False,
) -> None:
    """Re-rate an account's past as if something had been recorded in time, and post the difference as one adjustment.

    With --from alone: every version that was recorded late counts from its own moment. After it the account's balance is
    what it would have been. It is posted once, however often it is run. A late move is two calls, one for each account.
    """
    from hisob.by_hand import author_or_login
    from hisob.rerating import carry_out, tell

    given: dict[str, Any] = {"register": register, "old_register": old_register, "new_register": new_register}
    given |= {"tariff": tariff, "families": families, "old_meter": old_meter, "new_meter": new_meter}
    home, settings = home_of(context)
    change = change_of(since, {"moved_out": moved_out, "moved_in": moved_in, "exchanged": exchanged}, given)
    outcome = carry_out(
        home, settings, lambda: work_out(home, account, change, reason), author_or_login(author), dry_run=dry_run
    )
    tell(outcome, as_json=as_json, dry_run=dry_run)


OPTIONS = {  # of each kind of change: those it needs, and those it may have
    "version": ((), ("tariff", "families")),
    "moved_out": (("register",), ()),
    "moved_in": (("register",), ()),
    "exchanged": (("old_register", "new_register"), ("old_meter", "new_meter")),
}


def change_of(since: str, flags: dict[str, bool], given: dict[str, Any]) -> Change:
    """The change that the options say. Raises HisobError (exit 2)."""
    from hisob.by_hand import parse_moment
    from hisob.errors import HisobError
    from warehouse.changes import Change

    moment: dt.datetime = parse_moment(since, "--from")
    chosen = [name for name, is_set in flags.items() if is_set]
    if len(chosen) > 1:
        raise HisobError(f"{' and '.join(map(option, chosen))}: one at a time.", exit_code=2)
    kind = chosen[0] if chosen else "version"
    needs, may = OPTIONS[kind]
    said = option(kind) if chosen else "a change of tariff or families"
    if missing := [name for name in needs if given[name] is None]:
        raise HisobError(f"{said} needs {' and '.join(map(option, missing))}.", exit_code=2)
    if stray := [name for name, value in given.items() if value is not None and name not in (*needs, *may)]:
        raise HisobError(
            f"{' and '.join(map(option, stray))} is no option of {said}: see hisob rerate --help.", exit_code=2
        )
    return Change(kind, moment, tuple((name, given[name]) for name in (*needs, *may) if given[name] is not None))


def option(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def work_out(home: Home, account: str, change: Change, reason: str | None) -> Outcome:
    """What has to be posted to the account, by what is published."""
    from hisob.errors import HisobError
    from hisob.rerating import Outcome, Posting, because
    from warehouse.changes import put_account_right, put_accounts_right
    from warehouse.rerate import ACCOUNT, last_tick, open_overlay, put_tariffs_right
    from warehouse.rerate import rerate as rerate_accounts

    what = f"{ACCOUNT}:{change.text}"
    with open_overlay(home) as con:
        if not con.execute("SELECT 1 FROM audit.main.balances WHERE account_id = ?", [account]).fetchall():
            raise HisobError(f"There is no account {account!r} in what is published on {home.path}.", exit_code=2)
        put_tariffs_right(con, [])
        put_accounts_right(con, [account])
        put_account_right(con, account, change)
        (rerated,) = rerate_accounts(con, [account], what, change.since)
        as_of = last_tick(con)
    postings: tuple[Posting, ...] = ()
    if rerated.due_tiyin:
        text = because(described(change, rerated.usage_wh), rerated.due_tiyin, reason)
        postings = (Posting(account, f"{what}:{rerated.times + 1}", rerated.due_tiyin, text),)
    return Outcome(as_of, 1, postings, posted=False)


def described(change: Change, usage_wh: int) -> str:
    """What is put right, for the reason of the adjustment."""
    from hisob.rerating import kwh

    if change.kind == "moved_out":
        return f"Moved out on {change.when} at register {kwh(change.get('register'))} kWh: what was used until then"
    used = f"{kwh(usage_wh)} kWh used since"
    if change.kind == "moved_in":
        return f"Moved in on {change.when} at register {kwh(change.get('register'))} kWh: {used}"
    if change.kind == "exchanged":
        registers = (
            f"{kwh(change.get('old_register'))} kWh on the old, {kwh(change.get('new_register'))} kWh on the new"
        )
        return f"Meter exchanged on {change.when}, {registers}: {used}"
    words = [f"tariff {change.get('tariff')}"] if change.get("tariff") else []
    words += [f"{change.get('families')} families"] if change.get("families") else []
    return f"{' and '.join(words).capitalize() or 'Versions recorded late'} from {change.when}: {used}"
