"""An account's life, from its opening to its final bill, through whole homes and with numbers worked by hand.

Household prices of 2025-05-01, soum a kWh: 600 up to 200 kWh of the month, 800 up to 500; with a stove half of that. Two
families have twice the limits.
"""

import json

import pytest

from streams.ingest import ingest_files
from tests.in_process import ask, call
from tests.stories import local
from tests.warehouse_homes import load_and_publish
from tests.whole_homes import new_home, settle
from warehouse.words import LANGUAGES, Words

SOUM = 100
MOVE = "2025-10-16 12:00"


def version(account_id, at, meter_id, **more):
    row = {"account_id": account_id, "effective_at": at, "meter_id": meter_id, "district": "d", "tariff": "household"}
    return {**row, "phone": "+998901111111", "feeder": "F-1", **more}


L1 = {
    "opening": version("L-1", "2025-09-01 00:00", "M-1", opening_register_wh=0, opening_balance_tiyin=500_000 * SOUM),
    "tariff": version("L-1", "2025-09-11 00:00", "M-1", tariff="household_stove"),
    "families": version("L-1", "2025-09-21 00:00", "M-1", tariff="household_stove", families=2),
}
STOVE_2 = {"tariff": "household_stove", "families": 2}
ACCOUNTS = [
    *L1.values(),
    version("L-1", "2025-10-02 00:00", "M-1", **STOVE_2, phone="+998902222222"),
    version("L-1", "2025-10-03 00:00", "M-1", **STOVE_2, phone="+998902222222", feeder="F-2"),
    version("L-1", "2025-10-04 00:00", "M-1", **STOVE_2, phone="+998902222222", feeder="F-2", supply_class="protected"),
    version("L-1", MOVE, "M-2", **STOVE_2, closed_at=MOVE, closing_register_wh=127_000),
    version("L-2", MOVE, "M-2", opening_register_wh=127_000, opening_balance_tiyin=50_000 * SOUM, language="ru"),
    version("L-2", "2025-10-31 12:00", "M-2", language="ru", closed_at="2025-10-31 12:00", closing_register_wh=327_000),
    version("L-3", "2025-09-01 00:00", "M-3", opening_register_wh=0, opening_balance_tiyin=60_000 * SOUM),
    version("L-3", "2025-09-15 00:00", "M-3", closed_at="2025-09-15 00:00", closing_register_wh=100_000),
]
READINGS = [
    ("M-1", "2025-09-11 00:00", 100_000),
    ("M-1", "2025-09-21 00:00", 250_000),
    ("M-1", "2025-10-01 00:00", 450_000),
    ("M-2", "2025-10-16 11:45", 126_900),
    ("M-2", MOVE, 127_000),  # of the one who moves in: what it opens with
    ("M-2", "2025-10-26 00:00", 227_000),
    ("M-2", "2025-10-31 12:00", 327_000),  # at the closing: nobody has the meter any more
    ("M-3", "2025-09-08 00:00", 40_000),
]
EXCHANGE = {
    "account_id": "L-1",
    "exchanged_at": "2025-10-06 00:00",
    "old_meter_id": "M-1",
    "old_register_wh": 500_000,
    "new_meter_id": "M-2",
    "new_register_wh": 7_000,
}
# What each step comes to: (to_at, kWh, soum).
L1_CHARGES = [
    ("2025-09-11 00:00", 100, 100 * 600),
    (
        "2025-09-21 00:00",
        150,
        100 * 300 + 50 * 400,
    ),  # with the stove now, counting on: from 100 kWh of the month to 250
    ("2025-10-01 00:00", 200, 150 * 300 + 50 * 400),  # for two families the first block reaches to 400
    ("2025-10-06 00:00", 50, 50 * 300),
    ("2025-10-16 11:45", 119.9, 119.9 * 300),  # on the new meter, counting on
    (MOVE, 0.1, 0.1 * 300),
]
L2_CHARGES = [("2025-10-26 00:00", 100, 100 * 600), ("2025-10-31 12:00", 100, 100 * 600)]
REFUND = 500_000 - 175_000 - 51_000


def with_offset(row):
    """Moments of Tashkent as files have them."""
    times = {"effective_at", "closed_at", "exchanged_at", "read_at", "paid_at", "adjusted_at", "received_at"}
    return {name: local(value).isoformat() if name in times else value for name, value in row.items()}


