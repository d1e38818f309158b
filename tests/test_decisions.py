"""Notices and the supply: when a customer is warned, when the light may go out, and when it must come back.

Each test is a story of one customer (tests/stories.py) that the design's promises say the end of. Every condition of
a cut has a story of its own in which all the others hold; `test_a_cut_when_everything_holds` is the one they all
differ from by one thing. Stories told by chance are then audited by other code than that which decided.
"""

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.bill import start_account
from accounting.forecast import forecast_depletion
from accounting.records import EVENTS
from accounting.snapshot import restore, snapshot
from accounting.state import FOREVER, new_accounts
from accounting.tariffs import ALWAYS, AccountVersion, History, TariffBook, TariffVersion
from tests.stories import (
    DAY,
    DAY_TIYIN,
    DEFAULT_POLICIES,
    EPOCH,
    HOUR,
    QUARTER,
    TASHKENT,
    Director,
    Story,
    all_awake,
    cut,
    local,
    microseconds,
    ready_to_be_cut,
    switched_off,
    told_again,
)

MONDAY_1000 = local("2025-09-01 10:00")
MONDAY_1600 = local("2025-09-01 16:00")
TUESDAY_1000 = local("2025-09-02 10:00")
NO_QUIET = [p for p in DEFAULT_POLICIES if p["kind"] != "quiet_hours"]
PROTECTED = {"supply_class": "protected", "opening_balance_tiyin": 2 * DAY_TIYIN}


def cuts(story):
    return [at for action, at in story.commands() if action == "disconnect"]


def opened_with(credit_tiyin, start="2025-09-01 00:00", policies=NO_QUIET, **given):
    story = Story(start, policies=policies)
    story.account(opening_balance_tiyin=credit_tiyin, **given)
    return story


# ---- the notice, three days ahead ---------------------------------------------------------------------------------------
def test_the_notice_comes_at_the_first_tick_at_which_the_credit_lasts_no_more_than_three_days():
    story = opened_with(10 * DAY_TIYIN)
    story.until("2025-09-12 00:00")
    (notice,) = story.notices()
    assert 72 * HOUR - QUARTER < notice["depletes_at"] - notice["noticed_at"] <= 72 * HOUR
    assert local("2025-09-11 00:00") - notice["noticed_at"] >= 72 * HOUR  # the money really ran out then
    assert notice["send_after"] == notice["noticed_at"]


def test_one_notice_an_episode_however_long_the_debt():
    story = opened_with(3 * DAY_TIYIN)
    story.until("2025-09-20 00:00")
    assert story.balance < 0
    assert [n["episode"] for n in story.notices()] == [1]


def test_a_credit_that_lifts_the_forecast_clear_starts_a_new_episode():
    story = opened_with(3 * DAY_TIYIN)
    story.until("2025-09-02 00:00")
    story.pay(8 * DAY_TIYIN)
    story.until("2025-09-20 00:00")
    assert [n["episode"] for n in story.notices()] == [1, 2]
    again = story.notices()[1]
    assert 72 * HOUR - QUARTER < again["depletes_at"] - again["noticed_at"] <= 72 * HOUR


def test_a_credit_that_does_not_lift_the_forecast_clear_starts_none():
    story = opened_with(3 * DAY_TIYIN)
    for day in range(2, 9):
        story.until(f"2025-09-0{day} 00:00")
        story.pay(DAY_TIYIN)
    story.until("2025-09-20 00:00")
    assert [n["episode"] for n in story.notices()] == [1]


def test_money_taken_away_starts_no_episode_also_when_the_forecast_is_clear():
    story = opened_with(4 * DAY_TIYIN)
    story.pay(100)
    story.until("2025-09-02 00:00")
    story.policy("short", "threshold", {"notice_hours": 1})  # the forecast is clear now, and no credit made it so
    story.pay(100, reverses="P1")
    story.adjust(-100)
    story.policy("short", "threshold", {"notice_hours": 72})
    assert [n["episode"] for n in story.notices()] == [1]
    story.policy("short", "threshold", {"notice_hours": 1})
    story.adjust(1)
    story.policy("short", "threshold", {"notice_hours": 72})
    assert [n["episode"] for n in story.notices()] == [1, 2]


@pytest.mark.parametrize("opening_tiyin", [0, -1, -DAY_TIYIN])
def test_who_is_enrolled_with_nothing_is_told_at_once(opening_tiyin):
    story = opened_with(opening_tiyin)
    (notice,), (opening,) = story.notices(), story.events["entry"]
    assert notice["ordinal"] == opening["ordinal"]


def test_who_is_enrolled_with_little_is_told_as_soon_as_the_use_is_known():
    story = opened_with(DAY_TIYIN)
    story.until("2025-09-01 05:45")
    assert not story.notices()
    story.until("2025-09-01 06:00")
    assert len(story.notices()) == 1


def test_who_falls_to_zero_or_below_at_once_is_told_with_that_record():
    for left in (0, -1):
        story = opened_with(30 * DAY_TIYIN)
        story.until("2025-09-01 12:00")
        assert not story.notices()
        told = story.adjust(left - story.balance, local("2025-09-01 12:07"))
        assert [n["noticed_at"] for n in told["notice"]] == [local("2025-09-01 12:07")]


def test_credit_that_is_never_used_is_never_warned_of():
    story = opened_with(1)
    story.meters["A"].use_w = 0
    story.until("2025-09-20 00:00")
    assert not story.notices()


def test_a_meter_that_falls_silent_does_not_keep_its_customer_from_being_told():
    story = opened_with(10 * DAY_TIYIN)
    story.until("2025-09-03 00:00")
    story.meters["A"].is_read = False
    story.until("2025-09-12 00:00")
    assert len(story.notices()) == 1


def test_a_closed_account_is_not_told():
    story = opened_with(10 * DAY_TIYIN)
    story.until("2025-09-05 00:00")
    story.take("account", **story.version(closed_at=story.now))
    story.until("2025-09-15 00:00")
    assert not story.events["notice"]


@pytest.mark.parametrize("hour", range(0, 24, 3))
def test_a_notice_due_in_quiet_hours_is_given_at_the_last_tick_before_them(hour):
    """The same customer with quiet hours and without: by day nothing changes, and the night is left alone.

    Due in the night is what the evening's forecast says so of; it is made with care, and may have said so too early.
    """
    credit = 10 * DAY_TIYIN + hour * DAY_TIYIN * 7 // 5 // 24
    loud, quiet = (opened_with(credit, policies=policies) for policies in (NO_QUIET, DEFAULT_POLICIES))
    for story in (loud, quiet):
        story.until("2025-09-11 00:00")
    due_at = loud.notices()[0]["noticed_at"].astimezone(TASHKENT)
    (notice,) = quiet.notices()
    noticed_at = notice["noticed_at"].astimezone(TASHKENT)
    assert notice["send_after"] == noticed_at
    if (noticed_at.hour, noticed_at.minute) == (19, 45):
        assert noticed_at <= due_at
        assert notice["depletes_at"] - 72 * HOUR < noticed_at + 13 * HOUR + QUARTER  # 09:00
    else:
        assert 9 <= due_at.hour < 20
        assert noticed_at == due_at


def test_a_notice_in_quiet_hours_waits_for_their_end():
    story = opened_with(30 * DAY_TIYIN, policies=DEFAULT_POLICIES)
    story.until("2025-09-01 23:00")
    story.adjust(-30 * DAY_TIYIN)
    story.until("2025-09-02 12:00")
    assert [(n["noticed_at"], n["send_after"]) for n in story.notices()] == [
        (local("2025-09-01 23:00"), local("2025-09-02 09:00"))
    ]


