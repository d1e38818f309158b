"""What a file is, and its rows, batch by batch: CSV and NDJSON as text, Parquet as the typed columns it has.

Nothing is trusted but the content: a format is told by its first bytes, not by its name. A file is refused
(`FileError`) where it cannot be taken as a whole; a row that cannot even be cut into values is handed on as
*spoiled*, with its row number.

Row numbers count from 1. In CSV the header is row 1 and a blank line is a row like any other (a line break inside
quotes is not), as a spreadsheet shows it; in NDJSON they are line numbers; in Parquet the first record is row 1.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from accounting.records import RECORDS, Column
from connectors.files import text

BLOCK_BYTES = 4 << 20  # no row of a text file may be longer
PARQUET_ROWS = 1 << 18
NDJSON_ROWS = 1 << 16
BROKEN = "\ufffd"  # stands where bytes were not UTF-8

_FOREIGN = (
    (b"\x1f\x8b", "is compressed (gzip): unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd): unpack it first"),
    (b"PK", "is a spreadsheet or a zip archive: export it as CSV in UTF-8"),
    (b"\xff\xfe", "is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16: save it as UTF-8"),
    (b"[", "is one JSON array: write one object a line instead (NDJSON)"),
)


class FileError(Exception):
    """A file cannot be taken as a whole. The message names it, the column where there is one, and what to do."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


@dataclass(frozen=True)
class Inspected:
    """A file known by its content: `fingerprint` is its SHA-256. `name` is what its records call it."""

    path: Path
    name: str
    format: str
    fingerprint: str
    size: int
    is_utf8: bool = True
    has_quotes: bool = False
    changed_ns: int = 0  # when its content was last changed

    def check_unchanged(self) -> None:
        """Refuse the file if somebody has written to it since it was inspected."""
        now = self.path.stat()
        if (now.st_size, now.st_mtime_ns) != (self.size, self.changed_ns):
            raise FileError(self.name, "was written to while it was read: give it again once it is complete")


@dataclass(frozen=True)
class Spoiled:
    """A row that could not be cut into the columns' values. `record` is all of it, as JSON."""

    row: int
    reason: str
    value: str | None
    record: str


@dataclass(frozen=True)
class RawBatch:
    """Rows as the file has them: `rows` are their numbers, `lines` themselves where each is JSON already."""

    rows: NDArray[np.int64]
    columns: dict[str, pa.Array]
    spoiled: Sequence[Spoiled] = ()
    lines: Sequence[str] | None = None

    def records(self, places: NDArray[np.int64]) -> list[str]:
        """The rows at these places, whole, as JSON."""
        if self.lines is not None:
            return [self.lines[place] for place in places.tolist()]
        given = {name: plain_values(column.take(pa.array(places))) for name, column in self.columns.items()}
        return [_json(dict(zip(given, values, strict=True))) for values in zip(*given.values(), strict=True)]


def columns_of(kind: str) -> tuple[Column, ...]:
    """The columns a file of this kind may have."""
    return tuple(column for column in RECORDS[kind] if not column.internal)


# ---- what it is ------------------------------------------------------------------------------------------------------
def inspect_file(path: Path, name: str | None = None) -> Inspected:
    """Read a file through once: its format, its fingerprint, and whether it can be text at all."""
    name = name or path.name
    try:
        with path.open("rb") as file:
            return _inspect(file, path, name)
    except OSError as error:
        raise FileError(name, f"cannot be read: {error.strerror or error}") from error


def _inspect(file: BinaryIO, path: Path, name: str) -> Inspected:
    changed_ns = os.fstat(file.fileno()).st_mtime_ns
    head = file.read(1 << 12)
    kind = _format_of(head, path, name)
    file.seek(0)
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    is_utf8, has_quotes, size = True, False, 0
    state, row, opened = text.AT_FIELD, 1, 0
    while piece := file.read(BLOCK_BYTES):
        digest.update(piece)
        size += len(piece)
        if kind == "parquet":
            continue
        try:
            decoder.decode(piece)
        except UnicodeDecodeError:
            is_utf8 = False
            decoder.reset()
        if kind == "csv" and (has_quotes := has_quotes or b'"' in piece):
            state, row, opened = text.follow_quotes(np.frombuffer(piece, np.uint8), state, row, opened)
    if state == text.IN_QUOTES:
        raise FileError(
            name, f"row {opened} or later opens a quote that is never closed: mend the file, nothing was taken"
        )
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        is_utf8 = False
    return Inspected(path, name, kind, digest.hexdigest(), size, is_utf8, has_quotes, changed_ns)


