"""Policies, orders and payments by hand: journalled with who and why, seen in what comes of them; nothing at all if wrong."""

import datetime as dt
import getpass
import json
import sys
from contextlib import closing

import pytest

from connectors.log.rows import follow
from connectors.log.sqlite import open_log
from hisob.cli import main
from streams.arrivals import Arrivals
from tests.journals import journal_of
from tests.stories import EPOCH, QUARTER
from tests.whole_homes import new_home, settle


@pytest.fixture
def home(tmp_path):
    """A home with account A on meter M, whose opening balance is below zero."""
    home = new_home(tmp_path / "home")
    arrivals = Arrivals(home, "test")
    since = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    row = {"account_id": "A", "effective_at": since, "meter_id": "M", "district": "d", "tariff": "household"}
    arrivals.take({"account": [{**row, "opening_balance_tiyin": -5, "opening_register_wh": 0}]})
    arrivals.close()
    return home


@pytest.fixture
def hisob(home, monkeypatch, capsys):
    """The command, in this process: exit code, what it printed, what it complained of."""

    def hisob(*arguments):
        monkeypatch.setattr(sys, "argv", ["hisob", "--home", str(home.path), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return hisob


def records_of(home, kind):
    return [record for partition in journal_of(home) for k, record in partition if k == kind]


def events_of(home, kind):
    with closing(open_log(home.events, readonly=True)) as events:
        return [event for _, batch in follow(events, kind, {}, until_end=True) for event in batch.to_pylist()]


def count_of(home):
    return sum(map(len, journal_of(home)))


# ---- pay -------------------------------------------------------------------------------------------------------------
def test_a_payment_is_told_in_soum_and_tiyin_and_settled(home, hisob):
    code, out, _ = hisob("pay", "A", "12,500.5", "--channel", "till 3")
    assert code == 0
    assert "12,500.50 soum (1,250,050 tiyin)" in out
    (payment,) = records_of(home, "payment")
    assert payment["payment_id"] in out
    assert (payment["amount_tiyin"], payment["channel"]) == (1_250_050, "till 3")
    settle(home)
    assert [e["amount_tiyin"] for e in events_of(home, "entry") if e["kind"] == "payment"] == [1_250_050]


def test_the_same_payment_again_is_another_one_and_the_same_id_is_not(home, hisob):
    ids = {json.loads(hisob("pay", "A", "100", "--json")[1])["payment_id"] for _ in range(2)}
    assert len(ids) == 2
    for _ in range(2):
        hisob("pay", "A", "100", "--id", "mine")
    settle(home)
    assert len([e for e in events_of(home, "entry") if e["kind"] == "payment"]) == 3


@pytest.mark.parametrize("amount", ["0", "0.00", "1e3", "12.345", "12500 soum", "1,25", "", "nan", "٣"])
def test_an_amount_that_is_none_is_refused_and_nothing_is_journalled(home, hisob, amount):
    before = count_of(home)
    code, _, complaint = hisob("pay", "A", amount)
    assert code == 2
    assert "is no amount in soum" in complaint
    assert count_of(home) == before


# ---- orders ----------------------------------------------------------------------------------------------------------
def test_an_order_is_journalled_with_its_author_and_brings_about_a_command(home, hisob):
    code, out, _ = hisob("order", "disconnect", "A", "--cause", "safety", "--author", "Inspector", "--reason", "sparks")
    assert code == 0
    (order,) = records_of(home, "order")
    assert order["order_id"] in out
    assert (order["author"], order["reason"], order["cause"]) == ("Inspector", "sparks", "safety")
    settle(home)
    (command,) = events_of(home, "command")
    assert (command["action"], command["cause"]) == ("disconnect", "safety")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["order", "cut", "A", "--cause", "court", "--reason", "r"], "action 'cut'"),
        (["order", "hold", "A", "--cause", "whim", "--reason", "r"], "cause 'whim'"),
        (["order", "hold", "B", "--cause", "court", "--reason", "r"], "no account 'B'"),
        (["order", "hold", "A", "--cause", "court", "--reason", " "], "--reason is empty"),
        (["order", "hold", "A", "--cause", "court"], "--reason"),
        (["pay", "B", "5"], "no account 'B'"),
        (["policy", "add", "curfew", "--reason", "r"], "no kind 'curfew'"),
        (["policy", "add", "holiday", "--scope", "street:X", "--reason", "r"], "scope 'street:X'"),
        (["policy", "add", "holiday", "--scope", "account:B", "--reason", "r"], "no account 'B'"),
        (["policy", "add", "quiet_hours", "--reason", "r"], "Such as --value"),
        (["policy", "add", "threshold", "--value", "{", "--reason", "r"], "not understood"),
        (["policy", "add", "threshold", "--value", '{"notice_hours": 1.5}', "--reason", "r"], "notice_hours"),
        (["policy", "add", "holiday", "--from", "2025-05-01", "--reason", "r"], "offset"),
        (["policy", "add", "holiday", "--until", "2025-05-01T00:00:00Z", "--reason", "r"], "end before it begins"),
        (["policy", "end", "nothing", "--reason", "r"], "no policy 'nothing'"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_what_is_wrong_is_said_and_nothing_is_journalled(home, hisob, arguments, complaint):
    before = count_of(home)
    code, _, said = hisob(*arguments)
    assert code == 2
    assert complaint in said
    assert count_of(home) == before


# ---- policies --------------------------------------------------------------------------------------------------------
def listed(hisob, *arguments):
    return {p["policy_id"]: p for p in json.loads(hisob("policy", "list", "--json", *arguments)[1])}


def test_a_policy_is_set_listed_and_ended_with_who_and_why(home, hisob):
    assert set(listed(hisob)) == {"default-disconnect-window", "default-quiet-hours", "default-threshold"}
    code, out, _ = hisob("policy", "add", "moratorium", "--scope", "district:d", "--reason", "frost")
    assert code == 0
    (policy_id,) = set(listed(hisob)) - {"default-disconnect-window", "default-quiet-hours", "default-threshold"}
    assert policy_id in out
    stands = listed(hisob)[policy_id]
    assert (stands["scope"], stands["author"], stands["reason"], stands["state"]) == (
        "district:d", getpass.getuser(), "frost", "in force",
    )  # fmt: skip
    assert "frost" in hisob("policy", "list")[1]

    assert hisob("policy", "end", policy_id, "--author", "Mayor", "--reason", "thaw")[0] == 0
    assert policy_id not in listed(hisob)
    ended = listed(hisob, "--all")[policy_id]
    assert (ended["author"], ended["reason"], ended["state"]) == ("Mayor", "thaw", "ended")
    code, _, complaint = hisob("policy", "end", policy_id, "--reason", "again")
    assert (code, "has ended already" in complaint) == (2, True)
    assert len(records_of(home, "policy")) == 3 * (3 + 2)  # in every partition: the defaults, the policy and its end


def test_a_policy_governs_from_its_arrival_until_its_end(home, hisob):
    """A moratorium keeps an ordered cut back; once it has ended, the next tick commands it."""
    hisob("policy", "add", "moratorium", "--id", "frost", "--reason", "frost")
    hisob("policy", "add", "disconnect_window", "--value", EVER, "--reason", "try")
    hisob("order", "disconnect", "A", "--cause", "court", "--reason", "judgement 5")
    tick(home, 1)
    settle(home)
    assert events_of(home, "command") == []
    hisob("policy", "end", "frost", "--reason", "thaw")
    tick(home, 2)
    settle(home)
    assert [c["action"] for c in events_of(home, "command")] == ["disconnect"]


def tick(home, quarters):
    """The tick so many quarters of an hour from now."""
    now = dt.datetime.now(dt.UTC)
    with closing(Arrivals(home, "test")) as arrivals:
        assert arrivals.tick(now - (now - EPOCH) % QUARTER + quarters * QUARTER)


EVER = '{"days": [1, 2, 3, 4, 5, 6, 7], "from": "00:00", "to": "24:00"}'


def test_a_policy_to_come_is_listed_as_such_and_may_be_called_off(home, hisob):
    hisob("policy", "add", "holiday", "--id", "navruz", "--from", "2100-03-21T00:00:00+05:00", "--reason", "Navruz")
    assert listed(hisob)["navruz"]["state"] == "to come"
    assert hisob("policy", "end", "navruz", "--reason", "called off")[0] == 0
    assert "navruz" not in listed(hisob)
