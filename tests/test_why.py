"""Why the supply is as it is: stories reckoned by hand, told from the published database; and their picture."""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from hisob.commands.why import why
from hisob.errors import HisobError
from tests.stories import DAY_TIYIN, Director, Story, cut, local, ready_to_be_cut, switched_off
from tests.test_flow import hisob
from tests.warehouse_homes import History, load_and_publish
from warehouse.audit import NotPublishedError, open_published
from warehouse.picture import UnknownFormatError, curve_of, dark_spans, draw, in_rows, marks_of, span_of
from warehouse.statement import UnknownAccountError
from warehouse.story import OutsideError, read_story
from warehouse.why import as_json, explain, kwh, soum, span, tell_cut, when


def published(tmp_path, story):
    """The story in a home of its own, loaded."""
    history = History(tmp_path / "home")
    everywhere = [record for record in story.journal if record[0] in {"tariff", "policy", "tick"}]
    history.append([story.journal, [], [], everywhere])
    load_and_publish(history.home)
    return history.home


def read(home, at=None, account_id="A"):
    with open_published(home) as con:
        return read_story(con, account_id, local(at) if at else None)


def sentences(tmp_path, story, at=None):
    return explain(read(published(tmp_path, story), at))


def text_of(told):
    return "\n".join(sentence.text for sentence in told)


def given_back():
    """Switched off on Monday 10:02; 10,000 soum at Tuesday 14:03, light at 14:04, and two days of use since."""
    story = switched_off()
    story.until("2025-09-02 14:00")
    story.pay(1_000_000, at=local("2025-09-02 14:03"), channel="payme")
    story.answer("closed", at=local("2025-09-02 14:04"))
    story.meters["A"].use_w = 500
    story.until("2025-09-04 12:00")
    return story


# ---- the states ------------------------------------------------------------------------------------------------------


def test_connected_and_never_cut_with_money_left(tmp_path):
    story = Story()
    story.account(opening_balance_tiyin=10 * DAY_TIYIN)
    story.until("2025-08-30 12:00")
    told = text_of(sentences(tmp_path, story))
    assert told.startswith("The supply is connected, and has never been cut.")
    assert "Account A: meter M-A, tariff t, district d, feeder f." in told
    # 36 h at 500 W are 18 kWh, at 100 soum each
    assert "is 10 200 soum, charged up to the register of 18 kWh on Sat 30 Aug 2025 at 12:00" in told
    assert "by tariff t of 01.01.2025 (100 soum a kWh)" in told
    assert "By the forecast of Sat 30 Aug 2025 at 00:00 it lasts until about" in told
    assert "at 12 kWh a day" in told
    assert told.endswith("There is no debt: no supply is cut.")
    assert "notice" not in told


def test_a_cut_is_told_with_each_of_its_grounds_and_where_they_lie(tmp_path):
    story = switched_off()
    told = sentences(tmp_path, story)
    assert [sentence.text for sentence in told] == [
        "The supply is cut off. It is so since Mon 1 Sep 2025 at 10:02.",
        "Account A: meter M-A, tariff t, district d, feeder f.",
        (
            "The customer was given notice of low credit on Fri 29 Aug 2025 at 06:00, 1 day 6 hours before the money was to"
            " run out, to be sent when quiet hours end, Fri 29 Aug 2025 at 09:00; the balance was 2 100 soum."
        ),
        "It was delivered on Fri 29 Aug 2025 at 09:05.",
        (
            "The supply was commanded to be cut on Mon 1 Sep 2025 at 10:00: the balance was −1 700 soum by measured"
            " registers, and there is no emergency credit."
        ),
        "Meter M-A was read on Mon 1 Sep 2025 at 10:00: 41 kWh. A reading may be 1 day old, no more.",
        "The notice was settled 3 days 55 minutes before the cut; it must be 1 day.",
        (
            "Mon 1 Sep 2025 at 10:00 lies in the window for cuts: Mon, Tue, Wed, Thu, 10:00 to 16:00 (policy"
            " default-disconnect-window)."
        ),
        "It was no holiday, nor was the next day; no moratorium was on; the account was not protected, nor held on.",
        "The switch was read back open on Mon 1 Sep 2025 at 10:02.",
        (
            "The balance on Mon 1 Sep 2025 at 10:02 is −1 700 soum, charged up to the register of 41 kWh on Mon 1 Sep 2025"
            " at 10:00 by tariff t of 01.01.2025 (100 soum a kWh)."
        ),
        "1 700 soum more, and the supply is commanded back on at once, at any hour.",
    ]
    kinds = [kind for kind, _ in story.journal]
    (notice,), (command,) = story.notices(), story.events["command"]
    assert notice["id"] in told[2].sources
    assert told[3].sources == (f"0-{kinds.index('receipt')}",)
    assert command["id"] in told[4].sources
    assert told[9].sources == (f"0-{kinds.index('acknowledgement')}",)
    windows = [n for n, (kind, r) in enumerate(story.journal) if kind == "policy" and r["kind"] == "disconnect_window"]
    assert told[7].sources == (f"0-{windows[0]}",)


