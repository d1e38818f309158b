"""Meters over Modbus: registers decoded exactly, devices.csv judged, and no answer taken for another's."""

import asyncio
import datetime as dt
import socket
import struct
from contextlib import asynccontextmanager, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyModbusTCP.server import DataBank, ModbusServer

from connectors.modbus import (
    DeviceFileError,
    Devices,
    Gateway,
    ModbusError,
    SwitchState,
    load_models,
    read_register,
    read_switch,
    write_switch,
)
from connectors.modbus import gateway as gateway_module
from connectors.modbus.devices import Device
from connectors.modbus.models import ModelError, NoValueError, Register

MODELS = load_models()
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HEADER = "meter_id,valid_from,host,port,unit,model\n"


def words_of(form, value):
    raw = struct.pack(form, value)
    return list(struct.unpack(f">{len(raw) // 2}H", raw))


# ---- registers -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "form", "value", "wh"),
    [
        ("sdm120", ">f", 1234.5, 1_234_500),
        ("sdm120", ">f", 0.1, 100),
        ("sdm630", ">f", 16_777_216.0, 16_777_216_000),
        ("dds238-2", ">I", 123_456, 1_234_560),
        ("hisob-sim", ">q", 9_007_199_254_740_993, 9_007_199_254_740_993),  # no float64 holds it
    ],
)
def test_registers_are_decoded_to_whole_wh(model, form, value, wh):
    assert MODELS[model].energy.decode(words_of(form, value)) == wh


@given(st.integers(0, 2**63 - 1))
def test_an_int64_register_is_exact(value):
    assert MODELS["hisob-sim"].energy.decode(words_of(">q", value)) == value


@given(st.integers(0, 2**31))
def test_the_order_of_words_is_the_models(value):
    low_first = Register(function=3, address=0, type="uint32", words="low first", wh_per_unit=1)
    assert low_first.decode(words_of(">I", value)[::-1]) == value


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("sdm120", [0x7FC0, 0]),
        ("sdm120", [0x7F80, 0]),
        ("sdm120", [0xBF80, 0]),
        ("dds238-2", [0xFFFF, 0xFFFF]),
        ("hisob-sim", [0x8000, 0, 0, 0]),
        ("hisob-sim", [0xFFFF] * 4),
    ],
)
def test_what_is_no_value_is_no_reading(model, words):
    with pytest.raises(NoValueError):
        MODELS[model].energy.decode(words)


def test_a_wrong_model_names_its_place(tmp_path):
    (tmp_path / "models.toml").write_text(
        '[x]\nname = "X"\nenergy = { function = 9, address = 0, type = "int16", wh_per_unit = 1 }'
    )
    with pytest.raises(ModelError, match=r"x\.energy\.function"):
        load_models(tmp_path / "models.toml")


# ---- devices.csv -----------------------------------------------------------------------------------------------------
def test_the_row_that_has_come_last_counts(tmp_path):
    (tmp_path / "devices.csv").write_text(
        HEADER
        + "M,2025-06-01T00:00:00Z,new,502,2,sdm630\nM,2025-01-01T00:00:00+05:00,old,502,1,sdm120\nM,2027-01-01T00:00:00Z,,,,\n"
    )
    devices = Devices(tmp_path)
    assert devices.of("M", dt.datetime(2024, 12, 31, 18, 59, tzinfo=dt.UTC)) is None
    assert devices.of("M", dt.datetime(2024, 12, 31, 19, tzinfo=dt.UTC)).host == "old"
    assert devices.of("M", NOW).gateway == ("new", 502)
    assert devices.of("M", dt.datetime(2027, 1, 1, tzinfo=dt.UTC)) is None
    assert [device.unit for device in devices.all(NOW)] == [2]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("M,yesterday,h,502,1,sdm120", "row 2, column valid_from: 'yesterday'"),
        (
            "M,2025-01-01 00:00,h,502,1,sdm120",
            "row 2, column valid_from: '2025-01-01 00:00' is a time without an offset",
        ),
        ("M,2025-01-01T00:00:00Z,h,5O2,1,sdm120", "row 2, column port: '5O2'"),
        ("M,2025-01-01T00:00:00Z,h,502,300,sdm120", "row 2, column unit: '300'"),
        ("M,2025-01-01T00:00:00Z,h,502,1,sdm121", "row 2, column model: 'sdm121' is no known model"),
        (",2025-01-01T00:00:00Z,h,502,1,sdm120", "row 2, column meter_id"),
        ("M,2025-01-01T00:00:00Z,h,502,1,sdm120,x", "one value too many"),
        (
            "M,2025-01-01T00:00:00Z,h,502,1,sdm120\nN,2025-01-01T00:00:00Z,h,502,1,sdm120",
            "row 3, column unit: 1 of h:502 is M",
        ),
        ("M,2025-01-01T00:00:00Z,h,502,1,sdm120\nM,2025-01-01T00:00:00Z,g,502,1,sdm120", "row 3, column valid_from"),
    ],
)
def test_a_wrong_device_names_row_column_and_value(tmp_path, row, says):
    (tmp_path / "devices.csv").write_text(HEADER + row + "\n")
    with pytest.raises(DeviceFileError) as caught:
        Devices(tmp_path)
    assert says in str(caught.value)


