"""Payments and adjustments: credited in order of arrival, each id once. "Payments and adjustments" in the bill's rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accounting.decisions import review, review_after_credit
from accounting.ledger import ADJUSTMENT, NO_BASIS, PAYMENT, REVERSAL, post
from accounting.partition import REMEMBERED_US, Partition, Payment, Record, digest
from accounting.records import OWN_TIME
from accounting.state import ABSENT, NONE

if TYPE_CHECKING:
    pass

ID = {"payment": "payment_id", "adjustment": "adjustment_id"}


def apply_payment(p: Partition, kind: str, record: Record) -> None:
    """Take a payment or adjustment: credited, refused, held until its account arrives, or ignored as a repetition."""
    i = p.find(record["account_id"])
    if p.accounts[i].phase == ABSENT:
        ordinal, n = p.hold(kind, record, "unknown_account")
        p.waiting.setdefault(record["account_id"], []).append((ordinal, n, kind, record))
        return
    if credit(p, i, kind, record) == "settled":
        (review_after_credit if is_credit(record) else review)(p, i, p.moment_of(kind, record))


def is_credit(record: Record) -> bool:
    """Whether it lifts the balance: no reversal, and no adjustment against the customer."""
    return record.get("reverses") is None and int(record["amount_tiyin"]) > 0


def credit(p: Partition, i: int, kind: str, record: Record) -> str:
    """Judge and credit one for an account that is there. What became of it: settled, unchanged or refused."""
    at, amount = record[OWN_TIME[kind]], record["amount_tiyin"]
    remembered = p.payments.setdefault(i, {})
    key = f"{kind} {record[ID[kind]]}"
    content = digest(kind, record)
    reverses = record.get("reverses")
    original = _recall(p, remembered, f"payment {reverses}") if reverses is not None else None
    known = _recall(p, remembered, key)
    if p.last_tick != NONE and at < p.last_tick - REMEMBERED_US:
        reason = "too_late"
    elif known is not None:
        if known.content == content:
            p.ignore(kind)
            return "unchanged"
        reason = "duplicate"
    elif reverses is not None and (original is None or original.amount_tiyin != amount or original.is_reversal):
        reason = "unknown_payment"
    elif original is not None and original.reversed:
        reason = "already_reversed"
    else:
        remembered[key] = Payment(at, content, amount, reverses is not None)
        if original is not None:
            original.reversed = True
        _post(p, i, kind, at, -amount if original is not None else amount, original is not None)
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


def _post(p: Partition, i: int, kind: str, at: int, amount: int, reversal: bool) -> None:
    s = p.accounts[i]
    s.balance_tiyin += amount
    what = ADJUSTMENT if kind == "adjustment" else REVERSAL if reversal else PAYMENT
    p.wake_at[i] = NONE
    post(p.ledger, i, what, NO_BASIS, -1, NONE, at, NONE, NONE, 0, amount, s.balance_tiyin)
