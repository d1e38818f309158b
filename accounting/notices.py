"""The texts of notices in the customer's language. Pure: times come in, text goes out.

Uzbek Latin is written with U+0027 for oʻ, gʻ and ʼ, so that it stays within GSM-7 (160 characters an SMS); Cyrillic is UCS-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from accounting.calendar import US_PER_MINUTE, day_of, day_start, month_of, month_start
from accounting.columns import Columns, coded, filled
from accounting.compiled import compiled
from accounting.records import NOTICE_KINDS, TIME
from accounting.state import FOREVER
from accounting.texts import join, texts_of

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


def notice_events(told: Sequence[Told]) -> Columns:
    """Their events as whole columns."""
    rows = np.concatenate([some.rows for some in told])
    account_id, phone, language = (
        pa.array([x for some in told for x in getattr(some, name)], pa.string())
        for name in ("account_ids", "phones", "languages")
    )
    language = language.fill_null(FALLBACK).dictionary_encode()
    texts = notice_texts(
        rows["kind"],
        rows["balance_tiyin"],
        rows["depletes_at"],
        rows["pay_tiyin"],
        language=language,
        account_id=account_id,
    )
    depletes_at = rows["depletes_at"]
    return {
        "ordinal": pa.array(rows["ordinal"]),
        "n": pa.array(rows["n"]),
        "account_id": account_id.dictionary_encode(),
        "noticed_at": pa.array(rows["noticed_at"]).cast(TIME),
        "send_after": pa.array(rows["send_after"]).cast(TIME),
        "kind": coded(filled(pa.int8(), rows["kind"].astype(np.int8)), NOTICE_KINDS),
        "phone": phone,
        "language": language,
        "text": texts,
        "depletes_at": pa.array(depletes_at, mask=depletes_at == FOREVER).cast(TIME),
        "episode": pa.array(rows["episode"]),
    }


def notice_texts(
    kind: NDArray[np.uint8],
    balance_tiyin: NDArray[np.int64],
    depletes_at: NDArray[np.int64],
    pay_tiyin: NDArray[np.int64],
    *,
    language: pa.DictionaryArray,
    account_id: pa.StringArray,
) -> pa.StringArray:
    """The texts of notices. kind: numbers of NOTICE_KINDS. pay_tiyin: what to pay; a text rounds it up to whole thousands of
    soum. depletes_at: FOREVER where there is no such moment.
    """
    languages = language.dictionary.to_pylist()
    template = kind.astype(np.int64) * len(languages) + language.indices.to_numpy()
    order = np.argsort(template, kind="stable")
    values = {
        "account": account_id.take(pa.array(order)),
        "balance": soum_texts(balance_tiyin[order]),
        "when": local_times(depletes_at[order]),
        "pay": soum_texts((np.maximum(-(-pay_tiyin // 100_000), 1) * 100_000)[order]),
    }
    numbers, first, count = np.unique(template[order], return_index=True, return_counts=True)
    filled_in = []
    for number, begin, length in zip(numbers.tolist(), first.tolist(), count.tolist(), strict=True):
        texts = TEXTS[NOTICE_KINDS[number // len(languages)]]
        text = texts.get(languages[number % len(languages)], texts[FALLBACK])
        filled_in.append(_fill(text, {name: array.slice(begin, length) for name, array in values.items()}))
    return pa.concat_arrays(filled_in).take(pa.array(np.argsort(order)))


def _fill(template: str, values: Mapping[str, pa.StringArray]) -> pa.StringArray:
    parts: list[pa.Array | str] = []
    for text, name, _, _ in Formatter().parse(template):
        parts += [text] if name is None else [text, values[name]]
    return join(*parts)


def soum(tiyin: int) -> str:
    """Whole soum in groups of three, cut towards zero: what a customer reads. A debt of less than a soum is `-0`; a text that
    is otherwise now than in the logs there are could not be settled again.
    """
    return str(soum_texts(np.array([tiyin]))[0])


def soum_texts(tiyin: NDArray[np.int64]) -> pa.StringArray:
    """`soum` of each amount."""
    return texts_of(*_write_soum(tiyin))


def local_times(moments: NDArray[np.int64]) -> pa.StringArray:
    """Moments as `31.12.2026 18:30`, Asia/Tashkent; `-` for FOREVER."""
    return texts_of(*_write_local_times(moments))


@compiled
def _write_soum(tiyin: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    ends, out = np.zeros(tiyin.size + 1, np.int32), np.empty(tiyin.size * MOST_SOUM, np.uint8)
    for i in range(tiyin.size):
        left, digits = abs(tiyin[i]) // 100, 1
        while left // 10**digits > 0:
            digits += 1
        begin = ends[i]
        if tiyin[i] < 0:
            out[begin] = MINUS
            begin += 1
        end = begin + digits + (digits - 1) // 3
        at = end - 1
        for digit in range(digits):
            if digit > 0 and digit % 3 == 0:
                out[at] = SPACE
                at -= 1
            out[at] = ZERO + left % 10
            left //= 10
            at -= 1
        ends[i + 1] = end
    return ends, out


@compiled
def _write_local_times(moments: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    ends, out = np.zeros(moments.size + 1, np.int32), np.empty(moments.size * len(LOCAL_TIME), np.uint8)
    for i in range(moments.size):
        at = moments[i]
        begin = ends[i]
        if at == FOREVER:
            out[begin] = MINUS
            ends[i + 1] = begin + 1
            continue
        month, minute = month_of(at), (at - day_start(day_of(at))) // US_PER_MINUTE
        day = day_of(at) - day_of(month_start(month)) + 1
        numbers = (day, month % 12 + 1, month // 1200, month // 12 % 100, minute // 60, minute % 60)
        for k in range(len(LOCAL_TIME)):
            place = LOCAL_TIME[k]
            out[begin + k] = (
                place if place >= SPACE else ZERO + numbers[place // 2] // (10 if place % 2 == 0 else 1) % 10
            )
        ends[i + 1] = begin + len(LOCAL_TIME)
    return ends, out


MINUS, SPACE, ZERO = b"- 0"
MOST_SOUM = 24  # characters of the largest amount
# `dd.mm.yyyy hh:mm`: characters, or below them which digit, two to each number of _write_local_times
LOCAL_TIME = np.array([0, 1, ord("."), 2, 3, ord("."), 4, 5, 6, 7, SPACE, 8, 9, ord(":"), 10, 11], np.uint8)
