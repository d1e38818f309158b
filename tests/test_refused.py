"""Refused and held, handled: the reasons are the code's, each is told with what to do, and what is mended comes in."""

import csv
import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import accounting
from accounting.bill import REASONS as RULES
from accounting.records import RECORDS
from connectors.files.check import REASONS as OF_ROWS
from hisob.reasons import HELD, REFUSED, UNREADABLE
from streams.ingest import ingest_files
from tests.in_process import ask, call
from tests.warehouse_homes import CASES, history_of, load_and_publish
from tests.whole_homes import new_home, settle
from warehouse.audit import open_published
from warehouse.refusals import group_refused, list_held, records_to_offer

ROOT = Path(__file__).parent.parent

# ---- the table -------------------------------------------------------------------------------------------------------


def named_in_rules(call):
    """The reasons that the rules name in the text of a call: `p.refuse("tariff", stray, "incomplete_tariff")`."""
    sources = [path.read_text() for path in Path(accounting.__file__).parent.glob("*.py")]
    return {word for text in sources for word in re.findall(rf'p\.{call}\(.*, "(\w+)"', text)}


def test_each_reason_of_the_code_is_in_the_table_and_none_besides():
    assert set(UNREADABLE) == set(OF_ROWS) - {""}
    only_held = {"unknown_meter"}
    # a policy's `unknown_value` is the one reason that both a file's check and a rule give
    assert set(REFUSED) == (set(RULES) - {""} - only_held) | (named_in_rules("refuse") - {"unknown_value"})
    assert set(HELD) == named_in_rules("hold") | {"implausible_usage"}
    assert {"unknown_command", "unknown_account"} <= named_in_rules("refuse")
    assert not set(REFUSED) & set(UNREADABLE)


def test_each_line_of_the_table_says_whom_it_befalls_what_it_means_and_what_comes_next():
    for reason in (*REFUSED.values(), *UNREADABLE.values(), *HELD.values()):
        assert set(reason.kinds) <= set(RECORDS)
        assert reason.means
        assert reason.next_step
        assert "|" not in reason.means + reason.next_step, "it stands in a Markdown table"
    assert all(reason.kinds for reason in (*REFUSED.values(), *HELD.values()))


def test_no_worked_case_refuses_or_holds_what_the_table_does_not_foresee():
    for what, table in (("refused", REFUSED), ("held", HELD)):
        for path in CASES.glob(f"*/expected_{what}.csv"):
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    assert row["record_kind"] in table[row["reason"]].kinds, (path, row)


