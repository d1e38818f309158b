"""The district's meters: registers that count, are read each half hour, and go wrong as the district's troubles say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from accounting.records import RECORD_SCHEMAS, RECORDS
from hisob.demo.district import LATE, District, Given, Trouble, time_of

READING_SCHEMA = pa.schema([RECORD_SCHEMAS["reading"].field(c.name) for c in RECORDS["reading"] if not c.internal])
SPIKE_WH = 400_000
OTHER_WH = 70
FIRST_REGISTER_WH = 120  # of a new meter


class Meters:
    """Every meter of the district, up to the half hour `now`."""

    def __init__(self, district: District) -> None:
        self.district = district
        self.now = 0
        self.meter_id = np.array([c.meter_id for c in district.customers], object)
        self.register_wh = np.array([c.opening_register_wh for c in district.customers])
        self.modulus_wh = np.array([c.register_modulus_wh for c in district.customers])

    def read_until(self, upto: int, is_on: NDArray[np.bool_]) -> tuple[pa.Table, list[Given]]:
        """Count on to this half hour, where the supply is on, and read. Returns the readings, and what comes another way."""
        if upto == self.now:
            return READING_SCHEMA.empty_table(), []
        span = slice(self.now + 1, upto + 1)
        used = self.district.usage_wh[:, span] * is_on[:, None]
        shown = (self.register_wh[:, None] + np.cumsum(used, axis=1)) % self.modulus_wh[:, None]
        self.register_wh = shown[:, -1].copy()
        is_sent = self.district.is_read[:, span].copy()
        meter_ids = pa.array(self.meter_id)  # before any exchange, which comes at the round's end
        given: list[Given] = []
        for trouble in self.district.troubles:
            for at in range(max(trouble.first, self.now + 1), min(trouble.last, upto) + 1):
                given += self.go_wrong(trouble, at, shown, is_sent)
        table = self.table(meter_ids, shown, is_sent)
        self.now = upto
        return table, given

    def go_wrong(self, trouble: Trouble, at: int, shown: NDArray[np.int64], is_sent: NDArray[np.bool_]) -> list[Given]:
        """Let one trouble happen to one reading: change what is shown or sent. Returns what comes besides."""
        cell = (trouble.customer, at - self.now - 1)
        register, row = int(shown[cell]), self.row(trouble.customer, at, int(shown[cell]))
        match trouble.kind:
            case "zero":
                shown[cell] = 0
            case "spike":
                shown[cell] += SPIKE_WH
            case "stuck":
                shown[cell] -= self.district.usage_wh[trouble.customer, trouble.first : at + 1].sum()
            case "twice":
                return [Given(time_of(at), "reading", row)]
            case "differs":
                return [Given(time_of(at), "reading", row | {"register_wh": register + OTHER_WH})]
            case "late":
                is_sent[cell] = False
                arrives_at = time_of(trouble.last + LATE)
                return [Given(arrives_at, "reading", row | {"received_at": arrives_at})]
            case "exchange":
                is_sent[cell] = False
                return [self.exchange(trouble.customer, at)]
            case "claimed_late":
                pass  # its account comes late, the meter does what it should
        return []

    def exchange(self, number: int, at: int) -> Given:
        """Take the meter away and put another in its place. The round has to end here: its register begins anew."""
        old_meter_id, old_register_wh = self.meter_id[number], int(self.register_wh[number])
        self.meter_id[number], self.register_wh[number] = (
            self.district.customers[number].new_meter_id,
            FIRST_REGISTER_WH,
        )
        row = {
            "account_id": self.district.customers[number].account_id,
            "exchanged_at": time_of(at).isoformat(),
            "old_meter_id": old_meter_id,
            "old_register_wh": old_register_wh,
            "new_meter_id": self.meter_id[number],
            "new_register_wh": int(self.register_wh[number]),
        }
        return Given(time_of(at), "meter_exchange", row)

    def row(self, number: int, at: int, register_wh: int) -> dict[str, object]:
        """A reading as a record."""
        return {"meter_id": self.meter_id[number], "read_at": time_of(at), "register_wh": register_wh}

    def table(self, meter_ids: pa.Array, shown: NDArray[np.int64], is_sent: NDArray[np.bool_]) -> pa.Table:
        """The readings sent, in order of time, then of customer."""
        at, number = np.nonzero(is_sent.T)
        start = int(time_of(self.now + 1).timestamp()) * 1_000_000
        read_at = pa.array(start + at * 1_800_000_000).cast(READING_SCHEMA.field("read_at").type)
        columns = {"meter_id": meter_ids.take(pa.array(number)), "read_at": read_at, "register_wh": shown.T[is_sent.T]}
        return pa.table([columns.get(f.name, pa.nulls(len(at), f.type)) for f in READING_SCHEMA], schema=READING_SCHEMA)
