"""A wrong tariff that was used already: the balances end as if the right one had been there from the start."""

import os
import random
import signal
from contextlib import closing
from datetime import UTC, datetime
from unittest.mock import patch

import pytest

from connectors.locks import is_held
from connectors.log.sqlite import open_log
from hisob.rerating import alone, post
from hisob.settings import load_settings
from hisob.tariff_correction import correct, read_right
from streams.ingest import ingest_files
from tests.in_process import ask, call
from tests.oracle import run
from tests.random_records import random_records
from tests.test_reconcile import NAMES, warehouse_of
from tests.warehouse_homes import load_and_publish, quick_loads
from tests.whole_homes import TIMEOUT_S, copied, new_home, running, settle, start, wait_until
from warehouse.rerate import Version, lay_over, put_tariffs_right, rerate

HEADER = "tariff,effective_on,block_upto_kwh,price_tiyin_per_kwh\n"
APRIL = HEADER + "t,2025-01-01,,50000\nother,2025-01-01,,99\n"
WRONG = HEADER + "t,2025-05-01,,80000\n"
RIGHT = HEADER + "t,2025-05-01,200,60000\nt,2025-05-01,,80000\n"
ACCOUNTS = """\
account_id,effective_at,meter_id,district,tariff,opening_balance_tiyin,opening_register_wh
A,2025-04-20T00:00:00+05:00,MA,d,t,100000000,0
B,2025-04-20T00:00:00+05:00,MB,d,t,0,0
C,2025-04-20T00:00:00+05:00,MC,d,other,0,0
"""
READINGS = """\
meter_id,read_at,register_wh
MA,2025-05-01T00:00:00+05:00,100000
MA,2025-05-11T00:00:00+05:00,350000
MA,2025-05-21T00:00:00+05:00,600000
MB,2025-05-01T00:00:00+05:00,100000
MC,2025-05-21T00:00:00+05:00,100000
"""
LATER = "meter_id,read_at,register_wh\nMA,2025-05-31T00:00:00+05:00,700000\n"
DUE = 4_000_000  # of A: 500 kWh of May at 800 soum were 400,000; at 600 up to 200 kWh they are 360,000


@pytest.fixture(scope="module", autouse=True)
def _quick_loads():
    with quick_loads():
        yield


