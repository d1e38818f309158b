"""A partition's state as bytes and back: raw columns, Arrow strings, and JSON for what only some accounts have.

Never pickled classes: a snapshot outlives the code that wrote it. It begins with its schema version; one of another version is
not guessed at, the journal is replayed instead (that is what it is for).
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from accounting.partition import Partition, Payment, Texts
from accounting.policies import Place, Policy
from accounting.state import ACCOUNT
from accounting.tariffs import AccountVersion, History, TariffBook, TariffVersion

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 5
_HEAD = struct.Struct("<4sIIQ")  # magic, version, sections, dtype fingerprint
_MAGIC = b"HSBS"
_CODEC = pa.Codec("zstd", 1)
_FINGERPRINT = sum(
    ord(ch) * (k + 1) for k, ch in enumerate(str(ACCOUNT.descr))
)  # changes whenever a column of ACCOUNT does


class UnknownSnapshotError(ValueError):
    """The bytes are no snapshot of this version."""


def snapshot(p: Partition) -> bytes:
    """The state as bytes; the same state gives the same bytes."""
    strings = pa.record_batch(
        {
            "id": pa.array(p.ids, pa.string()),
            "phone": p.phones.column(),
            "language": p.languages.column().dictionary_encode(),
        }
    )
    sections = [
        p.accounts[: p.count].view(np.uint8),
        p.wake_at[: p.count].view(np.uint8),
        _ipc(strings),
        _ipc(pa.record_batch({"meter": pa.array(list(p.meters), pa.string())})),
        _ipc(_payments(p)),
        _ipc(_effects(p)),
        json.dumps(_side_tables(p), separators=(",", ":")).encode(),
    ]
    parts: list[bytes | memoryview] = [_HEAD.pack(_MAGIC, VERSION, len(sections), _FINGERPRINT)]
    for section in sections:
        packed = _CODEC.compress(section)
        parts += [struct.pack("<QQ", len(section), packed.size), memoryview(packed)]
    return b"".join(parts)


def restore(data: bytes) -> Partition:
    """The state that `snapshot` was given. Raises UnknownSnapshotError for bytes of another version."""
    magic, version, count, fingerprint = _HEAD.unpack_from(data, 0)
    if (magic, version, fingerprint) != (_MAGIC, VERSION, _FINGERPRINT):
        msg = f"a snapshot of version {version}, where {VERSION} is known"
        raise UnknownSnapshotError(msg)
    at, sections = _HEAD.size, []
    view = memoryview(data)
    for _ in range(count):
        size, packed = struct.unpack_from("<QQ", data, at)
        at += 16
        sections.append(_CODEC.decompress(view[at : at + packed], size))
        at += packed
    accounts, wake_at, strings, meters, payments, effects, side = sections
    p = Partition(0)
    _restore_side_tables(p, json.loads(bytes(side)))
    p.accounts = np.frombuffer(accounts, ACCOUNT)  # memory of its own, and ours to write to
    p.wake_at = np.frombuffer(wake_at, np.int64)
    p.count = p.accounts.size
    batch = _open(strings)
    p.ids[:] = batch.column("id").to_pylist()
    p.phones, p.languages = Texts(batch.column("phone")), Texts(batch.column("language").dictionary_decode())
    p.index = dict(zip(p.ids, range(p.count), strict=True))
    del p.index[""]  # the row of no account
    meter_ids = _open(meters).column("meter").to_pylist()
    p.meters = dict(zip(meter_ids, range(len(meter_ids)), strict=True))
    for i, key, *payment in zip(*(column.to_pylist() for column in _open(payments).columns), strict=True):
        p.payments.setdefault(i, {})[key] = Payment(*payment)
    ordinals, ns, *effect = (column.to_pylist() for column in _open(effects).columns)
    p.effects = dict(zip(zip(ordinals, ns, strict=True), zip(*effect, strict=True), strict=True))
    return p


def _ipc(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _open(section: pa.Buffer) -> pa.RecordBatch:
    return pa.ipc.open_stream(section).read_next_batch()


def _payments(p: Partition) -> pa.RecordBatch:
    rows = [
        (i, key, m.at, m.amount_tiyin, m.by, m.of, m.is_reversal, m.reversed)
        for i, remembered in p.payments.items()
        for key, m in remembered.items()
    ]
    kinds = (pa.int32(), pa.string(), pa.int64(), pa.int64(), pa.string(), pa.string(), pa.bool_(), pa.bool_())
    names = ("account", "key", "at", "amount", "by", "of", "is_reversal", "reversed")
    columns: Iterable[Any] = zip(*rows, strict=True) if rows else [()] * len(kinds)
    return pa.record_batch({n: pa.array(list(c), k) for n, c, k in zip(names, columns, kinds, strict=True)})


def _effects(p: Partition) -> pa.RecordBatch:
    names = ("ordinal", "n", "account", "at", "meter")
    columns: list[Any] = [*zip(*p.effects, strict=True), *zip(*p.effects.values(), strict=True)] or [()] * len(names)
    return pa.record_batch({name: pa.array(column, pa.int64()) for name, column in zip(names, columns, strict=True)})


def _side_tables(p: Partition) -> dict[str, Any]:
    book = p.book
    return {
        "number": p.number,
        "unrouted": p.unrouted,
        "taken": [[i, sorted(marks)] for i, marks in p.taken.items()],
        "tariffs": [[v.tariff, v.effective_at, v.blocks, v.sources, v.hours] for v in book.versions],
        "names": book.names,
        "prices": list(book.prices),
        "histories": [[[list(asdict(v).values()) for v in h.versions], h.late] for h in book.histories],
        "tariff_rows": p.tariff_rows,
        "marks": p.marks[: p.mark_count].tolist(),
        "waiting": [[account_id, waits] for account_id, waits in p.waiting.items()],
        "held_records": [[*held, text] for held, text in p.held_records.items()],
        "policies": [list(asdict(policy).values()) for policy in p.policies.values()],
        "policy_count": p.policy_count,
        "places": [[place.district, place.feeder, place.account] for place in p.places],
        "commands": p.commands,
        "last_tick": p.last_tick,
        "last_day": p.last_day,
        "ignored": p.ignored,
    }


def _restore_side_tables(p: Partition, side: dict[str, Any]) -> None:
    for name in ("number", "unrouted", "tariff_rows", "policy_count", "commands", "last_tick", "last_day", "ignored"):
        setattr(p, name, side[name])
    p.taken = {i: set(marks) for i, marks in side["taken"]}
    p.book = TariffBook()
    for tariff, effective_at, blocks, sources, hours in side["tariffs"]:
        prices = tuple((upto, price) for upto, price in blocks)
        p.book.versions.append(TariffVersion(tariff, effective_at, prices, tuple(sources), tuple(hours)))
    p.book.names = side["names"]
    for blocks, families in side["prices"]:
        p.book.prices[tuple((upto, price) for upto, price in blocks), families] = len(p.book.prices)
    for versions, late in side["histories"]:
        p.book.schedule(History(tuple(AccountVersion(*v) for v in versions), tuple((a, b) for a, b in late)))
    for mark in side["marks"]:
        p.add_mark(*mark)
    p.waiting = {account_id: [(o, n, kind, r) for o, n, kind, r in waits] for account_id, waits in side["waiting"]}
    p.held_records = {(ordinal, n): text for ordinal, n, text in side["held_records"]}
    p.policies = {values[0]: Policy(*values) for values in side["policies"]}
    p.places = list(map(Place._make, side["places"]))
    p.place_index = dict(zip(p.places, range(len(p.places)), strict=True))
