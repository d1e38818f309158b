"""`hisob held`: what waits, and for what."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from hisob.commands import AsJson, home_of


def held(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Meters or accounts listed, at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Records that wait, by what they wait for: they are judged by themselves when it arrives. From the published database."""
    from hisob.reasons import HELD
    from warehouse.audit import open_published
    from warehouse.refusals import list_held

    home, _ = home_of(context)
    with open_published(home) as con:
        found = list_held(con)
    if as_json:
        rows = [{**asdict(w), "waits_for": HELD[w.reason].next_step} for w in found]
        print(json.dumps(rows, default=lambda moment: moment.isoformat(), ensure_ascii=False))
        return
    counts: Counter[tuple[str, str]] = Counter()
    for w in found:
        counts[w.record_kind, w.reason] += w.count
    for (kind, reason), count in counts.most_common():
        print(f"{count:>12,}  {kind}  {reason}: waits for {HELD[reason].next_step}")
    for w in found[:limit]:
        span = f"{w.first_at:%Y-%m-%d %H:%M}" + (f" to {w.last_at:%Y-%m-%d %H:%M}" if w.count > 1 else "")
        print(f"{w.count:>12,}  {w.awaits}  {w.record_kind} of {span} UTC")
    if len(found) > limit:
        print(f"              and {len(found) - limit:,} more; --limit shows them, --json all")
    if not found:
        print("Nothing waits.")
