"""Files of records: what is read, what is refused by the row, what is refused as a whole."""

import datetime as dt
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.files import FileError, StagedFile, arrivals, inspect_file, read_run, stage, stage_file, text
from connectors.names import Names, bytes_of
from streams.merge import merge

NOW_US = 1_750_000_000_000_000  # 2025-06-15
UTC = pa.timestamp("us", tz="UTC")
MOMENT = "2025-05-01T10:00:00Z"
MOMENT_US = 1_746_093_600_000_000


def stage_bytes(folder: Path, kind: str, content: bytes, name: str = "given.csv") -> StagedFile:
    path = folder / name
    path.write_bytes(content)
    return stage_file(inspect_file(path), kind, folder / f"scratch-{time.monotonic_ns()}", partitions=16, until=NOW_US)


def stage_table(folder: Path, kind: str, columns: dict, name: str = "given.parquet") -> StagedFile:
    pq.write_table(pa.table(columns), folder / name)
    return stage_bytes(folder, kind, (folder / name).read_bytes(), name)


def rows_of(staged: StagedFile) -> list[dict]:
    """The good rows in order of arrival, columns without a value left out, times in µs."""
    rows = []
    runs = [((arrivals(staged.kind, b), b) for b in read_run(run)) for run in staged.runs]
    for chunk in merge(runs):
        taken = dict.fromkeys(chunk.parts, 0)
        parts = {s: pa.Table.from_batches(batches).to_pylist() for s, batches in chunk.parts.items()}
        for source in chunk.source.tolist():
            rows.append(plain(parts[source][taken[source]]))
            taken[source] += 1
    for row in rows if staged.kind == "reading" else ():
        row["meter_id"] = staged.meter_ids[row["meter_id"]].as_py()
    return rows


def plain(row: dict) -> dict:
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    as_us = {k: (v - epoch) // dt.timedelta(microseconds=1) for k, v in row.items() if isinstance(v, dt.datetime)}
    return {k: v for k, v in (row | as_us).items() if v is not None}


def bad_rows_of(staged: StagedFile) -> list[dict]:
    return [row for run in staged.unreadable for batch in read_run(run) for row in batch.to_pylist()]


def faults_of(staged: StagedFile) -> list[tuple]:
    return [(row["row"], row["column"], row["value"], row["reason"]) for row in bad_rows_of(staged)]


def readings(*rows: str, header: str = "meter_id,read_at,register_wh") -> bytes:
    return "\n".join([header, *rows, ""]).encode()


# ---- whole numbers, times, dates -------------------------------------------------------------------------------------
def parse(parser, words: list[str], width=np.int64) -> list[tuple[int, int]]:
    """(value, fault) of each word."""
    data, offsets = bytes_of(pa.array(words, pa.string()))
    values, faults = np.zeros(len(words), width), np.zeros(len(words), np.uint8)
    parser(data, offsets, np.ones(len(words), np.bool_), values, faults)
    return list(zip(values.tolist(), faults.tolist(), strict=True))


@given(st.lists(st.integers(-(2**64), 2**64).map(str) | st.text("0123456789+-. e", max_size=22)))
def test_a_whole_number_is_all_of_the_value_or_it_is_none(words):
    for word, (value, fault) in zip(words, parse(text.parse_ints, words), strict=True):
        if not re.fullmatch(r"[+-]?[0-9]+", word):
            assert fault == text.NOT_AN_INTEGER
        elif abs(int(word)) > 2**63 - 1:
            assert fault == text.OUT_OF_RANGE
        else:
            assert (value, fault) == (int(word), 0)


OFFSETS = st.sampled_from(["Z", "+00:00", "+05:00", "-0330", "+1345", "-12:00"])
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


MOMENTS = st.datetimes(dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29))  # noqa: DTZ001 (the offset is drawn apart)


@given(MOMENTS, st.sampled_from("T "), OFFSETS, st.integers(0, 6))
def test_a_time_is_what_the_calendar_says(moment, between, offset, digits):
    fraction = f".{moment.microsecond:06d}"[: digits + 1] if digits else ""
    word = moment.isoformat(between, "seconds") + fraction + offset
    written = dt.datetime.fromisoformat(word)
    assert parse(text.parse_times, [word]) == [((written - EPOCH) // dt.timedelta(microseconds=1), 0)]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("2025-05-01T10:00Z", MOMENT_US),
        ("2025-05-01T15:00:00.0000000000+05:00", MOMENT_US),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000_000),
    ],
)
def test_a_time_may_leave_out_seconds_and_end_in_zeros(word, value):
    assert parse(text.parse_times, [word]) == [(value, 0)]


