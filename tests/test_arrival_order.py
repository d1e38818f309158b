"""The order in which readings arrive does not matter: shuffled by days they end in the same balances.

Under a condition, stated here apart from the rules, by moments alone: no reading leaps over two boundaries at once, and none
comes into a stretch over a boundary after a later such stretch is known. (The bill keeps one gap open for late readings.) Else
what came late is refused too_late by name, and what it would have changed is put right by an adjustment.
"""

from datetime import date

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.core_harness import settle_journal
from tests.stories import DAY, HOUR, local, microseconds
from tests.warehouse_homes import whole

START = local("2025-03-25 00:00")
TURN = local("2025-04-01 00:00")
BLOCKS = (
    (20, 50_000),
    (60, 120_000),
    (None, 310_000),
)  # so low that a customer of 60 kWh a fortnight goes through them


def records_of(readings, changes):
    """One customer at blocks, and from when on how many families there are. readings: (read_at, register_wh, received_at)."""
    account = {"account_id": "A", "meter_id": "M", "district": "d", "tariff": "t", "opening_register_wh": 0}
    versions = [(START, 1), *changes]
    return whole(
        {
            "tariff": [
                {"tariff": "t", "effective_on": date(2025, 1, 1), "block_upto_kwh": upto, "price_tiyin_per_kwh": price}
                for upto, price in BLOCKS
            ],
            "account": [
                {**account, "effective_at": microseconds(at), "families": n, "received_at": microseconds(START)}
                for at, n in versions
            ],
            "reading": [
                {
                    "meter_id": "M",
                    "read_at": microseconds(at),
                    "register_wh": wh,
                    "status": None,
                    "received_at": microseconds(received),
                }
                for at, wh, received in readings
            ],
        }
    )


def order_cannot_matter(arriving, boundaries):
    """The condition. arriving: moments of readings in order of arrival."""

    def within(first, last):
        return sum(first < b <= last for b in boundaries)

    newest, stretches = START, []  # those over a boundary, in order of time
    for at in arriving:
        if at > newest:
            if within(newest, at) > 1:
                return False
            if within(newest, at):
                stretches.append((newest, at))
            newest = at
            continue
        for first, last in stretches[:-1]:
            if first < at < last:
                return False
        if stretches and stretches[-1][0] < at < stretches[-1][1]:
            first, last = stretches[-1]
            stretches[-1] = (first, at) if within(first, at) else (at, last)
    return True


steps = st.lists(
    st.tuples(st.integers(1, 96), st.integers(0, 1500), st.integers(0, 4 * 96)), min_size=6, max_size=40
)  # quarters since the reading before, watts meanwhile, quarters until it arrives
families = st.lists(st.tuples(st.integers(1, 14 * 96), st.sampled_from([1, 2, 3])), max_size=2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(steps=steps, families=families)
def test_readings_that_come_in_another_order_end_in_the_same_balance(steps, families):
    at, wh, readings = START, 0, []
    for quarters, watts, delay in steps:
        at, wh = at + quarters * HOUR / 4, wh + quarters * watts // 4
        readings.append((at, wh, at + delay * HOUR / 4))
    changes = sorted({START + q * HOUR / 4: n for q, n in families}.items())
    boundaries = [
        TURN,
        *(b for (b, n), (_, before) in zip(changes, [(START, 1), *changes], strict=False) if n != before),
    ]
    arriving = [read_at for read_at, _, _ in sorted(readings, key=lambda r: r[2])]
    assume(arriving != sorted(arriving))
    assume(order_cannot_matter(arriving, boundaries))
    in_order = [(at, wh, at) for at, wh, _ in readings]
    expected = oracle.run(records_of(in_order, changes))
    journal = oracle.journal_of(records_of(readings, changes))
    by_oracle, by_core = oracle.run_journal(journal), settle_journal(journal, accounts=1).outcome
    assert expected.refused == by_oracle.refused == by_core.refused == []
    assert by_oracle.balances == by_core.balances == expected.balances
    assert by_oracle.usage == by_core.usage == expected.usage == {"A": wh}


def test_in_a_gap_over_two_boundaries_the_order_does_matter_and_what_comes_too_late_is_refused_by_name():
    day = [START + n * DAY for n in range(12)]
    changes = [(day[3], 2)]
    known = {0: 0, 2: 30_000, 5: 33_000, 8: 90_000}
    assert [b for b in (day[3], TURN) if day[2] < b <= day[8]] == [day[3], TURN]
    for order, refused in (([2, 5, 8], 0), ([8, 2, 5], 0), ([8, 5, 2], 1)):
        rows = [(day[n], known[n], day[8] + k * HOUR) for k, n in enumerate(order)]
        outcome = settle_journal(oracle.journal_of(records_of(rows, changes)), accounts=1).outcome
        assert [reason for _, _, reason in outcome.refused] == ["too_late"] * refused, order


@pytest.mark.parametrize(
    ("arriving", "allowed"),
    [((1, 2, 9, 5), True), ((1, 9, 5, 6, 2), True), ((1, 8, 11, 9), True), ((1, 8, 13, 6), False), ((1, 13, 6), False)],
)
def test_the_condition_is_what_it_says(arriving, allowed):
    boundaries = [START + 7 * DAY, START + 12 * DAY]
    assert order_cannot_matter([START + n * DAY for n in arriving], boundaries) is allowed