def _format_of(head: bytes, path: Path, name: str) -> str:
    if not head:
        raise FileError(name, "is empty: even a file without records has a header")
    if head.startswith(b"PAR1"):
        return "parquet"
    if path.suffix == ".parquet":
        raise FileError(name, "is no Parquet file, whatever its name says: write it anew")
    for magic, problem in _FOREIGN:
        if head.startswith(magic):
            raise FileError(name, problem)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not start:
        raise FileError(name, "is empty: even a file without records has a header")
    return "ndjson" if start.startswith(b"{") else "csv"


def read_batches(file: Inspected, kind: str) -> Iterator[RawBatch]:
    """The rows of a file in their order."""
    try:
        yield from {"csv": _read_csv, "ndjson": _read_ndjson, "parquet": _read_parquet}[file.format](file, kind)
    except OSError as error:
        raise FileError(file.name, f"cannot be read to its end: {error}") from error


def check_columns(name: str, kind: str, given: Sequence[str]) -> None:
    """Refuse a file with a column the kind does not have, or without one it must have."""
    columns = columns_of(kind)
    known = [column.name for column in columns]
    problems = []
    for column in dict.fromkeys(given):
        if column not in known:
            near = difflib.get_close_matches(column, [name for name in known if name not in given], 1)
            problems.append(f"unknown column {column!r}" + (f" (is {near[0]!r} meant?)" if near else ""))
    problems += [f"column {column!r} stands twice" for column in dict.fromkeys(given) if given.count(column) > 1]
    missing = [column.name for column in columns if not column.optional and column.name not in given]
    problems += [f"missing column {column!r}" for column in missing]
    if problems:
        hint = " Columns are separated by commas." if len(given) == 1 and set(";\t|") & set(given[0]) else ""
        raise FileError(name, f"{', '.join(problems)}.{hint} A {kind} file has: {_wanted(columns)}")


def _wanted(columns: Sequence[Column]) -> str:
    return ", ".join(column.name + ("?" if column.optional else "") for column in columns) + " (? may be absent)"


def read_whole(file: Inspected, kind: str) -> RawBatch:
    """All rows of a short file as one batch."""
    batches = list(read_batches(file, kind))
    if not batches:
        names = [column.name for column in columns_of(kind)]
        return RawBatch(np.zeros(0, np.int64), dict.fromkeys(names, pa.nulls(0, pa.string())))
    columns = {}
    for name in batches[0].columns:
        columns[name] = pa.concat_arrays([batch.columns[name] for batch in batches])
    return RawBatch(
        np.concatenate([batch.rows for batch in batches]),
        columns,
        [spoiled for batch in batches for spoiled in batch.spoiled],
        None if batches[0].lines is None else [line for batch in batches for line in batch.lines or ()],
    )


# ---- CSV -------------------------------------------------------------------------------------------------------------
def _read_csv(file: Inspected, kind: str) -> Iterator[RawBatch]:
    with file.path.open("rb") as binary:
        header = _csv_header(binary, file.name)
        check_columns(file.name, kind, header)
        body = _csv_body_offset(binary)
        if body == file.size:
            return
        if file.is_utf8:
            source = pa.OSFile(str(file.path))
            source.seek(body)
        else:
            binary.seek(body)
            source = pa.PythonFile(_Mended(binary), mode="r")
        yield from _csv_batches(source, file, header)


