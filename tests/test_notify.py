"""Notify: notices leave when their time has come, each once, whatever dies in between; and what came of them returns."""

import asyncio
import json
import os
import signal
from contextlib import closing
from datetime import UTC, datetime, timedelta
from unittest.mock import patch
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.notices import local_times, notice_texts, soum_texts
from accounting.records import EVENT_SCHEMAS, NOTICE_KINDS, render_id
from accounting.state import FOREVER
from connectors.locks import AlreadyRunningError
from connectors.log import NewRow, TransientLogError
from connectors.log.body import KIND_NUMBER, encode, pack
from connectors.log.sqlite import open_log
from connectors.sms import ChannelError, LostTouchError, Message, NotTakenError, Receipt
from connectors.sms.outbox import Outbox
from connectors.sms.segments import count_segments
from connectors.sms.simulated import SimulatedPhones, behaviour_of, read_phones
from streams import notify
from streams.arrivals import Arrivals
from streams.notify import InFlight, open_channel, run_notify
from tests.journals import journal_of
from tests.whole_homes import hisob, new_home, running, start, wait_until

PHONE = "+998901234567"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def now():
    return datetime.now(UTC)


def give(home, *send_after, partition=0, phone=PHONE, kind="low_credit", first=0):
    """Notices among the events of a partition, each caused by a record of its own; their ids."""
    rows = []
    with closing(open_log(home.events)) as events:
        for ordinal, at in enumerate(send_after, first):
            told = {"account_id": f"A{ordinal}", "noticed_at": at, "send_after": at, "kind": kind, "phone": phone}
            told |= {"language": "uz-Latn", "text": f"text {ordinal}", "depletes_at": None, "episode": 1}
            columns = {"ordinal": pa.array([ordinal]), "n": pa.array([0])}
            columns |= {f.name: pa.array([told[f.name]], f.type) for f in EVENT_SCHEMAS["notice"]}
            runs = (np.array([KIND_NUMBER["notice"]], np.uint8), np.array([1], np.uint32))
            body = encode(runs, {"notice": pack("notice", pa.record_batch(columns))})
            rows.append(NewRow(partition, ordinal, 1, body))
        events.append("settle", rows)
    return [render_id(partition, row.sequence, 0) for row in rows]


def outbox_of(home):
    path = home.path / "outbox.ndjson"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def sent(home):
    return [line["notice_id"] for line in outbox_of(home)]


def receipts(home):
    return [record for records in journal_of(home) for kind, record in records if kind == "receipt"]


def statuses(home):
    return sorted((r["notice_id"], r["status"]) for r in receipts(home))


def drain(home, channel="outbox", clock="wall", say=lambda _: None):
    return run_notify(home, lambda: open_channel(home, channel), clock, drain=True, say=say)


def tick(home, at):
    with closing(Arrivals(home, "test")) as arrivals:
        if arrivals.last_tick() is None:  # what starts the clock
            row = {"payment_id": "P", "account_id": "X", "paid_at": at - HOUR, "amount_tiyin": 1}
            arrivals.take({"payment": [row]})
        assert arrivals.tick(at)


# ---- when ------------------------------------------------------------------------------------------------------------


def test_notices_leave_in_the_order_of_send_after_whatever_their_partition(tmp_path):
    home, at = new_home(tmp_path / "home"), now()
    one = give(home, at - HOUR, at - 3 * HOUR)
    two = give(home, at - 2 * HOUR, partition=1)
    assert drain(home).sent == 3
    assert sent(home) == [one[1], two[0], one[0]]
    assert statuses(home) == sorted((notice_id, "accepted") for notice_id in one + two)


