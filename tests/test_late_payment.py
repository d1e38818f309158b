"""A payment that arrives long after it was paid: in the statement at its own time, for the supply from its arrival on."""

import pytest

from streams.ingest import ingest_files
from tests.in_process import ask
from tests.stories import DAY_TIYIN, local, ready_to_be_cut, switched_off
from tests.warehouse_homes import load_and_publish
from tests.whole_homes import new_home, settle

PAID = local("2025-08-30 20:00")  # while there was credit still; the cut is due on Monday at 10:00
ACCOUNT = """\
account_id,effective_at,meter_id,district,tariff,opening_balance_tiyin,opening_register_wh
A,2025-09-01T00:00:00+05:00,MA,d,household,1000000,0
"""
PAYMENTS = """\
payment_id,account_id,paid_at,amount_tiyin,channel,received_at
late,A,2025-09-30T23:59:59.999999+05:00,70000,Click,2025-10-03T12:00:00+05:00
prompt,A,2025-10-02T08:00:00+05:00,5000,Click,2025-10-02T08:00:00+05:00
"""


# ---- the supply ------------------------------------------------------------------------------------------------------


def test_a_cut_is_decided_by_what_had_arrived_and_a_late_payment_ends_it_when_it_arrives():
    story = switched_off()
    story.until("2025-09-01 13:00")
    told = story.pay(9 * DAY_TIYIN, PAID, received_at=local("2025-09-01 13:07"))
    assert [(c["action"], c["issued_at"]) for c in told["command"]] == [("reconnect", local("2025-09-01 13:07"))]
    assert story.commands()[0] == ("disconnect", local("2025-09-01 10:00"))  # it stays: so it was decided


def test_its_entry_stands_at_the_time_it_was_paid_and_changes_no_earlier_balance():
    story = switched_off()
    story.until("2025-09-01 13:00")
    before = list(story.events["entry"])
    told = story.pay(9 * DAY_TIYIN, PAID, received_at=local("2025-09-01 13:07"))
    (entry,) = told["entry"]
    assert (entry["kind"], entry["to_at"]) == ("payment", PAID)
    assert entry["balance_tiyin"] == before[-1]["balance_tiyin"] + 9 * DAY_TIYIN
    assert story.events["entry"] == [*before, entry]


@pytest.mark.parametrize(("arrives", "commands"), [("2025-09-01 09:50", 0), ("2025-09-01 10:05", 2)])
def test_one_that_arrives_before_the_cut_keeps_the_light_on_and_one_after_it_voids_it(arrives, commands):
    story = ready_to_be_cut()
    story.until(arrives)
    story.pay(9 * DAY_TIYIN, PAID, received_at=local(arrives))
    story.until("2025-09-01 10:15")
    assert len(story.commands()) == commands


# ---- the statement ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An account with a payment of September that arrived in October."""
    folder = tmp_path_factory.mktemp("late")
    (folder / "account.csv").write_text(ACCOUNT)
    (folder / "payment.csv").write_text(PAYMENTS)
    home = new_home(folder / "home")
    ingest_files(home, [("account", folder / "account.csv"), ("payment", folder / "payment.csv")])
    settle(home)
    load_and_publish(home)
    return home


def test_in_the_statement_it_stands_in_the_month_in_which_it_was_paid(home):
    september, october = (ask(home.path, "statement", "A", "--month", month) for month in ("2025-09", "2025-10"))
    credited = [(c["kind"], c["amount_tiyin"]) for c in september["credits"]]
    assert credited == [("opening", 1_000_000), ("payment", 70_000)]
    assert september["credits"][-1]["at"].startswith(("2025-09-30T18:59:59.999999", "2025-09-30T23:59:59.999999"))
    assert september["closing_tiyin"] == october["opening_tiyin"] == 1_070_000
    assert [c["amount_tiyin"] for c in october["credits"]] == [5_000]
    assert october["closing_tiyin"] == 1_075_000


def test_in_the_ledger_it_stands_where_it_arrived(home):
    sql = "SELECT amount_tiyin, balance_tiyin FROM entries WHERE kind = 'payment' ORDER BY ordinal"
    entries = ask(home.path, "query", sql)
    assert [tuple(row.values()) for row in entries] == [(5_000, 1_005_000), (70_000, 1_075_000)]