def _csv_header(binary: BinaryIO, name: str) -> list[str]:
    line = binary.readline(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
    try:
        first = line.replace(b"\r", b"\n").split(b"\n", 1)[0].decode()
    except UnicodeDecodeError as error:
        raise FileError(name, "row 1, the header, is not UTF-8: save the file as UTF-8") from error
    header = next(csv.reader([first]), [])
    if not header:
        raise FileError(name, "row 1 is blank: it must be the header")
    return header


def _csv_body_offset(binary: BinaryIO) -> int:
    """Where row 2 begins: after the first line end, of whatever system."""
    binary.seek(0)
    line = binary.readline(BLOCK_BYTES)
    alone = line.find(b"\r")
    return alone + 1 if 0 <= alone < len(line) - 2 else len(line)


def _csv_batches(source: pa.NativeFile, file: Inspected, header: list[str]) -> Iterator[RawBatch]:
    misfits: list[tuple[int, str]] = []  # (row, its text) of those without the header's number of fields

    def set_aside(row: Any) -> str:
        misfits.append((row.number + 1, row.text))  # the header was read apart
        return "skip"

    reader = pa.csv.open_csv(
        source,
        read_options=pa.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False, column_names=header),
        parse_options=pa.csv.ParseOptions(
            newlines_in_values=file.has_quotes, ignore_empty_lines=False, invalid_row_handler=set_aside
        ),
        convert_options=pa.csv.ConvertOptions(
            check_utf8=False,
            null_values=[""],
            strings_can_be_null=True,
            column_types=dict.fromkeys(header, pa.string()),
        ),
    )
    before, told = 0, 0
    try:
        for batch in reader:
            gone = np.array([row for row, _ in misfits], np.int64) - 2 - np.arange(len(misfits))
            ordinal = np.arange(before, before + batch.num_rows)
            rows = ordinal + 2 + np.searchsorted(gone, ordinal, side="right")
            before += batch.num_rows
            spoiled, told = [_misfit(row, line, len(header)) for row, line in misfits[told:]], len(misfits)
            columns = dict(zip(header, batch.columns, strict=True))
            yield RawBatch(rows, columns, spoiled)
    except pa.ArrowInvalid as error:
        problem = f"has a row longer than {BLOCK_BYTES >> 20} MiB after row {before + len(misfits) + 1}"
        raise FileError(file.name, problem if "straddling" in str(error) else str(error)) from error
    if rest := [_misfit(row, line, len(header)) for row, line in misfits[told:]]:
        yield RawBatch(np.zeros(0, np.int64), {name: pa.nulls(0, pa.string()) for name in header}, rest)


def _misfit(row: int, line: str, wanted: int) -> Spoiled:
    fields = next(csv.reader(io.StringIO(line, newline="")), [])
    if BROKEN in line:
        return Spoiled(row, "broken_utf8", None, _json(fields))
    return Spoiled(row, "wrong_field_count", f"{len(fields)} fields instead of {wanted}", _json(fields))


class _Mended(io.RawIOBase):
    """A text file as UTF-8, with the mark BROKEN wherever it is not."""

    def __init__(self, binary: BinaryIO) -> None:
        self._binary, self._rest = binary, b""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size or size < 0:
            piece = self._binary.read(1 << 20)
            self._rest += self._decoder.decode(piece, final=not piece).encode()
            if not piece:
                break
        size = len(self._rest) if size < 0 else size
        given, self._rest = self._rest[:size], self._rest[size:]
        return given


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def plain_values(array: pa.Array) -> list[Any]:
    """Values as JSON would have them: times as ISO 8601 to the last digit, bytes that are no text marked."""
    if pa.types.is_timestamp(array.type):
        return [None if at is None else at.replace(" ", "T") for at in array.cast(pa.string()).to_pylist()]
    if pa.types.is_date(array.type):  # Python's dates end with the year 9999, those of a file need not
        return array.cast(pa.string()).to_pylist()
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        words = array.cast(pa.binary()).to_pylist()
        return [None if word is None else word.decode(errors="replace") for word in words]


