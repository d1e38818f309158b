"""Why records are refused or held, and what to do next: the table hisob/data/reasons.toml, read."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Reason:
    """One line of the table. kinds: of record it can befall, none: any. next_step: what to do, or what is waited for."""

    name: str
    kinds: tuple[str, ...]
    means: str
    next_step: str


def read_table() -> dict[str, dict[str, Reason]]:
    """The three parts of the table, each by name: `refused` by the rules, `unreadable` rows, and `held`."""
    text = files("hisob.data").joinpath("reasons.toml").read_text(encoding="utf-8")
    return {
        part: {name: Reason(name, tuple(r["of"]), r["means"], r["next"]) for name, r in reasons.items()}
        for part, reasons in tomllib.loads(text).items()
    }


_TABLE = read_table()
REFUSED = _TABLE["refused"]
UNREADABLE = _TABLE["unreadable"]
HELD = _TABLE["held"]
REASONS = UNREADABLE | REFUSED  # of what is refused; no name is in both
