"""Nothing is lost and nothing is raised: 100,000 mutated records of every kind, each in the ledger, refused or held by name.

They go through the commands as a utility gives them: `ingest`, `settle --drain`, `load`. Then every record is accounted for
by SQL over the published database, which shares nothing with what judged it: what was offered is in the journal, as its
kind or as unreadable; and of each kind what was journalled is what was refused, what is held, what came in, and what changed
nothing and was counted. At last the auditor recomputes the ledger of what came in.

The seed is printed where it fails. Another, or more: HISOB_FUZZ_SEED=7 HISOB_FUZZ_RECORDS=1000000 pytest tests/test_fuzz.py
"""

import json
import os
import random
from collections import Counter
from contextlib import closing

from accounting.records import FILE_KINDS
from connectors.log.sqlite import open_log
from hisob.homes import make_home
from tests.in_process import call
from tests.journals import journal_of
from tests.mutated_records import write_mutated
from tests.random_records import DAY_US, DAYS, OPENS_AT, random_records, write_csv
from tests.test_reconcile import together
from warehouse.audit import open_for_audit
from warehouse.reconcile import reconcile

SEED = int(os.environ.get("HISOB_FUZZ_SEED", "20250501"))
RECORDS = int(os.environ.get("HISOB_FUZZ_RECORDS", "100000"))
PARTITIONS = 2
UTILITIES = 12
ENDS_AT = OPENS_AT + DAYS * DAY_US
SHARES = {  # of a hundred; a tick no file can bring
    "reading": 40, "payment": 18, "account": 9, "adjustment": 10, "meter_exchange": 8, "order": 6, "acknowledgement": 4,
    "receipt": 3, "policy": 1, "tariff": 1,
}  # fmt: skip
POLICIES = [
    ("disconnect_window", '{"days": [1, 2, 3, 4], "from": "10:00", "to": "16:00"}'),
    ("quiet_hours", '{"from": "20:00", "to": "09:00"}'),
    ("threshold", '{"notice_hours": 48}'),
    ("holiday", None),
    ("moratorium", None),
]


# ---- what is given ---------------------------------------------------------------------------------------------------
def good_records(chance):
    """Utilities with every trouble that the rules know, and orders and policies beside them."""
    styles = ("adversary", "all", "plain")
    records = together(random_records(chance.randrange(10**9), styles[i % len(styles)]) for i in range(UTILITIES))
    records = {kind: [row for row in rows if (row["received_at"] or 0) < ENDS_AT] for kind, rows in records.items()}
    records["account"] = [row | {"phone": "+998901234567"} for row in records["account"]]
    accounts = sorted({row["account_id"] for row in records["account"]})
    by = {"author": "a", "reason": "r", "received_at": None}
    records["order"] = [
        {
            "order_id": f"O{i}", "account_id": chance.choice(accounts), "ordered_at": some_day(chance),
            "action": chance.choice(("disconnect", "disconnect", "reconnect", "hold", "release")),
            "cause": chance.choice(("court", "safety", "safety", "tamper", "load", "request")), **by,
        }
        for i in range(40)
    ]  # fmt: skip
    records["policy"] = [
        {
            "policy_id": f"Y{i}", "kind": kind, "scope": chance.choice(("all", "district:d", f"account:{accounts[0]}")),
            "starts_at": some_day(chance), "ends_at": None, "value": value, **by,
        }
        for i, (kind, value) in enumerate(POLICIES * 2)
    ]  # fmt: skip
    return records


def some_day(chance):
    return OPENS_AT + chance.randrange(90) * DAY_US


def answers(home, chance):
    """Acknowledgements and receipts of what has been commanded and noticed."""
    outcomes, statuses = ("opened", "closed", "unreachable", "mismatch"), ("delivered", "accepted", "rejected")
    return {
        "acknowledgement": [
            {"command_id": id_, "acknowledged_at": some_day(chance), "outcome": chance.choice(outcomes)}
            for id_ in ids_of(home, "commands", "command_id")
        ],
        "receipt": [
            {"notice_id": id_, "received_at": some_day(chance), "status": chance.choice(statuses)}
            for id_ in ids_of(home, "notices", "notice_id")
        ],
    }


def ids_of(home, kind, column):
    return [json.loads(line)[column] for line in do(home, "tail", kind, "--until-end").splitlines()]


def do(home, *arguments, expected=0):
    """What a command prints that ends as it should. What it raises, raises here."""
    code, text = call(home.path, *arguments)
    assert code == expected, text
    return text