@pytest.mark.parametrize("word", ["2025-05-01T10:00:00", "2025-05-01 10:00", "2025-05-01T10:00:00.5"])
def test_a_time_without_an_offset_is_naive(word):
    assert parse(text.parse_times, [word]) == [(0, text.NAIVE_TIME)]


NO_TIMES = [
    "2025-05-01",
    "2025-02-29T00:00:00Z",
    "2025-13-01T00:00:00Z",
    "2025-00-01T00:00:00Z",
    "2025-05-00T00:00:00Z",
    "2025-04-31T00:00:00Z",
    "2025-05-01T24:00:00Z",
    "2025-05-01T10:60:00Z",
    "2025-05-01T10:00:60Z",
    "2025-05-01T10:00:00.Z",
    "2025-05-01T10:00:00.1234567Z",
    "2025-05-01T10:00:00+5",
    "2025-05-01T10:00:00+05",
    "2025-05-01T10:00:00+05:0",
    "2025-05-01T10:00:00+24:00",
    "2025-05-01T10:00:00+05:60",
    "2025-05-01T10:00:00z",
    "2025-05-01t10:00:00Z",
    "2025-05-01T10:00:00ZZ",
    "2025/05/01T10:00:00Z",
    "2025-05-01T10:00:00Z+05:00",
    "25-05-01T10:00:00Z",
    "2025-5-1T10:00:00Z",
    "0000-05-01T10:00:00Z",
    "1746093600",
    "now",
    "٢٠٢٥-05-01T10:00:00Z",
    "2025-05-01T10:0:00Z",
    "20250501T100000Z",
    "2025-05-01T10:00:00,5Z",
    "2025-05-01T10:00:+5Z",
]


@pytest.mark.parametrize("word", NO_TIMES)
def test_a_time_that_is_none_is_none(word):
    assert parse(text.parse_times, [word]) == [(0, text.BAD_TIME)]


@given(st.dates())
def test_a_date_is_what_the_calendar_says(day):
    assert parse(text.parse_dates, [day.isoformat()], np.int32) == [((day - dt.date(1970, 1, 1)).days, 0)]


@pytest.mark.parametrize("word", ["2025-05-01T00:00:00Z", "2025-5-1", "2025-02-30", "01.05.2025", "20250501", "x"])
def test_a_date_that_is_none_is_none(word):
    assert parse(text.parse_dates, [word], np.int32)[0][1] == text.BAD_DATE


# ---- names -----------------------------------------------------------------------------------------------------------
@given(st.lists(st.lists(st.text(max_size=4) | st.integers(0, 30).map("meter-{}".format))))
def test_each_name_has_one_number_in_order_of_appearance(pieces):
    names, expected = Names(), {}
    for piece in pieces:
        array = pa.array(["", *piece], pa.string()).slice(1)
        assert names.numbers(array).tolist() == [expected.setdefault(name, len(expected)) for name in piece]
    assert names.texts().to_pylist() == list(expected)
    again = Names()
    again.restore(names.arrays())
    assert again.numbers(pa.array([*expected, "another"], pa.string())).tolist() == list(range(len(expected) + 1))


def test_numbers_stay_while_the_names_grow_to_many():
    names = Names()
    many = [f"meter-{i:06d}" for i in range(50_000)]
    for start in range(0, 50_000, 9_000):
        names.numbers(pa.array(many[start : start + 9_000]))
    assert names.numbers(pa.array(many)).tolist() == list(range(50_000))


# ---- CSV -------------------------------------------------------------------------------------------------------------
def test_a_csv_as_any_program_writes_it_is_read_with_its_row_numbers(tmp_path):
    content = (
        '\ufeffmeter_id,"read_at",register_wh,status\r\n'
        f"M1,{MOMENT},5,\r\n"
        "\r\n"
        f'"M,""2""\r\nof the corner",{MOMENT},"6",estimated\r\n'
        f"M3,{MOMENT},x,\r\n"
        ",,,\r\n"
        f"M4,{MOMENT},+7,measured"
    )
    staged = stage_bytes(tmp_path, "reading", content.encode())
    assert rows_of(staged) == [
        {"meter_id": "M1", "read_at": MOMENT_US, "register_wh": 5},
        {"meter_id": 'M,"2"\r\nof the corner', "read_at": MOMENT_US, "register_wh": 6, "status": 1},
        {"meter_id": "M4", "read_at": MOMENT_US, "register_wh": 7, "status": 0},
    ]
    assert faults_of(staged) == [(5, "register_wh", "x", "not_an_integer")]


