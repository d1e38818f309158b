"""Why the supply is as it is, in sentences: which readings, tariff, notice, receipt, policy and rule led to it.

The sentences are made of the story of the account (`warehouse.story`) and of the rules for notices, cuts and reconnections.
Each ends with the ids of the records and events it was made of, so that they can be looked up: `FROM cause_of('3-1200-0')`.
Of a cut that was commanded they tell the grounds, held against the records; of one that was not, what stood in its way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from accounting.moments import TASHKENT, US, us_of
from accounting.notices import soum as soum_text
from accounting.policies import Place, Policy, Rules, check_policy, rules_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warehouse.story import Happening, Story

DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FAILED = {
    "undeliverable": "could not be delivered",
    "expired": "expired undelivered",
    "rejected": "was rejected by the channel",
}
ANSWERED = {
    "opened": "The switch was read back open",
    "closed": "The switch was read back closed",
    "unreachable": "The switch could not be reached",
    "mismatch": "The switch was read back otherwise than commanded",
    "expired": "The command was not carried out in its time",
    "superseded": "The command was not carried out, for a later one had voided it",
}
STATES = {
    "connected": "connected",
    "disconnect_pending": "about to be cut: the switch has not answered yet",
    "disconnected": "cut off",
    "reconnect_pending": "about to be given back: the switch has not answered yet",
    "unknown": "not known: no readback proves it",
}


@dataclass(frozen=True)
class Sentence:
    """What is so, and the ids of what says so."""

    text: str
    sources: tuple[str, ...] = ()


def say(text: str, *sources: Happening | str | None) -> Sentence:
    """A sentence with its sources, each once."""
    ids = [source if isinstance(source, str) else source.id for source in sources if source is not None]
    return Sentence(text, tuple(dict.fromkeys(ids)))


def explain(story: Story) -> list[Sentence]:
    """The state of the supply at the story's moment, and what led to it, in the order of time."""
    past = outage_of(story)
    told = [headline(story), who(story)]
    if past:
        told += [*tell_outage(story, past), standing(story)]
    if story.state == "connected":
        told += [] if past else [standing(story)]
        told += [*tell_forecast(story), *([] if past else tell_last_notice(story)), *no_cut(story)]
    elif story.state in ("disconnect_pending", "disconnected", "unknown"):
        told += what_gives_back(story)
    return told


# ---- who, and how it stands ------------------------------------------------------------------------------------------


def headline(story: Story) -> Sentence:
    """The state, since when."""
    last = story.supply_states[-1] if story.supply_states else None
    if last is None or not story.commands:
        return say("The supply is connected, and has never been cut.", last)
    return say(f"The supply is {STATES[story.state]}. It is so since {when(last.at)}.", last)


def who(story: Story) -> Sentence:
    """The account as it is at the moment."""
    account = story.account
    parts = [f"meter {meter_of(story)}", f"tariff {account['tariff']}", f"district {account['district']}"]
    parts += [f"feeder {account['feeder']}"] if account["feeder"] else []
    parts += [f"{account['families']} families"] if (account["families"] or 1) > 1 else []
    parts += ["protected: it is never cut for a debt"] if account["supply_class"] == "protected" else []
    text = f"Account {story.account_id}: {', '.join(parts)}."
    if account["closed_at"] is not None:
        text += f" It was closed on {when(account['closed_at'])}."
    exchange = story.meter_exchanges[-1] if story.meter_exchanges else None
    return say(text, account, exchange)


def standing(story: Story) -> Sentence:
    """The balance, and the register it was reckoned from."""
    if not story.entries:
        return say("Nothing has moved the balance yet: it is 0 soum.")
    last, used = story.entries[-1], last_measured(story)
    text = f"The balance on {when(story.at)} is {soum(story.balance_tiyin)}"
    if story.measured_balance_tiyin != story.balance_tiyin:
        text += (
            f" ({soum(story.measured_balance_tiyin)} by measured registers alone, which is what a cut is decided by)"
        )
    if used is not None:
        text += f", charged up to the register of {kwh(used['to_wh'])} on {when(used['to_at'])}"
    tariff = tariff_of(story, last_measured(story))
    if used is not None and tariff:
        text += f" by tariff {tariff[0]['tariff']} of {tariff[0]['effective_on']:%d.%m.%Y} ({prices(tariff)})"
    return say(f"{text}.", last, used, *tariff[:1])


