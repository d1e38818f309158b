"""Meters and switches over Modbus TCP: what a model's registers mean, where each meter is, and how to talk to it.

- `models`: meter models as data (models.toml): where the register is, how it is written, what its switch looks like.
- `devices`: devices.csv of the home: which meter is behind which gateway, and since when.
- `gateway`: one connection to one gateway, requests in turn.
- `meters`: a register read as whole Wh; a switch read, written, and never anything else written.
"""

from __future__ import annotations

from connectors.modbus.devices import Device, DeviceFileError, Devices
from connectors.modbus.gateway import Gateway, ModbusError
from connectors.modbus.meters import SwitchState, read_register, read_switch, write_switch
from connectors.modbus.models import Model, load_models

__all__ = [
    "Device",
    "DeviceFileError",
    "Devices",
    "Gateway",
    "ModbusError",
    "Model",
    "SwitchState",
    "load_models",
    "read_register",
    "read_switch",
    "write_switch",
]