def test_row_numbers_hold_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("connectors.files.formats.BLOCK_BYTES", 256)
    rows, bad = [], []
    for number in range(2, 400):
        row = f"M{number},{MOMENT},{number}"
        if number % 7 == 0:
            row = ""
        elif number % 11 == 0:
            row, _ = f"M{number},{MOMENT}", bad.append(number)
        elif number % 13 == 0:
            row, _ = f"M{number},{MOMENT},{number}.5", bad.append(number)
        elif number % 5 == 0:
            row = f'"M\n\n{number}",{MOMENT},{number}'
        rows.append(row)
    staged = stage_bytes(tmp_path, "reading", readings(*rows))
    assert [row for row, *_ in sorted(faults_of(staged))] == bad
    assert all(row["meter_id"].endswith(str(row["register_wh"])) for row in rows_of(staged))
    assert staged.taken + staged.refused == sum(1 for row in rows if row)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_may_end_as_on_any_system(tmp_path, ending):
    content = ending.join(["meter_id,read_at,register_wh", f"M1,{MOMENT},5", f"M2,{MOMENT},x", f"M3,{MOMENT},6"])
    staged = stage_bytes(tmp_path, "reading", content.encode())
    assert [row["register_wh"] for row in rows_of(staged)] == [5, 6]
    assert [row for row, *_ in faults_of(staged)] == [3]


ACCOUNT = {
    "account_id": "A1",
    "effective_at": MOMENT,
    "meter_id": "M1",
    "district": "bektemir",
    "tariff": "household",
}
BAD_CELLS = [
    ("account", ACCOUNT, "account_id", "", "missing_value"),
    ("account", ACCOUNT, "families", "0", "out_of_range"),
    ("account", ACCOUNT, "families", "two", "not_an_integer"),
    ("account", ACCOUNT, "language", "uz", "unknown_value"),
    ("account", ACCOUNT, "supply_class", "Normal", "unknown_value"),
    ("account", ACCOUNT, "phone", "call me", "unknown_value"),
    ("account", ACCOUNT, "effective_at", "2025-05-01T10:00:00", "naive_time"),
    ("account", ACCOUNT, "effective_at", "1800-05-01T10:00:00Z", "out_of_range"),
    ("account", ACCOUNT, "effective_at", "2025-07-01T10:00:00Z", "arrives_later_than_now"),
    ("account", ACCOUNT, "received_at", "2025-07-01T10:00:00Z", "arrives_later_than_now"),
    ("account", ACCOUNT, "closed_at", "yesterday", "bad_time"),
    ("account", ACCOUNT, "emergency_credit_tiyin", "-1", "out_of_range"),
    ("account", ACCOUNT, "opening_balance_tiyin", "1000000000000001", "out_of_range"),
    ("account", ACCOUNT, "opening_balance_tiyin", "-1000000000000001", "out_of_range"),
    ("account", ACCOUNT, "register_modulus_wh", "9223372036854775807", "out_of_range"),
    ("account", ACCOUNT, "opening_balance_tiyin", "9223372036854775808", "out_of_range"),
    ("account", ACCOUNT, "opening_balance_tiyin", "1e3", "not_an_integer"),
    ("account", ACCOUNT, "opening_balance_tiyin", " 5", "not_an_integer"),
    (
        "payment",
        {"payment_id": "P1", "account_id": "A1", "paid_at": MOMENT, "amount_tiyin": "5"},
        "amount_tiyin",
        "0",
        "out_of_range",
    ),
    (
        "policy",
        {"policy_id": "p", "kind": "holiday", "scope": "all", "starts_at": MOMENT, "author": "a", "reason": "r"},
        "scope",
        "Bektemir",
        "unknown_value",
    ),
    (
        "policy",
        {"policy_id": "p", "kind": "holiday", "scope": "all", "starts_at": MOMENT, "author": "a", "reason": "r"},
        "value",
        "{days}",
        "not_json",
    ),
    (
        "acknowledgement",
        {"command_id": "3-17-0", "acknowledged_at": MOMENT, "outcome": "opened"},
        "command_id",
        "16-17-0",
        "unknown_value",
    ),
    (
        "receipt",
        {"notice_id": "3-17-0", "received_at": MOMENT, "status": "delivered"},
        "notice_id",
        "three",
        "unknown_value",
    ),
]


