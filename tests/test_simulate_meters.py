"""The simulated fleet counts as a household does, goes dark when it is opened, and fails on request; the poller reads it."""

import asyncio
import datetime as dt
import json
from contextlib import closing, contextmanager

import pytest

from connectors.log.sqlite import open_log
from connectors.modbus import Devices, Gateway, ModbusError, SwitchState, read_register, read_switch, write_switch
from hisob.simulated.faults import Fault, Faults, spread
from hisob.simulated.load import HALF_HOUR_US, Household
from streams import poll as module
from streams.effects import Clock
from streams.poll import Poller, run_poll, slot_of
from tests.switches import District, play
from tests.whole_homes import hisob, new_home, running, start, wait_until

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUSEHOLD = Household()


# ---- the fleet -------------------------------------------------------------------------------------------------------
def test_the_household_counts_up_and_differences_add_up():
    moments = [n * HALF_HOUR_US // 7 for n in range(20_000, 22_000)]
    counted = [HOUSEHOLD.counted_wh(at, 3) for at in moments]
    assert counted == sorted(counted)
    assert counted[-1] - counted[0] > 10_000
    round_us = HOUSEHOLD.weeks * 7 * 48 * HALF_HOUR_US  # it goes round without a jump
    assert 0 <= HOUSEHOLD.counted_wh(round_us + 1, 0) - HOUSEHOLD.counted_wh(round_us - 1, 0) < 10


def test_a_register_stands_still_while_the_switch_is_open(tmp_path):
    district = District(tmp_path / "home", meters=1, gateways=1)
    (meter,) = district.fleet.meters
    shown = []
    for hour, closes in enumerate([None, False, None, True, None]):
        district.fleet.now_us = lambda hour=hour: 1_700_000_000_000_000 + hour * 3_600_000_000
        if closes is not None:
            district.fleet.switch(meter, closes=closes)
        shown.append(district.fleet.register_wh(meter))
    assert shown[0] < shown[1] == shown[2] == shown[3] < shown[4]


def test_the_share_of_a_fault_is_drawn_by_its_seed():
    gateway_of = {f"M-{n}": n % 4 for n in range(100)}
    drawn = [spread([Fault(fault="unit_dead", share=0.02, seed=seed)], gateway_of).dead_units for seed in (1, 1, 2)]
    assert len(drawn[0]) == 2
    assert drawn[0] == drawn[1] != drawn[2]


def test_faults_do_what_they_are_called(tmp_path):
    district = District(tmp_path / "home", meters=4, gateways=2)

    async def story():
        await district.listen()
        devices = Devices(district.home.path)
        gateways = [Gateway(server.host, server.port, timeout_s=0.2) for server in district.servers]
        district.fleet.faults = Faults({"M-0"}, {"M-1"}, {"M-3": 0.1})
        with pytest.raises(ModbusError) as dead:
            await read_register(gateways[0], devices.of("M-0", NOW))
        assert dead.value.reason == "no_answer"
        assert await read_register(gateways[0], devices.of("M-2", NOW)) > 0
        await write_switch(gateways[1], devices.of("M-1", NOW), SwitchState.OPENED)
        assert await read_switch(gateways[1], devices.of("M-1", NOW)) is SwitchState.CLOSED
        began = asyncio.get_running_loop().time()
        await read_register(gateways[1], devices.of("M-3", NOW))
        assert asyncio.get_running_loop().time() - began >= 0.1

    play(story)


# ---- the poller ------------------------------------------------------------------------------------------------------
async def one_round(district, **given):
    said = []
    with (
        closing(open_log(district.home.journal, readonly=True)) as journal,
        closing(Poller(district.home, Clock("wall", journal), journal, said.append, timeout_s=0.1)) as poller,
    ):
        return await poller.round(**given), said


def test_a_round_reads_all_meters_as_they_stand(tmp_path):
    district = District(tmp_path / "home", meters=20, gateways=3)

    async def story():
        await district.listen()
        done, _ = await one_round(district)
        assert (done.read, done.failed.total()) == (20, 0)

    play(story)
    found = district.records("reading")
    assert {r["meter_id"]: r["register_wh"] for r in found} == {
        m.meter_id: district.fleet.register_wh(m) for m in district.fleet.meters
    }
    assert len(found) == 20


def test_what_cannot_be_read_is_counted_by_reason_and_slows_no_other(tmp_path):
    """A gateway that is gone, one that is silent, one slow: the fourth is done at once, and nobody's register is made up."""
    district = District(tmp_path / "home", meters=40, gateways=4)

    async def story():
        await district.listen()
        district.servers[0].stop()
        of = {n: {m.meter_id for m in district.fleet.meters if m.gateway == n} for n in range(4)}
        district.fleet.faults = Faults(of[1] | {"M-3"}, delay_s=dict.fromkeys(of[2], 0.02))
        done, _ = await one_round(district)
        assert done.failed == {"no_connection": 10, "no_answer": module.SILENT_METERS + 1, "not_tried": 5}
        assert done.read == 19
        assert done.seconds < 1.5
        return of

    play(story)
    read = {r["meter_id"] for r in district.records("reading")}
    assert len(read) == 19
    assert "M-3" not in read


def test_a_round_ends_in_time(tmp_path):
    """A gateway too slow for its round is left when the time is over; the round after begins where it was left."""
    district = District(tmp_path / "home", meters=10, gateways=2)

    async def story():
        await district.listen()
        district.fleet.faults = Faults(delay_s={f"M-{n}": 0.05 for n in range(0, 10, 2)})
        done, _ = await one_round(district, within_s=0.12)
        assert set(done.failed) == {"no_time"}
        assert done.read == 10 - done.failed["no_time"] >= 5

    play(story)


def test_the_next_round_begins_with_those_not_tried(tmp_path):
    district = District(tmp_path / "home", meters=12, gateways=1)

    async def story():
        await district.listen()
        district.fleet.faults = Faults({f"M-{n}" for n in range(6)})
        with (
            closing(open_log(district.home.journal, readonly=True)) as journal,
            closing(Poller(district.home, Clock("wall", journal), journal, print, timeout_s=0.05)) as poller,
        ):
            assert (await poller.round()).read == 0
            assert (await poller.round()).read == 6

    play(story)


def test_a_reading_waits_for_the_tick_it_would_be_ahead_of(tmp_path):
    """A second after the turn of the quarter its tick is not there yet: the reading is journalled after it, not refused."""
    district = District(tmp_path / "home", meters=1, gateways=1)
    turn = dt.datetime(2026, 3, 2, 6, 15, tzinfo=dt.UTC)
    account = {"account_id": "A-0", "effective_at": turn, "meter_id": "M-0", "district": "d", "tariff": "household"}
    district.journal(account=[account])
    district.tick(turn - dt.timedelta(minutes=15))

    async def story():
        await district.listen()
        with closing(open_log(district.home.journal, readonly=True)) as journal:
            clock = Clock("wall", journal)
            clock.now = lambda: turn + dt.timedelta(seconds=1)
            with closing(Poller(district.home, clock, journal, print)) as poller:
                polling = asyncio.create_task(poller.round())
                await asyncio.sleep(0.5)
                assert district.records("reading") == []
                district.tick(turn)
                await polling
        assert len(district.records("reading")) == 1

    play(story)


def test_killed_in_the_middle_of_a_round_the_next_one_reads_all(tmp_path):
    district = District(tmp_path / "home", meters=20, gateways=2)
    asked = []

    async def story():
        await district.listen()
        district.at_requests(lambda meter, _: asked.append(meter) or len(asked) < 10)
        process = start(run_poll, district.home, "wall", 15)
        await district.until(lambda: len(asked) >= 10, 30)
        process.kill()
        process.join()
        district.fleet.answer = type(district.fleet).answer.__get__(district.fleet)
        done, _ = await one_round(district)
        assert (done.read, done.failed.total()) == (20, 0)

    play(story)
    shown = {m.meter_id: district.fleet.register_wh(m) for m in district.fleet.meters}
    assert {r["meter_id"]: r["register_wh"] for r in district.records("reading")} == shown


def test_told_to_stop_in_the_middle_of_a_round_it_ends_soon(tmp_path):
    district = District(tmp_path / "home", meters=20, gateways=1)

    async def story():
        await district.listen()
        district.fleet.faults = Faults(delay_s=dict.fromkeys(district.meters, 0.05))
        with (
            closing(open_log(district.home.journal, readonly=True)) as journal,
            closing(Poller(district.home, Clock("wall", journal), journal, print)) as poller,
        ):
            asyncio.get_running_loop().call_later(0.3, poller.stop.set)
            assert await module._round_unless(poller.stop, poller, None) is None
        assert 0 < len(district.records("reading")) < 20

    play(story)


def test_rounds_begin_a_little_after_the_turn():
    quarter = dt.datetime(2026, 3, 2, 6, 15, tzinfo=dt.UTC)
    slots = [slot_of(quarter + dt.timedelta(seconds=s), 900, "wall") for s in (-1, 0, 59, 60, 900)]
    assert [slot - slots[0] for slot in slots] == [0, 0, 0, 1, 1]
    assert slot_of(quarter, 900, "journal") == slots[-1]


# ---- the processes ---------------------------------------------------------------------------------------------------
@contextmanager
def simulating(home, *arguments):
    with running(home, "simulate-meters", "--json", *arguments) as process:
        found = json.loads(process.stdout.readline() or process.communicate()[1])
        yield process, found


def test_fleet_and_poller_as_processes(tmp_path):
    home, faults = tmp_path / "home", tmp_path / "faults.json"
    new_home(home)
    accounts = tmp_path / "account.csv"
    given = ("--meters", "30", "--gateways", "3", "--write-accounts", str(accounts), "--faults", str(faults))
    with simulating(home, *given) as (process, found):
        assert (found["meters"], found["gateways"]) == (30, 3)
        assert hisob(home, "ingest", f"account={accounts}").returncode == 0
        done = hisob(home, "poll", "--once", "--json")
        assert json.loads(done.stdout)["read"] == 30
        faults.write_text('[{"fault": "gateway_dead", "gateway": 1}]')

        def gateway_is_dead():
            done = hisob(home, "poll", "--once", "--json")
            return done.returncode == 1 and json.loads(done.stdout)["failed"] == {"no_connection": 10}

        wait_until(gateway_is_dead)
        process.terminate()
        assert process.wait(20) == 0


def test_real_devices_are_not_overwritten(tmp_path):
    home = tmp_path / "home"
    new_home(home)
    (home / "devices.csv").write_text(
        "meter_id,valid_from,host,port,unit,model\nM,2025-01-01T00:00:00Z,10.0.0.1,502,1,sdm120\n"
    )
    done = hisob(home, "simulate-meters", "--meters", "3")
    assert done.returncode == 2
    assert "real devices" in done.stderr
