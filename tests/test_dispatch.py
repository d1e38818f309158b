"""Dispatch as promised: readback alone, still wanted, reconnections first, caps, and nothing twice after a crash."""

import asyncio
import datetime as dt
import io
import json
import os
import time
from contextlib import closing

import pytest

from connectors.locks import AlreadyRunningError, hold
from connectors.log import TransientLogError
from connectors.log.sqlite import open_log
from connectors.modbus import gateway as gateway_module
from hisob.simulated.faults import Faults
from hisob.simulated.fleet import READ_HOLDING, WRITE_ONE
from streams import dispatch as module
from streams.arrivals import Arrivals
from streams.dispatch import run_dispatch
from streams.settle import run_settle
from tests.switches import DAY, HOUR, District, now, play
from tests.whole_homes import hisob, start


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "PAUSES_S", (0.05, 0.1, 0.1))
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(module, "LATE_WRITE_S", 0.5)
    monkeypatch.setattr(module, "SETTLED_PATIENCE_S", 0.3)
    monkeypatch.setattr(gateway_module, "PAUSE_S", 0.001)
    monkeypatch.setattr(gateway_module, "PAUSE_MOST_S", 0.002)


@pytest.fixture
def district(tmp_path):
    made = District(tmp_path / "home", meters=8, log=io.StringIO())
    made.settle()
    return made


def test_a_command_is_done_by_readback_and_written_once(district):
    async def story():
        await district.listen()
        off = district.command(0, "disconnect")
        async with district.dispatching():
            assert await district.answered(off) == ["opened"]
            on = district.command(0, "reconnect")
            assert await district.answered(off, on) == ["opened", "closed"]
        assert (district.meters["M-0"].is_closed, district.meters["M-0"].writes) == (True, 2)

    play(story)


def test_what_is_so_already_is_not_written(district):
    async def story():
        await district.listen()
        on = district.command(1, "reconnect")
        async with district.dispatching():
            assert await district.answered(on) == ["closed"]
        assert district.meters["M-1"].writes == 0

    play(story)


def test_a_switch_that_does_not_obey_is_a_mismatch_never_opened(district):
    async def story():
        await district.listen()
        district.fleet.faults = Faults(wrong_readback={"M-0"})
        off = district.command(0, "disconnect")
        async with district.dispatching():
            assert await district.answered(off) == ["mismatch"]
        assert district.meters["M-0"].is_closed

    play(story)


def test_a_switch_out_of_reach_is_unreachable_and_delays_no_other_gateway(district):
    async def story():
        await district.listen()
        district.fleet.faults = Faults(dead_units={"M-0", "M-2"})  # the gateway of both; 1 and 3 are behind the other
        dead = district.commands([(0, "disconnect"), (2, "reconnect")])
        well = district.command(1, "disconnect")
        began = time.monotonic()
        async with district.dispatching():
            assert await district.answered(well) == ["opened"]
            assert time.monotonic() - began < 1.0
            assert await district.answered(*dead) == ["unreachable", "unreachable"]

    play(story)


def test_a_meter_without_a_switch_or_a_place_is_answered(district):
    async def story():
        await district.listen()
        lost = district.command(99, "disconnect")
        async with district.dispatching():
            assert await district.answered(lost) == ["unreachable"]

    play(story)


def test_an_expired_command_is_not_carried_out(district):
    async def story():
        await district.listen()
        off = district.command(0, "disconnect", at=now() - DAY, expires_at=now() - HOUR)
        async with district.dispatching():
            assert await district.answered(off) == ["expired"]
        assert district.meters["M-0"].writes == 0

    play(story)


def test_an_expired_command_that_was_carried_out_is_told_by_readback(district):
    async def story():
        await district.listen()
        district.meters["M-0"].is_closed = False  # by a process that died before it could say so
        off = district.command(0, "disconnect", at=now() - DAY, expires_at=now() - HOUR)
        async with district.dispatching():
            assert await district.answered(off) == ["opened"]

    play(story)


def test_reconnections_go_ahead_of_disconnections(district):
    """Four commands wait for one gateway: the disconnections came first, and go last."""

    async def story():
        await district.listen()
        for number in (4, 6):
            district.meters[f"M-{number}"].is_closed = False
        ids = district.commands([(0, "disconnect"), (2, "disconnect")], at=now() - HOUR)
        ids += district.commands([(4, "reconnect"), (6, "reconnect")])
        async with district.dispatching():
            await district.answered(*ids)
        order = [json.loads(line)["meter_id"] for line in district.fleet.log.getvalue().splitlines()]
        assert order == ["M-4", "M-6", "M-0", "M-2"]

    play(story)


