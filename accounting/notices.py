"""The texts of notices in the customer's language. Pure: times come in, text goes out.

Uzbek Latin is written with U+0027 for oʻ, gʻ and ʼ, so that it stays within GSM-7 (160 characters an SMS); Cyrillic is UCS-2.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from accounting.calendar import UTC_OFFSET_US
from accounting.records import NOTICE_KINDS
from accounting.state import FOREVER

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  a wall clock's, the offset is added by hand

TEXTS = {
    "low_credit": {
        "uz-Latn": "{account}: balans {balance} so'm. Mablag' {when} tugashi kutilmoqda. Iltimos, {pay} so'm to'lang.",
        "uz-Cyrl": "{account}: баланс {balance} сўм. Маблағ {when} тугаши кутилмоқда. Илтимос, {pay} сўм тўланг.",
        "ru": "{account}: баланс {balance} сум. Средства закончатся {when}. Пожалуйста, внесите {pay} сум.",
    },
    "disconnected": {
        "uz-Latn": "{account}: balans {balance} so'm, elektr uzildi. Yoqish uchun {pay} so'm to'lang, avtomatik ulanadi.",
        "uz-Cyrl": "{account}: баланс {balance} сўм, электр узилди. Ёқиш учун {pay} сўм тўланг, автоматик уланади.",
        "ru": "{account}: баланс {balance} сум, электричество отключено. Внесите {pay} сум, включение автоматическое.",
    },
    "reconnected": {
        "uz-Latn": "{account}: elektr ulandi. Balans {balance} so'm.",
        "uz-Cyrl": "{account}: электр уланди. Баланс {balance} сўм.",
        "ru": "{account}: электричество подключено. Баланс {balance} сум.",
    },
}


# A row of NOTICE (accounting.ledger), and of its account the id, the phone and the language.
Told = tuple[tuple[int, ...], str, str | None, str | None]


def notice_event(told: Told) -> tuple[Any, ...]:
    """The event of a notice: its columns."""
    (o, n, _, kind, at, send_after, balance, pay, depletes_at, episode), account_id, phone, language = told
    name, language = NOTICE_KINDS[kind], language or "uz-Latn"
    depletes = None if depletes_at == FOREVER else depletes_at
    text = notice_text(name, language, account_id, balance, depletes, pay)
    return o, n, account_id, at, send_after, name, phone, language, text, depletes, episode


def soum(tiyin: int) -> str:
    """Whole soum in groups of three, cut towards zero: what a customer reads."""
    return f"{'-' if tiyin < 0 else ''}{abs(tiyin) // 100:,}".replace(",", " ")


def local_time(at: int) -> str:
    """A moment as `31.12.2026 18:30`, Asia/Tashkent."""
    local = EPOCH + timedelta(microseconds=at + UTC_OFFSET_US)
    return f"{local.day:02}.{local.month:02}.{local.year} {local.hour:02}:{local.minute:02}"


def notice_text(
    kind: str, language: str | None, account_id: str, balance_tiyin: int, depletes_at: int | None, pay_tiyin: int
) -> str:
    """The text of a notice. pay_tiyin: what to pay; the text rounds it up to whole thousands of soum."""
    pay = max(-(-pay_tiyin // 100_000), 1) * 100_000
    template = TEXTS[kind].get(language or "uz-Latn", TEXTS[kind]["uz-Latn"])
    when = local_time(depletes_at) if depletes_at is not None else "-"
    return template.format(account=account_id, balance=soum(balance_tiyin), when=when, pay=soum(pay))