@pytest.mark.parametrize(("kind", "good", "column", "value", "reason"), BAD_CELLS)
@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_a_bad_value_is_named_and_the_good_rows_are_kept(tmp_path, kind, good, column, value, reason, form):
    bad = good | {column: value}
    if form == "csv":
        lines = [",".join(bad), *(",".join(json.dumps(row.get(c, "")) for c in bad) for row in (good, bad, good))]
        lines = [line.replace('""', "") for line in lines]
    else:
        lines = [json.dumps(row) for row in (good, bad, good)]
    staged = stage_bytes(tmp_path, kind, "\n".join(lines).encode())
    row = 3 if form == "csv" else 2
    assert [(r, c, v or "", why) for r, c, v, why in faults_of(staged)] == [(row, column, value, reason)]
    assert staged.taken == 2
    (record,) = bad_rows_of(staged)
    assert (record["record_kind"], record["file"]) == (kind, "given.csv")
    whole = json.loads(record["record"])
    assert {name: whole[name] or "" for name in bad} == bad


def test_of_several_bad_values_the_first_column_of_the_contract_is_named(tmp_path):
    staged = stage_bytes(tmp_path, "reading", readings("x,y,M1", header="register_wh,read_at,meter_id"))
    assert faults_of(staged) == [(2, "read_at", "y", "bad_time")]


def test_a_row_with_more_or_fewer_fields_stops_no_other(tmp_path):
    staged = stage_bytes(tmp_path, "reading", readings(f"M1,{MOMENT}", f"M2,{MOMENT},5", f"M3,{MOMENT},5,,", "what"))
    assert [(row, reason) for row, _, _, reason in faults_of(staged)] == [
        (2, "wrong_field_count"),
        (4, "wrong_field_count"),
        (5, "wrong_field_count"),
    ]
    assert json.loads(bad_rows_of(staged)[1]["record"]) == ["M3", MOMENT, "5", "", ""]
    assert staged.taken == 1


def test_broken_utf8_spoils_its_own_row_only(tmp_path):
    content = readings(f"M1,{MOMENT},1", f"M\x00,{MOMENT},2", "M\x00", f"Счётчик,{MOMENT},4").replace(b"\x00", b"\xff")
    staged = stage_bytes(tmp_path, "reading", content)
    assert [row["meter_id"] for row in rows_of(staged)] == ["M1", "Счётчик"]
    assert faults_of(staged) == [(3, "meter_id", "M\ufffd", "broken_utf8"), (4, None, None, "broken_utf8")]


def test_a_header_without_rows_is_a_file_without_records(tmp_path):
    for content in (b"meter_id,read_at,register_wh", b"meter_id,read_at,register_wh\r\n\r\n"):
        staged = stage_bytes(tmp_path, "reading", content)
        assert (staged.taken, staged.refused) == (0, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\n", "is empty"),
        (readings(header="meter_id,read_at,register"), "unknown column 'register' (is 'register_wh' meant?)"),
        (readings(header="meter_id,read_at"), "missing column 'register_wh'"),
        (readings(header="meter_id,read_at,register_wh,account_id"), "unknown column 'account_id'"),
        (readings(header="meter_id,read_at,register_wh,meter_id"), "column 'meter_id' stands twice"),
        (readings(header="meter_id;read_at;register_wh"), "separated by commas"),
        (readings(f'M1,{MOMENT},"5', f"M2,{MOMENT},6"), "row 2 or later opens a quote that is never closed"),
        (b"meter_id,read_at,register_wh\xff\n", "not UTF-8"),
        ("meter_id,read_at,register_wh\n".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04", "spreadsheet"),
        (b"[{}]", "JSON array"),
        (b"\nmeter_id,read_at,register_wh\n", "row 1 is blank"),
    ],
)
def test_a_file_that_cannot_be_taken_is_refused_by_name_and_cause(tmp_path, content, said):
    with pytest.raises(FileError, match=r"^given.csv: ") as refused:
        stage_bytes(tmp_path, "reading", content)
    assert said in str(refused.value)