def test_connected_again_by_a_payment_is_told_from_notice_to_light(tmp_path):
    told = text_of(sentences(tmp_path, given_back()))
    assert told.startswith("The supply is connected. It is so since Tue 2 Sep 2025 at 14:04.")
    assert (
        "10 000 soum were paid through payme on Tue 2 Sep 2025 at 14:03, and the balance came to 8 300 soum: the supply was"
        " commanded back on Tue 2 Sep 2025 at 14:03, at once."
    ) in told
    assert "The switch was read back closed on Tue 2 Sep 2025 at 14:04." in told
    assert "is 6 000 soum" in told  # 46 h at 500 W since
    order = [
        "notice of low credit",
        "It was delivered",
        "commanded to be cut",
        "read back open",
        "were paid",
        "read back closed",
    ]
    assert [told.index(words) for words in order] == sorted(told.index(words) for words in order)


def test_of_another_moment_only_what_was_known_then_is_told(tmp_path):
    home = published(tmp_path, given_back())
    early = text_of(explain(read(home, "2025-08-30 12:00")))
    assert early.startswith("The supply is connected, and has never been cut.")
    assert "is 600 soum" in early
    assert "It was delivered" in early
    assert "2025-09" not in early
    assert "Sep" not in early
    pending = text_of(explain(read(home, "2025-09-01 10:00")))
    assert pending.startswith("The supply is about to be cut: the switch has not answered yet.")
    assert "read back" not in pending
    off = text_of(explain(read(home, "2025-09-01 10:03")))
    assert off.startswith("The supply is cut off.")
    assert "were paid" not in off
    between = text_of(explain(read(home, "2025-09-02 14:03")))
    assert between.startswith("The supply is about to be given back: the switch has not answered yet.")
    assert "10 000 soum were paid" in between
    assert "read back closed" not in between


def test_a_payment_that_voided_a_cut_in_flight_says_so(tmp_path):
    story = cut()
    story.pay(500_000, at=local("2025-09-01 10:01"))
    told = text_of(sentences(tmp_path, story))
    assert told.startswith("The supply is about to be given back")
    assert f"which voided the cut in flight ({story.events['command'][0]['id']})" in told
    assert "5 000 soum were paid on Mon 1 Sep 2025 at 10:01, and the balance came to 3 300 soum" in told


def test_a_switch_out_of_reach_leaves_it_unknown_and_the_askings_are_counted(tmp_path):
    story = cut()
    story.answer("unreachable", at=local("2025-09-01 10:02"))
    assert story.states()[-1] == "unknown"
    told = text_of(sentences(tmp_path / "a", story))
    assert told.startswith("The supply is not known: no readback proves it.")
    assert "The switch could not be reached on Mon 1 Sep 2025 at 10:02." in told
    for _ in range(3):
        story.tick()
        story.answer("unreachable", at=story.now + timedelta(minutes=1))
    told = text_of(sentences(tmp_path / "b", story))
    assert told.count("could not be reached") == 2
    assert (
        "It was asked for 3 times more, the last on Mon 1 Sep 2025 at 10:45; the switch could not be reached." in told
    )


def test_a_readback_of_something_else_is_told(tmp_path):
    story = cut()
    story.answer("mismatch", at=local("2025-09-01 10:02"))
    told = text_of(sentences(tmp_path, story))
    assert told.startswith("The supply is not known")
    assert "The switch was read back otherwise than commanded on Mon 1 Sep 2025 at 10:02." in told


