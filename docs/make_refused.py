"""Writes docs/refused.md from hisob/data/reasons.toml: `python docs/make_refused.py`. A test holds that it is up to date."""

from __future__ import annotations

from pathlib import Path

from hisob.reasons import HELD, REFUSED, UNREADABLE, Reason

HEAD = """# Refused and held: each reason, and what to do next

A refused record changed nothing and stands whole in the view `refused`. Mend the cause, then offer it again:

    hisob refused                                        # how many of each kind and reason, an example, what to do next
    hisob refused --reason unknown_tariff                # these, one by one
    hisob refused --reason unknown_tariff --offer again  # them as files of the contract, a kind each, in the folder again/
    hisob ingest account=again/account.ndjson

Offered again it is a new arrival, judged anew; the old refusal stays in the history. What is offered is each record once,
however often it was refused, and none that came in since. A held record needs nothing of this: it waits (`hisob held`), and is
judged by itself when what it waits for arrives.

## Refused
"""
UNREADABLE_HEAD = """## Rows that could not be understood

They are refused with file, row, column and value, and kept as they were given. `--offer` writes them as they were given,
too, into `KIND-to-mend.ndjson`: correct them there.
"""
HELD_HEAD = """## Held
"""


def table(reasons: dict[str, Reason], last: str) -> str:
    """Reasons as a Markdown table."""
    rows = [f"| reason | of | means | {last} |", "|---|---|---|---|"]
    rows += [
        f"| `{r.name}` | {', '.join(r.kinds) or 'any row'} | {r.means} | {r.next_step} |" for r in reasons.values()
    ]
    return "\n".join(rows) + "\n"


def page() -> str:
    """The whole of docs/refused.md."""
    parts = (
        HEAD,
        table(REFUSED, "next"),
        UNREADABLE_HEAD,
        table(UNREADABLE, "next"),
        HELD_HEAD,
        table(HELD, "waits for"),
    )
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("refused.md").write_text(page())
