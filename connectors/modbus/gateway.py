"""A gateway: one TCP connection to whatever the meters hang on, and requests in turn on it.

What an answer must be to count: under the transaction and unit of the request (pymodbus sees to that), of its function, and
of the length asked for. A late answer is therefore never taken for another's. After a time-out the connection is kept: a
gateway works off its requests in order, so a later readback on the same connection comes after a write that was late. After
several in a row it is made anew. One that cannot be made is not tried again before a pause, which grows: until then every
request fails at once, so a dead gateway costs nobody time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TIMEOUT_S = 2.0
PAUSE_S, PAUSE_MOST_S = 0.5, 5.0
SILENCES = 5  # time-outs in a row, of whatever units, after which the connection is made anew

# pymodbus logs each time-out as an error of its own; here they are counted, and said by who asked.
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)


class ModbusError(Exception):
    """A request failed. `reason` is a word to count it by; the message says more.

    `no_connection`, `no_answer`: worth trying again. `exception_N`: the meter answered with a Modbus exception.
    `wrong_answer`: what came is no answer to what was asked. `no_value`: the register says that it has none.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """A word, and what happened."""
        super().__init__(detail)
        self.reason = reason


class Gateway:
    """The connection to one gateway. Its methods may be called by any number of tasks: they take turns."""

    def __init__(self, host: str, port: int, *, timeout_s: float = TIMEOUT_S) -> None:
        """Connects when it is first asked something."""
        self.host, self.port, self.timeout_s = host, port, timeout_s
        self._client: AsyncModbusTcpClient | None = None
        self._turn = asyncio.Lock()
        self._silences = 0
        self._pause_s, self._not_before = PAUSE_S, 0.0

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    async def read(self, unit: int, function: int, address: int, count: int) -> list[int]:
        """So many words (functions 3 and 4) or bits (1 and 2). Raises ModbusError."""
        method = {
            1: "read_coils",
            2: "read_discrete_inputs",
            3: "read_holding_registers",
            4: "read_input_registers",
        }[function]
        answer = await self._ask(function, lambda client: getattr(client, method)(address, count=count, device_id=unit))
        values = answer.registers if function in (3, 4) else [int(bit) for bit in answer.bits[:count]]
        if len(values) != count:
            raise ModbusError("wrong_answer", f"unit {unit} of {self}: {len(values)} values in place of {count}")
        return values

    async def write(self, unit: int, function: int, address: int, value: int) -> None:
        """One word (functions 6 and 16) or bit (5). Raises ModbusError: then it may have been written or not."""
        calls: dict[int, Callable[[AsyncModbusTcpClient], Awaitable[Any]]] = {
            5: lambda client: client.write_coil(address, bool(value), device_id=unit),
            6: lambda client: client.write_register(address, value, device_id=unit),
            16: lambda client: client.write_registers(address, [value], device_id=unit),
        }
        await self._ask(function, calls[function])

    def close(self) -> None:
        """Let go of the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _ask(self, function: int, request: Callable[[AsyncModbusTcpClient], Awaitable[Any]]) -> Any:
        async with self._turn:
            client = await self._connected()
            try:
                answer = await request(client)
            except (ConnectionException, OSError) as error:
                self.close()
                raise ModbusError("no_connection", f"{self}: {error}") from error
            except ModbusException as error:
                self._silences += 1
                if self._silences >= SILENCES or not client.connected:
                    self.close()
                    self._silences = 0
                raise ModbusError("no_answer", f"{self}: no answer within {self.timeout_s:g} s") from error
        self._silences = 0
        if answer.isError():
            raise ModbusError(f"exception_{answer.exception_code}", f"{self}: exception {answer.exception_code}")
        if answer.function_code != function:
            raise ModbusError("wrong_answer", f"{self}: an answer of function {answer.function_code}, not {function}")
        return answer

    async def _connected(self) -> AsyncModbusTcpClient:
        if self._client is not None and self._client.connected:
            return self._client
        self.close()
        if (wait_s := self._not_before - time.monotonic()) > 0:
            raise ModbusError("no_connection", f"{self}: no connection; it is tried again in {wait_s:.1f} s")
        client = AsyncModbusTcpClient(
            self.host, port=self.port, timeout=self.timeout_s, retries=0, reconnect_delay=0, name=str(self)
        )
        client.set_max_no_responses(1 << 30)  # when to give a connection up is decided here
        if not await client.connect():
            client.close()
            self._not_before = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, PAUSE_MOST_S)
            raise ModbusError("no_connection", f"{self}: no connection")
        self._client, self._pause_s = client, PAUSE_S
        return client
