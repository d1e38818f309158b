"""Records of every kind, mutated, as files: what customers' systems send on their worst days, from a seed.

Most records begin as good ones (of `random_records`, and orders, policies, acknowledgements and receipts beside them) and then
lose that in one place or several: a value is replaced by something that does not belong there, two change places, a row is
cut short, runs on, comes twice or is no text at all. Every file can be taken as a whole; how many rows it offers is told, so
that each can be accounted for.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from accounting.records import FILE_KINDS, OWN_TIME, TYPES, Column
from connectors.files.formats import columns_of
from tests.random_records import EPOCH, render_value

Row = dict[str, Any]  # by column: times UTC µs, dates datetime.date, None for what is absent
FORMATS = ("csv", "ndjson", "parquet")
INT64_MAX = 2**63 - 1
MOST = 10**15  # of a number that is to be believed: ten trillion soum, a petawatt-hour

TROUBLED_WORDS = (
    "", " ", "0", "-1", "1", "7", "-0", "+5", " 5", "5 ", "12.7", "12.0", "1e3", "1E400", "0x1F", "1_000", "1,000", "--1",
    "NaN", "inf", "null", "NULL", "None", "true", "٣", "５", "½", "9007199254740993", "999999999999999", "-999999999999999",
    "9223372036854775808", "-9223372036854775809", "9" * 400, "twelve", "2025-05-01", "2025-02-30", "2025-05-01T10:00:00",
    "2025-05-01 10:00:00+05", "2025-05-01T10:00:00+25:00", "2025-05-01T24:00:00Z", "2025-05-01T10:00:60Z",
    "2025-13-45T99:99:99Z", "2025-05-01T10:00:00.0000001Z", "2025-05-01T10:00:00.000001Z", "20250501T100000Z",
    "0001-01-01T00:00:00Z", "1899-12-31T23:59:59Z", "1900-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59Z", "9999-12-31", "0000-00-00", "10000-01-01T00:00:00Z", "2025-05-01T10:00:00-12:00", "10:00",
    "1746093600", "estimated", "measured", "Estimated", "protected", "disconnect", "opened", "delivered", "holiday", "all",
    "district:", "account:A0", "+998901234567", "998 90", "{}", "[]", '{"days": [1]}', '{"notice_hours": -1}', "{", '"', '""',
    "a,b", "a;b", "line\nline", "line\r\nline", "tab\tbar", "\x00", "a\x00b", "\ufeff", "\u202eA0", "\u200b", "é", "e\u0301",
    "\U0001f4a1", "ж" * 300, "x" * 5000, "'; DROP TABLE entries; --", "=1+1", "${HOME}", "../../etc/passwd", "%s%n", "\\N",
    "0-0-0", "1-5-0", "99-0-0", "-1--1--1", "0-9223372036854775808-0", "٠-٠-٠", "A0", "M0", "a",
)  # fmt: skip
TROUBLED_NUMBERS = (0, -1, 1, 7, 10**12, MOST, -MOST)
IMPOSSIBLE_NUMBERS = (INT64_MAX, -INT64_MAX - 1, 2**62)
TROUBLED_TOKENS = ("1e3", "12.7", "12.0", "-0", "NaN", "Infinity", "1E400", "9" * 60, "true", "false", "[1]", '{"a": 1}', '""',
                   '"\\ud800"', '"\\u0000"', '"12"', "null")  # fmt: skip
TROUBLED_LINES = (b"{", b"}", b"[]", b'"text"', b"12", b"null", b"not json", b'{"NAME": }', b'{"NAME": 1,}', b"\xff\xfe",
                  b'{"NAME": "M\xff"}', b"[" * 2000, b'{"NAME": 1} {"NAME": 2}', b'{"NAME": 1, "NAME": 2}')  # fmt: skip
MOST_NAMES = {"policy": 3}  # so many in force at once are more than any utility has
TROUBLED_MOMENTS = (
    "1900-01-01T00:00:00+00:00", "1969-12-31T23:59:59.999999+00:00", "1970-01-01T00:00:00+00:00", "0001-01-01T00:00:00+00:00",
    "9999-12-31T23:59:59+00:00", "2025-03-31T18:59:59.999999+00:00", "2025-03-31T19:00:00+00:00",
)  # fmt: skip


@dataclass(frozen=True)
class Offer:
    """A file, and how many rows it offers: blank ones are no records."""

    kind: str
    path: Path
    rows: int


def write_mutated(
    samples: Mapping[str, Sequence[Row]], counts: Mapping[str, int], folder: Path, chance: random.Random
) -> list[Offer]:
    """So many records of each kind, mutated, a third of them in a file of each format. samples: good ones to begin with."""
    folder.mkdir(parents=True)
    offers = []
    for kind in FILE_KINDS:
        columns = columns_of(kind)
        for number, file_format in enumerate(FORMATS):
            count = counts[kind] // 3 + (number < counts[kind] % 3)
            rows = list(varied(kind, columns, samples[kind], count, chance))
            path = folder / f"{kind}.{file_format}"
            offers.append(Offer(kind, path, WRITE[file_format](path, columns, rows, chance)))
    return offers


def varied(
    kind: str, columns: Sequence[Column], samples: Sequence[Row], count: int, chance: random.Random
) -> Iterator[Row]:
    """Good records: each like one of the samples, mostly under a new name or at another moment, now and then the same."""
    own_time, names = OWN_TIME[kind], [c.name for c in columns]
    for number in range(count):
        sample = chance.choice(samples)
        row = {name: sample.get(name) for name in names}
        if chance.random() < 0.9:
            if (name := f"{kind}_id") in row and kind != "account":
                row[name] = f"{row[name]}-{number % MOST_NAMES.get(kind, count)}"
            at = row[own_time]
            row[own_time] = at + dt.timedelta(chance.randint(-9, 9)) if isinstance(at, dt.date) else at + _shift(chance)
        yield row


def _shift(chance: random.Random) -> int:
    return chance.choice((1, 60_000_000, 3_600_000_000, 86_400_000_000)) * chance.randint(-20, 20)


def troubled(chance: random.Random) -> bool:
    """Whether a record has a trouble; one in four is a good one."""
    return chance.random() < 0.75


# ---- text formats ----------------------------------------------------------------------------------------------------
def write_csv(path: Path, columns: Sequence[Column], rows: Sequence[Row], chance: random.Random) -> int:
    """Rows as CSV, with a byte order mark now and then, rows that are cut short or run on, and bytes that are no text."""
    names = [column.name for column in columns]
    chance.shuffle(names)
    lines, offered = [b"\xef\xbb\xbf" * chance.choice((0, 1)) + ",".join(names).encode()], 0
    for row in rows:
        fields = [render_value(name, row[name]) for name in names]
        spoil: Callable[[bytes], bytes] = bytes
        if troubled(chance):
            spoil = trouble_fields(fields, chance)
        line = spoil(csv_line(fields))
        if not line.strip(b","):
            line = b"x," + line
        lines += [line] * chance.choice((1, 1, 1, 1, 1, 1, 1, 2))
        if chance.random() < 0.01:
            lines.append(chance.choice((b"", b"," * (len(names) - 1))))  # blank: no record
            offered -= 1
    path.write_bytes(b"\n".join(lines) + chance.choice((b"", b"\n")))
    return offered + len(lines) - 1


def csv_line(fields: Sequence[str]) -> bytes:
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\r\n").writerow(fields)  # what is in it, it quotes
    return sink.getvalue().removesuffix("\r\n").encode()


def trouble_fields(fields: list[str], chance: random.Random) -> Callable[[bytes], bytes]:
    """Mutate the fields of a row; what is to be done to its bytes."""
    what = chance.choices(("value", "values", "swap", "short", "long", "bytes"), (70, 10, 10, 4, 4, 2))[0]
    if what in ("value", "values"):
        for _ in range(1 if what == "value" else 3):
            fields[chance.randrange(len(fields))] = chance.choice(TROUBLED_WORDS)
    elif what == "swap":
        i, j = chance.randrange(len(fields)), chance.randrange(len(fields))
        fields[i], fields[j] = fields[j], fields[i]
    elif what == "short":
        del fields[chance.randrange(1, len(fields)) :]
    elif what == "long":
        fields += [chance.choice(TROUBLED_WORDS) for _ in range(chance.randint(1, 3))]
    else:
        return lambda line: line.replace(b"0", b"\xff\xc3", 1)
    return bytes


def write_ndjson(path: Path, columns: Sequence[Column], rows: Sequence[Row], chance: random.Random) -> int:
    """Rows as lines of JSON: with tokens that are no integers, keys that are not there, and lines that are no JSON."""
    lines: list[bytes] = []
    for row in rows:
        tokens = {
            c.name: json_token(c, row[c.name]) for c in columns if row[c.name] is not None or chance.random() < 0.5
        }
        if troubled(chance):
            what = chance.random()
            name = chance.choice(list(tokens))
            if what < 0.5:
                tokens[name] = json.dumps(chance.choice(TROUBLED_WORDS), ensure_ascii=chance.random() < 0.5)
            elif what < 0.8:
                tokens[name] = chance.choice(TROUBLED_TOKENS)
            elif what < 0.9 and len(tokens) > 1:
                del tokens[name]
            elif what < 0.97:
                other = chance.choice(list(tokens))
                tokens[name], tokens[other] = tokens[other], tokens[name]
            else:
                lines.append(chance.choice(TROUBLED_LINES).replace(b"NAME", columns[0].name.encode()))
                continue
        line = "{" + ", ".join(f'"{name}": {token}' for name, token in tokens.items()) + "}"
        lines += [line.encode()] * chance.choice((1, 1, 1, 1, 1, 1, 1, 2))
    if lines[0][:1] != b"{":
        lines.reverse()
    path.write_bytes(b"\n".join(lines) + b"\n\n")
    return sum(not is_blank(line) for line in lines)


def json_token(column: Column, value: Any) -> str:
    return (
        str(value)
        if column.type == "int" and value is not None
        else json.dumps(render_value(column.name, value) or None)
    )


def is_blank(line: bytes) -> bool:
    """Whether a line is an object without any value: no record."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and all(value in (None, "") for value in entry.values())


