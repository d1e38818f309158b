"""Each value of a file against the contract: the good rows typed, the bad ones with the column, the value and the
reason.

The first column at fault, in the order of the contract, is the one that is named. An empty text is an absent one.

    wrong_field_count      a CSV row with more or fewer fields than the header
    broken_utf8            bytes that are no text
    not_json               an NDJSON line, or a `value`, that is no JSON (object)
    missing_value          nothing where something must stand
    not_an_integer         12.7, 1e3, 12.0, twelve
    out_of_range           beyond 64 bits or what can be added up (MOST), below the column's least, a time before 1900
    naive_time             a time without an offset
    bad_time, bad_date     no time or date that is; finer than a µs
    unknown_value          none of the values the column may have, no phone number, no id of ours, no hours of the day
    arrives_later_than_now it would have arrived after this file was begun to be taken
    bad_version            another row of its tariff version cannot be read
    no_last_block          a tariff version that, in some of its hours, is without an open last block (`block_upto_kwh` absent)
    overlapping_hours      a tariff version that has two prices at the same hour of the day
    gap_in_hours           a tariff version without a price at some hour of the day
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from accounting.hours import gaps_and_overlaps, is_hours
from accounting.records import OWN_TIME, RECORD_SCHEMAS, TYPES, Column, parse_id
from connectors.files import text
from connectors.files.formats import BROKEN, RawBatch, columns_of, plain_values
from connectors.names import bytes_of

REASONS = (
    "",
    "not_an_integer",  # the first five are the codes of `text`
    "out_of_range",
    "naive_time",
    "bad_time",
    "bad_date",
    "missing_value",
    "unknown_value",
    "broken_utf8",
    "not_json",
    "arrives_later_than_now",
    "bad_version",
    "no_last_block",
    "overlapping_hours",
    "gap_in_hours",
    "wrong_field_count",
)
CODE = {reason: code for code, reason in enumerate(REASONS)}
Faults = NDArray[np.uint8]

TASHKENT_US = 5 * 3_600_000_000
DAY_US = 86_400_000_000
EARLIEST_DAY, LATEST_DAY = -25_567, 2_932_896  # 1900-01-01 … 9999-12-31
# No record of a utility comes near these. Beyond them sums and products would outgrow 64 bits: one slip of a keyboard would
# make a balance wrap in the rules, and stop every load after it.
MOST = {
    "amount_tiyin": 10**15,  # ten trillion soum
    "opening_balance_tiyin": 10**15,
    "emergency_credit_tiyin": 10**15,
    "price_tiyin_per_kwh": 10**8,  # a million soum
    "block_upto_kwh": 10**15,
    "families": 10**6,
    "register_modulus_wh": 10**13,
    "max_power_w": 10**18,  # as good as none
}
VERSION = ("tariff", "effective_on", "received_at")  # what the rows of a tariff version have in common
NEVER = np.iinfo(np.int64).min

_PHONE = re.compile(r"\+?[1-9]\d{1,14}", re.ASCII)  # E.164
_SCOPE = re.compile(r"all|(district|feeder|account):.+", re.DOTALL)


@dataclass(frozen=True)
class Checked:
    """The good rows, typed (`rows` are their numbers), and the bad ones as `unreadable` records, in the order of the
    file.
    """

    rows: NDArray[np.int64]
    good: pa.RecordBatch
    bad: pa.RecordBatch


def arrivals(kind: str, batch: pa.RecordBatch) -> NDArray[np.int64]:
    """When each record arrived, in µs: `received_at` where given, else its own time. What cannot be read has no time:
    before all.
    """
    if kind == "unreadable":
        return np.full(batch.num_rows, NEVER)
    own = batch.column(OWN_TIME[kind])
    if pa.types.is_date(own.type):
        moments = _numbers(own.view(pa.int32())) * np.int64(DAY_US) - TASHKENT_US
    else:
        moments = _numbers(own.view(pa.int64()))
    if "received_at" in batch.schema.names:
        received = batch.column("received_at")
        if received.null_count < len(received):
            given = received.is_valid().to_numpy(zero_copy_only=False)
            moments = np.where(given, _numbers(received.view(pa.int64())), moments)
    return moments


def _numbers(array: pa.Array) -> NDArray[np.int64]:
    """The whole numbers of an array, 0 where there is none."""
    return (array.fill_null(0) if array.null_count else array).to_numpy(zero_copy_only=False)


class Checker:
    """Checks the batches of one file. `until` is the moment after which nothing can have arrived yet."""

    def __init__(self, kind: str, name: str, *, partitions: int, until: int) -> None:
        self.kind = kind
        self._name, self._until = name, until
        self._columns = columns_of(kind)
        self._forms = _forms(partitions)

    def check(self, raw: RawBatch) -> Checked:
        """The rows of a batch, told apart. Rows without any value are blank lines, and no records.

        A tariff file must come as one batch: its versions are judged by all their rows.
        """
        written = _any_value(raw)
        column_at_fault = np.full(len(raw.rows), -1, np.int16)
        reason = np.zeros(len(raw.rows), np.uint8)
        illegible = ~written  # of a tariff: which version the row belongs to
        typed: dict[str, pa.Array] = {}
        for number, column in enumerate(self._columns):
            if column.name not in raw.columns:
                continue
            typed[column.name], faults = self._check_column(column, raw.columns[column.name])
            new = (reason == 0) & (faults != 0)
            reason[new], column_at_fault[new] = faults[new], number
            if column.name in VERSION:
                illegible |= faults != 0
        batch = pa.record_batch(typed)
        late = (reason == 0) & (arrivals(self.kind, batch) > self._until)
        if late.any():
            reason[late] = CODE["arrives_later_than_now"]
            column_at_fault[late] = self._arrival_column(batch)[late]
        if self.kind == "tariff":
            self._judge_versions(batch, np.flatnonzero(~illegible), reason, column_at_fault)
        good, bad = written & (reason == 0), np.flatnonzero(written & (reason != 0))
        unreadable = self._unreadable(raw, bad, column_at_fault[bad], reason[bad])
        if good.all():
            return Checked(raw.rows, batch, unreadable)
        return Checked(raw.rows[good], batch.filter(pa.array(good)), unreadable)

    def _arrival_column(self, batch: pa.RecordBatch) -> NDArray[np.int16]:
        """The column that says when each record arrived."""
        number = {column.name: i for i, column in enumerate(self._columns)}
        own = np.full(batch.num_rows, number[OWN_TIME[self.kind]], np.int16)
        if "received_at" not in batch.schema.names:
            return own
        given = batch.column("received_at").is_valid().to_numpy(zero_copy_only=False)
        return np.where(given, np.int16(number["received_at"]), own)

    def _judge_versions(
        self, batch: pa.RecordBatch, legible: NDArray[np.int64], reason: Faults, column_at_fault: NDArray[np.int16]
    ) -> None:
        """A tariff version is whole or unreadable: every row good, at every hour of the day one list of blocks, and the last
        block of each list open.

        (Of two blocks with one limit the first in the file counts: the other one is empty.)
        """
        number = {column.name: i for i, column in enumerate(self._columns)}
        limits, hours = block_limits(batch), hours_of(batch)
        for rows in versions_of(batch, legible.tolist()):
            others = [i for i in rows if reason[i] == 0]
            if len(others) < len(rows):
                reason[others], column_at_fault[others] = CODE["bad_version"], number["tariff"]
                continue
            gaps, overlaps = gaps_and_overlaps({hours[i] for i in rows})
            if {hours[i] for i in rows if limits[i] is None} < {hours[i] for i in rows}:
                reason[rows], column_at_fault[rows] = CODE["no_last_block"], number["block_upto_kwh"]
            elif overlaps or gaps:
                why = "overlapping_hours" if overlaps else "gap_in_hours"
                reason[rows], column_at_fault[rows] = CODE[why], number["hours"]

    def _unreadable(
        self, raw: RawBatch, bad: NDArray[np.int64], columns: NDArray[np.int16], reasons: Faults
    ) -> pa.RecordBatch:
        if not bad.size and not raw.spoiled:
            return unreadable_batch(self.kind, self._name, [])
        names = [self._columns[number].name for number in columns.tolist()]
        given = {name: plain_values(raw.columns[name].take(pa.array(bad))) for name in set(names)}
        values = [given[name][i] for i, name in enumerate(names)]
        texts = [None if value is None else str(value) for value in values]
        because = [REASONS[code] for code in reasons.tolist()]
        found = list(zip(raw.rows[bad].tolist(), names, texts, because, raw.records(bad), strict=True))
        found += [(s.row, None, s.value, s.reason, s.record) for s in raw.spoiled]
        found.sort(key=lambda entry: entry[0])
        return unreadable_batch(self.kind, self._name, found)

    def _check_column(self, column: Column, given: pa.Array) -> tuple[pa.Array, Faults]:
        if column.type in {"text", "json"}:
            return _check_text(column, given, _is_json if column.type == "json" else self._forms.get(column.name))
        if pa.types.is_null(given.type):
            values, faults = pa.nulls(len(given), TYPES[column.type]), np.zeros(len(given), np.uint8)
        elif pa.types.is_string(given.type):
            values, faults = _parse(column.type, given)
        else:
            values, faults = _CONVERT[column.type](given)
        if not column.optional and values.null_count:
            faults[values.is_null().to_numpy(zero_copy_only=False)] = CODE["missing_value"]
        _check_range(column, values, faults)
        return values, faults


def versions_of(batch: pa.RecordBatch, rows: Iterable[int]) -> list[list[int]]:
    """Those rows of a tariff file, by version, in the order in which the versions begin."""
    keys = [_comparable(batch.column(name)).to_pylist() for name in VERSION if name in batch.schema.names]
    versions: dict[tuple[Any, ...], list[int]] = {}
    for i in rows:
        versions.setdefault(tuple(key[i] for key in keys), []).append(i)
    return list(versions.values())


def _comparable(array: pa.Array) -> pa.Array:
    """Times and dates as numbers: those of rows at fault may be none that Python knows."""
    if pa.types.is_timestamp(array.type):
        return array.view(pa.int64())
    return array.view(pa.int32()) if pa.types.is_date(array.type) else array


def block_limits(batch: pa.RecordBatch) -> list[int | None]:
    """The `block_upto_kwh` of tariff rows; a file without the column has open blocks only."""
    has_limits = "block_upto_kwh" in batch.schema.names
    return batch.column("block_upto_kwh").to_pylist() if has_limits else [None] * batch.num_rows


def hours_of(batch: pa.RecordBatch) -> list[str | None]:
    """The `hours` of tariff rows, None for the whole day."""
    return batch.column("hours").to_pylist() if "hours" in batch.schema.names else [None] * batch.num_rows


def unreadable_batch(kind: str, name: str, found: list[tuple[int, str | None, str | None, str, str]]) -> pa.RecordBatch:
    """`unreadable` records of (row, column, value, reason, record)."""
    rows, columns, values, reasons, records = zip(*found, strict=True) if found else ((), (), (), (), ())
    arrays = ([kind] * len(found), [name] * len(found), rows, columns, values, reasons, records)
    schema = RECORD_SCHEMAS["unreadable"]
    return pa.record_batch([pa.array(a, f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)


def _any_value(raw: RawBatch) -> NDArray[np.bool_]:
    written = np.zeros(len(raw.rows), np.bool_)
    for column in raw.columns.values():
        if column.null_count == 0:
            return np.ones(len(raw.rows), np.bool_)
        written |= column.is_valid().to_numpy(zero_copy_only=False)
    return written


# ---- text ------------------------------------------------------------------------------------------------------------
def _check_text(column: Column, given: pa.Array, fits: Callable[[str], bool] | None) -> tuple[pa.Array, Faults]:
    texts, faults = given, np.zeros(len(given), np.uint8)
    if not pc.all(pc.string_is_ascii(texts)).as_py():
        texts = _mended(texts, faults)
    absent = pc.fill_null(pc.equal(pc.binary_length(texts), 0), True)
    if pc.any(absent).as_py():
        texts = pc.if_else(absent, pa.scalar(None, pa.string()), texts)
        if not column.optional:
            faults[absent.to_numpy(zero_copy_only=False)] = CODE["missing_value"]
    if column.choices:
        allowed = pc.is_in(texts, value_set=pa.array([*column.choices, None], pa.string()))
        faults[~allowed.to_numpy(zero_copy_only=False) & (faults == 0)] = CODE["unknown_value"]
    if fits is not None:
        words = pc.dictionary_encode(texts)
        unfit = [not fits(word) for word in words.dictionary.to_pylist()]
        at_fault = pa.array(unfit, pa.bool_()).take(words.indices).fill_null(False).to_numpy(zero_copy_only=False)
        faults[at_fault & (faults == 0)] = CODE["not_json" if column.type == "json" else "unknown_value"]
    return texts, faults


def _mended(texts: pa.Array, faults: Faults) -> pa.Array:
    """Text in which all is UTF-8: what was not is at fault, and readable."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        texts = pa.array(
            [None if b is None else b.decode(errors="replace") for b in texts.cast(pa.binary()).to_pylist()],
            pa.string(),
        )
    broken = pc.fill_null(pc.match_substring(texts, BROKEN), False)
    faults[broken.to_numpy(zero_copy_only=False)] = CODE["broken_utf8"]
    return texts


