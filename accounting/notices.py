"""The texts of notices in the customer's language. Pure: times come in, text goes out.

Uzbek Latin is written with U+0027 for oʻ, gʻ and ʼ, so that it stays within GSM-7 (160 characters an SMS); Cyrillic is UCS-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from accounting.calendar import UTC_OFFSET_US
from accounting.columns import whole_columns
from accounting.records import NOTICE_KINDS
from accounting.state import FOREVER
from accounting.texts import join

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

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


FALLBACK = "uz-Latn"


@dataclass(frozen=True)
class Told:
    """Notices as they were decided (rows of NOTICE), with the ids of their accounts, and the phones and languages of then."""

    rows: Any
    account_ids: list[str]
    phones: list[str | None]
    languages: list[str | None]


def notice_events(told: Sequence[Told]) -> pa.RecordBatch:
    """Their events as whole columns."""
    rows = np.concatenate([some.rows for some in told])
    account_id, phone = ([x for some in told for x in getattr(some, name)] for name in ("account_ids", "phones"))
    language = [x or FALLBACK for some in told for x in some.languages]
    numbers = (rows[name] for name in ("kind", "balance_tiyin", "depletes_at", "pay_tiyin"))
    columns = {
        **{name: rows[name] for name in ("ordinal", "n", "noticed_at", "send_after", "episode")},
        "account_id": account_id,
        "kind": _KINDS.take(pa.array(rows["kind"])),
        "phone": phone,
        "language": language,
        "text": notice_texts(*numbers, language=language, account_id=account_id),
        "depletes_at": _depletion(rows["depletes_at"]),
    }
    return whole_columns("notice", columns)


def notice_texts(
    kind: NDArray[np.uint8],
    balance_tiyin: NDArray[np.int64],
    depletes_at: NDArray[np.int64],
    pay_tiyin: NDArray[np.int64],
    *,
    language: Sequence[str],
    account_id: Sequence[str],
) -> pa.StringArray:
    """The texts of notices. kind: numbers of NOTICE_KINDS. pay_tiyin: what to pay; a text rounds it up to whole thousands of
    soum. depletes_at: FOREVER where there is no such moment.
    """
    pay = np.maximum(-(-pay_tiyin // 100_000), 1) * 100_000
    values = {
        "account": pa.array(account_id, pa.string()),
        "balance": pa.array([soum(tiyin) for tiyin in balance_tiyin.tolist()]),
        "when": pc.fill_null(local_times(_depletion(depletes_at)), "-"),
        "pay": pa.array([soum(tiyin) for tiyin in pay.tolist()]),
    }
    templates: dict[str, list[int]] = {}
    for row, (number, name) in enumerate(zip(kind.tolist(), language, strict=True)):
        texts = TEXTS[NOTICE_KINDS[number]]
        templates.setdefault(texts.get(name, texts[FALLBACK]), []).append(row)
    filled = [_fill(template, values, pa.array(rows)) for template, rows in templates.items()]
    place = np.concatenate([np.array(rows) for rows in templates.values()])
    return pa.concat_arrays(filled).take(pa.array(np.argsort(place)))


def _fill(template: str, values: Mapping[str, pa.StringArray], rows: pa.Array) -> pa.StringArray:
    parts: list[pa.Array | str] = []
    for text, name, _, _ in Formatter().parse(template):
        parts += [text] if name is None else [text, values[name].take(rows)]
    return join(*parts)


def _depletion(moments: NDArray[np.int64]) -> pa.Array:
    return pa.array(moments, mask=moments == FOREVER)


def soum(tiyin: int) -> str:
    """Whole soum in groups of three, cut towards zero: what a customer reads."""
    return f"{'-' if tiyin <= -100 else ''}{abs(tiyin) // 100:,}".replace(",", " ")


def local_times(moments: pa.Array) -> pa.StringArray:
    """Moments (µs) as `31.12.2026 18:30`, Asia/Tashkent."""
    return pc.strftime(pc.add(moments, UTC_OFFSET_US).cast(pa.timestamp("us")), "%d.%m.%Y %H:%M")


_KINDS = pa.array(NOTICE_KINDS, pa.string())