def test_a_command_nobody_answered_is_told(tmp_path):
    story = cut()
    story.meters["A"].is_read = True
    story.until("2025-09-01 16:15")
    told = text_of(sentences(tmp_path, story))
    assert "No answer had come by Mon 1 Sep 2025 at 16:00: whether the light is on became unknown." in told


# ---- what stands in the way ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "happens", "words"),
    [
        ({"supply_class": "protected"}, None, "The account is protected."),
        ({}, None, "is outside the window for cuts: Mon, Tue, Wed, Thu, 10:00 to 16:00"),
        ({}, lambda s: s.order("hold", "request"), "a ordered to hold the supply on (r)."),
        ({}, lambda s: s.policy("heat", "moratorium", ends_at=s.now + timedelta(days=9)), "A moratorium forbids it"),
        ({}, lambda s: s.policy("day", "holiday", starts_at=local("2025-09-02 00:00")), "A holiday forbids it"),
        ({"emergency_credit_tiyin": 500_000}, None, "The debt is within the emergency credit of 5 000 soum"),
    ],
)
def test_a_debt_without_a_cut_says_what_stands_in_the_way(tmp_path, given, happens, words):
    story = ready_to_be_cut(**given)
    if happens:
        happens(story)
    told = text_of(sentences(tmp_path, story))
    assert told.startswith("The supply is connected, and has never been cut.")
    assert words in told
    if "within" not in words:
        assert "There is a debt; the supply is not cut because:" in told


def test_a_notice_that_did_not_arrive_or_only_just_did_stands_in_the_way(tmp_path):
    story = ready_to_be_cut(receipt=None)
    story.receipt("accepted", at=local("2025-08-29 09:01"))
    told = text_of(sentences(tmp_path / "a", story))
    assert "The channel accepted it on Fri 29 Aug 2025 at 09:01; whether it arrived is not known." in told
    assert "has not been delivered, nor has that failed for good" in told
    story.receipt("undeliverable", at=local("2025-09-01 07:45"))
    told = text_of(sentences(tmp_path / "b", story))
    assert "It could not be delivered on Mon 1 Sep 2025 at 07:45." in told
    assert "What became of the notice is known for 2 hours; 1 day must pass." in told


def test_an_old_reading_stands_in_the_way(tmp_path):
    story = ready_to_be_cut(until="2025-08-31 09:45")
    story.meters["A"].is_read = False
    story.until("2025-09-01 11:00")
    assert not story.events["command"]
    told = text_of(sentences(tmp_path, story))
    assert "The last measured register is 1 day 1 hour old; at most 1 day are allowed." in told


def test_without_a_phone_there_was_nobody_to_send_the_notice_to(tmp_path):
    story = ready_to_be_cut(receipt=None, phone=None)
    story.until("2025-09-01 10:00")
    assert story.states()[-1] == "disconnect_pending"
    told = text_of(sentences(tmp_path, story))
    assert "No phone is known, so there was nobody to send it to." in told
    assert "The notice was settled 3 days 4 hours before the cut; it must be 1 day." in told


def test_an_estimate_is_left_out_of_what_a_cut_is_decided_by(tmp_path):
    story = Story()
    story.account(opening_balance_tiyin=2 * DAY_TIYIN)
    story.until("2025-08-30 00:00")
    story.take(
        "reading", **story.reading(read_at=story.now + timedelta(minutes=10), register_wh=14_000, status="estimated")
    )
    told = text_of(sentences(tmp_path, story))
    assert "is 1 000 soum (1 200 soum by measured registers alone, which is what a cut is decided by)" in told


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_told_of_random_stories_never_contradicts_what_was_decided(tmp_path, seed):
    """Each cut's grounds hold by the records alone; and at a tick no debt goes without a cut and without a reason."""
    director = Director(seed, days=6)
    director.tell()
    told = Counter()
    with open_published(published(tmp_path, director.story)) as con:
        for account_id in director.story.meters:
            story = read_story(con, account_id)
            for command in (c for c in story.commands if c["action"] == "disconnect"):
                told["cut"] += 1
                assert "Held against the records" not in text_of(tell_cut(story, command)), command.id
            begins = story.accounts[0]["effective_at"]
            days = (story.at - begins) // timedelta(days=1)
            for day in range(days):
                then = read_story(con, account_id, begins + timedelta(days=day))
                text = text_of(explain(then))
                told["debt"] += "There is a debt" in text
                assert "Every condition of a cut holds" not in text
    assert told["cut"] > 3
    assert told["debt"] > 3


