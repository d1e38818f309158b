"""The tariff book: the decrees as data, a month's cost by hand, the journal's own tariffs, and files that are wrong."""

import csv
import json
from contextlib import closing
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.home import Home
from connectors.log.sqlite import open_log
from hisob import homes
from hisob.tariff_book import Version, in_force, journal_book, judge_rise, quote, shipped_book
from streams.ingest import ingest_files
from tests.in_process import ask, call

HEADER = "tariff,effective_on,block_upto_kwh,price_tiyin_per_kwh\n"
MAY_2025 = ((200, 60_000), (500, 80_000), (1_000, 100_000), (5_000, 150_000), (10_000, 175_000), (None, 200_000))


@pytest.fixture
def nowhere(tmp_path):
    return tmp_path / "no-home"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tariffs.csv"

    def write(*lines):
        path.write_text(HEADER + "".join(f"{line}\n" for line in lines))
        return path

    return write


# ---- the book --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tariff", "on", "prices"),
    [
        ("household", "2016-04-01", [18_200]),
        ("household", "2016-10-01", [19_100]),
        ("household", "2018-03-31", [20_430]),
        ("household", "2018-04-01", [22_860]),
        ("household", "2018-11-16", [25_000]),
        ("household", "2019-06-01", [28_000]),
        ("household", "2024-04-30", [29_500]),
        ("household", "2024-05-01", [45_000, 90_000, 135_000, 157_500, 180_000]),
        ("household", "2025-05-01", [60_000, 80_000, 100_000, 150_000, 175_000, 200_000]),
        ("household_stove", "2025-05-01", [30_000, 40_000, 50_000, 75_000, 87_500, 100_000]),
        ("commercial", "2023-09-30", [45_000]),
        ("commercial", "2023-10-01", [90_000]),
        ("commercial", "2025-05-01", [100_000]),
        ("commercial_hours", "2025-05-01", [150_000, 100_000, 66_667]),
        ("state_funded", "2023-10-01", [100_000]),
        ("state_funded", "2025-06-01", [100_000]),
    ],
)
def test_the_shipped_book_has_the_price_of_each_decree(tariff, on, prices):
    version = in_force(shipped_book(), tariff, date.fromisoformat(on))
    assert [price for _, price in version.blocks] == prices


def test_prices_by_the_hour_are_the_commercial_ones_by_half_more_and_by_a_third_less_to_the_tiyin():
    for version in shipped_book():
        if version.tariff == "commercial_hours":
            commercial = in_force(shipped_book(), "commercial", version.effective_on).blocks[0][1]
            peak, half_peak, night = (dict(blocks)[None] for blocks in version.lists().values())
            assert (peak * 2, half_peak) == (commercial * 3, commercial)
            assert abs(night * 3 - commercial * 2) <= 1  # the nearest whole tiyin
            assert list(version.lists()) == ["06:00-09:00,17:00-22:00", "09:00-17:00", "22:00-06:00"]
            assert ["Derived" in source for source in version.sources] == [True, False, True]
            assert all("750 kVA" in source for source in version.sources)


def test_what_was_derived_and_not_read_in_a_decree_says_so():
    for version in shipped_book():
        if version.hours:
            continue
        household = in_force(shipped_book(), "household", version.effective_on)
        for (limit, price), source in zip(version.blocks, version.sources, strict=True):
            assert source
            derived = version.tariff == "household_stove" and (version.effective_on < date(2025, 5, 1) or limit == 500)
            assert ("Derived" in source) == derived
            if derived:
                assert (limit, price * 2) in household.blocks


@pytest.mark.parametrize(
    ("kwh", "on", "soum"),
    [
        (500, "2025-04-30", 360_000),
        (500, "2025-05-01", 360_000),
        (200, "2025-05-01", 120_000),
        (201, "2025-05-01", 120_800),
        (1_000, "2025-05-01", 860_000),
        (1_500, "2025-05-01", 1_610_000),
        (6_000, "2025-05-01", 8_610_000),
        (12_000, "2025-05-01", 19_610_000),
    ],
)
def test_a_quote_comes_to_what_the_table_does_by_hand_and_adds_up(nowhere, kwh, on, soum):
    found = ask(nowhere, "tariff", "quote", "--kwh", kwh, "--on", on)
    assert found["amount_tiyin"] == soum * 100 == sum(block["amount_tiyin"] for block in found["blocks"])
    assert found["usage_wh"] == kwh * 1000 == sum(block["usage_wh"] for block in found["blocks"])