def test_a_home_may_have_models_of_its_own(tmp_path):
    (tmp_path / "devices.csv").write_text(HEADER + "M,2025-01-01T00:00:00Z,h,502,1,em24\n")
    energy = 'energy = { function = 3, address = 0x42, type = "int32", words = "low first", wh_per_unit = 100 }'
    (tmp_path / "models.toml").write_text(f'[em24]\nname = "EM24"\n{energy}\n')
    devices = Devices(tmp_path)
    assert devices.of("M", NOW).model.energy.decode([5, 1]) == (65_536 + 5) * 100
    (tmp_path / "models.toml").write_text("[em24]\n")
    with pytest.raises(DeviceFileError, match=r"em24\.name"):
        devices.refresh()


def test_a_changed_file_is_read_and_a_wrong_one_changes_nothing(tmp_path):
    path = tmp_path / "devices.csv"
    path.write_text(HEADER + "M,2025-01-01T00:00:00Z,h,502,1,sdm120\n")
    devices = Devices(tmp_path)
    assert not devices.refresh()
    path.write_text(HEADER + "M,2025-01-01T00:00:00Z,h,502,one,sdm120\n")
    with pytest.raises(DeviceFileError):
        devices.refresh()
    assert devices.of("M", NOW).unit == 1
    path.write_text(HEADER + "M,2025-01-01T00:00:00Z,h,502,12,sdm120\n")
    assert devices.refresh()
    assert devices.of("M", NOW).unit == 12


# ---- against a server by other hands ---------------------------------------------------------------------------------
class Bank(DataBank):
    """Each unit has registers of its own: those of an SDM120 (unit 1), a DDS238-2 (2) and a simulated meter (3)."""

    def __init__(self):
        super().__init__()
        self.inputs = {
            1: dict(zip((0x48, 0x49), words_of(">f", 42.125), strict=True)),
            3: dict(enumerate(words_of(">q", 77))),
        }
        self.holding = {2: dict(enumerate(words_of(">I", 5_000))) | {0x1A: 1}, 3: {0x10: 1}}
        self.writes = []

    @staticmethod
    def _read(space, address, number, srv_info):
        unit = space.get(srv_info.recv_frame.mbap.unit_id, {})
        words = [unit.get(at) for at in range(address, address + number)]
        return None if None in words else words

    def get_input_registers(self, address, number=1, srv_info=None):
        return self._read(self.inputs, address, number, srv_info)

    def get_holding_registers(self, address, number=1, srv_info=None):
        return self._read(self.holding, address, number, srv_info)

    def set_holding_registers(self, address, word_list, srv_info=None):
        unit = srv_info.recv_frame.mbap.unit_id
        self.writes.append((unit, srv_info.recv_frame.pdu.func_code, address, list(word_list)))
        self.holding[unit] |= dict(enumerate(word_list, address))
        return True


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def other_server():
    bank, port = Bank(), free_port()
    server = ModbusServer("127.0.0.1", port, no_block=True, data_bank=bank)
    server.start()
    try:
        yield bank, port
    finally:
        server.stop()


def device(model, unit, port):
    return Device(f"M-{unit}", "127.0.0.1", port, unit, MODELS[model])


def test_meters_of_a_server_by_other_hands_are_read_and_switched():
    async def story(bank, port):
        gateway = Gateway("127.0.0.1", port)
        sdm, dds, sim = (device(model, unit, port) for unit, model in enumerate(("sdm120", "dds238-2", "hisob-sim"), 1))
        assert [await read_register(gateway, d) for d in (sdm, dds, sim)] == [42_125, 50_000, 77]
        for each in (dds, sim):
            assert await read_switch(gateway, each) is SwitchState.CLOSED
            await write_switch(gateway, each, SwitchState.OPENED)
            assert await read_switch(gateway, each) is SwitchState.OPENED
        bank.holding[3][0x10] = 7
        assert await read_switch(gateway, sim) is SwitchState.UNKNOWN
        with pytest.raises(ModbusError) as caught:
            await read_register(gateway, device("sdm630", 3, port))
        assert caught.value.reason == "exception_2"
        gateway.close()
        assert bank.writes == [(2, 16, 0x1A, [0]), (3, 6, 0x10, [0])]

    with other_server() as (bank, port):
        asyncio.run(story(bank, port))