def test_a_cut_that_the_records_do_not_bear_out_is_told_to_be_so(tmp_path):
    story = read(published(tmp_path, switched_off()))
    (command,) = story.commands
    held = next(p for p in story.policies if p["kind"] == "disconnect_window")
    values = {**held.values, "kind": "moratorium", "value": None, "policy_id": "m", "reason": "frost"}
    story.policies.append(replace(held, values=values))
    told = text_of(tell_cut(story, command))
    assert "Held against the records, these stood in its way:" in told
    assert "A moratorium forbids it (today or tomorrow): frost." in told
    story.policies.pop()
    story.entries[-1].values["basis"] = "estimated"
    told = text_of(tell_cut(story, command))
    assert "The ledger's balance was −1 675 soum." in told


# ---- orders, closing -------------------------------------------------------------------------------------------------


def test_a_cut_by_order_names_who_ordered_it_and_why(tmp_path):
    story = Story()
    story.account(opening_balance_tiyin=10 * DAY_TIYIN)
    story.until("2025-09-01 10:00")
    story.order("disconnect", "court", author="Judge Karimova", reason="case 17")
    story.until("2025-09-01 10:15")
    told = text_of(sentences(tmp_path / "a", story))
    assert "commanded to be cut on Mon 1 Sep 2025 at 10:15, as ordered for court by Judge Karimova: case 17." in told
    assert "lies in the window for cuts" in told
    assert "What was cut for court comes back by an order to reconnect." in told
    story.answer("opened", at=local("2025-09-01 10:16"))
    story.order("reconnect", "court", at=local("2025-09-01 10:20"), author="Judge Karimova", reason="lifted")
    story.answer("closed", at=local("2025-09-01 10:21"))
    told = text_of(sentences(tmp_path / "b", story))
    assert (
        "Judge Karimova ordered to reconnect on Mon 1 Sep 2025 at 10:20 (lifted): the supply was commanded back" in told
    )


def test_a_closed_account_is_told_to_be(tmp_path):
    story = Story()
    story.account(opening_balance_tiyin=10 * DAY_TIYIN)
    story.until("2025-09-01 10:00")
    register = story.meters["A"].register_wh
    story.take("account", **story.version(closed_at=local("2025-09-01 10:00"), closing_register_wh=register))
    story.tick()
    told = text_of(sentences(tmp_path, story))
    assert "It was closed on Mon 1 Sep 2025 at 10:00." in told
    assert "A closed account is not cut" in told
    assert "forecast" not in told


# ---- the command -----------------------------------------------------------------------------------------------------


def asked(home, account, **given):
    """The command, called in this process."""
    why(SimpleNamespace(obj=home.path), account, **{"at": None, "picture": None, **given})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return published(tmp_path_factory.mktemp("why"), given_back())


def test_the_command_prints_sentences_with_ids_at_the_end_of_lines_and_json(home):
    said = hisob(home, "why", "A")
    assert said.returncode == 0
    assert re.search(r"were paid through payme .* at once\.  \[0-\d+, 0-\d+-0, 0-\d+-\d\]", said.stdout)


def test_as_json_it_is_for_a_program_to_read(home, capsys):
    asked(home, "A", at="2025-09-01T10:03", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["account_id"], found["state"], found["balance_tiyin"]) == ("A", "disconnected", -170_000)
    assert found["at"] == "2025-09-01T05:03:00+00:00"
    assert found["since"] == "2025-09-01T05:02:00+00:00"
    assert all(set(sentence) == {"text", "sources"} for sentence in found["sentences"])


def test_every_id_told_is_one_that_can_be_looked_up(home):
    told = as_json(story := read(home), explain(story))
    ids = {source for sentence in told["sentences"] for source in sentence["sources"]}
    assert len(ids) > 10
    with open_published(home) as con:
        for source in ids:
            assert con.execute("SELECT count(*) FROM cause_of(?)", [source]).fetchone() == (1,), source


