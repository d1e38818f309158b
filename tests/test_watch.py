"""What status and run see: what is open by the live logs, begun anew at any moment, before and after a load."""

import datetime as dt
from contextlib import closing

import pytest

from accounting.records import render_id
from hisob.commands.status import look_at
from hisob.live import Board, _line, _screen
from hisob.supervisor import Service, Supervised
from hisob.watch import Watch
from streams.arrivals import Arrivals
from tests.warehouse_homes import load_and_publish
from tests.whole_homes import new_home, settle

SINCE = dt.datetime(2025, 9, 1, 10, tzinfo=dt.UTC)
QUARTER = dt.timedelta(minutes=15)


@pytest.fixture
def home(tmp_path):
    home = new_home(tmp_path / "home")
    row = {
        "effective_at": SINCE,
        "district": "d",
        "tariff": "household",
        "opening_register_wh": 0,
        "phone": "+998901234567",
    }
    with closing(Arrivals(home, "test")) as arrivals:
        arrivals.take({"account": [{"account_id": f"A-{n}", "meter_id": f"M-{n}", **row} for n in range(3)]})
        arrivals.tick(SINCE)
    return home


@pytest.fixture
def journal(home):
    with closing(Arrivals(home, "test")) as arrivals:
        yield arrivals


def order_cut(journal, account_id, at):
    row = {"order_id": f"O-{account_id}", "account_id": account_id, "ordered_at": at, "action": "disconnect"}
    (place,) = journal.take({"order": [{**row, "cause": "safety", "author": "a", "reason": "r", "received_at": at}]})[
        "order"
    ]
    return render_id(place.partition, place.ordinal, 0)


def command_ids(watch):
    return set(watch._commands)


def test_what_is_open_is_known_from_the_logs_whether_followed_or_looked_at_afresh(home, journal):
    with Watch(home) as followed:
        before = followed.look()
        assert (before.open_commands, before.readings) == (0, 0)
        for n in range(3):
            order_cut(journal, f"A-{n}", SINCE + n * dt.timedelta(seconds=1))
        journal.take({"reading": [{"meter_id": "M-0", "read_at": SINCE + QUARTER / 3, "register_wh": 5}]})
        settle(home)
        seen = followed.look()
        assert (seen.open_commands, seen.readings, seen.lag["settle"]) == (3, 1, 0)

        first, second, _ = sorted(command_ids(followed))
        answer = {"acknowledged_at": SINCE + QUARTER / 2, "outcome": "opened"}
        journal.take({"acknowledgement": [{"command_id": first, **answer}]})
        settle(home)
        assert followed.look().open_commands == look_at(home)["open"]["commands"] == 2

        load_and_publish(home)  # from here on a fresh look begins with what was open then
        assert look_at(home)["open"]["commands"] == 2
        journal.take({"acknowledgement": [{"command_id": second, **answer}]})
        assert followed.look().open_commands == look_at(home)["open"]["commands"] == 1
        journal.tick(SINCE + dt.timedelta(days=300))  # past being carried out
        assert followed.look().open_commands == look_at(home)["open"]["commands"] == 0


def test_a_notice_is_open_until_it_is_answered_for_good(home, journal):
    order_cut(journal, "A-0", SINCE)
    settle(home)
    with Watch(home) as watch:
        assert watch.look().open_notices > 0
        for status, is_open in (("accepted", True), ("delivered", False)):
            row = {"received_at": SINCE + QUARTER / 2, "status": status}
            journal.take({"receipt": [{"notice_id": i, **row} for i in set(watch._notices)]})
            assert (watch.look().open_notices > 0) is is_open


def test_the_screen_and_the_line_tell_the_same(home):
    with Watch(home) as watch:
        seen = watch.look()
    kept = Supervised(Service("settle", ("settle",)), restarts=3)
    load = Supervised(Service("load", ("load",), every_s=60))
    line = _line(seen, 12.4, [kept, load])
    assert "12 readings/s" in line
    assert "last tick 2025-09-01T10:00:00Z" in line
    assert "restarted: settle 3×" in line
    assert "not running: settle" in line
    with Board(home, on_screen=False) as board:
        board._console.width = 100
        with board._console.capture() as shown:
            board._console.print(_screen(home, seen, 12.4, [kept, load]))
    text = shown.get()
    assert "12 a second" in text
    assert "2025-09-01T10:00:00Z" in text
    assert "will be started again" in text
    assert "until its time" in text
