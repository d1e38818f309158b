"""Policies: which rules hold for a place at a moment. DESIGN, "Decisions, to begin with".

A place is (district, feeder, account) as far as policies can tell accounts apart. Of several policies of a kind that
apply, the narrowest scope counts, then the latest; holidays and moratoria add up: any that applies holds. A policy
that arrives under an id already used replaces it, so ending one is journalling it again with `ends_at`. Times of day
and days are Asia/Tashkent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from accounting.calendar import US_PER_DAY, US_PER_HOUR, US_PER_MINUTE, day_of, day_start, iso_weekday
from accounting.state import FOREVER

THRESHOLDS = {
    "notice_hours": 72,
    "notice_gap_hours": 24,
    "reconnect_tiyin": 0,
    "max_reading_age_hours": 24,
    "cuts_per_hour": 500,
    "cuts_per_feeder_hour": 50,
}
SCOPES = ("all", "district", "feeder", "account")


@dataclass(frozen=True)
class Policy:
    """One policy as journalled; `arrival` counts policies."""

    policy_id: str
    kind: str
    scope: str
    starts_at: int
    ends_at: int | None
    value: str | None
    arrival: int

    def applies(self, place: Place, at: int) -> bool:
        """Whether it holds for the place at the moment."""
        return self.starts_at <= at and (self.ends_at is None or at < self.ends_at) and self.covers(place)

    def covers(self, place: Place) -> bool:
        """Whether the place lies in its scope."""
        what, _, name = self.scope.partition(":")
        return what == "all" or (what in SCOPES and getattr(place, what) == name)

    @property
    def rank(self) -> tuple[int, int, int]:
        """Greater for the one that counts of several."""
        return SCOPES.index(self.scope.partition(":")[0]), self.starts_at, self.arrival


class Place(NamedTuple):
    """What policies can tell accounts apart by; `account` only where one names the account."""

    district: str
    feeder: str | None
    account: str | None


@dataclass(frozen=True)
class Rules:
    """What holds for a place at a moment. Moments are UTC µs; window_until is None outside a window."""

    window_until: int | None
    forbidden: str | None  # holiday or moratorium: why no supply is cut, whatever the window
    quiet_until: int | None
    quiet_from: int | None  # start of the coming quiet hours (when not in them)
    quiet_next_until: int | None  # and their end
    notice_us: int
    notice_gap_us: int
    reconnect_tiyin: int
    max_reading_age_us: int
    cuts_per_hour: int  # what the dispatcher holds to
    cuts_per_feeder_hour: int
    consulted: tuple[str, ...]


def check_policy(kind: str, scope: str, value: str | None) -> str | None:
    """What is wrong with a policy, in words; None if nothing."""
    what, colon, name = scope.partition(":")
    if what not in SCOPES or (what == "all") == bool(colon) or (colon and not name):
        return f"scope {scope!r} is none of all, district:X, feeder:X, account:X"
    try:
        given = json.loads(value) if value else {}
        if not isinstance(given, dict):
            return "value is not a JSON object"
        if kind in ("disconnect_window", "quiet_hours"):
            _minutes(given["from"]), _minutes(given["to"])
        if kind == "disconnect_window" and not all(isinstance(d, int) and 1 <= d <= 7 for d in given["days"]):
            return "days are ISO weekdays, 1 to 7"
        if kind == "threshold":
            wrong = [
                k for k, v in given.items() if k not in THRESHOLDS or not isinstance(v, int) or isinstance(v, bool)
            ]
            if wrong:
                return f"{wrong[0]} is no whole number of a threshold"
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        return f"value is not understood: {error}"
    return None


def rules_at(policies: list[Policy], place: Place, at: int) -> Rules:
    """The rules for a place at a moment, and which policies they came of."""
    window = _counting(policies, "disconnect_window", place, at)
    quiet = _counting(policies, "quiet_hours", place, at)
    thresholds, threshold_ids = _thresholds(policies, place, at)
    forbidding = _forbidding(policies, place, at)
    window_until = _span_end(window, at, days=True) if window else None
    if window_until is not None:  # a command must not outlive the start of a moratorium that is known by now
        window_until = min([window_until, *_moratoria_from(policies, place, at)])
    quiet_until = _span_end(quiet, at) if quiet else None
    quiet_from = quiet_next_until = None
    if quiet and quiet_until is None:
        quiet_from = _next_start(quiet, at)
        quiet_next_until = _span_end(quiet, quiet_from)
    used = [p.policy_id for p in (window, quiet, forbidding) if p]
    return Rules(
        window_until,
        forbidding.kind if forbidding else None,
        quiet_until,
        quiet_from,
        quiet_next_until,
        thresholds["notice_hours"] * US_PER_HOUR,
        thresholds["notice_gap_hours"] * US_PER_HOUR,
        thresholds["reconnect_tiyin"],
        thresholds["max_reading_age_hours"] * US_PER_HOUR,
        thresholds["cuts_per_hour"],
        thresholds["cuts_per_feeder_hour"],
        tuple(used + threshold_ids),
    )


def rules_hold_until(policies: list[Policy], at: int) -> int:
    """A moment up to which the rules of every place stay as they are: the next turn of a policy, a daily span or the day."""
    return min([day_start(day_of(at) + 1), *_turns(policies, at)])


def quiet_hours_hold_until(policies: list[Policy], at: int) -> int:
    """A moment up to which the quiet hours of every place are those in force or next; FOREVER if there are none."""
    return min(_turns([p for p in policies if p.kind == "quiet_hours"], at), default=FOREVER)


def _turns(policies: list[Policy], at: int) -> list[int]:
    """The next moments after `at` at which policies or their daily spans begin or end."""
    moments = []
    for p in policies:
        moments += [m for m in (p.starts_at, p.ends_at) if m is not None and m > at]
        if p.kind in ("disconnect_window", "quiet_hours"):
            for us in _span(p)[:2]:
                turn = day_start(day_of(at)) + us
                moments.append(turn if turn > at else turn + US_PER_DAY)
    return moments


def _counting(policies: list[Policy], kind: str, place: Place, at: int) -> Policy | None:
    applying = [p for p in policies if p.kind == kind and p.applies(place, at)]
    return max(applying, key=lambda p: p.rank, default=None)


def _thresholds(policies: list[Policy], place: Place, at: int) -> tuple[dict[str, int], list[str]]:
    """A narrower threshold need not repeat what it leaves as it is."""
    values, ids = dict(THRESHOLDS), []
    for p in sorted((p for p in policies if p.kind == "threshold" and p.applies(place, at)), key=lambda p: p.rank):
        values.update(json.loads(p.value) if p.value else {})
        ids.append(p.policy_id)
    return values, ids


def _forbidding(policies: list[Policy], place: Place, at: int) -> Policy | None:
    """A moratorium now, or a holiday today or tomorrow. A holiday without an end is the one day it starts on."""
    today = day_of(at)
    from_at, to_at = day_start(today), day_start(today + 2)
    for p in policies:
        if p.kind == "moratorium" and p.applies(place, at):
            return p
        if p.kind == "holiday" and p.covers(place):
            ends_at = day_start(day_of(p.starts_at) + 1) if p.ends_at is None else p.ends_at
            if p.starts_at < to_at and ends_at > from_at:
                return p
    return None


def _moratoria_from(policies: list[Policy], place: Place, at: int) -> list[int]:
    """When moratoria begin that are to come; not those called off before they begin."""
    coming = [p for p in policies if p.kind == "moratorium" and p.starts_at > at and p.covers(place)]
    return [p.starts_at for p in coming if p.ends_at is None or p.ends_at > p.starts_at]


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    of_day = int(hours) * 60 + int(minutes)
    if not (0 <= of_day <= 24 * 60 and int(minutes) < 60):
        msg = f"{text!r} is no time of day"
        raise ValueError(msg)
    return of_day


def _span(policy: Policy) -> tuple[int, int, dict[str, Any]]:
    value = json.loads(policy.value or "{}")
    return _minutes(value["from"]) * US_PER_MINUTE, _minutes(value["to"]) * US_PER_MINUTE, value


def _span_end(policy: Policy, at: int, *, days: bool = False) -> int | None:
    """The end of the daily span that a moment lies in; None outside. A span may run over midnight; its day is its first."""
    from_us, to_us, value = _span(policy)
    length = (to_us - from_us) % US_PER_DAY or (US_PER_DAY if to_us != from_us else 0)
    for day in (day_of(at), day_of(at) - 1):
        start = day_start(day) + from_us
        if start <= at < start + length and (not days or iso_weekday(day) in value["days"]):
            return start + length if policy.ends_at is None else min(start + length, policy.ends_at)
    return None


def _next_start(policy: Policy, at: int) -> int:
    from_us, _, _ = _span(policy)
    start = day_start(day_of(at)) + from_us
    return start if start > at else start + US_PER_DAY