def test_a_row_longer_than_a_block_refuses_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("connectors.files.formats.BLOCK_BYTES", 1 << 10)
    with pytest.raises(FileError, match=r"row longer than"):
        stage_bytes(tmp_path, "reading", readings(f"M1,{MOMENT},5", f"{'M' * 5000},{MOMENT},5"))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"^june.csv: cannot be read: No such file"):
        inspect_file(tmp_path / "june.csv")


def test_a_file_that_is_still_being_written_is_refused(tmp_path):
    path = tmp_path / "given.csv"
    path.write_bytes(readings(f"M1,{MOMENT},5"))
    inspected = inspect_file(path)
    path.write_bytes(readings(f"M1,{MOMENT},5", f"M1,{MOMENT},6"))
    with pytest.raises(FileError, match=r"written to while it was read"):
        stage_file(inspected, "reading", tmp_path / "scratch", partitions=16, until=NOW_US)


# ---- NDJSON ----------------------------------------------------------------------------------------------------------
def reading_json(register: str) -> str:
    return f'{{"meter_id": "M1", "read_at": "{MOMENT}", "register_wh": {register}}}'


@pytest.mark.parametrize("register", ["12", '"12"', "-0"])
def test_a_whole_number_of_json_is_one_with_or_without_quotes(tmp_path, register):
    assert stage_bytes(tmp_path, "reading", reading_json(register).encode()).taken == 1


@pytest.mark.parametrize("register", ["12.5", "12.0", "1e3", "true", "[12]", '{"a": 12}', '"12.0"', '" 12"'])
def test_any_other_number_of_json_is_none(tmp_path, register):
    ((row, column, _, reason),) = faults_of(stage_bytes(tmp_path, "reading", reading_json(register).encode()))
    assert (row, column, reason) == (1, "register_wh", "not_an_integer")


def test_a_line_that_is_no_json_object_stops_no_other(tmp_path):
    broken = reading_json("4").encode().replace(b"M1", b"M\xff")
    lines = [
        reading_json("1"),
        "",
        '{"meter_id": ',
        reading_json("2"),
        "7",
        "[]",
        reading_json("NaN"),
        '{"meter_id": "\\ud800"}',
    ]
    staged = stage_bytes(tmp_path, "reading", "\n".join(lines).encode() + b"\n" + broken)
    assert [row["register_wh"] for row in rows_of(staged)] == [1, 2]
    assert [(row, reason) for row, _, _, reason in faults_of(staged)] == [
        (3, "not_json"),
        (5, "not_json"),
        (6, "not_json"),
        (7, "not_json"),
        (8, "not_json"),
        (9, "broken_utf8"),
    ]
    assert json.loads(bad_rows_of(staged)[0]["record"]) == '{"meter_id":'


def test_an_unknown_key_of_json_refuses_the_file_and_names_the_row(tmp_path):
    lines = reading_json("1") + "\n" + reading_json("2").replace("register_wh", "register")
    with pytest.raises(FileError, match=r"^given.csv, row 2: unknown column 'register'"):
        stage_bytes(tmp_path, "reading", lines.encode())


def test_a_key_that_no_line_of_json_has_is_a_missing_column(tmp_path):
    with pytest.raises(FileError, match=r"missing column 'register_wh'"):
        stage_bytes(tmp_path, "reading", f'{{"meter_id": "M1", "read_at": "{MOMENT}"}}'.encode())
    staged = stage_bytes(
        tmp_path, "reading", f'{reading_json("1")}\n{{"meter_id": "M1", "read_at": "{MOMENT}"}}'.encode()
    )
    assert faults_of(staged) == [(2, "register_wh", None, "missing_value")]


def test_a_value_of_a_policy_may_be_json_itself(tmp_path):
    policy = {"policy_id": "p", "kind": "threshold", "scope": "all", "starts_at": MOMENT, "author": "a", "reason": "r"}
    staged = stage_bytes(tmp_path, "policy", json.dumps(policy | {"value": {"notice_hours": 72, "x": [1.5]}}).encode())
    assert json.loads(rows_of(staged)[0]["value"]) == {"notice_hours": 72, "x": [1.5]}


