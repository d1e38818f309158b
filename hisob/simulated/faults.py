"""Faults on request: faults.json says what goes wrong where, and may be changed while the fleet runs.

    [{"fault": "unit_dead", "meter": "SIM-00007"},
     {"fault": "gateway_dead", "gateway": 3},
     {"fault": "slow", "gateway": 4, "seconds": 0.5},
     {"fault": "wrong_readback", "share": 0.02, "seed": 1}]

`unit_dead` never answers; `gateway_dead` refuses connections, and drops those it has; `slow` answers after so many seconds;
`wrong_readback` says yes to a write and leaves the switch as it is. Each of a `meter`, of all meters of a `gateway` (counted
from 0), or of a `share` of all meters, drawn by `seed`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hisob.errors import HisobError


class Fault(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fault: Literal["unit_dead", "gateway_dead", "slow", "wrong_readback"]
    meter: str | None = None
    gateway: int | None = None
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int = 0
    seconds: Annotated[float, Field(ge=0)] = 1.0


_FILE = TypeAdapter(list[Fault])


@dataclass
class Faults:
    """What is wrong now: with units, by meter id, and with gateways, by number."""

    dead_units: set[str] = field(default_factory=set)
    wrong_readback: set[str] = field(default_factory=set)
    delay_s: dict[str, float] = field(default_factory=dict)
    dead_gateways: set[int] = field(default_factory=set)


def read_faults(path: Path | None) -> list[Fault]:
    """The file's entries; none without a file. Raises HisobError."""
    if path is None or not path.exists():
        return []
    try:
        return _FILE.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise HisobError(f"{path}: {where}: {first['msg']}.", exit_code=2) from error


def spread(faults: list[Fault], gateway_of: dict[str, int]) -> Faults:
    """What the entries mean for each meter (its id → its gateway's number) and gateway."""
    found = Faults()
    for entry in faults:
        if entry.fault == "gateway_dead" and entry.gateway is not None:
            found.dead_gateways.add(entry.gateway)
            continue
        for meter_id in _meant(entry, gateway_of):
            if entry.fault == "slow":
                found.delay_s[meter_id] = entry.seconds
            elif entry.fault == "wrong_readback":
                found.wrong_readback.add(meter_id)
            else:
                found.dead_units.add(meter_id)
    return found


def _meant(entry: Fault, gateway_of: dict[str, int]) -> list[str]:
    if entry.meter is not None:
        return [entry.meter]
    if entry.gateway is not None:
        return [meter_id for meter_id, gateway in gateway_of.items() if gateway == entry.gateway]
    count = round((entry.share or 0) * len(gateway_of))
    return random.Random(entry.seed).sample(list(gateway_of), count)