def test_a_notice_without_a_phone_is_recorded_all_the_same():
    story = ready_to_be_cut(receipt=None, phone=None)
    assert [n["phone"] for n in story.notices()] == [None]


def test_a_notice_goes_to_the_phone_and_in_the_language_of_its_moment():
    """Also where the new phone's version and the notice lie in one body."""
    story = opened_with(DAY_TIYIN)
    story.until("2025-09-01 06:00")
    story.take("account", **story.version(phone="+998907654321", language="ru"))
    told = told_again(story.journal, size=lambda left: left)
    assert [(n["phone"], n["language"]) for n in told["notice"]] == [("+998901234567", "uz-Latn")]
    assert told == story.events


def test_a_wider_notice_takes_effect_at_once():
    story = opened_with(8 * DAY_TIYIN)
    story.until("2025-09-02 12:00")
    assert not story.notices()
    told = story.policy("wider", "threshold", {"notice_hours": 240})
    assert len(told["notice"]) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_a_wider_notice_known_beforehand_takes_effect_at_its_moment(restarted):
    story = opened_with(8 * DAY_TIYIN)
    story.policy("wider", "threshold", {"notice_hours": 240}, starts_at=local("2025-09-02 12:00"))
    story.until("2025-09-02 11:45")
    if restarted:
        story.restart()
    story.until("2025-09-02 18:00")
    assert [n["noticed_at"] for n in story.notices()] == [local("2025-09-02 12:00")]


# ---- promises 1 to 3: the cut, and each of its conditions ---------------------------------------------------------------
def test_a_cut_when_everything_holds():
    story = cut()
    (command,) = story.events["command"]
    assert command["expires_at"] == MONDAY_1600
    assert (command["meter_id"], command["cause"], command["sequence"], command["supersedes"]) == (
        "M-A",
        "credit",
        1,
        None,
    )
    assert story.states() == ["connected", "disconnect_pending"]
    story.until("2025-09-01 15:45")
    assert len(story.commands()) == 1


def test_the_evidence_of_a_cut_holds_all_it_was_decided_on():
    story = cut()
    evidence = json.loads(story.events["command"][0]["evidence"])
    notice = story.notices()[0]
    assert evidence == {
        "verdict": "disconnect for credit",
        "balance_tiyin": -170_000,
        "measured_balance_tiyin": -170_000,
        "emergency_credit_tiyin": 0,
        "reconnect_tiyin": 0,
        "position": f"0-{len(story.journal) - 1}",
        "forecast": {"depletes_at": "2025-09-01T05:00:00+00:00"},
        "policies": ["default-disconnect-window", "default-quiet-hours", "default-threshold"],
        "district": "d",
        "feeder": "f",
        "caps": {"per_hour": 500, "per_feeder_hour": 50},
        "last_measured": {"meter_id": "M-A", "read_at": "2025-09-01T05:00:00+00:00", "register_wh": 41_000},
        "tariff": "t",
        "notice": {
            "notice_id": notice["id"],
            "noticed_at": "2025-08-29T01:00:00+00:00",
            "receipt": "delivered",
            "receipt_at": "2025-08-29T04:05:00+00:00",
        },
    }


def test_no_cut_while_the_emergency_credit_lasts():
    """Promise 1. At 10:00 the balance is −170,000: with just as much emergency credit the cut waits for the next reading."""
    for emergency_credit, at in ((169_999, MONDAY_1000), (170_000, MONDAY_1000 + 2 * QUARTER)):
        story = ready_to_be_cut(emergency_credit_tiyin=emergency_credit)
        all_awake(story.partition)
        story.until("2025-09-01 11:00")
        assert cuts(story) == [at]


def test_no_cut_at_zero():
    """Promise 1. Also where the light would come back at no less than 1 tiyin, and where the tick looks at everybody."""
    for missing, expected in ((1, [MONDAY_1000]), (0, [])):
        story = ready_to_be_cut()
        story.policy("more", "threshold", {"reconnect_tiyin": 1})
        story.meters["A"].use_w = 0
        story.adjust(-story.balance - missing + 1_250)  # used from 09:30 to 09:45, and read at 10:00
        all_awake(story.partition)
        story.until("2025-09-01 15:45")
        assert story.balance == -missing
        assert cuts(story) == expected


