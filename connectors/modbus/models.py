"""Meter models as data: a register map each, read from models.toml, decoded exactly.

A register is decoded to whole Wh by whole-number arithmetic: a float32 is the binary fraction it is, times the Wh of a unit,
rounded to the nearest Wh (halves up). No value passes through a float of ours. What a meter says in place of a value it does
not have (NaN, or one of the model's `absent` values) is an error with a name, never a reading.
"""

from __future__ import annotations

import math
import struct
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

BUNDLED = Path(__file__).with_name("models.toml")
# Of each type how many 16-bit words it takes, and how Python's struct names it (big-endian, once its words are in order).
TYPES = {
    "int16": (1, ">h"),
    "uint16": (1, ">H"),
    "int32": (2, ">i"),
    "uint32": (2, ">I"),
    "float32": (2, ">f"),
    "int64": (4, ">q"),
    "uint64": (4, ">Q"),
    "float64": (4, ">d"),
}
RegisterType = Literal["int16", "uint16", "int32", "uint32", "float32", "int64", "uint64", "float64"]


class ModelError(Exception):
    """models.toml is wrong; the message says where."""


class NoValueError(Exception):
    """What stands in a meter's register is no value: it is not implemented, or not possible. The message says what it is."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Register(_Data):
    """Where a meter keeps what it has counted, and how it is written there."""

    function: Literal[3, 4]
    address: int = Field(ge=0, le=0xFFFF)
    type: RegisterType
    words: Literal["high first", "low first"] = "high first"
    wh_per_unit: Fraction = Field(gt=0)
    absent: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many 16-bit words it takes."""
        return TYPES[self.type][0]

    def decode(self, words: Sequence[int]) -> int:
        """The words as whole Wh. Raises NoValueError."""
        ordered = words if self.words == "high first" else words[::-1]
        raw = struct.pack(f">{self.count}H", *ordered)
        (value,) = struct.unpack(TYPES[self.type][1], raw)
        if value in self.absent or (isinstance(value, float) and not math.isfinite(value)):
            raise NoValueError(f"{value} (0x{raw.hex()}): the meter has no value there")
        if value < 0:
            raise NoValueError(f"{value} (0x{raw.hex()}): a register counts from 0")
        return math.floor(Fraction(value) * self.wh_per_unit + Fraction(1, 2))


class Switch(_Data):
    """A supply switch: where its state is read, how and with what it is written."""

    function: Literal[1, 2, 3, 4]
    address: int = Field(ge=0, le=0xFFFF)
    write_function: Literal[5, 6, 16]
    write_address: int | None = Field(default=None, ge=0, le=0xFFFF)  # absent: where it is read
    opened: int = Field(ge=0, le=0xFFFF)
    closed: int = Field(ge=0, le=0xFFFF)

    @property
    def written_at(self) -> int:
        """The only address of the meter that may ever be written."""
        return self.address if self.write_address is None else self.write_address


class Model(_Data):
    """A model of meter."""

    name: str
    energy: Register
    switch: Switch | None = None


def load_models(path: Path = BUNDLED) -> dict[str, Model]:
    """The models of a file, by key. Raises ModelError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{path} cannot be read as TOML: {error}") from error
    models = {}
    for key, table in tables.items():
        try:
            models[key] = Model.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in (key, *first["loc"]))
            raise ModelError(f"{path}: {where}: {first['msg']} (given: {first['input']!r})") from error
    return models
