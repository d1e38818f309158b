"""What the simulated meters count: the bundled household's register, walked through from a place of each meter's own.

A register is a function of time alone (as long as its switch is closed): a fleet that is started again goes on counting where
it would be by then. In whole Wh, by whole-number interpolation between half hours, so differences add up.
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hisob.demo.reduce import HOUSEHOLD

HALF_HOUR_US = 1_800_000_000
WEEK_SLOTS = 7 * 48


class Household:
    """The household's cumulative register over its whole weeks, repeated for ever."""

    def __init__(self) -> None:
        """Read the bundled file."""
        register = pq.read_table(HOUSEHOLD, columns=["register_wh"])["register_wh"].to_numpy()
        slots = (len(register) - 1) // WEEK_SLOTS * WEEK_SLOTS
        self._register_wh: NDArray[np.int64] = register[: slots + 1] - register[0]
        self._slots = slots

    @property
    def weeks(self) -> int:
        """How many weeks there are to begin at."""
        return self._slots // WEEK_SLOTS

    def counted_wh(self, at_us: int, first_week: int) -> int:
        """What a meter that begins at this week has counted from 1970 to this moment."""
        slot, part_us = divmod(at_us, HALF_HOUR_US)
        rounds, slot = divmod(slot + first_week * WEEK_SLOTS, self._slots)
        before, after = int(self._register_wh[slot]), int(self._register_wh[slot + 1])
        return rounds * int(self._register_wh[-1]) + before + (after - before) * part_us // HALF_HOUR_US
