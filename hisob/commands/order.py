"""`hisob order`: an order by hand: cut, reconnect, hold or release."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hisob.by_hand import Author, Reason
from hisob.commands import AsJson, home_of


def order(
    context: typer.Context,
    action: Annotated[str, typer.Argument(help="disconnect, reconnect, hold or release.")],
    account: Annotated[str, typer.Argument(help="The account it is about.")],
    cause: Annotated[str, typer.Option(help="court, safety, tamper, load or request.")],
    reason: Reason,
    author: Author = None,
    as_json: AsJson = False,
) -> None:
    """Order what the credit alone would not do. `safety` acts at once; the others keep to windows, holidays and protection.

    `reconnect` gives the supply back once; `hold` keeps it on, whatever the balance, until `release`.
    """
    from accounting.records import RECORDS
    from hisob.by_hand import author_or_login, check_account, journal_of, moment_of, new_id, take
    from hisob.errors import HisobError

    home, settings = home_of(context)
    choices = {column.name: column.choices for column in RECORDS["order"]}
    for column, given in (("action", action), ("cause", cause)):
        if given not in choices[column]:
            raise HisobError(f"{column} {given!r}: it is one of {', '.join(choices[column])}.", exit_code=2)
    with journal_of(home) as arrivals:
        check_account(arrivals, account)
        now = moment_of(arrivals, settings)
        row = {
            "order_id": new_id("order"),
            "account_id": account,
            "ordered_at": now,
            "action": action,
            "cause": cause,
            "author": author_or_login(author),
            "reason": reason,
            "received_at": now,
        }
        place = take(arrivals, "order", row)
    if as_json:
        told = {name: row[name] for name in ("order_id", "account_id", "action", "cause", "author", "reason")}
        print(json.dumps({**told, "partition": place.partition, "ordinal": place.ordinal}, ensure_ascii=False))
        return
    print(f"Ordered: {action} {account}, for {cause}, by {row['author']}: {reason}")
    print(f"It is order {row['order_id']}. The same call again is another order.")