def file_of(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def home_of(folder, tariff):
    """A home whose accounts used this tariff from the start, settled."""
    home = new_home(folder / "home")
    files = {"april": APRIL, "may": tariff, "account": ACCOUNTS, "reading": READINGS}
    paths = {name: file_of(folder, f"{name}.csv", text) for name, text in files.items()}
    kinds = [("tariff", "april"), ("tariff", "may"), ("account", "account"), ("reading", "reading")]
    ingest_files(home, [(kind, paths[name]) for kind, name in kinds])
    settle(home)
    return home


def records_in(home):
    with closing(open_log(home.journal, readonly=True)) as journal:
        return sum(journal.end(partition) for partition in range(journal.partitions))


def balances(home):
    rows = ask(home.path, "query", "SELECT account_id, balance_tiyin FROM balances ORDER BY 1")
    return {row["account_id"]: row["balance_tiyin"] for row in rows}


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """A home put right, with what the dry run and the run said."""
    folder = tmp_path_factory.mktemp("corrected")
    home = home_of(folder, WRONG)
    load_and_publish(home)
    right = file_of(folder, "right.csv", RIGHT)
    before = records_in(home)
    shown = ask(home.path, "tariff", "correct", right, "--dry-run")
    assert records_in(home) == before, "a dry run journals nothing"
    posted = ask(home.path, "tariff", "correct", right, "--author", "auditor", "--reason", "a slip of the pen")
    return home, right, shown, posted


def test_the_difference_is_posted_worked_by_hand(corrected):
    home, _, _, posted = corrected
    assert [(a["account_id"], a["amount_tiyin"]) for a in posted["adjustments"]] == [("A", DUE)]
    assert balances(home)["A"] == 100_000_000 - 5_000_000 - 36_000_000
    (row,) = ask(home.path, "query", "SELECT adjustment_id, author, reason FROM adjustments")
    assert row["author"] == "auditor"
    assert row["adjustment_id"].startswith("tariff-correct:")
    assert row["reason"] == (
        "Right prices of t from 2025-05-01: 500 kWh used since cost 40,000.00 soum less than was charged (a slip of the pen)"
    )


def test_the_dry_run_showed_what_was_posted(corrected):
    _, _, shown, posted = corrected
    same = ("as_of", "accounts", "credit_tiyin", "charge_tiyin", "warnings")
    assert [shown[name] for name in same] == [posted[name] for name in same]
    assert [a["adjustment_id"] for a in shown["adjustments"]] == [a["adjustment_id"] for a in posted["adjustments"]]
    assert (shown["posted"], posted["posted"]) == (False, True)
    assert (posted["accounts"], posted["credit_tiyin"], posted["charge_tiyin"]) == (2, DUE, 0)


def test_a_second_run_posts_nothing_and_the_ledger_reconciles(corrected):
    home, right, _, _ = corrected
    before = records_in(home)
    told = ask(home.path, "tariff", "correct", right)
    assert (told["adjustments"], records_in(home)) == ([], before)
    assert ask(home.path, "reconcile")["different"] == 0


def test_it_goes_on_as_a_home_that_had_the_right_tariff_from_the_start(corrected, tmp_path):
    home, right, _, _ = corrected
    other = home_of(tmp_path, RIGHT)
    for each in (home, other):
        ingest_files(each, [("reading", file_of(tmp_path, "later.csv", LATER))])
        settle(each)
        load_and_publish(each)
    assert balances(home) == balances(other)
    assert ask(home.path, "tariff", "correct", right)["adjustments"] == []


def test_it_is_told_in_a_table(corrected):
    home, right, _, _ = corrected
    code, text = call(home.path, "tariff", "correct", right)
    assert code == 0
    assert "2 accounts re-rated" in text
    assert "nothing is left" in text


def test_an_earlier_correction_counts_when_another_follows(corrected, tmp_path):
    """April was wrong, too: what the first correction posted is not posted again, and both come to what is right."""
    home, _, _, _ = corrected
    april = file_of(tmp_path, "april.csv", HEADER + "t,2025-01-01,,40000\n")
    told = ask(home.path, "tariff", "correct", april)
    assert [(a["account_id"], a["amount_tiyin"]) for a in told["adjustments"]] == [("A", 1_000_000), ("B", 1_000_000)]
    assert ask(home.path, "tariff", "correct", april)["adjustments"] == []


# ---- killed, and beside others ---------------------------------------------------------------------------------------


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def correct_and_die(home, file):
    """Correct, and be killed after the right versions are journalled and before anything is posted."""
    with quick_loads(), patch("hisob.rerating.post", die):
        call(home.path, "tariff", "correct", file)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A home under the wrong tariff, to be copied."""
    folder = tmp_path_factory.mktemp("wrong")
    home = home_of(folder, WRONG)
    load_and_publish(home)
    return home


def test_killed_before_it_was_posted_it_is_posted_once_also_with_another_ingest_in_between(wrong, tmp_path):
    home, right = copied(wrong, tmp_path / "home"), file_of(tmp_path, "right.csv", RIGHT)
    process = start(correct_and_die, home, right)
    process.join(TIMEOUT_S)
    assert process.exitcode == -signal.SIGKILL
    ingest_files(home, [("reading", file_of(tmp_path, "later.csv", LATER))])
    assert len(ask(home.path, "tariff", "correct", right)["adjustments"]) == 1
    assert balances(home)["A"] == 100_000_000 - 5_000_000 - 36_000_000 - 8_000_000


def test_interrupted_when_it_was_posted_and_not_settled_yet_it_is_not_posted_again(wrong, tmp_path):
    home, right = copied(wrong, tmp_path / "home"), file_of(tmp_path, "right.csv", RIGHT)

    def post_and_stop(*arguments):
        post(*arguments)
        raise KeyboardInterrupt

    with patch("hisob.rerating.post", post_and_stop), pytest.raises(KeyboardInterrupt):
        correct(home, *given(home, right), author="a", reason=None, dry_run=False)
    ingest_files(home, [("reading", file_of(tmp_path, "later.csv", LATER))])
    assert ask(home.path, "tariff", "correct", right)["adjustments"] == []
    assert balances(home)["A"] == 100_000_000 - 5_000_000 - 36_000_000 - 8_000_000
    assert ask(home.path, "query", "SELECT count(*) AS n FROM entries WHERE kind = 'adjustment'")[0]["n"] == 1


def given(home, file):
    return load_settings(home), read_right(file, home, 10)[0]


def test_on_a_home_that_is_settled_live_it_waits_for_the_others(wrong, tmp_path):
    home, right = copied(wrong, tmp_path / "home"), file_of(tmp_path, "right.csv", RIGHT)
    with running(home.path, "settle"):
        wait_until(lambda: is_held(home.run / "settle.lock"))
        told = ask(home.path, "tariff", "correct", right)
    assert [(a["account_id"], a["amount_tiyin"]) for a in told["adjustments"]] == [("A", DUE)]
    assert balances(home)["A"] == 100_000_000 - 5_000_000 - 36_000_000


def test_one_at_a_time(wrong, tmp_path):
    home, right = copied(wrong, tmp_path / "home"), file_of(tmp_path, "right.csv", RIGHT)
    with alone(home), pytest.raises(AssertionError, match="another re-rating already runs"):
        call(home.path, "tariff", "correct", right)


# ---- what is wrong with a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("t,2025-05-01,200,60000\n", "no_last_block"),
        ("t,2025-05-01,200,6.5\nt,2025-05-01,,80000\n", "not_an_integer"),
        ("t,2025-05-01,,1\nt,2025-05-01,,2\n", "repeated_block"),
    ],
)
def test_a_file_that_is_not_right_is_not_journalled(wrong, tmp_path, rows, said):
    before = records_in(wrong)
    code, text = call(wrong.path, "tariff", "correct", file_of(tmp_path, "bad.csv", HEADER + rows))
    assert (code, records_in(wrong)) == (2, before)
    assert said in text


def test_two_right_versions_of_one_day_are_one_too_many(wrong, tmp_path):
    rows = "t,2025-05-01,,1,2025-04-01T00:00:00Z\nt,2025-05-01,,2,2025-04-02T00:00:00Z\n"
    file = file_of(tmp_path, "two.csv", HEADER.replace("kwh\n", "kwh,received_at\n") + rows)
    code, text = call(wrong.path, "tariff", "correct", file)
    assert code == 2
    assert "more than once" in text


def test_a_version_that_another_took_the_place_of_is_not_put_back_unseen(corrected, tmp_path):
    home, _, _, _ = corrected
    code, text = call(home.path, "tariff", "correct", file_of(tmp_path, "wrong.csv", WRONG))
    assert code == 1
    assert "another version of that day arrived after it" in text


# ---- in SQL alone, against the model -----------------------------------------------------------------------------------

STYLES = (
    "all",
    "adversary",
    "hours-all",
    "one-tariff",
    "one-late",
    "one-gap",
    "one-version",
    "one-estimate",
    "one-exchange",
)


def made_wrong(records, seed):
    """The records with some tariff versions wrong or missing, and those versions as they should have been."""
    chance = random.Random(seed)
    rows = records["tariff"]
    days = {}
    for row in rows:
        days.setdefault((row["tariff"], row["effective_on"]), set()).add(row["received_at"])
    plain = [key for key, received in days.items() if received == {None}]  # neither late nor taken back
    chosen = set(chance.sample(plain, max(1, len(plain) * 2 // 3)))
    missing = {key for key in chosen if key[1] > min(d for t, d in days if t == key[0]) and chance.random() < 0.5}
    wrong, right = [], []
    for row in rows:
        key = (row["tariff"], row["effective_on"])
        if key in chosen:
            right.append(row)
        if key not in missing:
            slip = chance.choice([1, 5_000, -7_000]) if key in chosen else 0
            wrong.append(row | {"price_tiyin_per_kwh": row["price_tiyin_per_kwh"] + slip})
    return records | {"tariff": wrong}, right


def versions_of(rows):
    found = {}
    for row in sorted(
        rows, key=lambda r: (r.get("hours") or "", r["block_upto_kwh"] is None, r["block_upto_kwh"] or 0)
    ):
        found.setdefault((row["tariff"], row["effective_on"]), []).append(row)
    return [
        Version(tariff, day, tuple({**row, "block": i, "blocks": len(own)} for i, row in enumerate(own)))
        for (tariff, day), own in found.items()
    ]


@pytest.fixture(scope="module")
def utilities(tmp_path_factory):
    """Random utilities under wrong tariffs, as one warehouse; the right versions, and what they should come to."""
    made = [random_records(seed, STYLES[seed % len(STYLES)]) for seed in range(16)]
    for number, utility in enumerate(made):  # each has its own accounts, meters and tariffs
        for rows in utility.values():
            for row in rows:
                row.update({name: f"{number}{row[name]}" for name in NAMES if row.get(name) is not None})
    pairs = [made_wrong(utility, seed) for seed, utility in enumerate(made)]
    wrong = {}
    for records, _ in pairs:
        for kind, rows in records.items():
            wrong.setdefault(kind, []).extend(rows)
    path = tmp_path_factory.mktemp("utilities") / "audit.duckdb"
    with warehouse_of(wrong) as con:
        con.execute(f"ATTACH '{path}' AS file; COPY FROM DATABASE memory TO file; DETACH file")
    outcomes = [(run(utility), run(records)) for utility, (records, _) in zip(made, pairs, strict=True)]
    return path, [row for _, right in pairs for row in right], outcomes


def test_any_account_comes_to_what_it_would_have_been_had_the_right_tariff_been_there(utilities):
    path, right, outcomes = utilities
    with lay_over(path) as con:
        put_tariffs_right(con, versions_of(right))
        accounts = [name for (name,) in con.execute("SELECT account_id FROM audit.main.balances").fetchall()]
        found = {
            r.account_id: r for r in rerate(con, accounts, "x", datetime(2025, 3, 1, tzinfo=UTC), part_entries=2_000)
        }
    compared = 0
    for good, bad in outcomes:
        if sorted(good.refused) != sorted(bad.refused) or sorted(good.held) != sorted(bad.held):
            continue  # something else was refused because of it
        for account, balance in bad.balances.items():
            assert balance + found[account].due_tiyin == good.balances[account], account
            compared += found[account].due_tiyin != 0
    assert compared > 25