def test_a_payment_voids_a_disconnection_in_flight_before_the_write(district):
    """The reconnection comes while the switch is being read."""

    async def story():
        await district.listen()
        off, on = district.command(0, "disconnect"), []
        district.at_requests(lambda meter, function: on or on.append(district.command(0, "reconnect")))
        async with district.dispatching():
            await district.until(lambda: on)
            assert await district.answered(off, *on) == ["superseded", "closed"]
        assert district.meters["M-0"].writes == 0

    play(story)


def test_a_payment_that_is_journalled_but_not_settled_holds_a_disconnection(district):
    async def story():
        await district.listen()
        payment = {"payment_id": "P-1", "account_id": "A-0", "paid_at": now(), "amount_tiyin": 1, "received_at": now()}
        district.journal(payment=[payment])
        off = district.command(0, "disconnect")
        async with district.dispatching(settling=False):
            await district.until(lambda: any("not settled" in said for said in district.said))
            assert district.meters["M-0"].writes == 0
            on = district.command(0, "reconnect")
            district.settle()
            assert await district.answered(off, on) == ["superseded", "closed"]
        assert district.meters["M-0"].writes == 0

    play(story)


def test_a_payment_just_after_the_write_closes_the_switch_again(district):
    async def story():
        await district.listen()
        off, on = district.command(0, "disconnect"), []
        district.at_requests(
            lambda meter, function: meter.writes and (on or on.append(district.command(0, "reconnect")))
        )
        async with district.dispatching():
            await district.until(lambda: on)
            assert await district.answered(off, *on) == ["opened", "closed"]
        assert (district.meters["M-0"].is_closed, district.meters["M-0"].writes) == (True, 2)

    play(story)


def test_a_disconnection_that_arrives_late_does_not_leave_a_payer_in_the_dark(district):
    """The gateway loses the connection at the write and opens the switch a moment later, when the payment has come."""

    async def story():
        await district.listen()
        off, on, meter = district.command(0, "disconnect"), [], district.meters["M-0"]

        def lose_it(_, function):
            if function == WRITE_ONE and not on:
                on.append(district.command(0, "reconnect"))
                district.servers[0].drop_connections()
                asyncio.get_running_loop().call_later(0.3, lambda: district.fleet.switch(meter, closes=False))
                return False
            return True

        district.at_requests(lose_it)
        async with district.dispatching():
            await district.until(lambda: on)
            assert await district.answered(off, *on) == ["superseded", "closed"]
            await district.until(lambda: meter.writes >= 2)
        assert meter.is_closed

    play(story)


@pytest.mark.parametrize(
    ("caps", "feeders", "cut"),
    [
        ({"per_hour": 2, "per_feeder_hour": 9}, ("F-1", "F-2"), 2),
        ({"per_hour": 9, "per_feeder_hour": 1}, ("F-1", "F-2"), 2),
    ],
)
def test_above_a_cap_disconnections_are_held_and_that_is_said(district, caps, feeders, cut):
    async def story():
        await district.listen()
        for n in range(4):
            district.command(n, "disconnect", caps=caps, feeder=feeders[n % 2])
        async with district.dispatching():
            await district.until(lambda: any(f"holds {4 - cut} disconnections" in said for said in district.said))
        assert sorted(district.answers().values()) == [["opened"]] * cut
        async with district.dispatching():  # a restart forgets nobody who was cut
            await asyncio.sleep(0.3)
        assert sum(not meter.is_closed for meter in district.meters.values()) == cut

    play(story)


def test_an_order_for_safety_is_not_held(district):
    async def story():
        await district.listen()
        off = district.command(0, "disconnect", cause="safety", caps={"per_hour": 0, "per_feeder_hour": 0})
        async with district.dispatching():
            assert await district.answered(off) == ["opened"]

    play(story)