# ---- Parquet ---------------------------------------------------------------------------------------------------------
GOOD = {
    "meter_id": pa.array(["M1", "M2"]),
    "read_at": pa.array([MOMENT_US, MOMENT_US], UTC),
    "register_wh": pa.array([5, 6], pa.int64()),
}
READ = [
    {"meter_id": "M1", "read_at": MOMENT_US, "register_wh": 5},
    {"meter_id": "M2", "read_at": MOMENT_US, "register_wh": 6},
]


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"meter_id": GOOD["meter_id"].cast(pa.large_string())},
        {"meter_id": GOOD["meter_id"].dictionary_encode()},
        {"meter_id": GOOD["meter_id"].cast(pa.string_view())},
        {"read_at": GOOD["read_at"].cast(pa.timestamp("ms", "UTC"))},
        {"read_at": GOOD["read_at"].cast(pa.timestamp("ns", "UTC"))},
        {"read_at": GOOD["read_at"].cast(pa.timestamp("us", "Asia/Tashkent"))},
        {"register_wh": GOOD["register_wh"].cast(pa.int16())},
        {"register_wh": GOOD["register_wh"].cast(pa.uint64())},
        {"status": pa.nulls(2)},
        {"received_at": pa.nulls(2, UTC)},
    ],
)
def test_any_type_that_says_the_same_is_read(tmp_path, other):
    assert rows_of(stage_table(tmp_path, "reading", GOOD | other)) == READ


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"register_wh": pa.array([5.0, 6.0])}, "'register_wh' is double, and must be a whole-number type"),
        ({"register_wh": pa.array(["5", "6"])}, "'register_wh' is string"),
        ({"read_at": GOOD["read_at"].cast(pa.timestamp("us"))}, "naive"),
        ({"read_at": pa.array(["a", "b"])}, "'read_at' is string, and must be timestamp[us, UTC]"),
        ({"meter_id": pa.array([1, 2])}, "'meter_id' is int64, and must be text"),
        ({"meter_id": pa.array([["M1"], ["M2"]])}, "'meter_id' is list"),
        ({"voltage": pa.array([1, 2])}, "unknown column 'voltage'"),
    ],
)
def test_a_parquet_file_of_another_type_is_refused(tmp_path, other, said):
    with pytest.raises(FileError, match=r"^given.parquet: ") as refused:
        stage_table(tmp_path, "reading", GOOD | other)
    assert said in str(refused.value)


def test_bad_values_of_parquet_are_named_by_their_row(tmp_path):
    columns = {
        "meter_id": pa.array(["M1", None, "M3", "", "M5", "M6"]),
        "read_at": pa.array(
            [MOMENT_US * 1000, MOMENT_US * 1000, MOMENT_US * 1000 + 1, 5, 6, None], pa.timestamp("ns", "UTC")
        ),
        "register_wh": pa.array([5, 5, 5, 5, 2**64 - 1, 5], pa.uint64()),
    }
    staged = stage_table(tmp_path, "reading", columns)
    assert faults_of(staged) == [
        (2, "meter_id", None, "missing_value"),
        (3, "read_at", "2025-05-01T10:00:00.000000001Z", "bad_time"),
        (4, "meter_id", "", "missing_value"),
        (5, "read_at", "1970-01-01T00:00:00.000000006Z", "bad_time"),
        (6, "read_at", None, "missing_value"),
    ]
    assert json.loads(bad_rows_of(staged)[1]["record"])["read_at"] == "2025-05-01T10:00:00.000000001Z"
    columns["read_at"] = pa.array([MOMENT_US] * 6, UTC)
    assert (5, "register_wh", str(2**64 - 1), "out_of_range") in faults_of(stage_table(tmp_path, "reading", columns))


def test_dates_and_times_that_python_does_not_know_spoil_their_own_row_only(tmp_path):
    """A calendar that ends with the year 9999, and a file that does not: 32 bits of days, 64 of microseconds."""
    days, moments = [20_000, 2**31 - 1, 20_000, -(2**31)], [None, None, 2**63 - 1, -(2**63)]
    columns = {
        "tariff": ["a", "b", "c", "d"],
        "effective_on": pa.array(days, pa.int32()).view(pa.date32()),
        "price_tiyin_per_kwh": [60_000] * 4,
        "received_at": pa.array(moments, pa.int64()).view(UTC),
    }
    staged = stage_table(tmp_path, "tariff", columns)
    assert [row["tariff"] for row in rows_of(staged)] == ["a"]
    assert [(row, column, reason) for row, column, _, reason in faults_of(staged)] == [
        (2, "effective_on", "out_of_range"),
        (3, "received_at", "out_of_range"),
        (4, "effective_on", "out_of_range"),
    ]


