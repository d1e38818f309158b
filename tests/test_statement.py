"""The statement: adds up on the page in every language, period upon period, and prints on one sheet of A4."""

import os
import random
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from datetime import date, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from tests.in_process import ask, call
from tests.random_records import random_records
from tests.stories import local, microseconds
from tests.warehouse_homes import history, history_of, load_and_publish, whole
from warehouse.audit import open_published
from warehouse.page import DAYS_ON_A_SHEET, render
from warehouse.statement import Period, UnknownAccountError, make_statement
from warehouse.story import read_story
from warehouse.why import explain
from warehouse.words import LANGUAGES, Words, read_words

CASES = ("adversary-01", "one-rollover", "one-exchange")
SEEDS = ((7, "all"), (8, "adversary"))
VOID = {"meta", "link", "br", "rect"}
NUMBER = re.compile(r"−?\d[\d \u00a0]*[.,]\d{2,3}(?!\d)")


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Homes with trouble of all kinds: worked cases, and utilities made of random numbers."""
    folder = tmp_path_factory.mktemp("homes")
    made = [history_of(folder / case, case) for case in CASES]
    for one in made:
        load_and_publish(one.home)
    random_ones = [history(folder / f"{style}-{seed}", random_records(seed, style)) for seed, style in SEEDS]
    return [one.home for one in (*made, *random_ones)]


def accounts_of(con) -> list[str]:
    return [account for (account,) in con.execute("SELECT account_id FROM balances ORDER BY 1").fetchall()]


def pages_of(homes, months=False):
    """Every account's statement: of all its time, or of the month with the most in it."""
    for home in homes:
        with open_published(home) as con:
            for account in accounts_of(con):
                try:
                    page = make_statement(con, account)
                except UnknownAccountError:
                    continue
                if months:
                    days = [u.last_day for u in page.usage] or [page.last_day]
                    page = make_statement(con, account, max(days, key=days.count).replace(day=1))
                yield page