def tell_forecast(story: Story) -> Iterator[Sentence]:
    """How long the money lasts."""
    if story.forecasts and story.account["closed_at"] is None:
        last = story.forecasts[-1]
        level = "" if last["usage_wh_per_day"] is None else f" at {kwh(last['usage_wh_per_day'])} a day"
        if last["depletes_at"] is None:
            yield say(f"By the forecast of {when(last.at)} the money does not run out within 400 days{level}.", last)
        elif last["depletes_at"] <= last.at and story.balance_tiyin < 0:
            yield say(f"By the forecast of {when(last.at)} the money has run out.", last)
        elif last["depletes_at"] <= last.at:
            ran_out = about(last["depletes_at"])
            yield say(
                f"By the forecast of {when(last.at)} it ran out about {ran_out}, should use have gone on since it was read.",
                last,
            )
        else:
            yield say(
                f"By the forecast of {when(last.at)} it lasts until about {about(last['depletes_at'])}{level}.", last
            )


def tell_last_notice(story: Story) -> Iterator[Sentence]:
    """The last low-credit notice."""
    low = [n for n in story.notices if n["kind"] == "low_credit"]
    if low:
        yield from tell_notice(story, low[-1])


# ---- a cut, and how it ended -----------------------------------------------------------------------------------------


def outage_of(story: Story) -> list[Happening]:
    """The commands and answers since the supply was last on before it was cut, or asked to be; none: it never was."""
    first = None
    for before, state in zip([None, *story.supply_states], story.supply_states, strict=False):
        if state["state"] != "connected" and (before is None or before["state"] == "connected"):
            first = state
    if first is None:
        return []
    states = [s for s in story.supply_states if s["cause"] == "unanswered"]
    answers = [a for a in story.acknowledgements if answers_the_last(story, a)]
    steps = [*story.commands, *answers, *states]
    return sorted((s for s in steps if s.ordinal >= first.ordinal), key=lambda s: s.place)


def answers_the_last(story: Story, answer: Happening) -> bool:
    """Whether it answers the last command of then: a readback that answers an older one changes nothing."""
    before = [c.id for c in story.commands if c.place < answer.place]
    return before[-1:] == [answer["command_id"]]


def tell_outage(story: Story, steps: list[Happening]) -> Iterator[Sentence]:
    """Notice, cut, readback, payment, light; what was asked again and again is counted, not repeated."""
    asked: str | None = None
    again: list[Happening] = []
    for step in steps:
        if step.kind == "command" and step["action"] != asked:
            yield from tell_again(again)
            asked, again = step["action"], []
            yield from tell_cut(story, step) if asked == "disconnect" else tell_reconnection(story, step)
        elif step.kind == "command" or (again and step.kind == "supply_state"):
            again.append(step)
        elif step.kind == "supply_state":
            yield say(f"No answer had come by {when(step.at)}: whether the light is on became unknown.", step)
            again.append(step)
        elif again and step["outcome"] not in ("opened", "closed"):
            again.append(step)
        else:
            yield from tell_again(again)
            again = [] if step["outcome"] in ("opened", "closed") else [step]
            detail = f" ({step['detail']})" if step["detail"] else ""
            yield say(f"{ANSWERED[step['outcome']]} on {when(step.at)}{detail}.", step)
    yield from tell_again(again)


def tell_again(again: list[Happening]) -> Iterator[Sentence]:
    """How often a command was repeated, and what came of it the last time."""
    repeated = [step for step in again if step.kind == "command"]
    if repeated:
        answers = [step for step in again if step.kind == "acknowledgement"]
        times = "once more" if len(repeated) == 1 else f"{len(repeated)} times more, the last"
        unproven = answers[-1]["outcome"] if answers and answers[-1].place > repeated[-1].place else None
        came = f"; {ANSWERED[unproven][0].lower()}{ANSWERED[unproven][1:]}" if unproven else ""
        yield say(f"It was asked for {times} on {when(repeated[-1].at)}{came}.", repeated[-1], *answers[-1:])