def _is_json(word: str) -> bool:
    try:
        json.loads(word)
    except (ValueError, RecursionError):
        return False
    return True


def _forms(partitions: int) -> dict[str, Callable[[str], bool]]:
    """What text of a certain form must look like, by column."""

    def is_event_id(word: str) -> bool:
        try:
            return parse_id(word)[0] < partitions
        except ValueError:
            return False

    return {
        "phone": lambda word: _PHONE.fullmatch(word) is not None,
        "hours": is_hours,
        "scope": lambda word: _SCOPE.fullmatch(word) is not None,
        "command_id": is_event_id,
        "notice_id": is_event_id,
    }


# ---- numbers and times -----------------------------------------------------------------------------------------------
_PARSE: dict[str, tuple[Callable[..., None], type[np.int64 | np.int32]]] = {
    "int": (text.parse_ints, np.int64),
    "time": (text.parse_times, np.int64),
    "date": (text.parse_dates, np.int32),
}


def _parse(kind: str, given: pa.Array) -> tuple[pa.Array, Faults]:
    parse, width = _PARSE[kind]
    data, offsets = bytes_of(given)
    valid = given.is_valid().to_numpy(zero_copy_only=False)
    values, faults = np.zeros(len(given), width), np.zeros(len(given), np.uint8)
    parse(data, offsets, valid, values, faults)
    mask = None if given.null_count == 0 else ~valid
    return pa.array(values, mask=mask).view(TYPES[kind]), faults