def test_only_the_configured_switch_of_a_known_model_can_be_written():
    """Whatever is asked of a meter with or without a switch, no other register changes."""

    async def story(bank, port):
        gateway = Gateway("127.0.0.1", port)
        with pytest.raises(ValueError, match="has no switch"):
            await write_switch(gateway, device("sdm120", 1, port), SwitchState.OPENED)
        with pytest.raises(KeyError):
            await write_switch(gateway, device("dds238-2", 2, port), SwitchState.UNKNOWN)
        for key, model in MODELS.items():
            for state in (SwitchState.OPENED, SwitchState.CLOSED):
                if model.switch:
                    await write_switch(gateway, device(key, 2, port), state)
        gateway.close()
        allowed = {(m.switch.write_function, m.switch.written_at) for m in MODELS.values() if m.switch}
        assert {(function, address) for _, function, address, _ in bank.writes} == allowed
        assert all(m.switch.written_at != m.energy.address for m in MODELS.values() if m.switch)

    with other_server() as (bank, port):
        asyncio.run(story(bank, port))


# ---- servers that misbehave ------------------------------------------------------------------------------------------
@asynccontextmanager
async def answering(answer):
    """A server that does with each request what it is told: answer(transaction, unit, pdu, send)."""
    connections = []

    async def serve(reader, writer):
        connections.append(writer)
        try:
            while True:
                transaction, _, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
                pdu = await reader.readexactly(length - 1)

                def send(body, transaction=transaction, unit=unit):
                    writer.write(struct.pack(">HHHB", transaction, 0, len(body) + 1, unit) + body)

                answer(transaction, unit, pdu, send)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], connections
    finally:
        server.close()


def register_body(wh):
    return struct.pack(">BBq", 4, 8, wh)


def test_a_late_answer_is_not_taken_for_anothers(monkeypatch):
    """Unit 1 answers after the time-out, in the middle of the next request to unit 2, and each keeps its own."""

    async def story():
        loop, asked = asyncio.get_running_loop(), []

        def answer(transaction, unit, pdu, send):
            asked.append(unit)
            loop.call_later(0.15 if unit == 1 else 0.08, send, register_body(1000 + unit))

        async with answering(answer) as (port, _):
            gateway = Gateway("127.0.0.1", port, timeout_s=0.1)
            for _ in range(3):
                with pytest.raises(ModbusError) as caught:
                    await read_register(gateway, device("hisob-sim", 1, port))
                assert caught.value.reason == "no_answer"
                assert await read_register(gateway, device("hisob-sim", 2, port)) == 1002
            gateway.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (lambda t, u, send: send(register_body(1), transaction=t + 1), "no_answer"),  # another transaction
        (lambda t, u, send: send(register_body(1), unit=u + 1), "no_answer"),  # another unit
        (lambda t, u, send: send(struct.pack(">BBq", 3, 8, 1)), "wrong_answer"),  # another function
        (lambda t, u, send: send(struct.pack(">BBi", 4, 4, 1)), "wrong_answer"),  # too short
        (lambda t, u, send: send(b"\x84\x0b"), "exception_11"),
        (lambda t, u, send: None, "no_answer"),
    ],
)
def test_a_wrong_answer_is_no_reading(twist, reason):
    async def story():
        async with answering(lambda t, u, pdu, send: twist(t, u, send)) as (port, _):
            gateway = Gateway("127.0.0.1", port, timeout_s=0.1)
            with pytest.raises(ModbusError) as caught:
                await read_register(gateway, device("hisob-sim", 1, port))
            assert caught.value.reason == reason
            gateway.close()

    asyncio.run(story())


def test_a_dead_gateway_fails_at_once_and_is_tried_again_after_a_pause(monkeypatch):
    monkeypatch.setattr(gateway_module, "PAUSE_S", 0.1)
    tried, connect = [], gateway_module.AsyncModbusTcpClient.connect
    monkeypatch.setattr(
        gateway_module.AsyncModbusTcpClient, "connect", lambda client: (tried.append(client), connect(client))[1]
    )

    async def story():
        port = free_port()
        gateway, meter = Gateway("127.0.0.1", port, timeout_s=0.2), device("hisob-sim", 1, port)
        for _ in range(100):  # one attempt to connect, the others cost nothing
            with pytest.raises(ModbusError) as caught:
                await read_register(gateway, meter)
            assert caught.value.reason == "no_connection"
        assert len(tried) == 1

        async def serve(reader, writer):
            transaction, *_ = struct.unpack(">HHHB5x", await reader.readexactly(12))
            writer.write(struct.pack(">HHHB", transaction, 0, 11, 1) + register_body(5))

        server = await asyncio.start_server(serve, "127.0.0.1", port)
        await asyncio.sleep(0.25)
        assert await read_register(gateway, meter) == 5
        gateway.close()
        server.close()

    asyncio.run(story())


def test_a_connection_that_is_lost_is_made_anew():
    async def story():
        async with answering(lambda t, u, pdu, send: send(register_body(9))) as (port, connections):
            gateway, meter = Gateway("127.0.0.1", port, timeout_s=0.2), device("hisob-sim", 1, port)
            assert await read_register(gateway, meter) == 9
            connections[0].transport.abort()
            await asyncio.sleep(0.02)
            assert await read_register(gateway, meter) == 9
            assert len(connections) == 2
            gateway.close()

    asyncio.run(story())
