"""`hisob pay`: a payment by hand, for trying things out."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hisob.commands import AsJson, home_of


def pay(
    context: typer.Context,
    account: Annotated[str, typer.Argument(help="The account paid for.")],
    amount: Annotated[str, typer.Argument(help="In soum: 12500, or 12500.50.")],
    channel: Annotated[str, typer.Option(help="By what way it came.")] = "hisob pay",
    payment_id: Annotated[
        str | None, typer.Option("--id", help="The payment's id, if it has one. The same id twice is one payment.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Journal a payment, now. Real ones come from their channels, by `hisob ingest payment=FILE` or the inbox."""
    from hisob.by_hand import check_account, journal_of, moment_of, new_id, parse_soum, take

    home, settings = home_of(context)
    tiyin = parse_soum(amount)
    with journal_of(home) as arrivals:
        check_account(arrivals, account)
        now = moment_of(arrivals, settings)
        row = {
            "payment_id": new_id("pay") if payment_id is None else payment_id,
            "account_id": account,
            "paid_at": now,
            "amount_tiyin": tiyin,
            "channel": channel,
            "received_at": now,
        }
        place = take(arrivals, "payment", row)
    if as_json:
        told = {"payment_id": row["payment_id"], "account_id": account, "amount_tiyin": tiyin}
        print(json.dumps({**told, "partition": place.partition, "ordinal": place.ordinal}, ensure_ascii=False))
        return
    print(
        f"Paid {tiyin // 100:,}.{tiyin % 100:02} soum ({tiyin:,} tiyin) for {account}, as payment {row['payment_id']}."
    )
    print("The same call again is another payment, under another id.")