def test_text_of_parquet_that_is_no_utf8_spoils_its_own_row_only(tmp_path):
    broken = pa.array([b"M1", b"M\xff"], pa.binary()).view(pa.string())
    staged = stage_table(tmp_path, "reading", GOOD | {"meter_id": broken})
    assert [(row, column, reason) for row, column, _, reason in faults_of(staged)] == [(2, "meter_id", "broken_utf8")]
    assert staged.taken == 1


@pytest.mark.parametrize("keep", [4, 8, 200, -4, -1])
def test_a_truncated_parquet_file_is_refused(tmp_path, keep):
    pq.write_table(pa.table(GOOD), tmp_path / "whole.parquet")
    with pytest.raises(FileError, match=r"^given.parquet: is damaged or cut off"):
        stage_bytes(tmp_path, "reading", (tmp_path / "whole.parquet").read_bytes()[:keep], "given.parquet")


def test_a_parquet_file_damaged_inside_is_refused_and_leaves_nothing(tmp_path):
    table = pa.table(
        {"meter_id": ["M"] * 10_000, "read_at": pa.array([MOMENT_US] * 10_000, UTC), "register_wh": range(10_000)}
    )
    pq.write_table(table, tmp_path / "whole.parquet", row_group_size=1000, write_page_checksum=True)
    content = bytearray((tmp_path / "whole.parquet").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    with pytest.raises(FileError, match=r"damaged"):
        stage_bytes(tmp_path, "reading", bytes(content), "given.parquet")


def test_a_file_named_parquet_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"is no Parquet file"):
        stage_bytes(tmp_path, "reading", readings(), "given.parquet")


# ---- tariff versions -------------------------------------------------------------------------------------------------
TARIFF = "tariff,effective_on,block_upto_kwh,price_tiyin_per_kwh"


def test_the_rows_of_a_tariff_version_stand_together_the_open_block_last(tmp_path):
    rows = ["a,2025-05-01,,9", "b,2025-05-01,,7", "a,2025-05-01,200,5", "a,2025-04-01,,4", "a,2025-05-01,50,3"]
    found = rows_of(stage_bytes(tmp_path, "tariff", readings(*rows, header=TARIFF)))
    assert [(r["tariff"], r["price_tiyin_per_kwh"], r["block"], r["blocks"]) for r in found] == [
        ("a", 4, 0, 1),
        ("a", 3, 0, 3),
        ("a", 5, 1, 3),
        ("a", 9, 2, 3),
        ("b", 7, 0, 1),
    ]


def test_a_tariff_version_with_a_bad_row_is_unreadable_altogether(tmp_path):
    rows = ["a,2025-05-01,200,5.5", "a,2025-05-01,,9", "a,2025-04-01,,4"]
    staged = stage_bytes(tmp_path, "tariff", readings(*rows, header=TARIFF))
    assert faults_of(staged) == [
        (2, "price_tiyin_per_kwh", "5.5", "not_an_integer"),
        (3, "tariff", "a", "bad_version"),
    ]
    assert staged.taken == 1


def test_a_tariff_version_without_an_open_block_is_unreadable(tmp_path):
    staged = stage_bytes(tmp_path, "tariff", readings("a,2025-05-01,200,5", "b,2025-05-01,,9", header=TARIFF))
    assert faults_of(staged) == [(2, "block_upto_kwh", "200", "no_last_block")]


HOURS = "tariff,effective_on,block_upto_kwh,price_tiyin_per_kwh,hours"


def test_the_rows_of_a_tariff_version_are_in_order_hours_by_hours_and_numbered_through(tmp_path):
    night, day = "22:00-06:00", "06:00-22:00"
    rows = [f"a,2025-05-01,,9,{night}", f"a,2025-05-01,,8,{day}", f"a,2025-05-01,50,5,{night}", "b,2025-05-01,,7,"]
    staged = stage_bytes(tmp_path, "tariff", readings(*rows, header=HOURS))
    assert [
        (r["tariff"], r.get("hours"), r["price_tiyin_per_kwh"], r["block"], r["blocks"]) for r in rows_of(staged)
    ] == [
        ("a", day, 8, 0, 3),
        ("a", night, 5, 1, 3),
        ("a", night, 9, 2, 3),
        ("b", None, 7, 0, 1),
    ]