def test_families_multiply_the_limits_and_a_plan_has_its_own_prices(nowhere):
    three = ask(nowhere, "tariff", "quote", "--kwh", 600, "--on", "2025-05-01", "--families", 3)
    assert three["amount_tiyin"] == 600 * 60_000
    stove = ask(nowhere, "tariff", "quote", "--kwh", 500, "--on", "2025-05-01", "--plan", "household_stove")
    assert stove["amount_tiyin"] == 18_000_000


@given(usage=st.integers(0, 10**9), families=st.integers(1, 12))
def test_the_lines_of_a_quote_add_up_to_the_tiyin(usage, families):
    found = quote(Version("t", date(2025, 5, 1), MAY_2025), usage, families)
    assert sum(line.amount_tiyin for line in found.lines) == found.amount_tiyin
    assert sum(line.usage_wh for line in found.lines) == usage
    left, whole, low = usage, 0, 0
    for limit, price in MAY_2025:
        step = left if limit is None else min(left, limit * 1000 * families - low)
        whole, left, low = whole + step * price, left - step, low + step
    assert found.amount_tiyin == whole // 1000


def test_a_quote_by_the_hour_is_shared_out_evenly_over_the_day_or_the_hours_asked_for(nowhere):
    """900 kWh: eight hours each of peak, half-peak and night. In 20:00–23:00 two thirds are peak."""
    asked = ("tariff", "quote", "--plan", "commercial_hours", "--on", "2025-05-01", "--kwh", 900)
    found = ask(nowhere, *asked)
    assert [(line["usage_wh"], line["amount_tiyin"]) for line in found["blocks"]] == [
        (300_000, 45_000_000),
        (300_000, 30_000_000),
        (300_000, 20_000_100),
    ]
    evening = ask(nowhere, *asked, "--hours", "20:00-23:00")
    assert [line["usage_wh"] for line in evening["blocks"]] == [600_000, 300_000]
    assert (evening["hours"], evening["amount_tiyin"]) == ("20:00-23:00", 90_000_000 + 20_000_100)
    page = " ".join(call(nowhere, *asked)[1].split())
    assert "used evenly over the day" in page
    assert "06:00–09:00, 17:00–22:00 every kWh 300 kWh × 1,500 450,000 soum" in page


NIGHT_AND_DAY = ("22:00-06:00", "22:00-06:00", "06:00-22:00", "06:00-22:00", "06:00-22:00")


@given(usage=st.integers(0, 10**8), families=st.integers(1, 5))
def test_the_lines_of_a_quote_by_the_hour_add_up_whatever_blocks_its_hours_have(usage, families):
    blocks = ((50, 30_001), (None, 40_000), (20, 70_000), (500, 90_000), (None, 100_003))
    found = quote(Version("t", date(2025, 5, 1), blocks, hours=NIGHT_AND_DAY), usage, families)
    assert sum(line.amount_tiyin for line in found.lines) == found.amount_tiyin
    assert sum(line.usage_wh for line in found.lines) == usage
    night = sum(line.usage_wh for line in found.lines if line.hours == "22:00-06:00")
    assert abs(night * 3 - usage) <= 3 * 4  # a third, in at most four stretches
    exact = 0
    for share, own in ((8, blocks[:2]), (16, blocks[2:])):
        left, low = usage, 0
        for limit, price in own:
            step = left if limit is None else min(left, limit * 1000 * families - low)
            exact, left, low = exact + share * step * price, left - step, low + step
    assert abs(found.amount_tiyin * 24_000 - exact) <= 24_000 * 4 * 71  # a Wh more or less in each stretch


def test_the_page_of_a_quote_shows_the_lines_the_total_and_where_the_price_comes_from(nowhere):
    code, page = call(nowhere, "tariff", "quote", "--kwh", "201.5", "--on", "2025-05-01")
    assert code == 0
    page = " ".join(page.split())
    assert "200–500 kWh 1.5 kWh × 800 1,200 soum" in page
    assert "a month 201.5 kWh 121,200 soum" in page
    assert "Resolution 194" in page


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("quote", "--kwh", "five"), 2, "is no usage"),
        (("quote", "--kwh", "1.2345"), 2, "is no usage"),
        (("quote", "--kwh", "9" * 30), 2, "is no usage"),
        (("quote", "--kwh", "5", "--hours", "peak"), 2, "17:00-22:00"),
        (("quote", "--kwh", "5", "--on", "01.05.2025"), 2, "is no day"),
        (("quote", "--kwh", "5", "--on", "2025-02-30"), 2, "is no day"),
        (("quote", "--kwh", "5", "--plan", "hausehold"), 2, "household_stove"),
        (("quote", "--kwh", "5", "--on", "2010-01-01"), 1, "2016-04-01"),
        (("show", "state_funded", "--on", "2020-01-01"), 1, "2023-10-01"),
        (("check", "no-such-file.csv"), 2, "no-such-file.csv"),
    ],
)
def test_what_cannot_be_answered_says_what_to_do(nowhere, arguments, code, word):
    exit_code, text = call(nowhere, "tariff", *arguments)
    assert exit_code == code
    assert word in text


