"""devices.csv of a home: behind which gateway each meter is, under which unit, of which model, and since when.

    meter_id,valid_from,host,port,unit,model
    M-10001,2025-09-15T00:00:00+05:00,10.20.0.7,502,1,dds238-2

Of several rows of a meter the one with the latest `valid_from` that has come counts; a row with an empty `host` says that the
meter is nowhere from then on. The file is read again when it has changed; a changed file that is wrong changes nothing, and
is told of.
"""

from __future__ import annotations

import csv
import datetime as dt
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from connectors.modbus.models import Model, ModelError, load_models
from connectors.small_files import stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COLUMNS = ("meter_id", "valid_from", "host", "port", "unit", "model")
FILE = "devices.csv"
MODELS_FILE = "models.toml"  # of the home, where it has models of its own: they count before the bundled ones


class DeviceFileError(Exception):
    """devices.csv is wrong; the message names row, column and value."""


@dataclass(frozen=True)
class Device:
    """Where a meter is, and what it is."""

    meter_id: str
    host: str
    port: int
    unit: int
    model: Model

    @property
    def gateway(self) -> tuple[str, int]:
        """The gateway it is behind."""
        return self.host, self.port


@dataclass(frozen=True)
class _Row:
    valid_from: dt.datetime
    device: Device | None


class Devices:
    """The devices of a home, as the file now says."""

    def __init__(self, home: Path) -> None:
        """Read the home's devices.csv. Raises DeviceFileError."""
        self.path = home / FILE
        self._models_path = home / MODELS_FILE
        self._read = self._stamps()
        self._rows = self._load()

    def refresh(self) -> bool:
        """Read the file again if it has changed; whether it had. Raises DeviceFileError: then what it said before stays."""
        stamps = self._stamps()
        if stamps == self._read:
            return False
        self._read = stamps  # a wrong file is told of once
        self._rows = self._load()
        return True

    def of(self, meter_id: str, now: dt.datetime) -> Device | None:
        """The device of a meter at this moment; None: there is none."""
        rows = self._rows.get(meter_id, [])
        place = bisect_right(rows, now, key=lambda row: row.valid_from)
        return rows[place - 1].device if place else None

    def all(self, now: dt.datetime) -> Iterator[Device]:
        """Every device there is at this moment."""
        for meter_id in self._rows:
            if device := self.of(meter_id, now):
                yield device

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(stamp_of(path) for path in (self.path, self._models_path))

    def _load(self) -> dict[str, list[_Row]]:
        models = load_models()
        try:
            if self._models_path.exists():
                models |= load_models(self._models_path)
        except ModelError as error:
            raise DeviceFileError(str(error)) from error
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise DeviceFileError(
                f"There is no {self.path}. It says where each meter is, with the columns {','.join(COLUMNS)}."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise DeviceFileError(f"{self.path} cannot be read: {error}.") from error
        return _parse(self.path.name, text, models)


def _parse(name: str, text: str, models: Mapping[str, Model]) -> dict[str, list[_Row]]:
    """The rows by meter, each meter's by `valid_from`. Row 1 is the header."""
    reader = csv.DictReader(text.splitlines(), restkey="", restval="")
    header = reader.fieldnames or []
    if sorted(header) != sorted(COLUMNS):
        raise DeviceFileError(f"{name}: the columns have to be {','.join(COLUMNS)}, not {','.join(header)}.")
    rows: dict[str, list[_Row]] = {}
    places: dict[tuple[str, int, int, dt.datetime], str] = {}
    for number, given in enumerate(reader, 2):
        try:
            meter_id, row = _parse_row(given, models)
        except _CellError as error:
            raise DeviceFileError(
                f"{name}, row {number}, column {error.column}: {error.value!r} {error.says}."
            ) from None
        at = rows.setdefault(meter_id, [])
        if any(other.valid_from == row.valid_from for other in at):
            raise DeviceFileError(
                f"{name}, row {number}, column valid_from: {meter_id} has a row of this moment already."
            )
        if row.device:
            place = (*row.device.gateway, row.device.unit, row.valid_from)
            if (other := places.setdefault(place, meter_id)) != meter_id:
                raise DeviceFileError(
                    f"{name}, row {number}, column unit: {row.device.unit} of {row.device.host}:{row.device.port} is"
                    f" {other} already, from the same moment on."
                )
        at.append(row)
    for at in rows.values():
        at.sort(key=lambda row: row.valid_from)
    return rows


class _CellError(Exception):
    def __init__(self, column: str, value: str, says: str) -> None:
        self.column, self.value, self.says = column, value, says


def _parse_row(given: Mapping[str, str], models: Mapping[str, Model]) -> tuple[str, _Row]:
    if "" in given:
        raise _CellError(COLUMNS[-1], given[""][0], "is one value too many")
    meter_id = given["meter_id"].strip()
    if not meter_id:
        raise _CellError("meter_id", meter_id, "names no meter")
    try:
        valid_from = dt.datetime.fromisoformat(given["valid_from"].strip())
    except ValueError:
        raise _CellError("valid_from", given["valid_from"], "is no time in ISO 8601") from None
    if valid_from.tzinfo is None:
        raise _CellError("valid_from", given["valid_from"], "is a time without an offset")
    if not (host := given["host"].strip()):
        return meter_id, _Row(valid_from, None)
    port, unit = _number(given, "port", 1, 65_535), _number(given, "unit", 0, 255)
    if (model := models.get(given["model"].strip())) is None:
        raise _CellError("model", given["model"], f"is no known model: there are {', '.join(models)}")
    return meter_id, _Row(valid_from, Device(meter_id, host, port, unit, model))


def _number(given: Mapping[str, str], column: str, least: int, most: int) -> int:
    text = given[column].strip()
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
        raise _CellError(column, given[column], f"is no whole number from {least} to {most}")
    return int(text)
