"""Payments and adjustments: credited in order of arrival, each id once. "Payments and adjustments" in the bill's rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from accounting.decisions import SAFETY, carry_out
from accounting.ledger import ADJUSTMENT, PAYMENT, REVERSAL
from accounting.partition import REMEMBERED_US, Partition, Payment, Record
from accounting.records import OWN_TIME
from accounting.state import NONE
from accounting.supply import post_payment, settle_payments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ID = {"payment": "payment_id", "adjustment": "adjustment_id"}
REST = {
    "payment": ("channel", "reverses"),
    "adjustment": ("author", "reason"),
}  # of the content, beside moment and amount


def apply_payments(p: Partition, kind: str, records: Iterable[Record], ordinal: int) -> None:
    """Take payments or adjustments in a row, the first of which is the journal's `ordinal`: each is credited, refused, held
    until its account arrives, or ignored as a repetition.
    """
    postings: list[tuple[int, ...]] = []
    for number, record in enumerate(records, ordinal):
        p.turn_to(number)
        i = p.find(record["account_id"])
        if i == 0:
            first, n = p.hold(kind, record, "unknown_account")
            p.waiting.setdefault(record["account_id"], []).append((first, n, kind, record))
        elif judge(p, i, kind, record) == "settled":
            now = p.moment_of(kind, record)
            if postings and not p.rules_hold(now):
                settle_postings(p, postings)
                postings = []
            postings.append((number, i, *posting(kind, record), is_credit(record), now))
    if postings:
        settle_postings(p, postings)


def settle_postings(p: Partition, postings: Sequence[tuple[int, ...]]) -> None:
    """Post them one after the other, and carry out what each makes due. The rules of the first one's moment hold for all."""
    rows, due = np.array(postings, np.int64), np.zeros(1, np.int64)
    rules, k = p.rules_now(postings[0][-1]), 0
    while True:
        p.reserve(len(rows) - k + 64)
        k = settle_payments(p.accounts, p.wake_at, p.book.arrays(), rules, p.ledger, rows, k, SAFETY, due)
        if k == len(rows):
            break
        _, account, *_, now = postings[k]
        carry_out(p, account, int(due[0]), now)
        k += 1


def apply_waiting(p: Partition, i: int, kind: str, record: Record) -> str:
    """Take one that was held until its account arrived; decisions come with the account. What became of it."""
    outcome = judge(p, i, kind, record)
    if outcome == "settled":
        post_payment(p.accounts[i], i, p.wake_at, p.ledger, *posting(kind, record))
    return outcome


def is_credit(record: Record) -> bool:
    """Whether it lifts the balance: no reversal, and no adjustment against the customer."""
    return record.get("reverses") is None and int(record["amount_tiyin"]) > 0


def posting(kind: str, record: Record) -> tuple[int, int, int]:
    """Of its entry: the kind, the moment and the signed amount."""
    at, amount = int(record[OWN_TIME[kind]]), int(record["amount_tiyin"])
    if kind == "adjustment":
        return ADJUSTMENT, at, amount
    return (PAYMENT, at, amount) if record.get("reverses") is None else (REVERSAL, at, -amount)


def judge(p: Partition, i: int, kind: str, record: Record) -> str:
    """Whether one for an account that is there is credited, and remember it: settled, unchanged or refused."""
    at, amount = record[OWN_TIME[kind]], record["amount_tiyin"]
    remembered = p.payments.setdefault(i, {})
    key = f"{kind} {record[ID[kind]]}"
    reverses = record.get("reverses")
    by, of = map(record.get, REST[kind])
    payment = Payment(at, amount, by, of, reverses is not None)
    original = _recall(p, remembered, f"payment {reverses}") if reverses is not None else None
    known = _recall(p, remembered, key)
    if p.last_tick != NONE and at < p.last_tick - REMEMBERED_US:
        reason = "too_late"
    elif known is not None:
        if known.content == payment.content:
            p.ignore(kind)
            return "unchanged"
        reason = "duplicate"
    elif reverses is not None and (original is None or original.amount_tiyin != amount or original.is_reversal):
        reason = "unknown_payment"
    elif original is not None and original.reversed:
        reason = "already_reversed"
    else:
        remembered[key] = payment
        if original is not None:
            original.reversed = True
        return "settled"
    p.refuse(kind, record, reason)
    return "refused"


def forget_payments(p: Partition) -> None:
    """Let go of payments whose 400 days are over."""
    for i, remembered in list(p.payments.items()):
        kept = {key: payment for key, payment in remembered.items() if payment.at >= p.last_tick - REMEMBERED_US}
        if kept:
            p.payments[i] = kept
        else:
            del p.payments[i]


def _recall(p: Partition, remembered: dict[str, Payment], key: str) -> Payment | None:
    payment = remembered.get(key)
    if payment is None or (p.last_tick != NONE and payment.at < p.last_tick - REMEMBERED_US):
        return None
    return payment