@pytest.mark.parametrize(
    ("rows", "faults"),
    [
        (
            ["a,2025-05-01,,9,peak", "a,2025-05-01,,8,06:00-22:00"],
            [(2, "hours", "peak", "unknown_value"), (3, "tariff", "a", "bad_version")],
        ),
        (
            ["a,2025-05-01,,9,06:00-22:00", "a,2025-05-01,,8,21:59-06:00"],
            [(2, "hours", "06:00-22:00", "overlapping_hours"), (3, "hours", "21:59-06:00", "overlapping_hours")],
        ),
        (
            ["a,2025-05-01,,9,", "a,2025-05-01,,8,21:00-06:00"],
            [(2, "hours", None, "overlapping_hours"), (3, "hours", "21:00-06:00", "overlapping_hours")],
        ),
        (["a,2025-05-01,,9,06:00-22:00"], [(2, "hours", "06:00-22:00", "gap_in_hours")]),
        (
            ["a,2025-05-01,,9,06:00-22:00", "a,2025-05-01,50,8,22:00-06:00"],
            [(2, "block_upto_kwh", None, "no_last_block"), (3, "block_upto_kwh", "50", "no_last_block")],
        ),
    ],
)
def test_a_tariff_version_whose_hours_are_not_the_day_is_unreadable_altogether(tmp_path, rows, faults):
    staged = stage_bytes(tmp_path, "tariff", readings(*rows, "b,2025-05-01,,7,", header=HOURS))
    assert faults_of(staged) == faults
    assert staged.taken == 1


def test_a_tariff_file_need_not_have_limits(tmp_path):
    staged = stage_bytes(tmp_path, "tariff", b"tariff,effective_on,price_tiyin_per_kwh\na,2025-05-01,5\n")
    assert (staged.taken, staged.refused) == (1, 0)


# ---- order and memory ------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 40), max_size=300), st.integers(1, 40))
def test_any_file_comes_out_in_order_of_arrival_and_else_as_it_stood(tmp_path_factory, minutes, rows_sorted_at_once):
    folder = tmp_path_factory.mktemp("order")
    times = [f"2025-05-01T10:{minute:02d}:00Z" for minute in minutes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("connectors.files.stage.RUN_BYTES", 28 * rows_sorted_at_once)
        patch.setattr("connectors.files.formats.BLOCK_BYTES", 200)
        staged = stage_bytes(folder, "reading", readings(*(f"M,{at},{i}" for i, at in enumerate(times))))
    expected = sorted(range(len(times)), key=lambda i: times[i])
    assert [row["register_wh"] for row in rows_of(staged)] == expected


def test_a_file_in_order_is_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr("connectors.files.formats.BLOCK_BYTES", 200)
    rows = [f"M{i},2025-05-01T10:{i % 60:02d}:00Z,{i}" for i in range(60)]
    assert len(stage_bytes(tmp_path, "reading", readings(*rows)).runs) == 1


MEASURE = """
import sys
from pathlib import Path
import pyarrow as pa
from connectors.files import formats, inspect_file, stage, stage_file
formats.BLOCK_BYTES, stage.RUN_BYTES = 1 << 18, 1 << 22
staged = stage_file(inspect_file(Path(sys.argv[1])), "reading", Path(sys.argv[2]), partitions=16, until=2**62)
print(staged.taken, pa.default_memory_pool().max_memory() >> 20)
"""


@pytest.mark.parametrize("is_sorted", [True, False])
def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path, is_sorted):
    """60 MB of readings of one arrival, or of two that alternate, with blocks and runs a sixteenth of what they are."""
    arrival = [MOMENT.encode(), MOMENT.encode() if is_sorted else b"2025-05-01T09:00:00Z"]
    pair = b"".join(b"MTR0000001,2025-04-01T10:00:00Z,123456,%s\n" % at for at in arrival)
    path = tmp_path / "large.csv"
    path.write_bytes(b"meter_id,read_at,register_wh,received_at\n" + pair * (60_000_000 // len(pair)))
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, path, tmp_path / "scratch"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    taken, peak_mib = map(int, measured.stdout.split())
    assert taken == 2 * (60_000_000 // len(pair))
    assert peak_mib < 30


def test_examples_are_few_and_of_every_reason(tmp_path):
    rows = [f"M1,{MOMENT},x"] * 50 + [f"M1,{MOMENT}"] * 50
    staged = stage_bytes(tmp_path, "reading", readings(*rows))
    assert staged.reasons == {"not_an_integer": 50, "wrong_field_count": 50}
    assert [(e.row, e.reason) for e in staged.examples] == [
        *((row, "not_an_integer") for row in (2, 3, 4)),
        *((row, "wrong_field_count") for row in (52, 53, 54)),
    ][: 2 * stage.EXAMPLES]