RECORDS = {
    "tariff": [
        {"tariff": "t", "effective_on": date(2025, 1, 1), "block_upto_kwh": upto, "price_tiyin_per_kwh": price}
        for upto, price in ((200, 60_000), (None, 80_000))
    ],
    "account": [
        {
            "account_id": "A-1",
            "effective_at": microseconds(local("2025-03-01 00:00")),
            "meter_id": "M-1",
            "district": "d",
            "tariff": "t",
            "language": "ru",
            "opening_register_wh": 1_000_000,
            "opening_balance_tiyin": 50_000_000,
        }
    ],
    "reading": [
        {"meter_id": meter, "read_at": microseconds(local(at)), "register_wh": wh, "status": status}
        for meter, at, wh, status in (
            ("M-1", "2025-03-11 00:00", 1_100_000, None),
            ("M-1", "2025-04-11 00:00", 1_410_000, "measured"),
            ("M-2", "2025-04-25 00:00", 60_000, None),
            ("M-2", "2025-05-05 00:00", 80_000, "estimated"),
        )
    ],
    "meter_exchange": [
        {
            "account_id": "A-1",
            "exchanged_at": microseconds(local("2025-04-20 00:00")),
            "old_meter_id": "M-1",
            "old_register_wh": 1_500_000,
            "new_meter_id": "M-2",
            "new_register_wh": 50_000,
        }
    ],
    "payment": [
        {
            "payment_id": f"P-{n}",
            "account_id": "A-1",
            "paid_at": microseconds(local(at)),
            "amount_tiyin": 1_000_000,
            "channel": "Click",
        }
        for n, at in enumerate(("2025-03-05 12:00", "2025-04-05 12:00"))
    ],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One customer, told by hand: a month's turn between two readings, an exchange, an estimate that stands."""
    return history(tmp_path_factory.mktemp("plain") / "home", whole(RECORDS)).home


NIGHT = "22:00-06:00"
HOURS = (
    ("06:00-09:00,17:00-22:00", None, 150_000),
    ("09:00-17:00", None, 100_000),
    (NIGHT, 1, 60_000),
    (NIGHT, None, 90_000),
)
BY_HOURS = {
    "tariff": [
        {"tariff": "t", "effective_on": date(2025, 1, 1), "hours": h, "block_upto_kwh": u, "price_tiyin_per_kwh": p}
        for h, u, p in HOURS
    ],
    "account": [
        {**RECORDS["account"][0], "effective_at": microseconds(local("2025-05-31 21:00")), "opening_register_wh": 0}
    ],
    "reading": [
        {"meter_id": "M-1", "read_at": microseconds(local(at)), "register_wh": wh, "status": None}
        for at, wh in (("2025-05-31 23:00", 800), ("2025-06-01 05:00", 2_000), ("2025-06-01 07:00", 2_600))
    ],
}


def test_usage_by_the_hour_stands_by_block_and_hours(tmp_path):
    """400 Wh of peak and 600 of the night in May; in June 1,300 of the night, 300 of them above a kWh, and 300 of peak."""
    home = history(tmp_path / "home", whole(BY_HOURS)).home
    with open_published(home) as con:
        page, june = make_statement(con, "A-1"), make_statement(con, "A-1", date(2025, 6, 1))
        sentences = explain(read_story(con, "A-1"))
    (usage,) = page.blocks
    assert [(b.hours, b.above_kwh, b.usage_wh, -b.amount_tiyin) for b in usage.blocks] == [
        ("06:00-09:00,17:00-22:00", 0, 700, 105_000),
        (NIGHT, 0, 1_600, 96_000),
        (NIGHT, 1, 300, 27_000),
    ]
    assert (page.adds_up, page.explained, june.adds_up, june.explained) == (True,) * 4
    assert [(b.usage_wh, -b.amount_tiyin) for b in june.blocks[0].blocks] == [
        (300, 45_000),
        (1_000, 60_000),
        (300, 27_000),
    ]
    shown = render(page, "en")
    assert "06:00–09:00, 17:00–22:00" in shown
    assert "22:00–06:00: 0–1" in shown
    assert any("22:00–06:00: 600 soum a kWh up to 1 kWh, 900 soum beyond" in s.text for s in sentences)


# ---- words -----------------------------------------------------------------------------------------------------------


def test_every_word_is_there_in_every_language_with_the_same_places():
    for key, texts in read_words().items():
        assert set(texts) == set(LANGUAGES), key
        places = {language: sorted(re.findall(r"\{\w+\}", text)) for language, text in texts.items()}
        assert all(text for text in texts.values()), key
        assert len({tuple(found) for found in places.values()}) == 1, (key, places)


def test_every_word_of_the_table_is_used_and_none_is_missing():
    sources = "".join(
        Path(__file__).parent.parent.joinpath(path).read_text("utf-8")
        for path in ("warehouse/page.py", "warehouse/page.html", "warehouse/words.py", "hisob/commands/statement.py")
    )
    of_data = re.compile(
        r"month_\d|sum_|supply_|opening$|payment$|reversal$|adjustment$|estimate_given_back|late_reading|refund_due|to_pay"
    )
    for key in read_words():
        said_by_data = of_data.match(key) or key in {"measured", "estimated", "interpolated"}
        assert said_by_data or f'"{key}"' in sources or f"'{key}'" in sources, key


@pytest.mark.parametrize(
    ("language", "soum", "kwh"),
    [
        ("en", "−1 234 567.05", "1 234.005"),
        ("ru", "−1\u00a0234\u00a0567,05", "1\u00a0234,005"),
        ("uz-Latn", "−1\u00a0234\u00a0567,05", "1\u00a0234,005"),
        ("uz-Cyrl", "−1\u00a0234\u00a0567,05", "1\u00a0234,005"),
    ],
)
def test_numbers_are_written_as_the_language_writes_them(language, soum, kwh):
    words = Words(language)
    assert words.soum(-123_456_705) == soum
    assert words.kwh(1_234_005) == kwh


# ---- adding up -------------------------------------------------------------------------------------------------------


def test_money_and_energy_add_up_on_every_page(homes):
    count = 0
    for page in pages_of(homes):
        count += 1
        assert page.adds_up, page.account_id
        assert page.registers_wh + page.given_back_wh == page.usage_wh
        assert sum(u.usage_wh for u in page.blocks) == sum(u.usage_wh for u in page.usage)
        assert sum(u.amount_tiyin for u in page.blocks) == page.usage_tiyin
        assert sum(e.usage_wh for e in page.estimates) == sum(u.usage_wh for u in page.usage if u.basis == "estimated")
    assert count > 40


def test_what_a_period_closes_with_the_next_one_opens_with(homes):
    draw = random.Random(3)
    compared = 0
    for home in homes:
        with open_published(home) as con:
            for account in accounts_of(con)[:9]:
                try:
                    page = make_statement(con, account)
                except UnknownAccountError:
                    continue
                days = (page.last_day - page.first_day).days + 1
                cuts = sorted({page.first_day + timedelta(draw.randrange(days)) for _ in range(4)})
                starts, ends = [None, *cuts], [*(cut - timedelta(1) for cut in cuts), None]
                pages = [make_statement(con, account, period=Period(*both)) for both in zip(starts, ends, strict=True)]
                assert all(p.adds_up for p in pages)
                for one, two in pairwise(pages):
                    assert one.closing_tiyin == two.opening_tiyin
                    if one.registers:
                        closing, opening = one.registers[-1], two.registers[0]
                        assert (closing.meter_id, closing.closing) == (opening.meter_id, opening.opening)
                        compared += 1
                assert pages[-1].closing_tiyin == page.closing_tiyin
                assert sum(p.usage_wh for p in pages) == page.usage_wh
                assert sum(p.registers_wh for p in pages) == page.registers_wh
    assert compared > 50


def test_registers_stand_with_their_moment_and_how_they_were_come_by(plain):
    with open_published(plain) as con:
        march, april, may = (make_statement(con, "A-1", date(2025, month, 1)) for month in (3, 4, 5))

    def ends(stretch):
        return [(r.at, r.register_wh, r.status) for r in (stretch.opening, stretch.closing)]

    turn = (local("2025-04-01 00:00"), 1_310_000, "interpolated")
    assert [ends(r) for r in march.registers] == [[(local("2025-03-01 00:00"), 1_000_000, "measured"), turn]]
    first, second = april.registers
    changed = local("2025-04-20 00:00")
    assert ends(first) == [turn, (changed, 1_500_000, "measured")]
    assert (second.meter_id, second.exchanged_at) == ("M-2", changed)
    assert ends(second) == [(changed, 50_000, "measured"), (local("2025-05-01 00:00"), 72_000, "estimated")]
    assert [ends(r)[1] for r in may.registers] == [(local("2025-05-05 00:00"), 80_000, "estimated")]
    assert [(e.stands, e.usage_wh) for e in (*april.estimates, *may.estimates)] == [(True, 12_000), (True, 8_000)]
    assert (april.meter_id, march.meter_id) == ("M-2", "M-1")
    assert all(page.adds_up for page in (march, april, may))
    with open_published(plain) as con:
        since, before = Period(date(2025, 4, 20)), Period(None, date(2025, 4, 19))
        (after,) = make_statement(con, "A-1", period=since).registers
        until = make_statement(con, "A-1", period=before).registers
    assert (after.opening, after.exchanged_at) == (second.opening, None)
    assert [r.meter_id for r in until] == ["M-1", "M-2"]
    assert until[-1].closing == after.opening


def test_a_rollover_is_named_so_that_the_registers_add_up(homes):
    rolled = [(page, r) for page in pages_of(homes) for r in page.registers if r.rolled_over]
    assert rolled
    for page, stretch in rolled:
        words = Words("en")
        assert f"rolled over at {words.kwh(stretch.modulus_wh)} kWh" in render(page, "en")


# ---- the page in HTML ------------------------------------------------------------------------------------------------


class Parsed(HTMLParser):
    """A page, its tags in balance; the text of each element on its own."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.sums: list[str] = []
        self.language = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in {"script", "link", "img", "iframe"}
        self.language = self.language or attributes.get("lang")
        if tag not in VOID:
            self.open.append((tag, attributes))

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        self.texts.append(text)
        if self.open and self.open[-1][0] == "b" and any(a.get("class") in {"sum", "sum many"} for _, a in self.open):
            self.sums.append(text)

    @property
    def numbers(self) -> set[str]:
        shown = (text for text in self.texts if "@page" not in text)
        return {number for text in shown for number in NUMBER.findall(text)}


def tiyin_of(text: str) -> int:
    return int(re.sub(r"[ \u00a0.,+]", "", text).replace("−", "-"))


def numbers_of(value, key=""):
    """Every amount and energy of a page, by what it is called."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in {"account", "modulus_wh", "details"}:
                yield from numbers_of(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_of(inner, key)
    elif isinstance(value, int) and not isinstance(value, bool) and value:
        if key.endswith(("_tiyin", "_tiyin_per_kwh")):
            yield "soum", value
        elif key.endswith("_wh"):
            yield "kwh", value


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_adds_up_as_it_is_printed_in_every_language(homes, plain, language):
    for page in pages_of([homes[0], homes[-1], plain]):
        parsed = Parsed(render(page, language))
        assert parsed.language == language
        opening, *between, closing = map(tiyin_of, parsed.sums)
        assert opening + sum(between) == closing == page.closing_tiyin


@pytest.mark.parametrize("language", ["ru", "en"])
def test_the_page_holds_every_number_of_the_json(homes, language):
    words = Words(language)
    for page in pages_of(homes, months=True):
        shown = Parsed(render(page, language)).numbers
        for unit, value in numbers_of(asdict(page)):
            assert getattr(words, unit)(value) in shown, (page.account_id, unit, value)


def test_the_page_needs_nothing_from_elsewhere(plain):
    with open_published(plain) as con:
        html = render(make_statement(con, "A-1"), "en")
    assert not re.search(r"https?://|url\(|@import|@font-face|<script", html)


def test_whatever_a_record_says_comes_out_escaped(plain):
    bad = "<script>alert('&')</script>"
    with open_published(plain) as con:
        page = make_statement(con, "A-1")
    page = replace(page, account_id=bad, meter_id=bad, tariff=bad)
    page.credits = [replace(line, details={"channel": bad, "id": bad}) for line in page.credits]
    html = render(page, "uz-Latn")
    assert bad not in html
    assert html.count("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;") >= 5 + len(page.credits)
    Parsed(html)


def test_what_looks_like_markup_stays_as_it_is_in_the_terminal(plain, capsys):
    from hisob.commands.statement import print_statement

    with open_published(plain) as con:
        page = make_statement(con, "A-1")
    print_statement(replace(page, account_id="[red]A[/red]", meter_id="[bold]M"))
    said = capsys.readouterr().out
    assert "[red]A[/red]" in said
    assert "[bold]M" in said


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_page_is_in_the_customers_language_and_the_terminal_in_english(plain, tmp_path):
    file = tmp_path / "page.html"
    code, said = call(plain.path, "statement", "A-1", "--month", "2025-03", "--html", file)
    assert code == 0
    assert "Account A-1" in said
    assert "closing balance" in said
    assert Parsed(file.read_text("utf-8")).language == "ru"
    code, said = call(plain.path, "statement", "A-1", "--html", file, "--language", "uz-Cyrl")
    assert Parsed(file.read_text("utf-8")).language == "uz-Cyrl"
    assert "Ҳисобрақам A-1" in said


def test_a_period_is_its_days_the_last_included(plain):
    page = ask(plain.path, "statement", "A-1", "--from", "2025-03-11", "--to", "2025-04-10")
    assert (page["month"], page["first_day"], page["last_day"]) == (None, "2025-03-11", "2025-04-10")
    assert page["usage_wh"] == 310_000
    assert [r["opening"]["status"] for r in page["registers"]] == ["measured"]
    assert ask(plain.path, "statement", "A-1", "--to", "2025-03-10")["usage_wh"] == 100_000


@pytest.mark.parametrize(
    "days", [("2025-03-12", "2025-03-14"), ("2024-01-01", "2024-01-31"), ("2026-01-01", "2026-01-31")]
)
def test_a_period_in_which_nothing_happened_opens_and_closes_alike(plain, tmp_path, days):
    file = tmp_path / "page.html"
    page = ask(plain.path, "statement", "A-1", "--from", days[0], "--to", days[1], "--html", file)
    assert page["opening_tiyin"] == page["closing_tiyin"]
    assert (page["usage"], page["credits"], page["corrections"]) == ([], [], [])
    assert [(r["opening"], r["usage_wh"]) for r in page["registers"]] == [(r["closing"], 0) for r in page["registers"]]
    assert len(page["registers"]) == (days[0] > "2025")
    Parsed(file.read_text("utf-8"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("A-1", "--month", "2025-13"), 2, "2025-13"),
        (("A-1", "--month", "March"), 2, "March"),
        (("A-1", "--from", "2025-02-30"), 2, "2025-02-30"),
        (("A-1", "--from", "2025-03-02", "--to", "2025-03-01"), 2, "2025-03-02"),
        (("A-1", "--month", "2025-03", "--to", "2025-03-31"), 2, "not both"),
        (("A-1", "--language", "kz"), 2, "kz"),
    ],
)
def test_what_cannot_be_told_is_explained(plain, arguments, code, said):
    found = call(plain.path, "statement", *arguments)
    assert found[0] == code
    assert said in found[1]


def test_an_account_there_is_not_is_named_with_those_there_are(plain):
    with open_published(plain) as con, pytest.raises(UnknownAccountError, match=r"no account A-2; there is A-1\."):
        make_statement(con, "A-2")


# ---- on paper --------------------------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
BROWSER = os.environ.get("HISOB_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


def busiest_month() -> dict:
    """A month with nearly all there can be: 31 days through six blocks, payments, an exchange, estimates, an adjustment."""
    start = local("2025-03-01 00:00")
    registers = [1_000_000 + 332_345 * day + 1000 * (day * day % 37) for day in range(32)]
    readings = [("M-1", start + timedelta(days=day), wh, "measured") for day, wh in enumerate(registers)]
    readings = [r for r in readings if r[1] <= local("2025-03-16 00:00")]
    readings += [
        ("M-2", start + timedelta(days=day), registers[day] - registers[15], "measured") for day in range(16, 32)
    ]
    readings += [
        ("M-1", start + timedelta(days=day, hours=12), registers[day] + 40_000, "estimated") for day in (3, 7, 9)
    ]
    blocks = ((200, 60_000), (500, 80_000), (1_000, 100_000), (5_000, 150_000), (10_000, 175_000), (None, 200_000))
    return {
        "tariff": [
            {
                "tariff": "household",
                "effective_on": date(2025, 1, 1),
                "block_upto_kwh": upto,
                "price_tiyin_per_kwh": price,
            }
            for upto, price in blocks
        ],
        "account": [{**RECORDS["account"][0], "tariff": "household", "max_power_w": 50_000}],
        "reading": [
            {"meter_id": meter, "read_at": microseconds(at), "register_wh": wh, "status": status}
            for meter, at, wh, status in readings
        ],
        "meter_exchange": [
            {
                **RECORDS["meter_exchange"][0],
                "exchanged_at": microseconds(local("2025-03-16 00:00")),
                "old_register_wh": registers[15],
                "new_register_wh": 0,
            }
        ],
        "payment": [
            {
                **RECORDS["payment"][0],
                "payment_id": f"PAYME-{n:06}",
                "paid_at": microseconds(start + timedelta(days=3 * n)),
            }
            for n in range(10)
        ],
        "adjustment": [
            {
                "adjustment_id": "ADJ-1",
                "account_id": "A-1",
                "adjusted_at": microseconds(local("2025-03-20 10:00")),
                "amount_tiyin": -123_456,
                "author": "Karimova N.",
                "reason": "перерасчёт по акту № 17 от 14.03.2025",
            }
        ],
    }


def sheets_of(html: Path) -> int:
    """How many pages a browser prints it on."""
    paper = html.with_suffix(".pdf")
    profile = html.parent / "profile"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--no-pdf-header-footer", f"--print-to-pdf={paper}", html.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))


@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome here; HISOB_BROWSER=/path/to/one names it")
def test_the_busiest_month_prints_on_one_sheet_of_a4(tmp_path):
    home = history(tmp_path / "home", whole(busiest_month())).home
    with open_published(home) as con:
        page = make_statement(con, "A-1", date(2025, 3, 1))
    assert len(page.usage) > DAYS_ON_A_SHEET - 3
    assert page.adds_up
    for language in LANGUAGES:
        file = Path(os.environ.get("HISOB_PAGES") or tmp_path).resolve() / f"statement-{language}.html"
        file.write_text(render(page, language), encoding="utf-8")
        assert sheets_of(file) == 1, language