# ---- Parquet ---------------------------------------------------------------------------------------------------------
def write_parquet(path: Path, columns: Sequence[Column], rows: Sequence[Row], chance: random.Random) -> int:
    """Rows as Parquet: typed, so what is wrong is the value, not its form."""
    given: dict[str, list[Any]] = {c.name: [as_number(row[c.name]) for row in rows] for c in columns}
    types = {column.name: column.type for column in columns}
    for i in range(len(rows)):
        if troubled(chance):
            name = chance.choice(list(types))
            given[name][i] = TYPED[types[name]](chance)
    tables = {}
    for column in columns:
        values = given[column.name]
        if column.type in RAW:
            tables[column.name] = pa.array(values, RAW[column.type]).view(TYPES[column.type])
        else:
            tables[column.name] = pa.array(values, TYPES[column.type])
    table = pa.table(tables)
    pq.write_table(table, path, row_group_size=1 + len(rows) // 3)
    return sum(any(value not in (None, "") for value in row) for row in zip(*given.values(), strict=True))


def as_number(value: Any) -> Any:
    """A date as days since 1970; anything else as it is."""
    return (value - EPOCH.date()).days if isinstance(value, dt.date) else value


def _moment(chance: random.Random) -> int | None:
    moment = dt.datetime.fromisoformat(chance.choice(TROUBLED_MOMENTS))
    return chance.choice(((moment - EPOCH) // dt.timedelta(microseconds=1), None, INT64_MAX, -INT64_MAX, 0))


TYPED: dict[str, Callable[[random.Random], Any]] = {
    "text": lambda chance: chance.choice((None, *(w for w in TROUBLED_WORDS))),
    "json": lambda chance: chance.choice((None, *(w for w in TROUBLED_WORDS))),
    "int": lambda chance: chance.choice((None, *TROUBLED_NUMBERS, *IMPOSSIBLE_NUMBERS)),
    "time": _moment,
    "date": lambda chance: chance.choice((None, 0, 20_179, -25_567, -25_568, 2_932_897, -719_163, 2**31 - 1, -(2**31))),
}
RAW = {"time": pa.int64(), "date": pa.int32()}
WRITE = {"csv": write_csv, "ndjson": write_ndjson, "parquet": write_parquet}