def tell_cut(story: Story, command: Happening) -> Iterator[Sentence]:
    """A disconnection: its grounds, one by one."""
    found = json.loads(command["evidence"])
    then = story.upto(command)
    rules = rules_of(then)
    if command["cause"] != "credit":
        order = next(
            (o for o in reversed(story.orders) if o.ordinal <= command.ordinal and o["action"] == "disconnect"), None
        )
        by = f" by {order['author']}: {order['reason']}" if order else ""
        yield say(
            f"The supply was commanded to be cut on {when(command.at)}, as ordered for {command['cause']}{by}.",
            command,
            order,
        )
        if command["cause"] != "safety":
            yield window_sentence(story, rules, command.at)
        return
    notice = next((n for n in story.notices if n.id == (found.get("notice") or {}).get("notice_id")), None)
    if notice is not None:
        yield from tell_notice(story, notice, until=command)
    money = f"the balance was {soum(found['measured_balance_tiyin'])} by measured registers"
    credit = found["emergency_credit_tiyin"]
    money += f", below the emergency credit of {soum(credit)}" if credit else ", and there is no emergency credit"
    yield say(
        f"The supply was commanded to be cut on {when(command.at)}: {money}.", command, *entry_before(story, command)
    )
    if "last_measured" in found:
        measured = found["last_measured"]
        read_at = datetime.fromisoformat(measured["read_at"])
        yield say(
            f"Meter {measured['meter_id']} was read on {when(read_at)}: {kwh(measured['register_wh'])}. A reading may be"
            f" {hours(rules.max_reading_age_us)} old, no more.",
            *measured_by(story, command),
        )
    if notice is not None:
        gate_at = datetime.fromisoformat(found["notice"]["receipt_at"])
        yield say(
            f"The notice was settled {span(command.at - gate_at)} before the cut; it must be {hours(rules.notice_gap_us)}.",
            *policies(story, rules, "threshold"),
        )
    against = list(in_the_way(then))
    if then.measured_balance_tiyin != found["measured_balance_tiyin"]:
        against.append(
            say(f"The ledger's balance was {soum(then.measured_balance_tiyin)}.", *entry_before(story, command))
        )
    if rules.window_until is not None:
        yield window_sentence(story, rules, command.at)
    if against:
        yield say("Held against the records, these stood in its way:", command)
        yield from against
    else:
        text = (
            "It was no holiday, nor was the next day; no moratorium was on; the account was not protected, nor held on."
        )
        yield say(text, command)


def tell_notice(story: Story, notice: Happening, until: Happening | None = None) -> Iterator[Sentence]:
    """A low-credit notice and what became of it."""
    text = f"The customer was given notice of low credit on {when(notice.at)}"
    if notice["depletes_at"] is not None and notice["depletes_at"] > notice.at:
        text += f", {span(notice['depletes_at'] - notice.at)} before the money was to run out"
    if notice["send_after"] > notice.at:
        text += f", to be sent when quiet hours end, {when(notice['send_after'])}"
    balance = [e for e in story.entries if e.place < notice.place][-1:]
    text += f"; the balance was {soum(balance[0]['balance_tiyin'])}" if balance else ""
    if notice["phone"] is None:
        yield say(f"{text}. No phone is known, so there was nobody to send it to.", notice, *balance)
        return
    yield say(f"{text}.", notice, *balance)
    said = [r for r in story.receipts_of(notice) if until is None or r.ordinal <= until.ordinal]
    ended = [r for r in said if r["status"] != "accepted"]
    if ended:
        receipt = ended[0]
        became = "was delivered" if receipt["status"] == "delivered" else FAILED[receipt["status"]]
        detail = f" ({receipt['detail']})" if receipt["detail"] else ""
        yield say(f"It {became} on {when(receipt.at)}{detail}.", receipt)
    elif said:
        yield say(f"The channel accepted it on {when(said[0].at)}; whether it arrived is not known.", said[0])
    else:
        yield say("Nothing is known of it yet.")