# ---- NDJSON ----------------------------------------------------------------------------------------------------------
def _read_ndjson(file: Inspected, kind: str) -> Iterator[RawBatch]:
    names = [column.name for column in columns_of(kind)]
    seen: set[str] = set()
    lines = _lines(file)
    while block := list(islice(lines, NDJSON_ROWS)):
        entries = [_json_object(line, row) for row, line in block]
        good = [(row, line, e) for (row, line), e in zip(block, entries, strict=True) if not isinstance(e, Spoiled)]
        for row, _, entry in good:
            if unknown := entry.keys() - names:
                check_columns(f"{file.name}, row {row}", kind, [*names, *sorted(unknown)])
            seen |= entry.keys()
        rows = np.array([row for row, _, _ in good], np.int64)
        columns = {name: pa.array([entry.get(name) for _, _, entry in good], pa.string()) for name in names}
        spoiled = [entry for entry in entries if isinstance(entry, Spoiled)]
        yield RawBatch(rows, columns, spoiled, [line for _, line, _ in good])
    if seen:
        check_columns(file.name, kind, [name for name in names if name in seen])


def _lines(file: Inspected) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered."""
    with file.path.open("rb") as binary:
        row = 0
        while line := binary.readline(BLOCK_BYTES):
            row += 1
            if len(line) == BLOCK_BYTES:
                raise FileError(file.name, f"row {row} is longer than {BLOCK_BYTES >> 20} MiB")
            if row == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line := line.strip():
                yield row, line.decode(errors="replace")


def _json_object(line: str, row: int) -> dict[str, str | None] | Spoiled:
    """The values of one line as text: numbers as they are written, so that 12.0 is told from 12."""
    try:
        entry = json.loads(line, parse_int=str, parse_float=str, parse_constant=_refuse)
        if isinstance(entry, dict):
            nested = any(isinstance(value, dict | list) for value in entry.values())
            whole = json.loads(line) if nested else entry
            if "\\u" in line:
                _json(entry).encode()  # half a surrogate pair is no text
            return {name: _text_of(value, whole[name]) for name, value in entry.items()}
    except (ValueError, RecursionError):
        pass
    return Spoiled(row, "broken_utf8" if BROKEN in line else "not_json", line, _json(line))


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _text_of(value: Any, whole: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return _json(whole)


# ---- Parquet ---------------------------------------------------------------------------------------------------------
def _read_parquet(file: Inspected, kind: str) -> Iterator[RawBatch]:
    columns = {column.name: column for column in columns_of(kind)}
    try:
        with pq.ParquetFile(
            file.path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        ) as parquet:
            schema = parquet.schema_arrow
            check_columns(file.name, kind, schema.names)
            for given in schema:
                _check_type(file.name, columns[given.name], given.type)
            row = 1
            for batch in parquet.iter_batches(PARQUET_ROWS, use_threads=False):
                pairs = zip(schema.names, batch.columns, strict=True)
                given = {n: c.cast(pa.string()) if columns[n].type in {"text", "json"} else c for n, c in pairs}
                yield RawBatch(np.arange(row, row + batch.num_rows), given)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        problem = " ".join(str(error).split())
        raise FileError(file.name, f"is damaged or cut off, write it anew; Parquet says: {problem}") from error


_WANTED = {
    "text": "text",
    "json": "text that is JSON",
    "int": "a whole-number type such as int64",
    "time": "timestamp[us, UTC]",
    "date": "date32",
}


def _check_type(name: str, column: Column, given: pa.DataType) -> None:
    """Refuse a type whose values would have to be guessed: floats, naive times, text for numbers."""
    if pa.types.is_null(given):
        return
    if column.type == "int":
        fits = pa.types.is_integer(given)
    elif column.type == "time":
        fits = pa.types.is_timestamp(given) and given.tz is not None
    elif column.type == "date":
        fits = pa.types.is_date(given)
    else:
        plain = given.value_type if pa.types.is_dictionary(given) else given
        fits = pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain)
    if not fits:
        naive = " (naive: it says no time zone)" if pa.types.is_timestamp(given) and given.tz is None else ""
        raise FileError(
            name, f"column {column.name!r} is {given}{naive}, and must be {_WANTED[column.type]}: write the file anew"
        )
