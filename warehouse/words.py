"""The words of a statement in the languages it speaks, and how each of them writes numbers, days and moments.

All of it is data: words.toml, one table a word, one text a language. What is not there cannot be said.
"""

from __future__ import annotations

import tomllib
from calendar import monthrange
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from accounting.moments import TASHKENT

if TYPE_CHECKING:
    from datetime import date, datetime

LANGUAGES = ("uz-Latn", "uz-Cyrl", "ru", "en")
DEFAULT = "uz-Latn"  # where an account names no language, as for its notices


@cache
def read_words() -> dict[str, dict[str, str]]:
    """Every word, by language."""
    return tomllib.loads(files("warehouse").joinpath("words.toml").read_text(encoding="utf-8"))


class Words:
    """The words and ways of one language. `words["charge"]`; a text with places takes them by name: `words("until", at=…)`."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._words = {key: texts[language] for key, texts in read_words().items()}

    def __getitem__(self, key: str) -> str:
        return self._words[key]

    def __call__(self, key: str, **places: str) -> str:
        return self._words[key].format(**places)

    def sentence(self, key: str, **places: str) -> str:
        """A word as the first of a line."""
        text = self(key, **places)
        return text[0].upper() + text[1:]

    def soum(self, tiyin: int) -> str:
        """An amount in soum."""
        return self._decimal(tiyin, 100, 2)

    def signed(self, tiyin: int) -> str:
        """An amount in soum that is added."""
        return self.soum(tiyin) if tiyin < 0 else f"+{self.soum(tiyin)}"

    def kwh(self, wh: int) -> str:
        """Energy in kWh."""
        return self._decimal(wh, 1000, 3)

    def whole(self, number: int) -> str:
        """A whole number."""
        return f"{'−' if number < 0 else ''}{abs(number):,}".replace(",", self["thousands"])

    def _decimal(self, number: int, of: int, places: int) -> str:
        whole, rest = divmod(abs(number), of)
        return f"{'−' if number < 0 else ''}{self.whole(whole)}{self['decimal']}{rest:0{places}}"

    def day(self, day: date) -> str:
        """A day."""
        return f"{day:%d.%m.%Y}"

    def days(self, first: date, last: date) -> str:
        """A day, or the first and last of several."""
        if first == last:
            return self.day(last)
        return f"{first:%d.%m}–{self.day(last)}" if first.year == last.year else f"{self.day(first)}–{self.day(last)}"

    def period(self, first: date, last: date) -> str:
        """A period: a month by its name."""
        if first.day == 1 and last == first.replace(day=monthrange(first.year, first.month)[1]):
            return self.month(first)
        return f"{self.day(first)} – {self.day(last)}"

    def moment(self, at: datetime) -> str:
        """A moment by the clocks of Tashkent, to the second where it has one."""
        local = at.astimezone(TASHKENT)
        return f"{local:%d.%m.%Y %H:%M:%S}" if local.second else f"{local:%d.%m.%Y %H:%M}"

    def month(self, month: date) -> str:
        """A month and its year."""
        return self("month_of_year", month=self[f"month_{month.month}"], year=str(month.year))

    def short_limits(self, above_kwh: int, upto_kwh: int | None, hours: str | None = None) -> str:
        """In which hours a block holds, and what it reaches from and to, where the head of the column says that it is kWh."""
        found = self["block_all"]
        if upto_kwh is not None:
            found = f"{self.whole(above_kwh)}–{self.whole(upto_kwh)}"
        elif above_kwh:
            found = f"> {self.whole(above_kwh)}"
        return self._in_hours(found, hours)

    def limits(self, above_kwh: int, upto_kwh: int | None, hours: str | None = None) -> str:
        """In which hours a block holds, and what it reaches from and to."""
        found = self["block_all"]
        if upto_kwh is not None:
            found = f"{self.whole(above_kwh)}–{self.whole(upto_kwh)} {self['kwh']}"
        elif above_kwh:
            found = self("block_above", kwh=self.whole(above_kwh))
        return self._in_hours(found, hours)

    def _in_hours(self, limits: str, hours: str | None) -> str:
        """Limits of a block that holds in some hours only; where it has none, the hours are enough."""
        if hours is None:
            return limits
        shown = hours.replace("-", "–").replace(",", ", ")
        return shown if limits == self["block_all"] else f"{shown}: {limits}"