def tell_reconnection(story: Story, command: Happening) -> Iterator[Sentence]:
    """A reconnection: what brought it about."""
    cause = story.cause_of(command)
    after = [e for e in story.entries if cause is not None and e.ordinal == cause.ordinal]
    ground, sources = ground_of(cause, after)
    voids = f", which voided the cut in flight ({command['supersedes']})" if command["supersedes"] else ""
    gap = f", {span(command.at - cause.at)} later" if cause is not None and command.at > cause.at else ", at once"
    yield say(f"{ground}: the supply was commanded back on {when(command.at)}{gap}{voids}.", *sources, *after, command)


def ground_of(cause: Happening | None, after: list[Happening]) -> tuple[str, list[Happening]]:
    """What a reconnection came of, in words."""
    to = f", and the balance came to {soum(after[-1]['balance_tiyin'])}" if after else ""
    if cause is None:
        return "What had cut the supply no longer held", []
    if cause.kind == "payment":
        through = f" through {cause['channel']}" if cause["channel"] else ""
        return f"{soum(cause['amount_tiyin'])} were paid{through} on {when(cause.at)}{to}", [cause]
    if cause.kind == "adjustment":
        return f"The office adjusted {soum(cause['amount_tiyin'])} on {when(cause.at)} ({cause['reason']}){to}", [cause]
    if cause.kind == "order":
        return f"{cause['author']} ordered to {cause['action']} on {when(cause.at)} ({cause['reason']})", [cause]
    if cause.kind == "policy":
        return f"A {cause['kind']} by {cause['author']} forbade the cut ({cause['reason']})", [cause]
    if cause.kind == "account" and cause["closed_at"] is not None:
        return f"The account was closed on {when(cause['closed_at'])}", [cause]
    if cause.kind == "account":
        return f"A new version of the account on {when(cause.at)} took the ground of the cut away{to}", [cause]
    if cause.kind == "acknowledgement":
        return f"{ANSWERED[cause['outcome']]} on {when(cause.at)}, with no ground for a cut", [cause]
    return f"The {cause.kind.replace('_', ' ')} of {when(cause.at)} was taken{to}", [cause]


# ---- why there is no cut, and what ends one --------------------------------------------------------------------------


def no_cut(story: Story) -> Iterator[Sentence]:
    """What stands in the way of a cut for credit, by the conditions in the order in which they are judged."""
    account, balance = story.account, story.measured_balance_tiyin
    if account["closed_at"] is not None:
        yield say("A closed account is not cut: the meter goes on to whoever comes next.", account)
        return
    credit = account["emergency_credit_tiyin"] or 0
    if balance + credit >= 0:
        within = f"The debt is within the emergency credit of {soum(credit)}" if balance < 0 else "There is no debt"
        yield say(f"{within}: no supply is cut.")
        return
    obstacles = list(in_the_way(story))
    if obstacles:
        yield say("There is a debt; the supply is not cut because:")
        yield from obstacles
    else:
        yield say("Every condition of a cut holds: it is decided at the next tick.")


def in_the_way(story: Story) -> Iterator[Sentence]:
    """Each condition of a cut for credit that does not hold."""
    rules, account, at = rules_of(story), story.account, story.at
    measured = last_measured(story)
    age = at - measured["to_at"] if measured else None
    if age is None or age // US > rules.max_reading_age_us:
        read = f"the last measured register is {span(age)} old" if age is not None else "no register was measured yet"
        yield say(f"{read[0].upper()}{read[1:]}; at most {hours(rules.max_reading_age_us)} are allowed.", measured)
    yield from notice_in_the_way(story, rules)
    if rules.window_until is None:
        yield window_sentence(story, rules, at)
    if rules.forbidden:
        forbidding = [p for p in consulted(story, rules) if p["kind"] in ("holiday", "moratorium")]
        reason = f": {forbidding[0]['reason']}" if forbidding else ""
        yield say(f"A {rules.forbidden} forbids it (today or tomorrow){reason}.", *forbidding)
    if account["supply_class"] == "protected":
        yield say("The account is protected.", account)
    held = [o for o in story.orders if o["action"] in ("hold", "release")][-1:]
    if held and held[0]["action"] == "hold":
        yield say(f"{held[0]['author']} ordered to hold the supply on ({held[0]['reason']}).", held[0])


