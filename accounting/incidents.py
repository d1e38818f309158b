"""What happened to readings other than an entry: they were refused, held, or are held no longer. From the ledger to events.

The rules leave numbers (rows of INCIDENT). What only events need, the readings' text above all, is made of them as columns
at the end of a body, beside the rules for the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from accounting.bill import REASONS
from accounting.columns import Columns, coded, filled
from accounting.ledger import HELD, HELD_REFUSED, HELD_SETTLED
from accounting.records import TIME
from accounting.state import FOREVER, NONE
from accounting.texts import join, time_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accounting.readings import Readings

HeldTexts = dict[tuple[int, int], str]  # of the readings that are held, by the (ordinal, n) of the event that said so


def incident_events(number: int, incidents: Any, readings: Readings | None, held: HeldTexts) -> dict[str, Columns]:
    """The events of a body's incidents (rows of INCIDENT) by kind, whole columns, each kind in order.

    number: the partition's. readings: the body's. held: the texts of those held before; changed to those held after it.
    """
    if not incidents.size:
        return {}
    what = incidents["what"]
    told, ended = what != HELD_SETTLED, (what == HELD_SETTLED) | (what == HELD_REFUSED)
    tales = _tales(incidents[told], _texts(incidents, told, ended, readings, held))
    is_held = what[told] == HELD
    events = {"refused": tales.filter(pa.array(~is_held)), "held": tales.filter(pa.array(is_held))}
    found = {
        kind: dict(zip(batch.schema.names, batch.columns, strict=True)) for kind, batch in events.items() if len(batch)
    }
    if ended.any():
        found["released"] = _released(number, incidents[ended])
    return found


def _texts(
    incidents: Any, told: NDArray[np.bool_], ended: NDArray[np.bool_], readings: Readings | None, held: HeldTexts
) -> pa.StringArray:
    """The text of each reading that is told of: made now if the body brought it, remembered if it was held before."""
    begin = readings.run_ordinals[0] if readings is not None else FOREVER
    ordinals = np.where(ended, incidents["held_ordinal"], incidents["ordinal"])
    new = ordinals >= begin
    texts = readings.texts(ordinals[told & new]) if readings is not None else pa.array([], pa.string())
    for ordinal, n in _held_ids(incidents[ended & ~told & ~new]):
        del held[ordinal, n]
    if (told & ~new).any():
        remembered = [held.pop(number) for number in _held_ids(incidents[told & ~new])]
        place = np.empty(np.count_nonzero(told), np.int64)
        place[new[told]] = np.arange(len(texts))
        place[~new[told]] = len(texts) + np.arange(len(remembered))
        texts = pa.concat_arrays([texts, pa.array(remembered, pa.string())]).take(pa.array(place))
    is_held = incidents["what"] == HELD
    still = incidents[is_held]
    is_held[is_held] = stays = ~np.isin(still["ordinal"], ordinals[ended & new])
    names = zip(still["ordinal"][stays].tolist(), still["n"][stays].tolist(), strict=True)
    held |= dict(zip(names, texts.filter(pa.array(is_held[told])).to_pylist(), strict=True))
    return texts


def _held_ids(incidents: Any) -> list[tuple[int, int]]:
    return list(zip(incidents["held_ordinal"].tolist(), incidents["held_n"].tolist(), strict=True))


def _tales(incidents: Any, texts: pa.StringArray) -> pa.RecordBatch:
    """Columns of `refused` and `held`."""
    last_at = incidents["last_at"]
    unknown = (incidents["account"] <= 0) | (last_at == NONE)
    last_wh = pa.array(incidents["last_wh"], mask=unknown).cast(pa.string())
    return pa.record_batch(
        {
            "ordinal": pa.array(incidents["ordinal"]),
            "n": pa.array(incidents["n"]),
            "record_kind": coded(filled(pa.int8(), np.zeros(len(texts), np.int8)), ("reading",)),
            "reason": coded(filled(pa.int8(), incidents["reason"].astype(np.int8)), REASONS),
            "detail": join("last measured ", last_wh, " Wh at ", time_texts(pa.array(last_at, mask=unknown))),
            "record": texts,
        }
    )


def _released(number: int, incidents: Any) -> Columns:
    """Columns of `released`. That of a reading which is refused comes after its refusal."""
    refused, last_tick = incidents["what"] == HELD_REFUSED, incidents["last_tick"]
    ordinal, n = (pa.array(incidents[name]).cast(pa.string()) for name in ("held_ordinal", "held_n"))
    return {
        "ordinal": pa.array(incidents["ordinal"]),
        "n": pa.array(incidents["n"] + refused),
        "held_id": join(f"{number}-", ordinal, "-", n),
        "released_at": pa.array(last_tick, mask=last_tick == NONE).cast(TIME),
        "outcome": coded(filled(pa.int8(), refused.astype(np.int8)), ("settled", "refused")),
    }
