"""`hisob policy`: what governs cuts and notices, set, listed and ended, each with who and why."""

from __future__ import annotations

import datetime as dt
import json
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hisob.by_hand import Author, Reason
from hisob.commands import AsJson, home_of

if TYPE_CHECKING:
    from connectors.home import Home

policy = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Set, list and end policies: windows for cuts, holidays, moratoria, thresholds, quiet hours.",
)


@policy.command()
def add(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="disconnect_window, holiday, moratorium, threshold or quiet_hours.")],
    reason: Reason,
    scope: Annotated[str, typer.Option(help="all, district:X, feeder:X or account:X.")] = "all",
    value: Annotated[
        str | None, typer.Option(help='As JSON: {"from": "10:00", "to": "16:00", "days": [1, 2]} for a window.')
    ] = None,
    starts: Annotated[str | None, typer.Option("--from", metavar="TIME", help="From when.", show_default="now")] = None,
    ends: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Until when.", show_default="for good")
    ] = None,
    policy_id: Annotated[
        str | None, typer.Option("--id", help="Its id. One that is used already is replaced.", show_default="a new one")
    ] = None,
    author: Author = None,
    as_json: AsJson = False,
) -> None:
    """Set a policy. Of several that apply, the narrowest scope counts, then the latest; holidays and moratoria add up."""
    from hisob.by_hand import author_or_login, check_account, journal_of, moment_of, new_id, parse_moment

    home, settings = home_of(context)
    _check(kind, scope, value)
    with journal_of(home) as arrivals:
        what, _, name = scope.partition(":")
        if what == "account":
            check_account(arrivals, name)
        now = moment_of(arrivals, settings)
        row = {
            "policy_id": new_id(kind) if policy_id is None else policy_id,
            "kind": kind,
            "scope": scope,
            "starts_at": parse_moment(starts, "--from") if starts else now,
            "ends_at": parse_moment(ends, "--until") if ends else None,
            "value": value,
            "author": author_or_login(author),
            "reason": reason,
            "received_at": now,
        }
        _journal(arrivals, row)
    _tell("Set", row, as_json=as_json)


@policy.command("list")
def list_policies(
    context: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Those that have ended, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is in force now or will be: scope, value, from when, by whom and why."""
    from hisob.by_hand import journal_of, moment_of

    home, settings = home_of(context)
    with journal_of(home) as arrivals:
        now = moment_of(arrivals, settings)
    found = [p for p in policies_in(home) if all_ or _state(p, now) != "ended"]
    if as_json:
        print(json.dumps([{**_plain(p), "state": _state(p, now)} for p in found], ensure_ascii=False))
        return
    for p in found:
        state = _state(p, now)
        until = f" until {_shown(p['ends_at'])}" if p["ends_at"] else ""
        print(f"{p['policy_id']}  {p['kind']}, {p['scope']}  [{state}, from {_shown(p['starts_at'])}{until}]")
        if p["value"]:
            print(f"    {p['value']}")
        print(f"    {p['author']}: {p['reason']}")
    if not found:
        print("No policy is in force or to come." if not all_ else "There is no policy.")


@policy.command()
def end(
    context: typer.Context,
    policy_id: Annotated[str, typer.Argument(help="The policy's id; `hisob policy list` has them.")],
    reason: Reason,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="When it ends.", show_default="now")] = None,
    author: Author = None,
    as_json: AsJson = False,
) -> None:
    """End a policy: it is journalled once more under its id, as it was, with its end."""
    from hisob.by_hand import author_or_login, journal_of, moment_of, parse_moment
    from hisob.errors import HisobError

    home, settings = home_of(context)
    stands = next((p for p in policies_in(home) if p["policy_id"] == policy_id), None)
    if stands is None:
        raise HisobError(f"There is no policy {policy_id!r}: hisob policy list --all has those there are.", exit_code=2)
    with journal_of(home) as arrivals:
        now = moment_of(arrivals, settings)
        if _state(stands, now) == "ended":
            raise HisobError(f"{policy_id} has ended already, {_shown(stands['ends_at'])}.", exit_code=2)
        ends_at = parse_moment(at, "--at") if at else now
        row = {
            **stands,
            "ends_at": max(ends_at, stands["starts_at"]),  # one that is yet to come never begins
            "author": author_or_login(author),
            "reason": reason,
            "received_at": now,
        }
        _journal(arrivals, row)
    _tell("Ended", row, as_json=as_json)


def policies_in(home: Home) -> list[dict[str, Any]]:
    """The policies of the journal that settle takes, each as it was journalled last, in order of their first arrival."""
    from accounting.policies import check_policy
    from connectors.log.body import decode, unpack
    from connectors.log.sqlite import open_log

    found: dict[str, dict[str, Any]] = {}
    with closing(open_log(home.journal, readonly=True)) as log:
        unrouted, position = log.partitions - 1, 0  # every partition has them; this one is the shortest
        while rows := log.read(unrouted, position):
            for row in rows:
                batch = decode(row.body, ("policy",)).batches.get("policy")
                for p in unpack("policy", batch).to_pylist() if batch is not None else ():
                    if check_policy(p["kind"], p["scope"], p["value"]) is None:
                        found[p["policy_id"]] = p
            position = rows[-1].end
    return list(found.values())


def _check(kind: str, scope: str, value: str | None) -> None:
    """Raise HisobError (exit 2) if settle would refuse the policy."""
    from accounting.policies import check_policy
    from accounting.records import POLICY_KINDS
    from hisob.errors import HisobError

    if kind not in POLICY_KINDS:
        raise HisobError(f"There is no kind {kind!r} of policy: there are {', '.join(POLICY_KINDS)}.", exit_code=2)
    if fault := check_policy(kind, scope, value):
        raise HisobError(f"Not journalled: {fault}. {EXAMPLES.get(kind, '')}".rstrip(), exit_code=2)


EXAMPLES = {
    "disconnect_window": """Such as --value '{"days": [1, 2, 3, 4], "from": "10:00", "to": "16:00"}'.""",
    "quiet_hours": """Such as --value '{"from": "20:00", "to": "09:00"}'.""",
    "threshold": """Such as --value '{"notice_hours": 72, "cuts_per_hour": 500}'.""",
}


def _journal(arrivals: Any, row: dict[str, Any]) -> None:
    from hisob.by_hand import take
    from hisob.errors import HisobError

    if row["ends_at"] is not None and row["ends_at"] < row["starts_at"]:
        raise HisobError("It would end before it begins: look at --from and --until.", exit_code=2)
    take(arrivals, "policy", row)


def _state(p: dict[str, Any], now: dt.datetime) -> str:
    if p["ends_at"] is not None and p["ends_at"] <= max(now, p["starts_at"]):
        return "ended"
    return "in force" if p["starts_at"] <= now else "to come"


def _tell(what: str, row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_plain(row), ensure_ascii=False))
        return
    until = f" until {_shown(row['ends_at'])}" if row["ends_at"] else ""
    print(
        f"{what}: {row['kind']} for {row['scope']}, from {_shown(row['starts_at'])}{until}, as policy {row['policy_id']}."
    )
    print(f"By {row['author']}: {row['reason']}")


def _plain(p: dict[str, Any]) -> dict[str, Any]:
    """For JSON: times as text, the value as it is meant."""
    times = {name: _shown(p[name]) for name in ("starts_at", "ends_at", "received_at")}
    return {**p, **times, "value": json.loads(p["value"]) if p["value"] else None}


def _shown(moment: dt.datetime | None) -> str | None:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None