def test_a_gateway_dead_for_an_hour_costs_no_command(tmp_path):
    """By the journal's clock: each quarter settle asks again, until the gateway is back."""
    district = District(tmp_path / "home", meters=2, gateways=2)
    start = dt.datetime(2026, 3, 2, 6, tzinfo=dt.UTC)

    async def story():
        await district.listen()
        district.journal(
            account=[
                {
                    "account_id": "A-0",
                    "effective_at": start,
                    "meter_id": "M-0",
                    "district": "d",
                    "tariff": "household",
                    "received_at": start,
                }
            ]
        )
        district.tick(start)
        district.meters["M-0"].is_closed = False
        district.servers[0].stop()
        async with district.dispatching(clock="journal"):
            for quarter in range(5):
                at = start + quarter * dt.timedelta(minutes=15)
                district.tick(at)
                if quarter == 4:
                    await district.servers[0].start()
                on, other = district.commands(
                    [(0, "reconnect"), (1, "disconnect" if quarter % 2 else "reconnect")], at=at
                )
                district.settle()
                outcome = await district.answered(on, other)
                assert outcome[0] == ("closed" if quarter == 4 else "unreachable")
                assert outcome[1] in ("opened", "closed")
        assert district.meters["M-0"].is_closed

    play(story)


def test_nothing_is_answered_twice_after_a_restart(district):
    async def story():
        await district.listen()
        district.fleet.faults = Faults(dead_units={"M-0"})
        ids = district.commands([(n, "disconnect") for n in range(4)])
        async with district.dispatching(timeout_s=0.5):
            await district.answered(*ids[1::2])
        district.fleet.faults = Faults()
        for _ in range(2):
            async with district.dispatching():
                assert await district.answered(*ids) == ["opened"] * 4
        assert [district.meters[f"M-{n}"].writes for n in range(4)] == [1, 1, 1, 1]

    play(story)


# ---- killed ----------------------------------------------------------------------------------------------------------
def changes(district):
    """The writes that changed a switch, as (meter, to)."""
    lines = [json.loads(line) for line in district.fleet.log.getvalue().splitlines()]
    return [(line["meter_id"], line["is"]) for line in lines if line["from"] != line["is"]]


@pytest.mark.parametrize(
    "moment", ["before the write", "between write and readback", "between readback and journalling"]
)
def test_killed_in_the_middle_of_a_write_nothing_is_lost_or_done_twice(district, moment):
    async def story():
        await district.listen()
        off = district.command(0, "disconnect")
        seen = asyncio.Event()

        def watch(meter, function):
            is_then = {
                "before the write": function == WRITE_ONE,  # it is lost with the process
                "between write and readback": function == READ_HOLDING and meter.writes,
                "between readback and journalling": function == READ_HOLDING and meter.writes,
            }[moment]
            if is_then and not seen.is_set():
                seen.set()
                return moment == "between readback and journalling"
            return True

        district.at_requests(watch)
        process = start(run_dispatch, district.home, "wall", timeout_s=2.0)
        with closing(open_log(district.home.journal)) as journal, journal.writing():  # so that nobody can journal
            await district.until(seen.is_set, 30)
            await asyncio.sleep(0.1)
            process.kill()
            process.join()
        assert district.answers() == {}
        async with district.dispatching():
            assert await district.answered(off) == ["opened"]
        assert changes(district) == [("M-0", False)]

    play(story)


def test_a_write_that_died_with_its_process_may_still_arrive(district):
    """Killed with the write on its way; a payment comes, dispatch is there again, and only then the switch opens."""

    async def story():
        await district.listen()
        off, meter, is_lost = district.command(0, "disconnect"), district.meters["M-0"], asyncio.Event()

        def lose_it(_, function):
            if function == WRITE_ONE and not is_lost.is_set():
                is_lost.set()
                return False
            return True

        district.at_requests(lose_it)
        process = start(run_dispatch, district.home, "wall", timeout_s=2.0)
        await district.until(is_lost.is_set, 30)
        process.kill()
        process.join()
        on = district.command(0, "reconnect")
        async with district.dispatching():
            asyncio.get_running_loop().call_later(0.1, lambda: district.fleet.switch(meter, closes=False))
            assert await district.answered(off, on) == ["superseded", "closed"]
            await district.until(lambda: meter.writes >= 2)
        assert meter.is_closed

    play(story)


def test_a_full_disk_loses_no_answer(district, monkeypatch):
    failures = [TransientLogError("The disk is full.")] * 2
    take = Arrivals.take

    def fail_first(self, records, commits=None):
        if failures:
            raise failures.pop()
        return take(self, records, commits)

    async def story():
        await district.listen()
        off = district.command(0, "disconnect")
        monkeypatch.setattr(Arrivals, "take", fail_first)
        async with district.dispatching():
            assert await district.answered(off) == ["opened"]
        assert [said for said in district.said if "disk is full" in said or "again" in said]
        assert changes(district) == [("M-0", False)]

    play(story)