def gone_through_it_all(folder):
    """A home after all of it: (home, good records by kind, the mutated ones, what ingest said of these)."""
    print("seed", SEED)
    chance = random.Random(SEED)
    home = make_home(folder / "home", PARTITIONS)
    begun_with = Counter(kind for kind, _ in journal_of(home)[-1])  # tariffs and policies, in every partition
    good = good_records(chance)
    paths = write_csv(good, folder / "good")
    do(home, "ingest", *[f"{path.stem}={path}" for path in paths])
    do(home, "settle", "--drain")
    counts = {kind: RECORDS * share // 100 for kind, share in SHARES.items()}
    mutated = write_mutated(good | answers(home, chance), counts, folder / "mutated", chance)
    assert sum(offer.rows for offer in mutated) >= RECORDS
    told = json.loads(do(home, "ingest", *[f"{o.kind}={o.path}" for o in mutated], "--json", expected=1))
    do(home, "settle", "--drain")
    do(home, "load")
    known = Counter({kind: len(rows) for kind, rows in good.items()}) + begun_with
    return home, known, mutated, told


def test_every_one_of_100_000_mutated_records_is_in_the_ledger_refused_or_held(tmp_path):
    """One test, for the home takes its time: how many, then what became of each kind, then what it comes to."""
    fuzzed = gone_through_it_all(tmp_path)
    with open_for_audit(fuzzed[0]) as audit:
        every_unreadable_row_is_refused_once_with_its_reason(fuzzed, audit)
        for kind in FILE_KINDS:
            every_row_that_was_offered_is_in_the_journal(fuzzed, audit, kind)
            if kind != "receipt":
                every_record_came_in_changed_nothing_was_refused_or_is_held(fuzzed, audit, kind)
        a_receipt_opens_a_gate_once_changes_nothing_or_is_refused(fuzzed, audit)
        result = reconcile(audit)
    assert result.differences == []
    assert result.entries > 1000


# ---- the accounts of it ----------------------------------------------------------------------------------------------
IS_UNREADABLE = "(partition, ordinal) IN (SELECT (partition, ordinal) FROM journal.unreadable)"
UNROUTED = "partition = (SELECT max(partition) FROM journal.tick)"
ONCE = {  # where a record stands in the journal more than once
    "reading": "first_partition IS NULL",  # again in its account's partition, where it waited for a claim on its meter
    "tariff": UNROUTED,  # in every partition
    "policy": UNROUTED,
}
# What came in of those that were `given` and not refused: the entries it made, the events of the supply, or, where it shows in
# later records alone, each content once.
CAME_IN = {
    "payment": "SELECT * FROM events.entry WHERE kind IN ('payment', 'reversal')",
    "adjustment": "SELECT * FROM events.entry WHERE kind = 'adjustment'",
    "account": """
        SELECT DISTINCT * EXCLUDE (partition, ordinal, received_at, claim_number) REPLACE (
            coalesce(families, 1) AS families,
            coalesce(supply_class, 'normal') AS supply_class, coalesce(emergency_credit_tiyin, 0) AS emergency_credit_tiyin,
            coalesce(opening_balance_tiyin, 0) AS opening_balance_tiyin, coalesce(max_power_w, 15_000) AS max_power_w,
            coalesce(register_modulus_wh, 1_000_000_000) AS register_modulus_wh)
        FROM given
    """,
    "meter_exchange": "SELECT DISTINCT * EXCLUDE (partition, ordinal, received_at, claim_number) FROM given",
    "order": "SELECT DISTINCT * EXCLUDE (partition, ordinal, received_at) FROM given",
    "policy": "SELECT * FROM given",
    "tariff": """
        SELECT DISTINCT tariff, effective_on, list((block_upto_kwh, price_tiyin_per_kwh, source) ORDER BY ordinal)
        FROM (SELECT *, sum((block = 0)::INTEGER) OVER (ORDER BY ordinal) AS version FROM given)
        GROUP BY version, tariff, effective_on
    """,
    "acknowledgement": """
        SELECT DISTINCT partition, ordinal FROM given JOIN events.supply_state s USING (partition, ordinal)
        WHERE s.state NOT LIKE '%pending'
    """,
    # at its own arrival; held until the next one confirmed it; or the first of an account, which charges nothing
    "reading": """
        SELECT DISTINCT partition, ordinal FROM journal.reading JOIN events.entry USING (partition, ordinal)
        UNION ALL
        SELECT h.partition, h.ordinal FROM events.held h JOIN events.released r
            ON r.held_id = h.partition || '-' || h.ordinal || '-' || h.n
        WHERE h.reason = 'implausible_usage' AND r.outcome = 'settled'
        UNION ALL
        SELECT partition, min(ordinal) AS first FROM journal.reading r
        ANTI JOIN (SELECT * FROM events.refused WHERE record_kind = 'reading') USING (partition, ordinal)
        WHERE account_id IN (
            SELECT account_id FROM journal.account ANTI JOIN (
                SELECT * FROM events.refused WHERE record_kind = 'account') USING (partition, ordinal)
            GROUP BY account_id HAVING arg_min(opening_register_wh IS NULL, ordinal)
        )
        GROUP BY partition, account_id HAVING first < coalesce((
            SELECT min(ordinal) FROM (
                SELECT account_id, partition, ordinal FROM journal.meter_exchange
                UNION ALL
                SELECT account_id, partition, ordinal FROM journal.account WHERE closing_register_wh IS NOT NULL
            ) p ANTI JOIN (SELECT * FROM events.refused WHERE record_kind <> 'reading') USING (partition, ordinal)
            WHERE p.account_id = r.account_id
        ), first + 1)
    """,
}


def count(con, sql):
    return con.execute(f"SELECT count(*) FROM ({sql})").fetchone()[0]


def journalled(kind):
    return f'SELECT * FROM journal."{kind}" WHERE {ONCE.get(kind, "TRUE")}'


def refused(kind):
    return f"SELECT partition, ordinal FROM events.refused WHERE record_kind = '{kind}' AND NOT {IS_UNREADABLE}"


def ignored(home, kind):
    """How many changed nothing, as settle has counted them."""
    with closing(open_log(home.events, readonly=True)) as events:
        counted = events.committed("ignored")
    return sum(number for name, number in counted.items() if name.partition(":")[2] == kind)


def every_row_that_was_offered_is_in_the_journal(fuzzed, audit, kind):
    _, known, mutated, told = fuzzed
    unreadable = f"SELECT * FROM journal.unreadable WHERE record_kind = '{kind}'"
    bad, good = count(audit, unreadable), count(audit, journalled(kind))
    assert good + bad == known[kind] + sum(offer.rows for offer in mutated if offer.kind == kind)
    assert bad == count(audit, f"SELECT DISTINCT file, row FROM ({unreadable})") > 0
    assert good == known[kind] + told["taken"][kind]


def every_unreadable_row_is_refused_once_with_its_reason(fuzzed, audit):
    unlike = f"""
        SELECT 1 FROM journal.unreadable u
        FULL JOIN (SELECT * FROM events.refused WHERE {IS_UNREADABLE}) r USING (partition, ordinal)
        WHERE (u.record_kind, u.reason, u.record) IS DISTINCT FROM (r.record_kind, r.reason, r.record)
    """
    assert count(audit, unlike) == 0
    told = Counter(fuzzed[3]["unreadable"])
    assert told == dict(audit.execute("SELECT reason, count(*) FROM journal.unreadable GROUP BY ALL").fetchall())
    assert count(audit, f"SELECT * FROM events.refused WHERE {IS_UNREADABLE}") == told.total() > RECORDS // 4


def every_record_came_in_changed_nothing_was_refused_or_is_held(fuzzed, audit, kind):
    given = f"SELECT * FROM ({journalled(kind)}) ANTI JOIN ({refused(kind)}) USING (partition, ordinal)"
    is_version = " WHERE block + 1 = blocks" if kind == "tariff" else ""  # a version arrives with its last row
    arrived = count(audit, f"SELECT * FROM ({journalled(kind)}){is_version}")
    came_in = count(audit, f"WITH given AS ({given}) {CAME_IN[kind]}")
    held = count(audit, f"SELECT * FROM main.held WHERE record_kind = '{kind}'")
    assert arrived == came_in + ignored(fuzzed[0], kind) + count(audit, refused(kind)) + held
    assert min(came_in, count(audit, refused(kind)) + ignored(fuzzed[0], kind)) > 0


def a_receipt_opens_a_gate_once_changes_nothing_or_is_refused(fuzzed, audit):
    """What it opened shows in later decisions alone: at most one receipt of a notice does."""
    given = f"SELECT * FROM ({journalled('receipt')}) ANTI JOIN ({refused('receipt')}) USING (partition, ordinal)"
    came_in = count(audit, given) - ignored(fuzzed[0], "receipt")
    assert 0 < came_in <= count(audit, f"SELECT DISTINCT notice_id FROM ({given})")