# ---- a home's own tariffs --------------------------------------------------------------------------------------------


def test_a_home_goes_by_its_journal_where_the_last_to_arrive_counts(tmp_path, file):
    home = homes.make_home(tmp_path / "home", 2)
    assert ask(home.path, "tariff", "show") == ask(tmp_path / "no-home", "tariff", "show")
    lines = ("household,2025-05-01,300,70000", "household,2025-05-01,,90000", "night,2025-01-01,,100")
    ingest_files(home, [("tariff", file(*lines))])
    found = ask(home.path, "tariff", "quote", "--kwh", 400, "--on", "2025-05-01")
    assert found["amount_tiyin"] == 300 * 70_000 + 100 * 90_000
    shown = ask(home.path, "tariff", "show", "household", "--on", "2030-01-01")
    assert [(v["tariff"], v["effective_on"], len(v["blocks"])) for v in shown] == [("household", "2025-05-01", 2)]
    assert "night" in call(home.path, "tariff", "show")[1]
    with closing(open_log(home.journal, readonly=True)) as log:
        assert log.end(2) > len(homes.tariff_rows())
    assert len(journal_book(Home(home.path))) == len(shipped_book()) + 2


# ---- files that are checked ------------------------------------------------------------------------------------------


def found_in(home, path, *options):
    return [(f["severity"], f["reason"]) for f in ask(home, "tariff", "check", path, *options)]


def test_a_sound_file_is_clean(nowhere, file):
    path = file("household,2025-06-01,200,65000", "household,2025-06-01,,85000")
    assert call(nowhere, "tariff", "check", path)[0] == 0
    assert found_in(nowhere, path) == []


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["t,2025-01-01,200,100", "t,2025-01-01,500,200"], "no_last_block"),
        (["t,2025-01-01,200,100", "t,2025-01-01,200,150", "t,2025-01-01,,200"], "repeated_block"),
        (["t,2025-01-01,,100", "t,2025-01-01,,200"], "repeated_block"),
        (["t,2025-01-01,500,100", "t,2025-01-01,200,90", "t,2025-01-01,,200"], "unordered_blocks"),
        (["t,2025-01-01,,200", "t,2025-01-01,500,100"], "unordered_blocks"),
        (["t,2025-01-01,200.5,100", "t,2025-01-01,,200"], "not_an_integer"),
        (["t,2025-01-01,200,-5", "t,2025-01-01,,200"], "out_of_range"),
        (["t,1 May 2025,,200"], "bad_date"),
        (["t,2099-05-01,,200"], "arrives_later_than_now"),
        (["household,2025-05-01,,200"], "overlapping_versions"),
    ],
)
def test_each_fault_of_a_file_is_named(nowhere, file, lines, reason):
    path = file(*lines)
    assert ("fault", reason) in found_in(nowhere, path)
    assert call(nowhere, "tariff", "check", path)[0] == 1


@pytest.mark.parametrize(
    ("lines", "reason", "text"),
    [
        (["t,2025-01-01,,1,06:00-22:00"], "gap_in_hours", "00:00–06:00 and 22:00–24:00 has no price"),
        (["t,2025-01-01,,1,06:00-22:00", "t,2025-01-01,,2,21:30-06:00"], "overlapping_hours", "21:30–22:00 has two"),
        (["t,2025-01-01,,1,", "t,2025-01-01,,2,08:00-09:00"], "overlapping_hours", "08:00–09:00 has two prices"),
        (["t,2025-01-01,,1,06:00-22:00", "t,2025-01-01,5,2,22:00-06:00"], "no_last_block", "2025-01-01, 22:00-06:00"),
        (["t,2025-01-01,,1,06:00-22:00", "t,2025-01-01,,2,22:00-06:00"] * 2, "repeated_block", "rows 3 and 5"),
        (["t,2025-01-01,,1,6-22", "t,2025-01-01,,2,22:00-06:00"], "unknown_value", "'6-22'"),
    ],
)
def test_gaps_and_overlaps_of_hours_are_named_with_the_hours(nowhere, tmp_path, lines, reason, text):
    path = tmp_path / "hours.csv"
    path.write_text(HEADER.replace("\n", ",hours\n") + "".join(f"{line}\n" for line in lines))
    assert ("fault", reason) in found_in(nowhere, path)
    code, page = call(nowhere, "tariff", "check", path)
    assert code == 1
    assert text in page