def test_a_notice_in_quiet_hours_waits_for_their_end_by_the_clock_of_the_journal(tmp_path):
    home = new_home(tmp_path / "home")
    night, morning = datetime(2025, 9, 1, 18, 0, tzinfo=UTC), datetime(2025, 9, 2, 4, 0, tzinfo=UTC)
    (late,) = give(home, morning)
    assert drain(home, clock="journal").sent == 0
    for at in (night, morning - HOUR / 4):
        tick(home, at)
        report = drain(home, clock="journal")
        assert (report.sent, report.waiting, sent(home)) == (0, 1, [])
    tick(home, morning)
    assert drain(home, clock="journal").sent == 1
    assert sent(home) == [late]
    assert [line["sent_at"] for line in outbox_of(home)] == ["2025-09-02T04:00:00Z"]
    assert drain(home, clock="journal").sent == 0


def test_what_was_waiting_is_read_again_and_what_was_answered_is_not_sent_again(tmp_path):
    home, at = new_home(tmp_path / "home"), now()
    early, late, other = give(home, at - HOUR, at + HOUR, at - HOUR)
    assert drain(home).sent == 2
    with closing(open_log(home.journal, readonly=True)) as journal:
        committed = journal.committed("notify")
    assert (committed["0"], committed["oldest:0"]) == (3, 1)
    with patch.object(notify, "Clock", lambda *_: Later(2 * HOUR)):
        assert drain(home).sent == 1
    assert sent(home) == [early, other, late]


class Later:
    kind = "wall"

    def __init__(self, by):
        self.by = by

    def now(self):
        return now() + self.by


def test_a_notice_without_a_phone_is_nothing_to_send(tmp_path):
    home = new_home(tmp_path / "home")
    give(home, now() - HOUR, phone=None)
    assert drain(home).sent == 0
    assert (sent(home), receipts(home)) == ([], [])
    with closing(open_log(home.journal, readonly=True)) as journal:
        assert journal.committed("notify")["oldest:0"] == 1


def test_a_notice_that_another_has_answered_is_not_sent(tmp_path):
    home = new_home(tmp_path / "home")
    mine, theirs = give(home, now() - HOUR, now() - HOUR)
    with closing(Arrivals(home, "a gateway of one's own")) as arrivals:
        arrivals.take({"receipt": [{"notice_id": theirs, "received_at": now(), "status": "delivered"}]})
    assert drain(home).sent == 1
    assert sent(home) == [mine]


def test_a_notice_nobody_sent_for_three_days_is_said_to_have_expired(tmp_path):
    home = new_home(tmp_path / "home")
    old, fresh = give(home, now() - 3 * DAY - HOUR, now() - 2 * DAY)
    assert drain(home).sent == 1
    assert sent(home) == [fresh]
    assert statuses(home) == sorted([(old, "expired"), (fresh, "accepted")])
    assert any("not sent: 73 hours" in r.get("detail", "") for r in receipts(home))


# ---- the clock, told to whoever waits for it -------------------------------------------------------------------------


def test_under_the_journals_clock_the_commit_says_up_to_when_all_is_done(tmp_path):
    home, at = new_home(tmp_path / "home"), datetime(2025, 9, 1, 6, 0, tzinfo=UTC)
    give(home, at)
    tick(home, at)
    drain(home, clock="journal")
    with closing(open_log(home.journal, readonly=True)) as journal:
        committed = journal.committed("notify")
    assert committed["at"] == int(at.timestamp() * 1_000_000)
    assert committed["0"] == 1


# ---- crashes ---------------------------------------------------------------------------------------------------------
POINTS = ("before the intent", "after the intent", "after sending", "after journalling")


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def notify_and_die(home, point, channel, count):
    """Notify until the point, met for the count-th time."""
    met = iter(range(1, 1000))

    def then_die(method, *, after):
        def call(*args, **kwargs):
            is_now = next(met) == count
            if is_now and not after:
                die()
            done = method(*args, **kwargs)
            if is_now:
                die()
            return done

        return call

    def then_die_of_it(method):
        async def call(*args, **kwargs):
            done = await method(*args, **kwargs)
            if next(met) == count:
                die()
            return done

        return call

    kind = type(opened := open_channel(home, channel))
    opened.close()
    with (
        patch.object(notify, "BATCH", 2),
        {
            "before the intent": patch.object(InFlight, "begin", then_die(InFlight.begin, after=False)),
            "after the intent": patch.object(InFlight, "begin", then_die(InFlight.begin, after=True)),
            "after sending": patch.object(kind, "send", then_die_of_it(kind.send)),
            "after journalling": patch.object(Arrivals, "take", then_die(Arrivals.take, after=True)),
        }[point],
    ):
        drain(home, channel)