def notice_in_the_way(story: Story, rules: Rules) -> Iterator[Sentence]:
    """Why the notice of this episode does not allow a cut yet, if so."""
    low = [n for n in story.notices if n["kind"] == "low_credit"]
    if not low:
        yield say("No notice of low credit was given yet.")
        return
    notice = low[-1]
    ended = [r for r in story.receipts_of(notice) if r["status"] != "accepted"]
    if notice["phone"] is not None and not ended:
        yield say(f"The notice of {when(notice.at)} has not been delivered, nor has that failed for good.", notice)
        return
    gate_at = ended[0].at if notice["phone"] is not None else notice.at
    if (story.at - gate_at) // US < rules.notice_gap_us:
        yield say(
            f"What became of the notice is known for {span(story.at - gate_at)}; {hours(rules.notice_gap_us)} must pass.",
            *(ended[:1] or [notice]),
        )


def what_gives_back(story: Story) -> Iterator[Sentence]:
    """What would bring the light back."""
    rules, last = rules_of(story), story.commands[-1] if story.commands else None
    if last is not None and last["cause"] != "credit" and last["action"] == "disconnect":
        yield say(f"What was cut for {last['cause']} comes back by an order to reconnect.", last)
        return
    missing = rules.reconnect_tiyin - story.measured_balance_tiyin
    if missing > 0:
        yield say(
            f"{soum(missing)} more, and the supply is commanded back on at once, at any hour.",
            *policies(story, rules, "threshold"),
        )


# ---- the rules that held ---------------------------------------------------------------------------------------------


def rules_of(story: Story) -> Rules:
    """The rules that held for the account at the story's moment, by the policies known then."""
    return rules_at(known_policies(story), place_of(story), us_of(story.at))


def known_policies(story: Story) -> list[Policy]:
    """The policies as settle has them: one that is wrong is none, and one that arrived under an id
    already used replaces the former.
    """
    found: dict[str, Policy] = {}
    for arrival, p in enumerate(story.policies, 1):
        starts_at, ends_at = (None if m is None else us_of(m) for m in (p["starts_at"], p["ends_at"]))
        values = p["policy_id"], p["kind"], p["scope"], starts_at or 0, ends_at, p["value"]
        if check_policy(p["kind"], p["scope"], p["value"]) is not None:
            continue
        found.pop(p["policy_id"], None)
        found[p["policy_id"]] = Policy(*values, arrival)
    return list(found.values())


def place_of(story: Story) -> Place:
    """What policies can tell the account apart by."""
    return Place(story.account["district"], story.account["feeder"], story.account_id)


def consulted(story: Story, rules: Rules) -> list[Happening]:
    """The records of the policies that the rules came of, as last known."""
    latest = {p["policy_id"]: p for p in story.policies}
    return [latest[policy_id] for policy_id in rules.consulted if policy_id in latest]


def policies(story: Story, rules: Rules, kind: str) -> list[Happening]:
    """Those of a kind."""
    return [p for p in consulted(story, rules) if p["kind"] == kind]


def window_sentence(story: Story, rules: Rules, at: datetime) -> Sentence:
    """Whether the moment lies in a window in which supply may be cut."""
    windows = policies(story, rules, "disconnect_window")
    if not windows:
        return say("No policy names a window in which supply may be cut.")
    value = json.loads(windows[0]["value"])
    days = ", ".join(DAY_NAMES[day - 1] for day in sorted(value["days"]))
    lies = "lies in" if rules.window_until is not None else "is outside"
    name = windows[0]["policy_id"]
    return say(
        f"{when(at)} {lies} the window for cuts: {days}, {value['from']} to {value['to']} (policy {name}).", windows[0]
    )


# ---- what it was reckoned from ---------------------------------------------------------------------------------------


def meter_of(story: Story) -> str:
    """The meter that the account has."""
    claims = [(v.place, v["meter_id"]) for v in story.accounts] + [
        (x.place, x["new_meter_id"]) for x in story.meter_exchanges
    ]
    return str(max(claims)[1])


def last_measured(story: Story) -> Happening | None:
    """The entry that charged up to the last measured register."""
    measured = (e for e in reversed(story.entries) if e["kind"] == "usage" and e["basis"] != "estimated")
    return next(measured, None)