def _convert_int(given: pa.Array) -> tuple[pa.Array, Faults]:
    faults = np.zeros(len(given), np.uint8)
    if pa.types.is_uint64(given.type):
        too_large = pc.greater(given, pa.scalar(np.iinfo(np.int64).max, pa.uint64())).fill_null(False)
        faults[too_large.to_numpy(zero_copy_only=False)] = CODE["out_of_range"]
        given = pc.if_else(too_large, pa.scalar(0, pa.uint64()), given)
    return given.cast(pa.int64()), faults


def _convert_time(given: pa.Array) -> tuple[pa.Array, Faults]:
    """Times of any unit as µs; what µs cannot hold is at fault."""
    faults = np.zeros(len(given), np.uint8)
    if given.type == TYPES["time"]:
        return given, faults
    values = given.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if given.type.unit == "ns":
        values, finer = np.divmod(values, 1000)
        faults[finer != 0] = CODE["bad_time"]
    else:
        factor = {"s": 1_000_000, "ms": 1_000, "us": 1}[given.type.unit]
        outside = (values > LATEST_DAY * DAY_US // factor) | (values < EARLIEST_DAY * DAY_US // factor)
        faults[outside] = CODE["out_of_range"]
        values = np.where(outside, 0, values) * factor
    mask = given.is_null().to_numpy(zero_copy_only=False) if given.null_count else None
    return pa.array(values, mask=mask).view(TYPES["time"]), faults


def _convert_date(given: pa.Array) -> tuple[pa.Array, Faults]:
    return given.cast(pa.date32()), np.zeros(len(given), np.uint8)


_CONVERT = {"int": _convert_int, "time": _convert_time, "date": _convert_date}


def _check_range(column: Column, values: pa.Array, faults: Faults) -> None:
    """Values below the column's least or beyond MOST, and times of no calendar in use, are out of range."""
    if column.type == "int" and column.least is None and column.name not in MOST:
        return
    if column.type == "int":
        most = MOST.get(column.name, np.iinfo(np.int64).max)
        least = -most if column.least is None else column.least
    else:
        day = DAY_US if column.type == "time" else 1
        least, most = EARLIEST_DAY * day, (LATEST_DAY + 1) * day - 1
    numbers = _numbers(values.view(pa.int32() if column.type == "date" else pa.int64()))
    outside = ((numbers < least) | (numbers > most)) & values.is_valid().to_numpy(zero_copy_only=False)
    faults[outside & (faults == 0)] = CODE["out_of_range"]
