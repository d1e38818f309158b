"""The oracle of the bill against the worked cases, and against its own promises."""

import csv
import itertools
from functools import cache
from pathlib import Path

import pytest
from oracle import KEYS, Oracle, Outcome, Records, gather_tariffs, journal_of, load_case, run
from random_records import STYLES, random_records, write_csv

CASES = sorted(p for p in (Path(__file__).parent / "cases").iterdir() if p.is_dir())


@cache
def outcome_of(folder: Path) -> Outcome:
    return run(load_case(folder))


def expected_lines(folder: Path, what: str) -> list[tuple[str, ...]]:
    with (folder / f"expected_{what}.csv").open(newline="", encoding="utf-8") as file:
        return sorted(tuple(line) for line in list(csv.reader(file))[1:])


def outcome_lines(outcome: Outcome, what: str) -> list[tuple[str, ...]]:
    lines = getattr(outcome, what)
    return sorted((a, str(n)) for a, n in lines.items()) if isinstance(lines, dict) else sorted(lines)


def assert_every_arrival_ends_once(outcome: Outcome, records: Records) -> None:
    arrivals = sum(len(rows) for kind, rows in records.items() if kind in KEYS)
    ends = outcome.taken + outcome.ignored + outcome.unchanged + len(outcome.refused) + len(outcome.held)
    assert ends == arrivals + len(gather_tariffs(records["tariff"]))


def assert_settled_steps_cost_what_was_charged(oracle: Oracle) -> None:
    for account in oracle.accounts.values():
        charged = account.charged_tiyin
        oracle.price_settled(account)
        assert account.charged_tiyin == charged


def test_there_are_cases():
    assert len(CASES) >= 36


@pytest.mark.parametrize("what", ["balances", "usage", "refused", "held"])
@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_a_case_ends_as_expected_line_for_line(folder, what):
    assert outcome_lines(outcome_of(folder), what) == expected_lines(folder, what)


@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_every_arrival_ends_taken_counted_refused_or_held(folder):
    assert_every_arrival_ends_once(outcome_of(folder), load_case(folder))


@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_entries_add_up_to_the_balances(folder):
    outcome = outcome_of(folder)
    for account_id, entries in outcome.ledger.items():
        assert sum(e.amount_tiyin for e in entries) == outcome.balances[account_id]
        assert all(
            after.balance_tiyin == before.balance_tiyin + after.amount_tiyin
            for before, after in itertools.pairwise(entries)
        )


@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_settled_steps_priced_anew_are_what_was_charged(folder):
    """Versions never reprice settled steps: so the sum of all steps, priced at the end, is what was charged in time."""
    oracle = Oracle()
    for kind, record in journal_of(load_case(folder)):
        oracle.take(kind, record)
    assert_settled_steps_cost_what_was_charged(oracle)


@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_refused_and_held_have_names_of_the_contract(folder):
    outcome = outcome_of(folder)
    assert {kind for kind, _, _ in outcome.held} <= {"reading", "payment", "adjustment"}
    assert {reason for _, _, reason in outcome.held} <= {"unknown_meter", "unknown_account", "implausible_usage"}


@pytest.mark.parametrize("style", STYLES)
def test_random_utilities_are_the_same_from_the_same_seed_and_survive_csv(style, tmp_path):
    records = random_records(7, style)
    write_csv(records, tmp_path)
    assert random_records(7, style) == records == load_case(tmp_path)


@pytest.mark.parametrize("style", STYLES)
def test_random_utilities_keep_the_promises(style):
    for seed in range(3):
        records = random_records(seed, style)
        oracle = Oracle()
        for kind, record in journal_of(records):
            oracle.take(kind, record)
        assert_every_arrival_ends_once(oracle.outcome_now(), records)
        assert_settled_steps_cost_what_was_charged(oracle)