def test_an_answer_is_never_older_than_its_command(district):
    """The clock was stepped back by a day: the answer stands at the command's own moment, and is not taken for stale."""

    async def story():
        await district.listen()
        at = now() + DAY
        off = district.command(0, "disconnect", at=at)
        async with district.dispatching():
            assert await district.answered(off) == ["opened"]
        (record,) = district.records("acknowledgement")
        assert record["acknowledged_at"] == at

    play(story)


def test_a_clock_stepped_back_revives_no_expired_command(district, monkeypatch):
    async def story():
        await district.listen()
        turn = now().replace(minute=0, second=0, microsecond=0)
        account = {"account_id": "A-0", "effective_at": turn - HOUR, "meter_id": "M-0", "district": "d"}
        district.journal(account=[account | {"tariff": "household", "received_at": turn - HOUR}])
        district.tick(turn)
        off = district.command(0, "disconnect", at=turn - 3 * HOUR, expires_at=turn - HOUR)
        async with district.dispatching() as dispatcher:
            monkeypatch.setattr(dispatcher._clock, "now", lambda: turn - 2 * HOUR)
            assert await district.answered(off) == ["expired"]
        assert district.meters["M-0"].writes == 0

    play(story)


def test_drain_ends_when_nothing_more_can_be_done(district):
    async def story():
        await district.listen()
        district.commands([(n, "disconnect") for n in range(4)], caps={"per_hour": 3, "per_feeder_hour": 9})
        async with district.dispatching(drain=True, settling=False) as dispatcher:  # its own answers hold nothing up
            await district.until(dispatcher.stop.is_set)
        assert sorted(district.answers().values()) == [["opened"]] * 3

    play(story)


def test_a_second_dispatch_is_refused(district):
    async def story():
        await district.listen()
        async with district.dispatching():
            pass

    play(story)
    with (
        hold(district.home.run / "dispatch.lock", "dispatch"),
        pytest.raises(AlreadyRunningError, match=str(os.getpid())),
    ):
        run_dispatch(district.home, "wall")


def test_the_command_refuses_where_switches_are_anothers(district):
    done = hisob(district.home.path, "dispatch")
    assert done.returncode == 2
    assert 'dispatch = "none"' in done.stderr


# ---- with settle -----------------------------------------------------------------------------------------------------
def test_who_pays_has_light_again_and_what_settle_says_is_understood(tmp_path):
    """A household in debt is cut and, when it has paid, lit: by commands of settle's own, with its caps and feeder."""
    district = District(tmp_path / "home", meters=1, gateways=1, log=io.StringIO())
    quarter = now().replace(minute=now().minute // 15 * 15, second=0, microsecond=0)
    began = quarter - HOUR
    written = {"author": "a", "reason": "r", "scope": "all", "starts_at": began, "received_at": began}
    window = {"days": [1, 2, 3, 4, 5, 6, 7], "from": "00:00", "to": "24:00"}
    account = {"account_id": "A-0", "effective_at": began, "meter_id": "M-0", "district": "d", "feeder": "F-7"}
    more = {"tariff": "household", "opening_balance_tiyin": -500, "opening_register_wh": 10, "received_at": began}
    district.journal(
        policy=[
            written | {"policy_id": "w", "kind": "disconnect_window", "value": json.dumps(window)},
            written | {"policy_id": "t", "kind": "threshold", "value": '{"notice_gap_hours": 0, "cuts_per_hour": 7}'},
        ],
        account=[account | more],
        reading=[{"meter_id": "M-0", "read_at": began, "register_wh": 10, "received_at": began}],
    )
    for number in range(3):
        district.tick(began + number * dt.timedelta(minutes=15))

    async def carry_out():
        await asyncio.to_thread(run_settle, district.home, drain=True)
        async with district.dispatching(drain=True, settling=False) as dispatcher:
            await district.until(dispatcher.stop.is_set)
            return [(c.feeder, c.per_hour, c.per_feeder_hour) for c in dispatcher._commands._latest.values()]

    async def story():
        await district.listen()
        assert await carry_out() == [("F-7", 7, 50)]
        assert not district.meters["M-0"].is_closed
        payment = {"payment_id": "P", "account_id": "A-0", "paid_at": now(), "amount_tiyin": 900_000}
        district.journal(payment=[payment | {"received_at": now()}])
        await carry_out()
        assert district.meters["M-0"].is_closed

    play(story)
    assert changes(district) == [("M-0", False), ("M-0", True)]
    assert sorted(outcome for (outcome,) in district.answers().values()) == ["closed", "opened"]
