"""The energy of an interval that a reading may bring: kept with it wherever it goes, and of no weight in the bill."""

from contextlib import closing
from datetime import datetime

from streams.arrivals import Arrivals
from tests.in_process import ask, call
from tests.warehouse_homes import load_and_publish
from tests.whole_homes import digest_of, new_home, settle

ACCOUNT = """\
account_id,effective_at,meter_id,district,tariff,opening_balance_tiyin,opening_register_wh,received_at
A,2025-09-01T00:00:00+05:00,MA,d,household,10000000,0,2025-09-01T02:00:00+05:00
"""
HEAD = "meter_id,read_at,register_wh,interval_wh\n"
READINGS = """\
MA,2025-09-01T00:30:00+05:00,300,300
MA,2025-09-01T01:00:00+05:00,500,201
MA,2025-09-01T01:30:00+05:00,600,
MA,2025-09-01T02:30:00+05:00,900,-5
MA,2025-09-01T03:00:00+05:00,400,100
MX,2025-09-01T03:00:00+05:00,7,7
"""
ROWS = "SELECT register_wh, interval_wh FROM readings WHERE first_ordinal IS NULL ORDER BY read_at, register_wh"


def ingest(home, folder, **texts):
    files = []
    for kind, text in texts.items():
        (folder / f"{kind}.csv").write_text(text)
        files.append(f"{kind}={folder / f'{kind}.csv'}")
    return call(home.path, "ingest", *files)


def publish(home):
    settle(home)
    load_and_publish(home)


def test_it_is_kept_also_where_the_reading_waited_for_its_meter(tmp_path):
    home = new_home(tmp_path / "home")
    assert ingest(home, tmp_path, account=ACCOUNT, reading=HEAD + READINGS)[0] == 0
    publish(home)
    given = [(7, 7), (300, 300), (400, 100), (500, 201), (600, None), (900, -5)]
    assert sorted(tuple(row.values()) for row in ask(home.path, "query", ROWS)) == given
    routed_on = "SELECT register_wh, interval_wh FROM readings WHERE first_ordinal IS NOT NULL ORDER BY 1"
    waited = [(300, 300), (500, 201), (600, None)]  # the account arrived at 2:00
    assert [tuple(row.values()) for row in ask(home.path, "query", routed_on)] == waited


def test_it_is_kept_where_the_reading_comes_live(tmp_path):
    home = new_home(tmp_path / "home")
    ingest(home, tmp_path, account=ACCOUNT)
    at = datetime.fromisoformat("2025-09-01T03:00:00+05:00")
    with closing(Arrivals(home, "poll")) as arrivals:
        readings = [
            {"meter_id": "MA", "read_at": at, "register_wh": 5, "interval_wh": interval} for interval in (5, None)
        ]
        arrivals.take({"reading": readings})
    publish(home)
    assert [row["interval_wh"] for row in ask(home.path, "query", ROWS)] == [5, None]


def test_it_changes_nothing_of_what_becomes_of_a_reading(tmp_path):
    digests = []
    for name, readings in (
        ("with", READINGS),
        ("without", "".join(f"{r.rpartition(',')[0]},\n" for r in READINGS.split())),
    ):
        folder = tmp_path / name
        folder.mkdir()
        home = new_home(folder / "home")
        ingest(home, folder, account=ACCOUNT, reading=HEAD + readings)
        settle(home)
        digests.append(digest_of(home))
    differ = {kind for kind in digests[0] if digests[0][kind] != digests[1][kind]}
    assert differ == {"all", "refused", "held"}  # of which each holds its record whole


def test_one_that_is_no_whole_number_is_refused_by_name(tmp_path):
    home = new_home(tmp_path / "home")
    rows = "MA,2025-09-01T00:30:00+05:00,300,12.7\nMA,2025-09-01T01:00:00+05:00,400,100\n"
    code, said = ingest(home, tmp_path, account=ACCOUNT, reading=HEAD + rows)
    assert code == 1
    for text in ("interval_wh", "12.7", "not_an_integer"):
        assert text in said


def test_a_refused_reading_that_had_one_is_open_and_can_be_offered_again(tmp_path):
    home = new_home(tmp_path / "home")
    gap = "MA,2025-09-01T01:00:00+05:00,2000000,250\n"  # beyond what the connection can draw, until that is mended
    after = "MA,2025-09-01T02:00:00+05:00,100,10\nMA,2025-09-01T02:30:00+05:00,200,10\n"
    ingest(home, tmp_path, account=ACCOUNT, reading=HEAD + gap + after)
    publish(home)
    (refused,) = ask(home.path, "query", "SELECT reason FROM refused")
    assert refused["reason"] == "implausible_usage"
    (group,) = ask(home.path, "refused")["groups"]
    assert group["open"] == 1
    again = tmp_path / "again"
    assert call(home.path, "refused", "--offer", again)[0] == 0
    call(home.path, "ingest", f"reading={again / 'reading.ndjson'}")
    publish(home)
    arrived = ask(
        home.path, "query", "SELECT count(*) AS n FROM readings WHERE register_wh = 2000000 AND first_ordinal IS NULL"
    )
    assert arrived == [{"n": 2}]