def home_of(folder, **records):
    """A home with these records, settled and published."""
    home = new_home(folder / "home")
    files = []
    for kind, rows in records.items():
        files.append((kind, folder / f"{kind}.ndjson"))
        files[-1][1].write_text("".join(f"{json.dumps(with_offset(row))}\n" for row in rows))
    ingest_files(home, files)
    settle(home)
    load_and_publish(home)
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three customers who came and went; not to be changed."""
    readings = [{"meter_id": meter, "read_at": at, "register_wh": wh} for meter, at, wh in READINGS]
    return home_of(tmp_path_factory.mktemp("life"), account=ACCOUNTS, reading=readings, meter_exchange=[EXCHANGE])


def charges_of(home, account):
    sql = f"""
        SELECT strftime(tashkent(to_at), '%Y-%m-%d %H:%M') AS at, usage_wh, -amount_tiyin AS tiyin FROM entries
        WHERE account_id = '{account}' AND kind = 'usage' ORDER BY ordinal, n
    """
    return [tuple(row.values()) for row in ask(home.path, "query", sql)]


def test_each_step_is_charged_by_the_tariff_and_the_families_of_its_time(home):
    for account, charges in (("L-1", L1_CHARGES), ("L-2", L2_CHARGES)):
        expected = [(at, round(kwh * 1000), round(soum * SOUM)) for at, kwh, soum in charges]
        assert charges_of(home, account) == expected


def test_a_move_bills_every_watt_hour_once(home):
    used = {row["account_id"]: row["usage_wh"] for row in ask(home.path, "query", "FROM balances")}
    assert used["L-1"] + used["L-2"] == 500_000 + (327_000 - 7_000), "M-1 from 0 to 500, then M-2 from 7 to 327 kWh"
    refused = ask(home.path, "query", "SELECT reason, record ->> 'read_at' AS read_at FROM refused")
    assert refused == [{"reason": "account_closed", "read_at": "2025-10-31T07:00:00+00:00"}]
    assert ask(home.path, "query", "FROM held") == []


def test_the_independent_auditor_agrees(home):
    code, said = call(home.path, "reconcile")
    assert code == 0, said


def test_phone_feeder_and_class_hold_from_their_moment_and_cost_nothing(home):
    rows = ask(
        home.path, "query", "SELECT phone, feeder, supply_class FROM accounts WHERE account_id = 'L-1' ORDER BY ordinal"
    )
    assert [tuple(row.values()) for row in rows][3:6] == [
        ("+998902222222", "F-1", None),
        ("+998902222222", "F-2", None),
        ("+998902222222", "F-2", "protected"),
    ]
    assert ask(home.path, "statement", "L-1", "--from", "2025-10-02", "--to", "2025-10-04")["usage"] == []


def test_the_final_bill_says_what_is_to_be_given_back(home, tmp_path):
    page = ask(home.path, "statement", "L-1")
    assert page["adds_up"]
    assert (page["final"], page["closing_tiyin"]) == ("refund_due", REFUND * SOUM)
    assert page["closed_at"].startswith("2025-10-16T12:00")
    assert [(r["meter_id"], r["usage_wh"]) for r in page["registers"]] == [("M-1", 500_000), ("M-2", 120_000)]
    said = call(home.path, "statement", "L-1", "--month", "2025-10")[1]
    assert "Account closed on 16.10.2025 12:00" in said
    assert "Final bill: refund due 274 000.00 soum" in said
    for language in LANGUAGES:
        words, file = Words(language), tmp_path / f"{language}.html"
        shown = call(home.path, "statement", "L-1", "--month", "2025-10", "--language", language, "--html", file)[1]
        for text in (shown, file.read_text("utf-8")):
            assert f"{words['refund_due']} {words.soum(REFUND * SOUM)} {words['soum']}" in text
            assert words["to_pay"] not in text


def test_a_month_before_the_closing_is_not_final(home):
    page = ask(home.path, "statement", "L-1", "--month", "2025-09")
    assert (page["final"], page["closing_tiyin"]) == (None, (500_000 - 175_000) * SOUM)
    assert "Final bill" not in call(home.path, "statement", "L-1", "--month", "2025-09")[1]


def test_the_final_bill_says_what_is_still_to_be_paid_or_that_nothing_is(home, tmp_path):
    page = ask(home.path, "statement", "L-2")
    assert (page["final"], page["closing_tiyin"]) == ("to_pay", -70_000 * SOUM)
    call(home.path, "statement", "L-2", "--html", tmp_path / "l2.html")
    assert "к оплате 70\u00a0000,00 сум" in (tmp_path / "l2.html").read_text("utf-8"), "in the customer's own language"
    page = ask(home.path, "statement", "L-3")
    assert (page["final"], page["closing_tiyin"]) == ("nothing_due", 0)
    assert "Final bill: nothing is owed\n" in call(home.path, "statement", "L-3")[1]


def test_a_payment_after_the_closing_changes_what_is_owed(tmp_path):
    paid = {"payment_id": "P", "account_id": "L-3", "paid_at": "2025-09-20 10:00", "amount_tiyin": 1_000 * SOUM}
    readings = [{"meter_id": "M-3", "read_at": "2025-09-08 00:00", "register_wh": 40_000}]
    home = home_of(tmp_path, account=ACCOUNTS[-2:], reading=readings, payment=[paid])
    page = ask(home.path, "statement", "L-3", "--month", "2025-09")
    assert (page["final"], page["closing_tiyin"]) == ("refund_due", 1_000 * SOUM)
    page = ask(home.path, "statement", "L-3", "--to", "2025-09-19")
    assert (page["final"], page["closing_tiyin"]) == ("nothing_due", 0)


def test_payments_that_waited_for_their_account_are_named_in_its_statement(tmp_path):
    early = [
        {"payment_id": f"P-{n}", "account_id": "L-3", "amount_tiyin": n * SOUM, "channel": channel}
        | {"paid_at": f"2025-08-3{n} 12:00"}
        for n, channel in ((0, "Payme"), (1, "Click"))
    ]
    late = {"payment_id": "P-9", "account_id": "L-3", "paid_at": "2025-09-02 12:00", "amount_tiyin": 9 * SOUM}
    twice = {**early[1], "received_at": "2025-08-31 13:00"}
    given = {"adjustment_id": "J", "account_id": "L-3", "adjusted_at": "2025-08-31 20:00", "amount_tiyin": 5 * SOUM}
    given |= {"author": "Karimova", "reason": "brought along"}
    home = home_of(
        tmp_path,
        account=ACCOUNTS[-2:-1],
        payment=[early[0] | {"amount_tiyin": SOUM}, early[1], twice, late],
        adjustment=[given],
    )
    page_credits = ask(home.path, "statement", "L-3")["credits"]
    told = [
        (c["kind"], c["amount_tiyin"] // SOUM, c["details"].get("id"), c["details"].get("channel"))
        for c in page_credits
    ]
    assert told == [
        ("payment", 1, "P-0", "Payme"),
        ("payment", 1, "P-1", "Click"),
        ("adjustment", 5, "J", None),
        ("opening", 60_000, None, None),
        ("payment", 9, "P-9", None),
    ]
    assert page_credits[2]["details"]["reason"] == "brought along"


def test_what_a_move_bills_to_nobody_or_twice_is_an_alarm(tmp_path):
    """Four moves on the 10th: registers that meet, 5 kWh between them, 3 kWh twice, and one whose newcomer began later."""
    at, accounts, readings = "2025-09-10 00:00", [], []
    for meter, began in (("N-1", 100_000), ("N-2", 105_000), ("N-3", 97_000), ("N-4", None)):
        accounts += [
            version(f"{meter}-old", "2025-09-01 00:00", meter, opening_register_wh=0),
            version(f"{meter}-old", at, meter, closed_at=at, closing_register_wh=100_000),
            version(f"{meter}-new", at, meter, opening_register_wh=began),
        ]
        readings += [(meter, "2025-09-12 00:00", 130_000), (meter, "2025-09-13 00:00", 140_000)]
    rows = [{"meter_id": meter, "read_at": read_at, "register_wh": wh} for meter, read_at, wh in readings]
    home = home_of(tmp_path, account=accounts, reading=rows)
    found = ask(home.path, "query", "SELECT meter_id, left_by, taken_by, difference_wh FROM moves() ORDER BY 1")
    assert [tuple(row.values()) for row in found] == [
        (f"N-{n}", f"N-{n}-old", f"N-{n}-new", wh) for n, wh in ((1, 0), (2, 5_000), (3, -3_000), (4, 30_000))
    ]
    alarms = ask(home.path, "query", "SELECT meter_id FROM alarms WHERE alarm = 'move' ORDER BY 1")
    assert [row["meter_id"] for row in alarms] == ["N-2", "N-3", "N-4"]
    said = call(home.path, "health")[1]
    assert "5,000 Wh billed to nobody: N-2-old left at 100,000 on 2025-09-10 00:00, N-2-new began at 105,000" in said
    assert "3,000 Wh billed twice" in said


def test_a_move_right_after_an_exchange_goes_by_the_new_meters_register(home):
    (move,) = ask(home.path, "query", "FROM moves(days := 60)")
    assert (move["meter_id"], move["left_by"], move["taken_by"], move["difference_wh"]) == ("M-2", "L-1", "L-2", 0)