def test_no_cut_on_a_standing_estimate_alone():
    """Promise 1: on measured registers there is credit left, by the estimate there is none."""
    story = ready_to_be_cut(7 * DAY_TIYIN // 2, until="2025-09-01 09:30")
    story.policy("more", "threshold", {"reconnect_tiyin": 1_000_000})
    story.meters["A"].is_read = False
    story.until("2025-09-01 09:45")
    story.take("reading", **story.reading(register_wh=story.meters["A"].register_wh + 2_000, status="estimated"))
    story.until("2025-09-01 15:45")
    assert story.balance < 0
    assert not story.commands()
    story.take("reading", **story.reading())  # measured, at 15:45: below zero indeed
    story.until("2025-09-03 00:00")
    assert cuts(story) == [TUESDAY_1000]


def test_no_cut_on_a_register_older_than_a_day():
    """Promise 1."""
    for last, expected in (("2025-08-31 10:00", [MONDAY_1000]), ("2025-08-31 09:30", [])):
        story = ready_to_be_cut(until=last)
        story.meters["A"].is_read = False
        story.until("2025-09-01 15:45")
        assert cuts(story) == expected


@pytest.mark.parametrize("receipt", [None, "accepted"])
def test_no_cut_without_word_of_the_notice(receipt):
    """Promise 2: that the network has taken an SMS does not say that it arrived."""
    story = ready_to_be_cut(receipt=receipt)
    story.until("2025-09-01 09:45")
    all_awake(story.partition)
    story.until("2025-09-05 00:00")
    assert not story.commands()


@pytest.mark.parametrize("receipt", ["delivered", "undeliverable", "expired", "rejected"])
def test_a_cut_once_the_notice_arrived_or_its_failure_is_recorded(receipt):
    story = ready_to_be_cut(receipt=receipt)
    story.until(MONDAY_1000)
    assert cuts(story) == [MONDAY_1000]
    assert json.loads(story.events["command"][0]["evidence"])["notice"]["receipt"] == receipt


def test_a_cut_a_day_after_it_was_recorded_that_there_is_no_phone():
    story = Story("2025-08-31 04:00")
    story.account(opening_balance_tiyin=-1, phone=None)
    assert story.notices()[0]["noticed_at"] == local("2025-08-31 04:00")
    story.until("2025-09-05 00:00")
    assert cuts(story)[0] == MONDAY_1000
    story = Story("2025-08-31 11:00")
    story.account(opening_balance_tiyin=-1, phone=None)
    story.until("2025-09-01 11:00")
    assert cuts(story) == [local("2025-09-01 11:00")]


def test_no_cut_within_a_day_of_the_delivery():
    """Promise 2."""
    for delivered, at in (("10:00", MONDAY_1000), ("10:01", MONDAY_1000 + QUARTER)):
        story = ready_to_be_cut(receipt=None, until="2025-08-31 10:00")
        story.receipt(at=local(f"2025-08-31 {delivered}"))
        story.until("2025-09-01 09:45")
        all_awake(story.partition)
        story.until("2025-09-01 11:00")
        assert cuts(story) == [at]


def test_a_receipt_from_before_its_notice_counts_from_the_notice():
    story = Story("2025-08-31 12:00")
    story.account(opening_balance_tiyin=-1)
    story.receipt(at=local("2025-08-01 00:00"))
    story.until("2025-09-01 13:00")
    assert cuts(story) == [local("2025-09-01 12:00")]


def test_no_cut_on_the_notice_of_an_earlier_episode():
    """Promise 2: a credit lifted the forecast clear, and the money is gone again; the new notice did not arrive yet."""
    story = ready_to_be_cut(until="2025-08-31 06:00")
    first = story.notices()[0]
    story.pay(20 * DAY_TIYIN)
    story.adjust(-20 * DAY_TIYIN)
    assert [n["episode"] for n in story.notices()] == [1, 2]
    story.receipt("delivered", first)
    story.until("2025-09-01 15:45")
    assert not story.commands()


@pytest.mark.parametrize(
    "at", ["2025-09-05 12:00", "2025-09-06 12:00", "2025-09-07 12:00", "2025-09-03 09:45", "2025-09-03 16:00"]
)
def test_no_cut_outside_the_window(at):
    """Promise 3. A hold keeps the supply on until a Friday, a weekend, or an hour too early or too late."""
    story = ready_to_be_cut()
    story.order("hold")
    story.until(at)
    story.order("release")
    story.tick()
    story.tick()
    expected = [local("2025-09-03 10:00")] if at == "2025-09-03 09:45" else []
    assert cuts(story) == expected
    story.until("2025-09-09 00:00")
    assert cuts(story)[0] == {
        "2025-09-03 09:45": local("2025-09-03 10:00"),
        "2025-09-03 16:00": local("2025-09-04 10:00"),
    }.get(at, local("2025-09-08 10:00"))


def test_no_cut_where_no_window_was_ever_named():
    """Promise 3."""
    story = Story(policies=[p for p in DEFAULT_POLICIES if p["kind"] != "disconnect_window"])
    story.account(opening_balance_tiyin=-1)
    story.receipt()
    story.until("2025-09-05 00:00")
    assert not story.commands()


@pytest.mark.parametrize(
    ("day", "expected"),
    [("2025-09-01", "2025-09-02 10:00"), ("2025-09-02", "2025-09-03 10:00"), ("2025-09-03", "2025-09-01 10:00")],
)
def test_no_cut_on_a_holiday_nor_the_day_before(day, expected):
    """Promise 3. A holiday without an end is the one day."""
    story = ready_to_be_cut()
    story.policy("day", "holiday", starts_at=local(f"{day} 00:00"))
    story.until("2025-09-04 00:00")
    assert cuts(story)[0] == local(expected)


def test_no_cut_in_a_moratorium():
    """Promise 3. It ends on Tuesday 12:00, in the window."""
    story = ready_to_be_cut()
    story.policy("frost", "moratorium", ends_at=local("2025-09-02 12:00"))
    story.until("2025-09-02 15:45")
    assert cuts(story) == [local("2025-09-02 12:00")]


def test_no_cut_of_a_protected_account():
    """Promise 3."""
    story = ready_to_be_cut(supply_class="protected")
    story.until("2025-09-05 00:00")
    assert not story.commands()


def test_no_cut_on_hold_and_one_after_its_release():
    story = ready_to_be_cut()
    story.order("hold")
    story.until("2025-09-02 12:00")
    assert not story.commands()
    story.order("release")
    story.until("2025-09-02 13:00")
    assert cuts(story) == [local("2025-09-02 12:15")]


def test_no_cut_of_a_closed_account():
    story = ready_to_be_cut()
    story.take("account", **story.version(closed_at=story.now))
    story.until("2025-09-05 00:00")
    assert not story.commands()


def test_no_cut_that_would_be_given_back_at_once():
    """Where a reconnection takes no more than a debt of so much, that debt cuts nobody off."""
    story = ready_to_be_cut()
    story.policy("lenient", "threshold", {"reconnect_tiyin": -1_000_000})
    story.until("2025-09-05 00:00")
    assert not story.commands()


def test_a_cut_is_decided_at_ticks_alone():
    story = ready_to_be_cut()
    story.order("hold")
    story.until(MONDAY_1000)
    for told in (story.order("release", at=local("2025-09-01 10:05")), story.adjust(-1, local("2025-09-01 10:07"))):
        assert not told["command"]
    story.tick()
    assert cuts(story) == [MONDAY_1000 + QUARTER]


def test_a_cut_unanswered_is_unknown_at_the_windows_end_and_asked_again_in_the_next():
    story = cut()
    story.until("2025-09-02 11:00")
    assert cuts(story) == [MONDAY_1000, TUESDAY_1000]
    assert [(s["state"], s["cause"]) for s in story.events["supply_state"][1:]] == [
        ("disconnect_pending", "credit"), ("unknown", "unanswered"), ("disconnect_pending", "credit")
    ]  # fmt: skip
    assert story.events["supply_state"][2]["changed_at"] == MONDAY_1600
    first, second = story.events["command"]
    assert (second["sequence"], second["supersedes"]) == (2, first["id"])


# ---- promise 4: the way back --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", ["2025-09-01 10:40", "2025-09-02 03:10", "2025-09-06 12:00", "2025-09-07 23:59"])
def test_a_payment_to_the_threshold_reconnects_with_that_very_record_at_any_hour(at):
    story = switched_off()
    story.until(at)
    debt = -story.balance
    assert not story.pay(debt - 1, local(at))["command"]
    (command,) = story.pay(1, local(at))["command"]
    assert (command["action"], command["cause"], command["issued_at"]) == ("reconnect", "credit", local(at))
    assert (command["sequence"], command["supersedes"]) == (2, None)
    assert command["expires_at"] == local(at) + DAY
    assert json.loads(command["evidence"])["balance_tiyin"] == 0
    assert story.states()[-1] == "reconnect_pending"
    story.answer("closed")
    assert story.states()[-1] == "connected"


def test_a_payment_reconnects_on_a_holiday_and_in_a_moratorium():
    story = switched_off()
    story.policy("frost", "moratorium")
    story.policy("day", "holiday")
    assert [c["action"] for c in story.pay(2 * DAY_TIYIN)["command"]] == ["reconnect"]


def test_an_adjustment_reconnects_as_a_payment_does():
    story = switched_off()
    assert [c["action"] for c in story.adjust(-story.balance)["command"]] == ["reconnect"]


def test_a_standing_estimate_keeps_nobody_in_the_dark():
    story = switched_off()
    story.until("2025-09-01 10:15")
    story.take("reading", **story.reading(register_wh=story.meters["A"].register_wh + 1_000, status="estimated"))
    assert story.balance == -180_000
    assert [c["action"] for c in story.pay(170_000)["command"]] == ["reconnect"]


def test_a_balance_that_rises_by_a_reading_reconnects_at_the_next_tick():
    """A later reading shows that the register before it had been a leap of the estimate, or a gap is cut otherwise: here the
    debt was charged in the dear month, and a late reading puts most of the use into the cheap one.
    """
    story = Story("2025-08-31 22:00", blocks=((1, 1), (None, 1_000_000)))
    story.account(opening_balance_tiyin=-1, phone=None)
    story.meters["A"].is_read = False
    story.until("2025-09-02 12:00")
    story.take("reading", **story.reading(register_wh=1_500))
    story.until("2025-09-02 12:15")
    assert story.balance < -400_000
    assert cuts(story) == [local("2025-09-02 12:15")]
    story.answer("opened")
    story.pay(-story.balance - 300_000)
    assert len(story.commands()) == 1
    story.take("reading", **story.reading(read_at=local("2025-08-31 23:59"), register_wh=750))
    assert story.balance > 0
    story.tick()
    assert story.commands()[1:] == [("reconnect", local("2025-09-02 12:30"))]


def test_the_threshold_of_reconnection_is_the_policys():
    story = switched_off()
    story.policy("more", "threshold", {"reconnect_tiyin": 50_000})
    assert not story.pay(-story.balance + 49_999)["command"]
    assert [c["action"] for c in story.pay(1)["command"]] == ["reconnect"]


def test_payment_voids_a_disconnection_in_flight():
    story = cut()
    disconnect = story.events["command"][0]
    (command,) = story.pay(170_000, local("2025-09-01 10:03"))["command"]
    assert (command["action"], command["supersedes"], command["sequence"]) == ("reconnect", disconnect["id"], 2)
    story.answer("superseded", disconnect, local("2025-09-01 10:04"))
    assert story.states()[-1] == "reconnect_pending"
    story.answer("closed", command, local("2025-09-01 10:05"))
    assert story.states()[-1] == "connected"
    assert not story.notices("reconnected")  # for it never was off


def test_a_payment_within_the_emergency_credit_voids_a_disconnection_in_flight():
    """It could not be asked for any more. Once it is done, only the threshold gives the light back."""
    story = ready_to_be_cut(emergency_credit_tiyin=50_000)
    story.until(MONDAY_1000)
    assert [c["action"] for c in story.pay(120_000)["command"]] == ["reconnect"]
    story = ready_to_be_cut(emergency_credit_tiyin=50_000)
    story.until(MONDAY_1000)
    story.answer("opened")
    assert not story.pay(120_000)["command"]


def test_a_reconnection_once_asked_for_is_owed_until_the_switch_is_read_back_closed():
    """The switch cannot be reached, and what was enough to void the cut is not enough for the threshold: it is asked all
    the same, until it is on.
    """
    story = ready_to_be_cut(emergency_credit_tiyin=50_000)
    story.until(MONDAY_1000)
    story.pay(120_000)
    story.answer("unreachable")
    assert story.states()[-1] == "unknown"
    story.meters["A"].use_w = 0
    story.tick()
    story.answer("opened")  # it had been carried out before it was voided
    assert [action for action, _ in story.commands()] == ["disconnect", "reconnect", "reconnect", "reconnect"]
    story.answer("closed")
    story.until("2025-09-03 00:00")
    assert story.states()[-1] == "connected"
    assert len(story.commands()) == 4


def test_a_reconnection_unanswered_for_a_day_is_unknown_and_asked_again():
    story = switched_off()
    story.pay(2 * DAY_TIYIN)
    first = story.events["command"][-1]
    story.until("2025-09-02 12:00")
    assert story.commands()[1:] == [("reconnect", MONDAY_1000), ("reconnect", TUESDAY_1000)]
    assert story.events["command"][-1]["supersedes"] == first["id"]
    assert story.states()[-3:] == ["reconnect_pending", "unknown", "reconnect_pending"]


def test_becoming_protected_gives_the_light_back():
    story = switched_off()
    told = story.take("account", **story.version(supply_class="protected"))
    assert [c["action"] for c in told["command"]] == ["reconnect"]


@pytest.mark.parametrize("what", ["moratorium", "holiday", "hold", "protected", "emergency", "window", "district"])
def test_a_disconnection_in_flight_is_voided_by_what_would_have_kept_it_from_being_asked(what):
    """Promise 3 holds for what is under way, too: the rule arrives while nobody has answered."""
    story = ready_to_be_cut()
    story.policy("elsewhere", "moratorium", scope="district:e")
    story.until(MONDAY_1000)
    disconnect = story.events["command"][0]
    told = {
        "moratorium": lambda: story.policy("frost", "moratorium"),
        "holiday": lambda: story.policy("day", "holiday", starts_at=local("2025-09-02 00:00")),
        "hold": lambda: story.order("hold"),
        "protected": lambda: story.take("account", **story.version(supply_class="protected")),
        "emergency": lambda: story.take("account", **story.version(emergency_credit_tiyin=170_000)),
        "window": lambda: story.policy("window", "disconnect_window", {"days": [1], "from": "12:00", "to": "14:00"}),
        "district": lambda: story.take("account", **story.version(district="e")),
    }[what]()
    assert [(c["action"], c["supersedes"]) for c in told["command"]] == [("reconnect", disconnect["id"])]


@pytest.mark.parametrize(("cause", "commands"), [("request", ["reconnect"]), ("safety", [])])
def test_closing_voids_an_ordered_cut_that_is_under_way_unless_it_is_for_safety(cause, commands):
    story = opened_with(20 * DAY_TIYIN)
    story.until("2025-09-01 09:45")
    story.order("disconnect", cause)
    story.until(MONDAY_1000)
    assert story.states()[-1] == "disconnect_pending"
    told = story.take("account", **story.version(closed_at=story.now))
    assert [c["action"] for c in told.get("command", [])] == commands


def test_a_command_to_cut_does_not_outlive_the_start_of_a_moratorium():
    story = ready_to_be_cut()
    story.policy("frost", "moratorium", starts_at=local("2025-09-01 13:05"))
    story.until(MONDAY_1000)
    assert story.events["command"][0]["expires_at"] == local("2025-09-01 13:05")
    story.until("2025-09-03 00:00")
    assert cuts(story) == [MONDAY_1000]


def test_a_moratorium_called_off_before_it_begins_shortens_no_command():
    story = ready_to_be_cut()
    begins_at = local("2025-09-01 13:05")
    story.policy("frost", "moratorium", starts_at=begins_at)
    story.policy("frost", "moratorium", starts_at=begins_at, ends_at=begins_at)
    story.until(MONDAY_1000)
    assert story.events["command"][0]["expires_at"] == MONDAY_1600


def test_closing_ends_a_cut_so_that_the_next_customer_has_light():
    """In flight or done: the debt stays with the account, the meter goes on to whoever comes next."""
    for story in (cut(), switched_off()):
        told = story.take("account", **story.version(closed_at=story.now))
        assert [c["action"] for c in told["command"]] == ["reconnect"]
        story.answer("unreachable")
        story.tick()
        story.answer("closed")
        story.until("2025-09-04 00:00")
        assert [action for action, _ in story.commands()] == ["disconnect", "reconnect", "reconnect"]


# ---- promise 7: what a switch says --------------------------------------------------------------------------------------
def test_a_command_counts_as_done_only_by_readback():
    story = cut()
    story.until("2025-09-01 15:45")
    assert story.states()[-1] == "disconnect_pending"
    story.answer("opened")
    assert story.states()[-1] == "disconnected"


def test_the_customer_is_told_of_the_cut_and_of_the_light_once_they_are_proven():
    story = cut()
    assert not story.notices("disconnected")
    story.answer("opened", at=local("2025-09-01 10:02"))
    (off,) = story.notices("disconnected")
    assert off["noticed_at"] == local("2025-09-01 10:02")
    assert "-1 700" in off["text"]
    story.pay(2 * DAY_TIYIN, local("2025-09-01 10:06"))
    assert not story.notices("reconnected")
    story.answer("closed", at=local("2025-09-01 10:08"))
    assert [n["noticed_at"] for n in story.notices("reconnected")] == [local("2025-09-01 10:08")]


@pytest.mark.parametrize("outcome", ["unreachable", "mismatch", "expired"])
def test_a_switch_that_does_not_answer_is_unknown_and_asked_again_at_the_next_tick(outcome):
    story = cut()
    assert not story.answer(outcome, at=local("2025-09-01 10:05"))["command"]
    assert [(s["state"], s["cause"]) for s in story.events["supply_state"]][-1] == ("unknown", outcome)
    story.tick()
    assert cuts(story) == [MONDAY_1000, MONDAY_1000 + QUARTER]


def test_what_is_unknown_is_not_cut_again_once_paid_but_closed():
    story = cut()
    story.answer("unreachable")
    assert [c["action"] for c in story.pay(170_000)["command"]] == ["reconnect"]


def test_a_readback_that_shows_the_switch_still_closed_is_no_cut():
    story = cut()
    story.answer("closed")
    assert story.states()[-1] == "connected"
    assert not story.notices("disconnected")
    story.tick()
    assert cuts(story) == [MONDAY_1000, MONDAY_1000 + QUARTER]


def test_a_readback_older_than_the_last_one_changes_nothing():
    story = switched_off()  # proven open at 10:02
    told = story.answer("closed", at=local("2025-09-01 10:01"))
    assert not any(told.values())
    assert story.states()[-1] == "disconnected"


def test_an_answer_to_a_superseded_command_changes_nothing_while_the_new_one_is_in_flight():
    story = cut()
    disconnect = story.events["command"][0]
    story.pay(2 * DAY_TIYIN)
    for outcome in ("opened", "unreachable", "closed", "superseded"):
        assert not any(story.answer(outcome, disconnect, local("2025-09-01 10:06")).values())
    assert story.states()[-1] == "reconnect_pending"


def test_a_cut_carried_out_after_all_is_given_back_at_once():
    """The switch was cut late, by a command long superseded: its readback is newer than the last, and a paid light is off."""
    story = cut()
    disconnect = story.events["command"][0]
    story.pay(2 * DAY_TIYIN)
    story.answer("closed", at=local("2025-09-01 10:05"))
    told = story.answer("opened", disconnect, local("2025-09-01 10:09"))
    assert [s["state"] for s in told["supply_state"]] == ["disconnected", "reconnect_pending"]
    assert [c["action"] for c in told["command"]] == ["reconnect"]


def test_a_switch_whose_clock_is_ahead_does_not_make_later_answers_stale():
    story = cut()
    story.answer("opened", at=local("2031-01-01 00:00"))
    story.pay(2 * DAY_TIYIN)
    story.until("2025-09-01 10:30")
    story.answer("closed", at=local("2025-09-01 10:31"))
    assert story.states()[-1] == "connected"


def test_answers_to_nothing_that_was_asked_are_refused_by_name():
    story = cut()
    (notice,), (command,) = story.notices(), story.events["command"]
    for command_id in ("0-99999-0", "7-0-0", "nonsense", "0-1", notice["id"]):
        told = story.take("acknowledgement", command_id=command_id, acknowledged_at=story.now, outcome="closed")
        assert [r["reason"] for r in told["refused"]] == ["unknown_command"], command_id
    for notice_id in ("0-99999-0", "7-0-0", "nonsense", command["id"]):
        told = story.take("receipt", notice_id=notice_id, received_at=story.now, status="delivered")
        assert [r["reason"] for r in told["refused"]] == ["unknown_notice"], notice_id
    assert story.states()[-1] == "disconnect_pending"


def test_a_repeated_answer_changes_nothing():
    story = switched_off()
    assert not any(story.answer("opened", at=local("2025-09-01 10:02")).values())
    assert not any(story.answer("opened", at=local("2025-09-01 10:09")).values())


# ---- a meter exchanged while the light is off ---------------------------------------------------------------------------
def test_nothing_is_known_of_the_switch_of_a_meter_put_in_while_the_light_was_off():
    story = switched_off()
    told = story.exchange("N", local("2025-09-01 10:10"))
    assert [(s["state"], s["cause"]) for s in told["supply_state"]] == [("unknown", "meter_exchange")]
    story.until("2025-09-01 10:30")
    command = story.events["command"][-1]
    assert (command["action"], command["meter_id"], command["sequence"]) == ("disconnect", "N", 1)
    assert [c["meter_id"] for c in story.pay(2 * DAY_TIYIN)["command"]] == ["N"]


def test_the_old_meters_switch_says_nothing_of_the_new_one():
    """Paid, reconnected, and exchanged before the answer: that the old switch closed does not light the new meter."""
    story = switched_off()
    story.pay(2 * DAY_TIYIN)
    old = story.events["command"][-1]
    story.exchange("N", local("2025-09-01 10:03"))
    assert not any(story.answer("closed", old, local("2025-09-01 10:04")).values())
    assert story.states()[-1] == "unknown"
    story.tick()
    command = story.events["command"][-1]
    assert (command["action"], command["meter_id"], command["supersedes"]) == ("reconnect", "N", old["id"])
    story.answer("closed")
    assert story.states()[-1] == "connected"


def test_a_meter_exchanged_with_the_light_on_stays_on():
    story = ready_to_be_cut()
    assert not story.exchange("N")["supply_state"]


# ---- orders -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cause", ["court", "tamper", "load", "request"])
def test_an_order_to_disconnect_waits_for_the_window(cause):
    story = opened_with(30 * DAY_TIYIN, "2025-08-31 12:00", DEFAULT_POLICIES)
    assert not story.order("disconnect", cause)["command"]
    story.until("2025-09-01 12:00")
    assert [(c["issued_at"], c["cause"]) for c in story.events["command"]] == [(MONDAY_1000, cause)]


@pytest.mark.parametrize("what", ["moratorium", "holiday", "hold", "protected"])
def test_an_order_to_disconnect_is_barred_by_what_bars_a_cut_for_credit(what):
    for in_flight in (False, True):
        story = opened_with(30 * DAY_TIYIN, "2025-08-31 12:00", DEFAULT_POLICIES)
        story.order("disconnect", "court")
        story.until(MONDAY_1000 if in_flight else MONDAY_1000 - QUARTER)
        if what == "hold":
            story.order("hold", "court")
        elif what == "protected":
            story.take("account", **story.version(supply_class="protected"))
        else:
            story.policy("bar", what, ends_at=local("2025-09-03 00:00"))
        story.until("2025-09-01 15:45")
        assert [action for action, _ in story.commands()] == (["disconnect", "reconnect"] if in_flight else [])


def test_an_order_for_safety_does_not_wait():
    story = opened_with(30 * DAY_TIYIN, "2025-08-31 03:00", DEFAULT_POLICIES, supply_class="protected")
    story.policy("frost", "moratorium")
    (command,) = story.order("disconnect", "safety", local("2025-08-31 03:04"))["command"]
    assert (command["issued_at"], command["cause"]) == (local("2025-08-31 03:04"), "safety")
    story.until("2025-08-31 05:00")
    assert len(story.commands()) == 1


def test_a_payment_does_not_lift_a_cut_by_order_and_an_order_does():
    story = opened_with(-1, "2025-08-31 03:00", DEFAULT_POLICIES)
    story.order("disconnect", "safety")
    story.answer("opened")
    assert not story.pay(30 * DAY_TIYIN)["command"]
    (command,) = story.order("reconnect", "request")["command"]
    assert (command["action"], command["cause"]) == ("reconnect", "request")
    story.answer("closed")
    story.until("2025-09-03 00:00")
    assert story.states()[-1] == "connected"
    assert len(story.commands()) == 2


def test_an_order_to_reconnect_is_asked_of_the_switch_also_where_it_is_believed_closed():
    """A customer moved in where the light is off: nobody has read this switch for the new account."""
    story = opened_with(30 * DAY_TIYIN)
    assert [c["action"] for c in story.order("reconnect")["command"]] == ["reconnect"]
    story.answer("closed")
    assert story.states()[-1] == "connected"


def test_an_order_comes_once_and_only_to_an_open_account():
    story = opened_with(30 * DAY_TIYIN)
    given = {"order_id": "same", "at": story.now}
    story.order("hold", "court", **given)
    assert not any(story.order("hold", "court", **given).values())
    assert [r["reason"] for r in story.order("release", "court", **given)["refused"]] == ["duplicate"]
    assert [r["reason"] for r in story.order("hold", account_id="B")["refused"]] == ["unknown_account"]
    story.take("account", **story.version(closed_at=story.now))
    assert [r["reason"] for r in story.order("hold")["refused"]] == ["account_closed"]


# ---- policies and their scopes ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scope", ["district:d", "feeder:f", "account:A"])
def test_the_narrowest_scope_counts(scope):
    """A narrower window takes the place of the one for all, whichever came first; one for others does not."""
    for first in ("narrow", "wide"):
        story = ready_to_be_cut()
        given = {
            "narrow": ({"days": [2], "from": "11:00", "to": "12:00"}, scope),
            "wide": ({"days": [1, 2, 3, 4, 5, 6, 7], "from": "00:00", "to": "24:00"}, "all"),
            "else": ({"days": [1], "from": "09:00", "to": "12:00"}, scope[:-1] + "x"),
        }
        for name in (first, *(n for n in given if n != first)):
            story.policy(name, "disconnect_window", *given[name], starts_at=MONDAY_1000)
        story.until("2025-09-02 15:45")
        assert story.commands()[0] == ("disconnect", local("2025-09-02 11:00"))
        assert story.events["command"][0]["expires_at"] == local("2025-09-02 12:00")


def test_of_one_scope_the_latest_counts_and_an_account_is_narrower_than_its_feeder():
    story = ready_to_be_cut()
    story.policy(
        "1", "disconnect_window", {"days": [1], "from": "11:00", "to": "12:00"}, "feeder:f", local("2025-08-30 00:00")
    )
    story.policy(
        "2", "disconnect_window", {"days": [1], "from": "12:00", "to": "13:00"}, "feeder:f", local("2025-08-31 00:00")
    )
    story.policy(
        "3", "disconnect_window", {"days": [1], "from": "11:30", "to": "13:00"}, "feeder:f", local("2025-08-30 12:00")
    )
    story.until("2025-09-01 13:00")
    assert cuts(story) == [local("2025-09-01 12:00")]
    story = ready_to_be_cut()
    story.policy("1", "disconnect_window", {"days": [1], "from": "11:00", "to": "12:00"}, "account:A")
    story.policy(
        "2", "disconnect_window", {"days": [1], "from": "10:00", "to": "13:00"}, "feeder:f", starts_at=MONDAY_1000
    )
    story.until("2025-09-01 13:00")
    assert cuts(story)[0] == local("2025-09-01 11:00")


@pytest.mark.parametrize("kind", ["moratorium", "holiday"])
def test_moratoria_and_holidays_of_any_scope_add_up(kind):
    for scope, holds in (
        ("all", True),
        ("district:d", True),
        ("feeder:f", True),
        ("account:A", True),
        ("feeder:g", False),
    ):
        story = ready_to_be_cut()
        story.policy("narrow", kind, scope="account:other")
        story.policy("this", kind, scope=scope)
        story.until("2025-09-01 12:00")
        assert (not cuts(story)) == holds, scope


def test_a_narrower_threshold_leaves_what_it_does_not_name():
    story = ready_to_be_cut(receipt=None, until="2025-08-31 10:00")
    story.policy("gap", "threshold", {"notice_gap_hours": 48}, "account:A")
    story.policy("age", "threshold", {"max_reading_age_hours": 12}, "district:d")
    story.receipt()
    story.until("2025-09-04 00:00")
    assert cuts(story)[0] == TUESDAY_1000


def test_a_policy_that_names_an_account_before_it_arrives_holds_for_it():
    story = Story()
    story.policy("frost", "moratorium", scope="account:A")
    story.account(opening_balance_tiyin=-1)
    story.receipt()
    story.until("2025-09-03 00:00")
    assert not story.commands()


def test_a_policy_ended_under_its_id_holds_no_more():
    story = ready_to_be_cut()
    story.policy("frost", "moratorium")
    story.until("2025-09-01 11:00")
    story.policy("frost", "moratorium", starts_at=local("2025-09-01 09:00"), ends_at=local("2025-09-01 11:00"))
    story.until("2025-09-01 12:00")
    assert cuts(story) == [local("2025-09-01 11:15")]


def test_a_window_over_midnight_belongs_to_the_day_it_begins_on():
    story = ready_to_be_cut()
    story.policy("night", "disconnect_window", {"days": [1], "from": "22:00", "to": "02:00"})
    story.order("hold")
    story.until("2025-09-02 00:30")
    story.order("release")
    story.until("2025-09-02 12:00")
    (command,) = story.events["command"]
    assert (command["issued_at"], command["expires_at"]) == (local("2025-09-02 00:45"), local("2025-09-02 02:00"))


@pytest.mark.parametrize(
    ("kind", "scope", "value"),
    [
        ("threshold", "all", {"notice_hours": "three"}),
        ("threshold", "all", {"grace": 1}),
        ("disconnect_window", "all", {"days": [8], "from": "10:00", "to": "11:00"}),
        ("disconnect_window", "all", {"from": "10:00", "to": "11:00"}),
        ("disconnect_window", "all", {"days": [1], "from": "25:00", "to": "11:00"}),
        ("quiet_hours", "all", None),
        ("moratorium", "street:x", None),
        ("moratorium", "district", None),
        ("moratorium", "all:x", None),
    ],
)
def test_a_policy_that_cannot_be_understood_is_refused_and_changes_nothing(kind, scope, value):
    story = ready_to_be_cut()
    before = dict(story.partition.policies)
    assert not any(
        story.policy("bad", kind, value, scope).values()
    )  # an account partition leaves it to the unrouted one
    assert story.partition.policies == before
    story.partition.unrouted = True
    assert [r["reason"] for r in story.policy("bad", kind, value, scope)["refused"]] == ["unknown_value"]


# ---- forecasts ----------------------------------------------------------------------------------------------------------
def test_a_forecast_is_written_at_the_first_tick_of_each_day():
    story = opened_with(30 * DAY_TIYIN, "2025-09-01 11:15")
    story.account("B", opening_register_wh=None)  # not started before its first reading
    story.meters["B"].is_read = False
    story.until("2025-09-02 20:00")
    story.now = local("2025-09-03 00:15")  # no tick at midnight: the machine was down
    story.until("2025-09-04 12:00")
    assert [(f["account_id"], f["forecast_at"]) for f in story.events["forecast"]] == [
        ("A", local(at)) for at in ("2025-09-01 11:30", "2025-09-02 00:00", "2025-09-03 00:30", "2025-09-04 00:00")
    ]


def test_a_forecast_stands_beside_every_notice_and_command():
    story = switched_off()
    story.pay(2 * DAY_TIYIN)
    story.answer("closed", at=local("2025-09-01 10:05"))
    beside = {f["ordinal"] for f in story.events["forecast"]}
    assert {"low_credit", "disconnected", "reconnected"} == {n["kind"] for n in story.events["notice"]}
    assert {e["ordinal"] for kind in ("notice", "command") for e in story.events[kind]} <= beside


def test_no_use_while_the_light_is_off_is_no_low_use():
    story = switched_off()
    before = story.events["forecast"][-1]["usage_wh_per_day"]
    story.until("2025-09-05 12:00")
    story.pay(20 * DAY_TIYIN)
    story.answer("closed")
    story.meters["A"].use_w = 500
    story.until("2025-09-07 12:00")
    assert before == 12_000
    assert {f["usage_wh_per_day"] for f in story.events["forecast"][1:]} == {12_000}


def depletion_by_half_hours(versions, at, month_wh, credit_tiyin, level_wh):
    """The first half hour by whose end the credit is used up; None within 400 days. versions: (from, blocks), in order."""
    half_hour, used_wh = 1_800_000_000, level_wh // 48
    end, spent, month = at + 400 * DAY // timedelta(microseconds=1), 0, month_number(at)
    while at < end:
        if month_number(at) != month:
            month, month_wh = month_number(at), 0
        blocks = [b for since, b in versions if since <= at][-1]
        spent += price_of(blocks, month_wh + used_wh) - price_of(blocks, month_wh)
        month_wh += used_wh
        at += half_hour
        if spent >= credit_tiyin * 1000:
            return at
    return None


def month_number(at):
    local_time = (EPOCH + timedelta(microseconds=at)).astimezone(TASHKENT)
    return local_time.year * 12 + local_time.month


def price_of(blocks, wh):
    """Thousandths of a tiyin."""
    total, low = 0, 0
    for upto_kwh, price in blocks:
        top = wh if upto_kwh is None else min(wh, upto_kwh * 1000)
        total += max(top - low, 0) * price
        low = max(low, top)
    return total


def depletes_at(book, at, month_wh, credit_tiyin, level_wh):
    """The core's answer for an account of a book with one tariff."""
    s = new_accounts(1)[0]
    s.schedule = book.schedule(History((AccountVersion(ALWAYS, ALWAYS, "t", 1),)))
    start_account(s, book.arrays(), at, 0)
    s.month_wh, s.balance_tiyin, s.level_wh = month_wh, credit_tiyin, level_wh
    return forecast_depletion(s, book.arrays(), 0.0)


some_blocks = st.lists(st.integers(1, 400), max_size=3, unique=True).flatmap(
    lambda limits: st.lists(st.integers(2_000, 50_000), min_size=len(limits) + 1, max_size=len(limits) + 1).map(
        lambda prices: tuple(zip([*sorted(limits), None], prices, strict=True))
    )
)


@settings(deadline=None, max_examples=40)
@given(
    some_blocks,
    st.none() | st.tuples(st.integers(1, 60), some_blocks),
    st.integers(0, 500 * 48),
    st.integers(0, 800_000),
    st.integers(1, 20_000_000),
    st.integers(40, 1_000),
)
def test_depletion_is_what_half_hours_of_constant_use_come_to(blocks, change, start, month_wh, credit_tiyin, use_w):
    """Through the blocks, over the turn of the month, and over a change of price that is known by now."""
    at, level_wh = microseconds(local("2025-01-01 00:00") + start * HOUR / 2), use_w * 48
    book = TariffBook()
    versions = [(0, blocks)]
    if change is not None:
        midnight = (EPOCH + timedelta(microseconds=at)).astimezone(TASHKENT).replace(hour=0, minute=0)
        versions.append((microseconds(midnight + change[0] * DAY), change[1]))
    for since, version in versions:
        book.add(TariffVersion("t", since, version))
    found = depletes_at(book, at, month_wh, credit_tiyin, level_wh)
    expected = depletion_by_half_hours(versions, at, month_wh, credit_tiyin, level_wh)
    if expected is None and found == FOREVER:
        return
    horizon = at + 400 * DAY // timedelta(microseconds=1)
    if expected is None or found == FOREVER:
        assert min(expected or FOREVER, found) > horizon - 5_400_000_000
    else:
        assert -5_400_000_000 <= found - expected <= 1_800_000_000


def test_a_last_block_for_nothing_depletes_by_its_beginning_or_never():
    """51 tiyin are just what is left of the first block, whose parts come to 50 and a half."""
    book = TariffBook()
    book.add(TariffVersion("t", 0, ((1, 101), (None, 0))))
    at, hour = microseconds(MONDAY_1000), 3_600_000_000
    assert at + hour <= depletes_at(book, at, 500, 51, 12_000) <= microseconds(local("2025-10-01 00:00"))
    assert depletes_at(book, at, 500, 52, 12_000) > microseconds(local("2025-10-01 00:00"))


# ---- promise 8: stories told again --------------------------------------------------------------------------------------
stories = given(st.integers(0, 10**9))


@settings(deadline=None, max_examples=12)
@stories
def test_a_story_ends_the_same_however_it_is_cut_and_wherever_the_process_dies(seed):
    """Whole, in bodies of any size, saved and read back between any two of them: the same events, row for row."""
    director = Director(seed)
    journal, events = director.tell()
    chance = director.chance
    assert told_again(journal, size=lambda left: left) == events
    in_parts = told_again(
        journal,
        size=lambda _left: chance.choice([1, 7, 90, 400]),
        between=lambda p: restore(snapshot(p)) if chance.random() < 0.5 else p,
    )
    assert in_parts == events


@settings(deadline=None, max_examples=6)
@stories
def test_the_accounts_that_a_tick_passes_by_have_nothing_due(seed):
    """With every account looked at by every tick the same events come: passing accounts by is speed, and no rule."""
    journal, events = Director(seed, days=10).tell()
    assert told_again(journal, between=all_awake) == events


@settings(deadline=None, max_examples=12)
@stories
def test_the_promises_hold_in_stories_of_chance(seed):
    journal, events = Director(seed).tell()
    Auditor(journal, events).audit()


# ---- the audit ----------------------------------------------------------------------------------------------------------
WAYS_OFF = {"disconnect_pending", "disconnected", "unknown"}
FAILURES = {"delivered", "undeliverable", "expired", "rejected"}
SCOPES = ("all", "district:", "feeder:", "account:")
THRESHOLDS = {"notice_gap_hours": 24, "reconnect_tiyin": 0, "max_reading_age_hours": 24}


class Customer:
    """What an auditor knows of an account by some record of the journal."""

    def __init__(self):
        self.version, self.meter_id, self.closing = {}, None, False
        self.measured_tiyin, self.hold, self.ordered_off, self.state = 0, False, None, None
        self.registers, self.notice, self.told_at, self.last_command = set(), None, None, None


class Auditor:
    """Goes through a story record by record, and says what the design says of cuts in other words than the core does."""

    def __init__(self, journal, events):
        self.journal, self.now = journal, None
        self.customers = defaultdict(Customer)
        self.policies = {}
        self.caused = defaultdict(lambda: defaultdict(list))
        self.by_id = {e["id"]: e for kind in ("command", "notice") for e in events[kind]}
        self.episodes = set()
        for kind in EVENTS:
            for event in events[kind]:
                self.caused[event["ordinal"]][kind].append(event)

    def audit(self):
        for ordinal, (kind, record) in enumerate(self.journal):
            told = self.caused[ordinal]
            refused = any(r["record_kind"] == kind and same_time(kind, r, record) for r in told["refused"])
            before = {a: (c.state, c.measured_tiyin) for a, c in self.customers.items()}
            if not refused:
                self.hear(kind, record, ordinal)
            for entry in told["entry"]:
                self.hear_entry(entry)
            for notice in told["notice"]:
                self.hear_notice(notice)
            for state in told["supply_state"]:
                self.check_state(kind, record, state)
            for command in told["command"]:
                self.check_command(kind, command, told)
            for forecast in told["forecast"]:
                first, middle, last = (
                    moment_or_never(forecast[c]) for c in ("earliest_at", "depletes_at", "latest_at")
                )
                assert first <= middle <= last
            if kind in {"payment", "adjustment"} and told["entry"]:
                self.check_credit(record["account_id"], before, told)
            if kind == "tick":
                self.check_in_flight()

    def hear(self, kind, record, ordinal):
        """A record that was taken: what it says from now on."""
        customer = self.customers[record["account_id"]] if record.get("account_id") else None
        if kind == "tick":
            self.now = EPOCH + timedelta(microseconds=record["ticked_at"])
        elif kind == "policy":
            self.policies[record["policy_id"]] = {**record, "arrival": ordinal}
        elif kind == "account":
            customer.version = record
            customer.meter_id = customer.meter_id or record["meter_id"]
            customer.closing |= record.get("closed_at") is not None
            customer.registers |= {(record["effective_at"], record.get("opening_register_wh"))}
            customer.registers |= {(record.get("closed_at"), record.get("closing_register_wh"))}
        elif kind == "meter_exchange":
            customer.meter_id = record["new_meter_id"]
            customer.registers.add((record["exchanged_at"], record["new_register_wh"]))
        elif kind == "reading" and record.get("status") != "estimated":
            customer.registers.add((record["read_at"], record["register_wh"]))
        elif kind == "order":
            if record["action"] in {"hold", "release"}:
                customer.hold = record["action"] == "hold"
            else:
                customer.ordered_off = record["cause"] if record["action"] == "disconnect" else None
        elif kind == "receipt" and record["status"] in FAILURES:
            notice = self.by_id[record["notice_id"]]
            customer = self.customers[notice["account_id"]]
            if customer.notice is notice and customer.told_at is None:
                customer.told_at = max(notice["noticed_at"], EPOCH + timedelta(microseconds=record["received_at"]))

    def hear_entry(self, entry):
        if entry["basis"] != "estimated":
            self.customers[entry["account_id"]].measured_tiyin += entry["amount_tiyin"]

    def hear_notice(self, notice):
        """Promise 5: one an episode."""
        if notice["kind"] == "low_credit":
            assert (notice["account_id"], notice["episode"]) not in self.episodes
            self.episodes.add((notice["account_id"], notice["episode"]))
            customer = self.customers[notice["account_id"]]
            customer.notice = notice
            customer.told_at = notice["noticed_at"] if notice["phone"] is None else None

    def check_state(self, kind, record, state):
        """Promise 7: on and off are proven by the readback of this account's own switch, or by its opening."""
        customer = self.customers[state["account_id"]]
        customer.state = state["state"]
        if state["state"] in {"connected", "disconnected"} and state["cause"] != "opening":
            assert kind == "acknowledgement"
            assert record["outcome"] == {"connected": "closed", "disconnected": "opened"}[state["state"]]
            assert self.by_id[record["command_id"]]["meter_id"] == customer.meter_id

    def check_command(self, kind, command, told):
        customer, last = self.customers[command["account_id"]], self.customers[command["account_id"]].last_command
        beside = [f for f in told["forecast"] if f["account_id"] == command["account_id"]]
        assert beside
        assert command["meter_id"] == customer.meter_id
        if last is not None and last["meter_id"] == command["meter_id"]:
            assert command["sequence"] == last["sequence"] + 1
        assert command["supersedes"] in {None, last and last["id"]}
        customer.last_command = command
        if command["action"] != "disconnect":
            return
        barred = self.barred(command["account_id"], command["issued_at"])
        assert not customer.closing
        if command["cause"] == "safety":
            assert customer.ordered_off == "safety"
            return
        assert kind == "tick"
        assert barred is None
        window = self.counting("disconnect_window", command["account_id"], command["issued_at"])
        assert command["expires_at"] <= end_of_span(window, command["issued_at"])
        if command["cause"] == "credit":
            self.check_cut(customer, command)
        else:
            assert command["cause"] == customer.ordered_off

    def check_cut(self, customer, command):
        """Promises 1 and 2."""
        evidence, at = json.loads(command["evidence"]), command["issued_at"]
        threshold = self.threshold(command["account_id"], at)
        emergency = customer.version.get("emergency_credit_tiyin") or 0
        assert evidence["measured_balance_tiyin"] == customer.measured_tiyin
        assert evidence["emergency_credit_tiyin"] == emergency
        assert customer.measured_tiyin + emergency < 0
        read_at = local_moment(evidence["last_measured"]["read_at"])
        measured = {(t, r) for t, r in customer.registers if t == microseconds(read_at)}
        assert {r for _, r in measured} & {evidence["last_measured"]["register_wh"], None}
        assert at - read_at <= threshold["max_reading_age_hours"] * HOUR
        assert evidence["notice"]["notice_id"] == customer.notice["id"]
        assert at - customer.told_at >= threshold["notice_gap_hours"] * HOUR

    def check_credit(self, account_id, before, told):
        """Promise 4: at once, with that very record."""
        customer = self.customers[account_id]
        state, _ = before[account_id]
        threshold = self.threshold(account_id, self.moment_of_credit(told))
        if (
            state in WAYS_OFF
            and customer.ordered_off is None
            and customer.measured_tiyin >= threshold["reconnect_tiyin"]
        ):
            assert [c["action"] for c in told["command"]] == ["reconnect"]

    def moment_of_credit(self, told):
        at = told["entry"][0]["to_at"]
        return min(max(at, self.now), self.now + QUARTER) if self.now else at

    def check_in_flight(self):
        """Promise 3 for what is under way: after a tick no cut is in flight that could not be asked for."""
        for account_id, customer in self.customers.items():
            if customer.state == "disconnect_pending" and customer.last_command["cause"] != "safety":
                assert self.barred(account_id, self.now) is None
                assert not customer.closing

    # -- what held then
    def barred(self, account_id, at):
        """What keeps an account from being cut, be it for credit or by an order; None if nothing does."""
        customer = self.customers[account_id]
        if customer.version.get("supply_class") == "protected" or customer.hold:
            return "protected or on hold"
        window = self.counting("disconnect_window", account_id, at)
        if window is None or end_of_span(window, at) is None:
            return "no window"
        midnight = at.astimezone(TASHKENT).replace(hour=0, minute=0, second=0, microsecond=0)
        for policy in self.policies.values():
            starts_at, ends_at = span_of(policy)
            if not self.covers(policy, account_id):
                continue
            if policy["kind"] == "moratorium" and starts_at <= at < ends_at:
                return "moratorium"
            if policy["kind"] == "holiday" and starts_at < midnight + 2 * DAY and ends_at > midnight:
                return "holiday"
        return None

    def covers(self, policy, account_id):
        version = self.customers[account_id].version
        return policy["scope"] in {
            "all", f"district:{version['district']}", f"feeder:{version['feeder']}", f"account:{account_id}"
        }  # fmt: skip

    def applying(self, kind, account_id, at):
        """Those that apply, the one that counts last."""
        found = [p for p in self.policies.values() if p["kind"] == kind and self.covers(p, account_id)]
        found = [p for p in found if span_of(p)[0] <= at < span_of(p)[1]]
        return sorted(found, key=lambda p: (narrowness(p["scope"]), p["starts_at"], p["arrival"]))

    def counting(self, kind, account_id, at):
        return (self.applying(kind, account_id, at) or [None])[-1]

    def threshold(self, account_id, at):
        values = dict(THRESHOLDS)
        for policy in self.applying("threshold", account_id, at):
            values |= json.loads(policy["value"])
        return values


def same_time(kind, refused, record):
    """Whether what was refused is this record, and not one that was held before."""
    given = json.loads(refused["record"])
    return kind != "reading" or local_moment(given["read_at"]) == EPOCH + timedelta(microseconds=record["read_at"])


def local_moment(text):
    return datetime.fromisoformat(text)


def moment_or_never(moment):
    return moment or datetime.max.replace(tzinfo=UTC)


def narrowness(scope):
    return max(i for i, prefix in enumerate(SCOPES) if scope.startswith(prefix))


def span_of(policy):
    ends_at = policy.get("ends_at")
    return (
        EPOCH + timedelta(microseconds=policy["starts_at"]),
        datetime.max.replace(tzinfo=UTC) if ends_at is None else EPOCH + timedelta(microseconds=ends_at),
    )


def end_of_span(window, at):
    """The end of the daily span, begun on one of its days, that a moment lies in; None outside."""
    value, local_at = json.loads(window["value"]), at.astimezone(TASHKENT)
    today = local_at.replace(hour=0, minute=0, second=0, microsecond=0)
    starts, ends = (timedelta(hours=int(value[c][:2]), minutes=int(value[c][3:])) for c in ("from", "to"))
    for day in (today, today - DAY):
        ends_at = day + ends + (DAY if ends <= starts else timedelta(0))
        if day.isoweekday() in value["days"] and day + starts <= local_at < ends_at:
            return min(ends_at, span_of(window)[1])
    return None
