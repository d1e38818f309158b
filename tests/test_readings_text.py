"""A refused or held reading is told whole: the text made by the column is the one made record by record."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.partition import Partition, record_text
from accounting.readings import open_readings
from connectors.log.body import decode
from tests.core_harness import body_of

MOMENTS = st.integers(1_700_000_000_000_000, 1_800_000_000_000_000)
READINGS = st.lists(
    st.fixed_dictionaries(
        {
            "meter_id": st.text(st.characters(codec="utf-8"), max_size=8),
            "account_id": st.sampled_from([None, "A", "B"]),
            "read_at": MOMENTS,
            "register_wh": st.integers(-(2**40), 2**40),
            "status": st.sampled_from([None, "measured", "estimated"]),
            "received_at": st.none() | MOMENTS,
        }
    ),
    min_size=1,
    max_size=30,
)


@given(readings=READINGS, chosen=st.data())
@settings(max_examples=100, deadline=None)
def test_a_reading_is_told_by_the_column_as_it_is_record_by_record(readings, chosen):
    batch = decode(body_of([("reading", reading) for reading in readings])).batches["reading"]
    opened = open_readings(Partition(0), batch, [(7, len(readings))])
    rows = chosen.draw(st.lists(st.integers(0, len(readings) - 1), unique=True).map(sorted))
    assert opened.texts(np.array(rows, np.int64) + 7).to_pylist() == [
        record_text("reading", readings[row]) for row in rows
    ]
    assert opened.estimated.tolist() == [reading["status"] == "estimated" for reading in readings]
