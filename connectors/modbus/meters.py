"""A meter's register as whole Wh, and its switch: read, and written nowhere but where its model says the switch is."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from connectors.modbus.gateway import ModbusError
from connectors.modbus.models import NoValueError, Switch

if TYPE_CHECKING:
    from connectors.modbus.devices import Device
    from connectors.modbus.gateway import Gateway


class SwitchState(Enum):
    """What a readback shows. UNKNOWN: a value that the model has no name for."""

    OPENED = "opened"
    CLOSED = "closed"
    UNKNOWN = "unknown"


async def read_register(gateway: Gateway, device: Device) -> int:
    """What the meter has counted, in Wh. Raises ModbusError."""
    register = device.model.energy
    words = await gateway.read(device.unit, register.function, register.address, register.count)
    try:
        return register.decode(words)
    except NoValueError as error:
        raise ModbusError("no_value", f"unit {device.unit} of {gateway}: {error}") from error


async def read_switch(gateway: Gateway, device: Device) -> SwitchState:
    """The state of the supply switch. Raises ModbusError."""
    switch = _switch_of(device)
    (value,) = await gateway.read(device.unit, switch.function, switch.address, 1)
    return {switch.opened: SwitchState.OPENED, switch.closed: SwitchState.CLOSED}.get(value, SwitchState.UNKNOWN)


async def write_switch(gateway: Gateway, device: Device, state: SwitchState) -> None:
    """Open or close the supply switch: the only place that writes to a meter. Raises ModbusError, done or not."""
    switch = _switch_of(device)
    value = {SwitchState.OPENED: switch.opened, SwitchState.CLOSED: switch.closed}[state]
    await gateway.write(device.unit, switch.write_function, switch.written_at, value)


def _switch_of(device: Device) -> Switch:
    if device.model.switch is None:
        raise ValueError(f"{device.meter_id}: a {device.model.name} has no switch")
    return device.model.switch