def test_an_unknown_account_is_wrong_use(home):
    said = hisob(home, "why", "nobody")
    assert (said.returncode, said.stdout) == (2, "")
    assert "no account nobody; there is A" in said.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"account": "nobody"}, "no account nobody; there is A"),
        ({"at": "soon"}, "2025-09-02T10:00"),
        ({"at": "2024-01-01"}, "is known from 2025-08-28"),
        ({"at": "2026-01-01"}, "up to its last tick"),
        ({"picture": Path("story.pdf")}, "ending in .svg, .png, .html"),
    ],
)
def test_wrong_use_is_explained(home, given, words, capsys):
    with pytest.raises(HisobError, match=words) as raised:
        asked(home, **{"account": "A", **given})
    assert raised.value.exit_code == 2
    assert capsys.readouterr().out == ""


def test_before_a_load_it_says_what_to_do(tmp_path):
    with pytest.raises(NotPublishedError, match="load"):
        asked(History(tmp_path / "home").home, "A")


def test_an_unknown_account_and_a_moment_outside_have_errors_of_their_own(home):
    with pytest.raises(UnknownAccountError):
        read(home, account_id="B")
    with pytest.raises(OutsideError):
        read(home, "2027-01-01 00:00")


# ---- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".svg", ".png", ".html"])
def test_the_picture_needs_nothing_else(home, tmp_path, suffix):
    path = tmp_path / f"story{suffix}"
    asked(home, "A", picture=path)
    drawn = path.read_bytes()
    if suffix == ".png":
        assert drawn.startswith(b"\x89PNG")
        return
    text = drawn.decode()
    assert not re.search(r'(?:href|src)="(?!#)', text)
    assert "<script" not in text
    assert "url(http" not in text
    if suffix == ".svg":
        ET.fromstring(text)
    else:
        assert "were paid through payme" in text


def test_the_same_story_is_the_same_picture(home, tmp_path):
    for name in ("a.svg", "b.svg"):
        draw(read(home), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with pytest.raises(UnknownFormatError):
        draw(read(home), tmp_path / "a.pdf")


def test_notice_cut_payment_and_light_are_marked_and_the_dark_is_shaded(home):
    story = read(home)
    assert [(m.name, m.says, m.at) for m in marks_of(story)] == [
        ("notice", "delivered", local("2025-08-29 09:00")),
        ("cut", "10:02", local("2025-09-01 10:02")),
        ("payment", "10 000 soum", local("2025-09-02 14:03")),
        ("light", "14:04", local("2025-09-02 14:04")),
    ]
    assert dark_spans(story) == [(local("2025-09-01 10:02"), local("2025-09-02 14:04"))]
    times, balances = curve_of(story)
    assert times == sorted(times)
    assert (balances[0], min(balances), balances[-1]) == (2_400, -1_700, 6_000)


def test_labels_overlap_nowhere(home):
    story = read(home)
    first, last = span_of(story)
    labels = in_rows(marks_of(story), first, last)
    by_name = {label.mark.name: label.row for label in labels}
    assert by_name["payment"] != by_name["light"]
    assert by_name["notice"] == by_name["cut"] == 0


def test_while_it_is_dark_the_picture_ends_in_the_dark(tmp_path):
    story = read(published(tmp_path, switched_off()))
    assert dark_spans(story) == [(local("2025-09-01 10:02"), story.at)]
    draw(story, tmp_path / "dark.svg")


def test_an_account_nothing_happened_to_can_be_drawn(tmp_path):
    story = Story()
    story.account(opening_register_wh=None)
    story.tick()
    home = published(tmp_path, story)
    draw(read(home), tmp_path / "empty.svg")
    assert "is 0 soum." in text_of(explain(read(home)))


# ---- words -----------------------------------------------------------------------------------------------------------


def test_amounts_energies_times_and_spans_are_written_exactly():
    assert [soum(t) for t in (-170_000, 5, -5, 123_456_789)] == [
        "−1 700 soum",
        "0.05 soum",
        "−0.05 soum",
        "1 234 567.89 soum",
    ]
    assert [kwh(w) for w in (0, 41_000, 1_234_567)] == ["0 kWh", "41 kWh", "1 234.567 kWh"]
    assert when(local("2025-09-02 10:00")) == "Tue 2 Sep 2025 at 10:00"
    assert [span(timedelta(seconds=s)) for s in (0, 61, 3_600, 90_061)] == [
        "0 seconds",
        "1 minute 1 second",
        "1 hour",
        "1 day 1 hour",
    ]
