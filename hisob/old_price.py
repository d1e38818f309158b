"""The right to the old price for energy prepaid before a rise, as adjustments. The rule is in `warehouse.old_price`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accounting.moments import TASHKENT, moment_of
from hisob.rerating import Outcome, Posting, kwh, soum

if TYPE_CHECKING:
    from connectors.home import Home
    from warehouse.old_price import Right


def work_out(home: Home, months: int) -> Outcome:
    """What has to be posted, by what is published."""
    from warehouse.changes import put_accounts_right
    from warehouse.old_price import accounts_concerned, find_rights
    from warehouse.rerate import last_tick, open_overlay, put_tariffs_right

    with open_overlay(home) as con:
        now = last_tick(con)
        if now is None:  # nothing has happened yet
            return Outcome(None, 0, (), posted=False)
        put_tariffs_right(con, [])
        accounts = accounts_concerned(con, months, now)
        put_accounts_right(con, accounts)
        looked_at, rights = find_rights(con, accounts, months, now)
    postings = [Posting(right.account_id, right.adjustment_id, right.due_tiyin, reason_of(right)) for right in rights]
    return Outcome(now, looked_at, tuple(postings), posted=False)


def reason_of(right: Right) -> str:
    """What the customer reads."""
    day = moment_of(right.rise_at).astimezone(TASHKENT).date()
    prepaid = f"{kwh(right.energy_wh)} kWh prepaid before the prices of {right.tariff} rose on {day}"
    if right.part == "advance":
        return f"Old price for {prepaid}: {soum(right.worth_tiyin)} soum in advance"
    return f"Old price for {prepaid}: in the end it was {soum(right.worth_tiyin)} soum"