def test_a_sound_file_by_hours_is_clean_and_a_rise_is_found_at_whichever_hour_it_lies(nowhere, tmp_path):
    path = tmp_path / "hours.csv"
    rows = ["100000,09:00-17:00", "66667,22:00-06:00", '150000,"17:00-22:00,06:00-09:00"']
    path.write_text(HEADER.replace("\n", ",hours\n") + "".join(f"commercial_hours,2025-06-01,,{row}\n" for row in rows))
    assert found_in(nowhere, path) == []
    path.write_text(
        path.read_text().replace("66667,22:00-06:00", "80000,21:00-06:00").replace("17:00-22:00,", "17:00-21:00,")
    )
    assert found_in(nowhere, path) == [("warning", "steep_rise")]
    assert "a kWh 00:00–06:00 costs 800 soum instead of 666.67" in call(nowhere, "tariff", "check", path)[1]


def test_faults_of_one_version_are_all_told_and_with_their_rows(nowhere, file):
    path = file("t,2025-01-01,500,100", "t,2025-01-01,200,90", "t,2025-01-01,200,80", "u,2025-01-01,,7")
    code, text = call(nowhere, "tariff", "check", path)
    assert code == 1
    assert "rows 3 and 4 are 2 blocks up to 200 kWh" in text
    assert "order 500, 200, 200" in text
    assert "usage above 500 kWh has no price" in text
    assert "u, " not in text


def test_a_rise_of_more_than_ten_percent_is_a_warning_against_the_book_and_within_the_file(nowhere, file):
    assert found_in(nowhere, file("commercial,2025-06-01,,110000")) == []  # ten percent to the tiyin
    steep = file("commercial,2025-06-01,,110001", "commercial,2025-07-01,,121001", "commercial,2025-08-01,,140000")
    assert found_in(nowhere, steep) == [("warning", "steep_rise")] * 2
    assert found_in(nowhere, steep, "--rise", "16") == []
    assert "140 soum" not in call(nowhere, "tariff", "check", steep)[1]
    assert "+15.7 %" in call(nowhere, "tariff", "check", steep)[1]


def test_a_rise_is_found_in_whichever_range_of_usage_it_lies():
    before = Version("t", date(2024, 5, 1), ((200, 45_000), (1_000, 90_000), (None, 135_000)))
    after = Version("t", date(2025, 5, 1), ((200, 45_000), (600, 90_000), (None, 135_000)))
    (finding,) = judge_rise(after, [before, after], 10)
    assert "a kWh above 600 kWh costs 1,350 soum instead of 900" in finding.text
    assert not list(judge_rise(before, [before, after], 10))


def test_a_price_where_there_was_none_is_a_rise_and_none_as_before_is_not():
    free = Version("t", date(2024, 5, 1), ((100, 0), (None, 500)))
    still_free = Version("t", date(2025, 5, 1), ((100, 0), (None, 520)))
    charged = Version("t", date(2025, 5, 1), ((100, 1), (None, 500)))
    assert not list(judge_rise(still_free, [free], 10))
    (finding,) = judge_rise(charged, [free], 10)
    assert "from nothing" in finding.text


@pytest.mark.parametrize("form", ["ndjson", "parquet"])
def test_faults_are_found_in_every_format_that_ingest_takes(nowhere, tmp_path, form):
    rows = [
        {"tariff": "t", "effective_on": date(2025, 1, 1), "block_upto_kwh": limit, "price_tiyin_per_kwh": price}
        for limit, price in ((500, 100), (200, 90))
    ]
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    assert found_in(nowhere, path) == [("fault", "unordered_blocks"), ("fault", "no_last_block")]


def test_the_shipped_book_is_a_file_without_fault(nowhere):
    path = Path(homes.__file__).parent / "data" / "tariffs-uz.csv"
    with path.open(newline="", encoding="utf-8") as rows:
        assert len(list(csv.DictReader(rows))) == len(homes.tariff_rows())
    assert {severity for severity, _ in found_in(nowhere, path)} == {"warning"}
    assert found_in(nowhere, path, "--rise", "511") == []


def test_a_file_that_is_no_tariff_file_is_refused(nowhere, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("name,price\nx,5\n")
    code, text = call(nowhere, "tariff", "check", path)
    assert code == 2
    assert "unknown column" in text