def measured_by(story: Story, command: Happening) -> list[Happening]:
    """The entry that charged up to the register a command was decided on."""
    before = [
        e for e in story.entries if e.ordinal <= command.ordinal and e["kind"] == "usage" and e["basis"] != "estimated"
    ]
    return before[-1:]


def entry_before(story: Story, event: Happening) -> list[Happening]:
    """The last entry before an event."""
    return [e for e in story.entries if e.place < event.place][-1:]


def tariff_of(story: Story, used: Happening | None) -> list[Happening]:
    """The rows of the tariff version by which usage was charged, if it came in its time."""
    if used is None:
        return []
    start = used["from_at"] or used["to_at"]
    rows = [t for t in story.tariffs if t["tariff"] == used["tariff"] and t.at <= start and t.ordinal <= used.ordinal]
    if not rows:
        return []
    newest = max(rows, key=lambda t: (t["effective_on"], t.ordinal - t["block"]))
    return [t for t in rows if t.ordinal - t["block"] == newest.ordinal - newest["block"]]


def prices(rows: list[Happening]) -> str:
    """The blocks of a tariff, in words: 600 soum a kWh up to 200 kWh, 800 soum up to 500 kWh, 2 000 soum beyond. Where they
    hold in some hours only, list by list.
    """
    lists: dict[str | None, list[Happening]] = {}
    for row in rows:
        lists.setdefault(row["hours"], []).append(row)
    if lists.keys() == {None}:
        return blocks_text(rows)
    return "; ".join(f"{hours}: {blocks_text(blocks)}" for hours, blocks in lists.items()).replace("-", "–")


def blocks_text(blocks: list[Happening]) -> str:
    """One list of blocks, in words."""
    parts = []
    for number, block in enumerate(blocks):
        price = soum(block["price_tiyin_per_kwh"]) + ("" if number else " a kWh")
        upto = block["block_upto_kwh"]
        limit = f" up to {kwh(1000 * upto)}" if upto is not None else " beyond" if number else ""
        parts.append(f"{price}{limit}")
    return ", ".join(parts)


# ---- words -----------------------------------------------------------------------------------------------------------


def when(at: datetime) -> str:
    """A moment by the clocks of Tashkent: Tue 2 Sep 2025 at 10:00."""
    local = at.astimezone(TASHKENT)
    seconds = f":{local:%S}" if local.second else ""
    return f"{local:%a} {local.day} {local:%b %Y} at {local:%H:%M}{seconds}"


def about(at: datetime) -> str:
    """A moment, to the minute."""
    return when(at.replace(second=0, microsecond=0))


def soum(tiyin: int) -> str:
    """An amount, in soum and, where there are some, tiyin."""
    rest = abs(tiyin) % 100
    sign = "−" if tiyin < 0 else ""
    return f"{sign}{soum_text(abs(tiyin))}{f'.{rest:02}' if rest else ''} soum"


def kwh(wh: int) -> str:
    """Energy, in kWh, exact."""
    text = f"{wh // 1000:,}.{wh % 1000:03}".rstrip("0").rstrip(".")
    return f"{text.replace(',', ' ')} kWh"


def hours(us: int) -> str:
    """A span of the rules."""
    return span(us * US)


def span(length: timedelta | None) -> str:
    """A length of time, in its two greatest units."""
    seconds = max(0, int((length or timedelta()).total_seconds()))
    days, rest = divmod(seconds, 86_400)
    parts = [(days, "day"), (rest // 3600, "hour"), (rest % 3600 // 60, "minute"), (rest % 60, "second")]
    shown = [f"{n} {unit}{'s' if n != 1 else ''}" for n, unit in parts if n]
    return " ".join(shown[:2]) or "0 seconds"


def as_json(story: Story, sentences: list[Sentence]) -> dict[str, Any]:
    """The answer, for a program to read."""
    return {
        "account_id": story.account_id,
        "at": story.at.astimezone(UTC).isoformat(),
        "state": story.state,
        "since": story.supply_states[-1].at.astimezone(UTC).isoformat() if story.supply_states else None,
        "balance_tiyin": story.balance_tiyin,
        "sentences": [{"text": s.text, "sources": list(s.sources)} for s in sentences],
    }