@pytest.mark.parametrize("channel", ["outbox", "simulated"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_no_notice_is_doubled_and_none_is_lost(tmp_path, point, channel):
    home, at = new_home(tmp_path / "home"), now()
    (home.path / "phones.json").write_text('{"*": {"outcome": "delivered"}}')
    ids = give(home, *(at - HOUR - timedelta(minutes=k) for k in range(5)))
    for count in (1, 2, 1):
        process = start(notify_and_die, home, point, channel, count)
        process.join(60)
        assert process.exitcode in {-signal.SIGKILL, 0}
    drain(home, channel)
    by_status = statuses(home)
    assert [i for i, s in by_status if s == "accepted"] == sorted(ids), "each journalled as accepted, once"
    if channel == "outbox":
        assert sent(home) == sorted(ids, reverse=True)
    else:
        assert {i for i, s in by_status if s == "delivered"} == set(ids)
    with closing(InFlight(home)) as in_flight:
        assert in_flight.ids() == set()


class Forgetful:
    """A channel that cannot be asked about what it was given, and dies in the middle if told to."""

    window = 1

    def __init__(self, given, fault=None):
        self.given, self.fault = given, fault

    async def send(self, message, at):
        if self.fault:
            raise self.fault
        with self.given.open("a") as file:
            file.write(f"{message.notice_id}\n")
        return Receipt(message.notice_id, at, "accepted")

    async def recall(self, notice_ids, at):
        return {}

    async def receipts(self, at):
        return []

    async def settle(self, receipts):
        pass

    def close(self):
        pass


def test_what_a_channel_cannot_tell_of_has_expired_unknown_and_is_never_sent_again(tmp_path):
    home, given = new_home(tmp_path / "home"), tmp_path / "given"
    (notice_id,) = give(home, now() - HOUR)
    process = start(send_and_die, home, given)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert receipts(home) == []
    said = []
    run_notify(home, lambda: Forgetful(given), "wall", drain=True, say=said.append)
    assert statuses(home) == [(notice_id, "expired")]
    assert receipts(home)[0]["detail"].startswith("unknown: in flight")
    assert given.read_text().split() == [notice_id]
    assert "in flight" in said[0]
    run_notify(home, lambda: Forgetful(given), "wall", drain=True)
    assert len(receipts(home)) == 1


def send_and_die(home, given):
    with patch.object(Arrivals, "take", die):
        run_notify(home, lambda: Forgetful(given), "wall", drain=True)


def test_an_answer_lost_on_the_way_is_treated_as_a_crash_is(tmp_path):
    home = new_home(tmp_path / "home")
    (notice_id,) = give(home, now() - HOUR)
    channel = Forgetful(tmp_path / "given", LostTouchError("no answer within 30 s"))
    run_notify(home, lambda: channel, "wall", drain=True)
    assert statuses(home) == [(notice_id, "expired")]


# ---- what cannot be written ------------------------------------------------------------------------------------------


def test_a_message_the_channel_did_not_take_waits_and_is_sent_once_when_it_does(tmp_path):
    home = new_home(tmp_path / "home")
    ids = give(home, now() - HOUR, now() - HOUR)
    real, faults, said = Outbox.send, [NotTakenError("busy"), NotTakenError("busy")], []

    async def send(self, message, at):
        if faults:
            raise faults.pop()
        return await real(self, message, at)

    with patch.object(Outbox, "send", send), patch.object(notify, "FIRST_PAUSE_S", 0.05):
        drain(home, say=said.append)
    assert sent(home) == ids
    assert len(receipts(home)) == 2
    assert said == ["2 notices wait: busy"]


def test_with_the_disk_full_at_the_outbox_nothing_half_written_stays_and_all_leaves_later(tmp_path):
    home = new_home(tmp_path / "home")
    ids = give(home, now() - HOUR, now() - HOUR)
    real, full = os.write, [True, True, True]

    def write(descriptor, data):
        if data.startswith(b'{"notice_id"') and full:
            full.pop()
            return real(descriptor, data[:20])  # the disk fills up within the line
        return real(descriptor, data)

    with patch("connectors.sms.outbox.os.write", write), patch.object(notify, "FIRST_PAUSE_S", 0.05):
        said = []
        drain(home, say=said.append)
    assert sorted(sent(home)) == ids
    assert statuses(home) == [(i, "accepted") for i in ids]
    assert "No space left" in said[0]
    assert "Make room" in said[0]


def test_with_the_disk_full_at_the_journal_what_was_sent_is_journalled_when_there_is_room(tmp_path):
    home = new_home(tmp_path / "home")
    (notice_id,) = give(home, now() - HOUR)
    real, full, said = Arrivals.take, [True, True], []

    def take(self, *args):
        if full:
            full.pop()
            raise TransientLogError("the disk is full.")
        return real(self, *args)

    with patch.object(Arrivals, "take", take), patch.object(notify, "FIRST_PAUSE_S", 0.05):
        drain(home, say=said.append)
    assert sent(home) == [notice_id]
    assert statuses(home) == [(notice_id, "accepted")]
    assert len(said) == 2


def test_with_the_disk_full_at_the_intent_nothing_is_sent_before_there_is_room(tmp_path):
    home = new_home(tmp_path / "home")
    (notice_id,) = give(home, now() - HOUR)
    real, order = InFlight._change, []

    def change(self, sql, ids):
        if sql.startswith("INSERT"):
            order.append(sent(home))
            if len(order) == 1:
                self._con.execute("PRAGMA max_page_count = 1")
                ids = [f"x{k:010}" for k in range(100_000)]
            else:
                self._con.execute("PRAGMA max_page_count = 100000")
        return real(self, sql, ids)

    with patch.object(InFlight, "_change", change), patch.object(notify, "FIRST_PAUSE_S", 0.05):
        said = []
        drain(home, say=said.append)
    assert order == [[], []]
    assert "full" in said[0]
    assert sent(home) == [notice_id]
    with closing(InFlight(home)) as in_flight:
        assert in_flight.ids() == set()


def test_a_line_torn_by_a_crash_is_taken_off(tmp_path):
    path = tmp_path / "outbox.ndjson"
    path.write_bytes(b'{"notice_id": "0-1-0"}\n{"notice_id": "0-2')
    with closing(Outbox(path)) as outbox:
        known = asyncio.run(outbox.recall(["0-1-0", "0-2-0"], now()))
    assert known["0-1-0"].status == "accepted"
    assert known["0-2-0"] is None
    assert path.read_bytes() == b'{"notice_id": "0-1-0"}\n'


# ---- one at a time ---------------------------------------------------------------------------------------------------


def test_a_second_notify_on_the_home_is_refused_with_the_firsts_pid(tmp_path):
    home = new_home(tmp_path / "home")
    (notice_id,) = give(home, now() - HOUR)
    with running(home.path, "notify") as first:
        wait_until(lambda: receipts(home))
        with pytest.raises(AlreadyRunningError, match=str(first.pid)):
            drain(home)
        second = hisob(home.path, "notify")
        assert second.returncode == 1
        assert str(first.pid) in second.stderr
        (later,) = give(home, now(), first=1)
        wait_until(lambda: len(receipts(home)) == 2)
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=30)
    assert first.returncode == 0
    assert "sent 2 notices" in said
    assert sent(home) == [notice_id, later]


# ---- phones ----------------------------------------------------------------------------------------------------------


def test_simulated_phones_answer_after_a_while_as_they_are_told_to(tmp_path):
    home, at = new_home(tmp_path / "home"), datetime(2025, 9, 1, 6, 0, tzinfo=UTC)
    told = {
        "*": {"outcome": "delivered", "after_s": 20},
        "+998900000002": {"outcome": "undeliverable", "after_s": 1800},
        "+998900000003": {"outcome": "rejected"},
        "+998900000004": {"outcome": "expired", "after_s": 86_400},
    }
    (home.path / "phones.json").write_text(json.dumps(told))
    ids = [
        give(home, at, phone=p, first=k)[0]
        for k, p in enumerate([PHONE, "+998900000002", "+998900000003", "+998900000004"])
    ]
    tick(home, at)
    drain(home, "simulated", "journal")
    assert statuses(home) == [
        (i, s) for i, s in zip(ids, ["accepted", "accepted", "rejected", "accepted"], strict=True)
    ]
    tick(home, at + HOUR / 4)
    drain(home, "simulated", "journal")
    assert (ids[0], "delivered") in statuses(home)
    assert len(receipts(home)) == 5
    tick(home, at + HOUR / 2)
    drain(home, "simulated", "journal")
    assert (ids[1], "undeliverable") in statuses(home)
    tick(home, at + DAY)
    drain(home, "simulated", "journal")
    tick(home, at + DAY + HOUR)
    drain(home, "simulated", "journal")
    assert statuses(home)[-2:] == [(ids[3], "accepted"), (ids[3], "expired")]
    assert len(receipts(home)) == 7, "and each answered once"
    delivered = next(r for r in receipts(home) if r["status"] == "delivered")
    assert delivered["received_at"] == int(at.timestamp() * 1_000_000) + 20_000_000


def test_phones_nobody_speaks_of_answer_by_a_rule_that_is_the_same_each_time():
    phones = [f"+99890{k:07}" for k in range(4000)]
    outcomes = [behaviour_of(phone, "0-1-0").outcome for phone in phones]
    assert outcomes == [behaviour_of(phone, "0-1-0").outcome for phone in phones]
    share = outcomes.count("delivered") / len(outcomes)
    assert 0.95 < share < 0.99
    assert set(outcomes) == {"delivered", "undeliverable", "expired", "rejected"}


def test_a_wrong_phones_json_is_explained(tmp_path):
    path = tmp_path / "phones.json"
    for text in ("[1]", '{"+1": {}}', '{"+1": {"outcome": "eaten"}}', "{"):
        path.write_text(text)
        with pytest.raises(ChannelError, match="outcome"):
            read_phones(path)


def test_a_phone_answers_though_the_network_was_killed_in_between(tmp_path):
    at = now()
    message = Message("0-1-0", "A", "low_credit", PHONE, "ru", "x")
    for _ in range(2):
        with closing(SimulatedPhones(tmp_path / "phones.db", tmp_path / "phones.json")) as phones:
            asyncio.run(phones.send(message, at))
    with closing(SimulatedPhones(tmp_path / "phones.db", tmp_path / "phones.json")) as phones:
        (receipt,) = asyncio.run(phones.receipts(at + DAY))
        asyncio.run(phones.settle([receipt]))
        assert asyncio.run(phones.receipts(at + DAY)) == []


APRIL_1992 = 702_000_000_000_000  # the clocks of Tashkent have been five hours ahead since


# ---- the texts -------------------------------------------------------------------------------------------------------


def notice_text(kind, language, account_id, balance_tiyin, depletes_at, pay_tiyin):
    numbers = (NOTICE_KINDS.index(kind), balance_tiyin, FOREVER if depletes_at is None else depletes_at, pay_tiyin)
    columns = (np.array([n]) for n in numbers)
    language = pa.array([language]).dictionary_encode()
    (text,) = notice_texts(*columns, language=language, account_id=pa.array([account_id])).to_pylist()
    return text


@pytest.mark.parametrize("language", ["uz-Latn", "uz-Cyrl", "ru"])
def test_the_text_has_the_date_the_balance_in_soum_and_what_to_pay(language):
    depletes_at = int(datetime(2025, 9, 3, 13, 30, tzinfo=UTC).timestamp() * 1_000_000)
    text = notice_text("low_credit", language, "1103-000042", 1_234_567, depletes_at, 15_000_001)
    for words in ("1103-000042", "03.09.2025 18:30", "12 345", "151 000"):
        assert words in text
    off = notice_text("disconnected", language, "1103-000042", -1_234_567, None, 1_234_567)
    for words in ("-12 345", "13 000"):
        assert words in off


@settings(deadline=None)
@given(st.lists(st.integers(-(10**15), 10**15) | st.integers(-100_100, 100_100)), st.lists(st.integers(0, 4 * 10**15)))
def test_amounts_and_moments_are_written_as_they_are_said_in_tashkent(amounts, moments):
    said = [f"{'-' if tiyin < 0 else ''}{abs(tiyin) // 100:,}".replace(",", " ") for tiyin in amounts]
    assert soum_texts(np.array(amounts, np.int64)).to_pylist() == said
    there = [datetime.fromtimestamp(at // 10**6, ZoneInfo("Asia/Tashkent")) for at in moments if at >= APRIL_1992]
    written = local_times(np.array([at for at in moments if at >= APRIL_1992] + [FOREVER], np.int64)).to_pylist()
    assert written == [at.strftime("%d.%m.%Y %H:%M") for at in there] + ["-"]


def test_uzbek_in_latin_takes_one_sms_and_cyrillic_two():
    texts = {
        language: notice_text("low_credit", language, "1103-000042", -123_456_789, 1_756_900_000_000_000, 99_999_999)
        for language in ("uz-Latn", "uz-Cyrl", "ru")
    }
    assert {language: count_segments(text) for language, text in texts.items()} == {
        "uz-Latn": ("GSM-7", 1),
        "uz-Cyrl": ("UCS-2", 2),
        "ru": ("UCS-2", 2),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("GSM-7", 1)),
        ("a" * 160, ("GSM-7", 1)),
        ("a" * 161, ("GSM-7", 2)),
        ("a" * 306, ("GSM-7", 2)),
        ("a" * 307, ("GSM-7", 3)),
        ("€" * 80, ("GSM-7", 1)),
        ("a" + "€" * 80, ("GSM-7", 2)),
        ("€" * 153, ("GSM-7", 3)),  # 76 in a part, for none is torn apart
        ("o\u02bb" + "a" * 68, ("UCS-2", 1)),
        ("о" * 70, ("UCS-2", 1)),
        ("о" * 71, ("UCS-2", 2)),
        ("о" * 134, ("UCS-2", 2)),
        ("о" * 135, ("UCS-2", 3)),
    ],
)
def test_the_sms_of_a_text_are_counted_as_networks_count_them(text, expected):
    assert count_segments(text) == expected


def test_a_line_of_the_outbox_says_all_there_is_to_say(tmp_path):
    home = new_home(tmp_path / "home")
    (notice_id,) = give(home, now() - HOUR)
    assert json.loads(hisob(home.path, "notify", "--drain", "--json").stdout) == {
        "sent": 1,
        "receipts": 1,
        "waiting": 0,
    }
    (line,) = outbox_of(home)
    assert (line["notice_id"], line["phone"], line["text"]) == (notice_id, PHONE, "text 0")
    assert (line["encoding"], line["segments"], line["kind"]) == ("GSM-7", 1, "low_credit")