def test_the_page_is_made_of_the_table():
    spec = spec_from_file_location("make_refused", ROOT / "docs" / "make_refused.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "refused.md").read_text() == module.page(), "run: python docs/make_refused.py"


# ---- a home in which something was refused ---------------------------------------------------------------------------

ACCOUNTS = """\
account_id,effective_at,meter_id,district,tariff,opening_balance_tiyin,opening_register_wh,max_power_w
A,2025-09-01T00:00:00+05:00,MA,d,household,10000000,0,15000
B,2025-09-01T00:00:00+05:00,MB,d,cottage,10000000,0,15000
"""
READINGS = """\
meter_id,read_at,register_wh
MA,2025-09-01T06:00:00+05:00,1000
MA,2025-09-01T05:00:00+05:00,5
MB,2025-09-01T06:00:00+05:00,2000
MB,2025-09-01T07:00:00+05:00,3000
MA,2025-09-01T07:00:00+05:00,12.7
MA,2025-09-01T08:00:00+05:00,900000
MX,2025-09-01T06:00:00+05:00,7
MX,2025-09-01T07:00:00+05:00,8
"""
PAYMENTS = """\
payment_id,account_id,paid_at,amount_tiyin
P1,A,2025-09-01T06:30:00+05:00,500
P1,A,2025-09-01T06:31:00+05:00,700
P2,Z,2025-09-01T06:30:00+05:00,500
"""


def given(folder, kind, text, name=None):
    path = folder / (name or f"{kind}.csv")
    path.write_text(text)
    return kind, path


def publish(home):
    settle(home)
    load_and_publish(home)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A home whose account B has a tariff that nobody knows; not to be changed."""
    folder = tmp_path_factory.mktemp("told")
    home = new_home(folder / "home")
    files = [given(folder, k, t) for k, t in (("account", ACCOUNTS), ("reading", READINGS), ("payment", PAYMENTS))]
    ingest_files(home, files)
    publish(home)
    return home


def test_refusals_are_grouped_with_count_example_and_what_to_do_next(told):
    groups = {(g["record_kind"], g["reason"]): g for g in ask(told.path, "refused")["groups"]}
    assert {key: (g["count"], g["open"]) for key, g in groups.items()} == {
        ("account", "unknown_tariff"): (1, 1),
        ("reading", "wrong_meter"): (2, 2),
        ("reading", "not_an_integer"): (1, 1),
        ("payment", "duplicate"): (1, 1),
    }
    assert groups["account", "unknown_tariff"]["next"] == REFUSED["unknown_tariff"].next_step
    assert groups["account", "unknown_tariff"]["example"] == "B|2025-08-31T19:00:00+00:00"
    assert groups["reading", "not_an_integer"]["example"] == "reading.csv, row 6, register_wh = '12.7'"
    code, page = call(told.path, "refused")
    assert code == 0
    assert all(REFUSED[r].next_step in page for r in ("unknown_tariff", "wrong_meter", "duplicate"))


def test_a_reason_or_kind_lists_its_records_whole(told):
    found = ask(told.path, "refused", "--reason", "duplicate")
    assert [g["reason"] for g in found["groups"]] == ["duplicate"]
    assert [r["record"]["amount_tiyin"] for r in found["records"]] == [700]
    assert len(ask(told.path, "refused", "--kind", "reading")["records"]) == 3
    assert len(ask(told.path, "refused", "--kind", "reading", "--limit", "1")["records"]) == 1
    assert '"payment_id": "P1"' in call(told.path, "refused", "--kind", "payment")[1]


@pytest.mark.parametrize("wrong", [("--reason", "duplicat"), ("--kind", "readings")])
def test_a_reason_or_kind_that_there_is_not_is_named(told, wrong):
    code, text = call(told.path, "refused", *wrong)
    assert code == 2
    assert wrong[1] in text


def test_held_tells_what_waits_and_for_what(told):
    found = {w["awaits"]: w for w in ask(told.path, "held")}
    assert {name: (w["record_kind"], w["reason"], w["count"]) for name, w in found.items()} == {
        "MX": ("reading", "unknown_meter", 2),
        "Z": ("payment", "unknown_account", 1),
        "MA": ("reading", "implausible_usage", 1),
    }
    assert found["MX"]["first_at"] == "2025-09-01T01:00:00+00:00"
    assert "an account or a meter exchange that names its meter" in call(told.path, "held")[1]
    assert "and 2 more" in call(told.path, "held", "--limit", "1")[1]


def test_before_anything_is_published_both_say_so(tmp_path):
    home = new_home(tmp_path / "home")
    for command in ("refused", "held"):
        with pytest.raises(AssertionError, match="Load what there is"):
            call(home.path, command)


# ---- offered again ---------------------------------------------------------------------------------------------------


def test_what_was_refused_comes_in_once_its_cause_is_mended_and_is_not_offered_twice(tmp_path):
    home = new_home(tmp_path / "home")
    ingest_files(home, [given(tmp_path, "account", ACCOUNTS), given(tmp_path, "reading", READINGS)])
    publish(home)
    written = ask(home.path, "refused", "--offer", tmp_path / "again")
    assert {Path(w["file"]).name: (w["records"], w["to_mend"]) for w in written} == {
        "account.ndjson": (1, False),
        "reading.ndjson": (2, False),
        "reading-to-mend.ndjson": (1, True),
    }

    # offered before the cause is mended: refused again, and open once as before
    ingest_files(home, [("account", tmp_path / "again" / "account.ndjson")])
    publish(home)
    assert [(g["count"], g["open"]) for g in ask(home.path, "refused", "--kind", "account")["groups"]] == [(2, 1)]

    tariff = given(tmp_path, "tariff", "tariff,effective_on,price_tiyin_per_kwh\ncottage,2025-01-01,50000\n")
    ingest_files(home, [tariff])
    ask(home.path, "refused", "--offer", tmp_path / "later")
    done = ingest_files(home, [(kind, tmp_path / "later" / f"{kind}.ndjson") for kind in ("account", "reading")])
    assert (dict(done.taken), done.unreadable.total(), done.skipped) == ({"account": 1, "reading": 2}, 0, [])
    publish(home)
    with open_published(home) as con:
        assert con.execute("SELECT balance_tiyin FROM balances WHERE account_id = 'B'").fetchone() == (
            10_000_000 - 3 * 50_000,
        )
        assert {(g.record_kind, g.reason, g.open) for g in group_refused(con)} == {
            ("account", "unknown_tariff", 0),
            ("reading", "wrong_meter", 0),
            ("reading", "not_an_integer", 1),
        }
    assert [w["to_mend"] for w in ask(home.path, "refused", "--offer", tmp_path / "last")] == [True]
    assert "came in since" in call(home.path, "refused", "--kind", "account", "--offer", tmp_path / "last")[1]


def test_rows_that_could_not_be_understood_are_written_as_they_were_given(told, tmp_path):
    call(told.path, "refused", "--reason", "not_an_integer", "--offer", tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == "reading-to-mend.ndjson"
    row = json.loads(path.read_text())
    assert (row["meter_id"], row["register_wh"]) == ("MA", "12.7")


def test_a_file_that_lies_there_is_not_written_over(told, tmp_path):
    (tmp_path / "account.ndjson").write_text("mended by hand")
    code, text = call(told.path, "refused", "--offer", tmp_path)
    assert code == 2
    assert "another folder" in text
    assert [p.name for p in tmp_path.iterdir()] == ["account.ndjson"]
    assert (tmp_path / "account.ndjson").read_text() == "mended by hand"


@pytest.mark.parametrize("case", ["plain-2-refusals", "adversary-11"])
def test_what_is_offered_of_a_case_is_each_refused_content_once_in_the_order_of_its_time(case, tmp_path):
    home = history_of(tmp_path / "home", case).home
    load_and_publish(home)
    with open_published(home) as con:
        refused = con.execute(
            "SELECT record_kind, count(DISTINCT record), count(*) FROM refused GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        offered = {
            kind: [json.loads(line) for line in lines] for kind, lines in records_to_offer(con, None, None).items()
        }
        (held,) = con.execute("SELECT count(*) FROM held").fetchone()
        assert sum(w.count for w in list_held(con)) == held
    for kind, contents, _ in refused:
        assert len(offered.get(kind, [])) <= contents
    times = [r["read_at"] for r in offered.get("reading", [])]
    assert times == sorted(times)
    assert refused
    assert offered
