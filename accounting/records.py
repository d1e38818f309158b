"""The records of the journal and the events that come of them: names, types and units, in one place.

Two contracts stand here. `RECORDS` are the columns a record kind has in a file given to `hisob ingest` and in the
journal; `EVENTS` are the columns of what settle writes. Both are read by every other package: ingest validates by
them, the logs are encoded by them, the warehouse makes its tables and comments of them.

Units are last in the name: `_wh` is int64 watt hours, `_tiyin` int64 (100 tiyin = 1 soum), times are UTC microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")
TEXT = pa.string()
INT = pa.int64()
DATE = pa.date32()
FLOAT = pa.float64()
TYPES = {"text": TEXT, "int": INT, "time": TIME, "date": DATE, "json": TEXT, "float": FLOAT}


@dataclass(frozen=True)
class Column:
    """One column of a record or event. `type` is a key of TYPES; `choices` are the only values it may take."""

    name: str
    type: str
    doc: str
    optional: bool = False
    choices: tuple[str, ...] = ()
    least: int | None = None
    default: int | str | None = None
    internal: bool = False  # in the journal, never in a file


def _received() -> Column:
    return Column("received_at", "time", "When the record arrived, where its source says so.", optional=True)


_ACCOUNT = (
    Column("account_id", "text", "The customer's account."),
    Column("effective_at", "time", "From when this version of the account holds."),
    Column("meter_id", "text", "The meter at the usage point."),
    Column("district", "text", "District, the unit of policies and reports."),
    Column("feeder", "text", "Feeder line, the unit of the cap on simultaneous cuts.", optional=True),
    Column("tariff", "text", "Name of the tariff the account is billed by."),
    Column("families", "int", "Families sharing the meter: they multiply the block limits.", True, (), 1, 1),
    Column("phone", "text", "Phone number for notices, E.164.", optional=True),
    Column("language", "text", "Language of notices.", True, ("uz-Latn", "uz-Cyrl", "ru")),
    Column("supply_class", "text", "`protected` is never cut.", True, ("normal", "protected"), None, "normal"),
    Column("emergency_credit_tiyin", "int", "How far below zero the balance may go before a cut.", True, (), 0, 0),
    Column(
        "opening_balance_tiyin", "int", "Balance brought along, counted from the account's arrival.", True, (), None, 0
    ),
    Column("opening_register_wh", "int", "Register at the start; absent: the first measured reading.", optional=True),
    Column("register_modulus_wh", "int", "The register rolls over here.", True, (), 1, 1_000_000_000),
    Column("max_power_w", "int", "Power the connection can draw: more is not plausible.", True, (), 1, 15_000),
    Column("closed_at", "time", "The account ends here.", optional=True),
    Column("closing_register_wh", "int", "Register read at the closing.", optional=True),
    _received(),
    Column(
        "claim_number",
        "int",
        "Its number among all records that can claim a meter, in the whole journal.",
        True,
        internal=True,
    ),
)

_READING = (
    Column("meter_id", "text", "The meter that was read."),
    Column("read_at", "time", "When the register was read."),
    Column("register_wh", "int", "Cumulative register."),
    Column("status", "text", "How it was come by.", True, ("measured", "estimated"), None, "measured"),
    Column(
        "interval_wh",
        "int",
        "Energy of the interval that ends at read_at, as the meter itself metered it. It moves no money: it is held"
        " against the registers.",
        optional=True,
    ),
    _received(),
    Column(
        "account_id", "text", "The account the directory found; null where no claim reaches back.", True, internal=True
    ),
    Column(
        "first_partition", "int", "Where the reading was first journalled, if it waited unrouted.", True, internal=True
    ),
    Column("first_ordinal", "int", "Its ordinal there.", True, internal=True),
)

_METER_EXCHANGE = (
    Column("account_id", "text", "The customer's account."),
    Column("exchanged_at", "time", "When the meter was exchanged."),
    Column("old_meter_id", "text", "The meter taken away."),
    Column("old_register_wh", "int", "Its last register."),
    Column("new_meter_id", "text", "The meter put in."),
    Column("new_register_wh", "int", "Its first register."),
    Column("register_modulus_wh", "int", "Modulus of the new meter; absent: as before.", True, (), 1),
    _received(),
    Column(
        "claim_number",
        "int",
        "Its number among all records that can claim a meter, in the whole journal.",
        True,
        internal=True,
    ),
)

_PAYMENT = (
    Column("payment_id", "text", "The payment's id, as its channel gave it."),
    Column("account_id", "text", "The customer's account."),
    Column("paid_at", "time", "When it was paid."),
    Column("amount_tiyin", "int", "Amount paid, or taken back by a reversal.", least=1),
    Column("channel", "text", "Click, Payme, Paynet, a bank …", optional=True),
    Column("reverses", "text", "The payment_id that this one takes back.", optional=True),
    _received(),
)

_ADJUSTMENT = (
    Column("adjustment_id", "text", "The adjustment's id."),
    Column("account_id", "text", "The customer's account."),
    Column("adjusted_at", "time", "The time it stands at."),
    Column("amount_tiyin", "int", "Credit +, charge −."),
    Column("author", "text", "Who ordered it."),
    Column("reason", "text", "Why."),
    _received(),
)

_TARIFF = (
    Column("tariff", "text", "Name of the tariff."),
    Column("effective_on", "date", "Day from whose 00:00 (Asia/Tashkent) it holds."),
    Column("block_upto_kwh", "int", "Upper limit of the block in a calendar month; null for the last.", True, (), 1),
    Column("price_tiyin_per_kwh", "int", "Price of a kWh within the block.", least=0),
    Column(
        "hours",
        "text",
        "Hours of the day (Asia/Tashkent) in which the price holds, as `06:00-09:00,17:00-22:00`; absent: all of it.",
        optional=True,
    ),
    Column("source", "text", "Decree or decision it comes from.", optional=True),
    _received(),
    Column(
        "block",
        "int",
        "Number of the row in its version, from 0: block by block, list by list where hours have lists of their own.",
        True,
        internal=True,
    ),
    Column("blocks", "int", "How many rows the version has; they stand together.", True, internal=True),
)

POLICY_KINDS = ("disconnect_window", "holiday", "moratorium", "threshold", "quiet_hours")
_POLICY = (
    Column("policy_id", "text", "The policy's id."),
    Column("kind", "text", "What it governs.", choices=POLICY_KINDS),
    Column("scope", "text", "`all`, `district:X`, `feeder:X` or `account:X`."),
    Column("starts_at", "time", "From when it holds."),
    Column("ends_at", "time", "Until when; absent: until ended.", optional=True),
    Column("value", "json", "Its parameters as JSON.", optional=True),
    Column("author", "text", "Who set it."),
    Column("reason", "text", "Why."),
    _received(),
)

ORDER_CAUSES = ("court", "safety", "tamper", "load", "request")
_ORDER = (
    Column("order_id", "text", "The order's id."),
    Column("account_id", "text", "The customer's account."),
    Column("ordered_at", "time", "When it was ordered."),
    Column("action", "text", "What is ordered.", choices=("disconnect", "reconnect", "hold", "release")),
    Column("cause", "text", "On what ground.", choices=ORDER_CAUSES),
    Column("author", "text", "Who ordered it."),
    Column("reason", "text", "Why."),
    _received(),
)

ACK_OUTCOMES = ("opened", "closed", "unreachable", "mismatch", "expired", "superseded")
_ACKNOWLEDGEMENT = (
    Column("command_id", "text", "The command answered."),
    Column("acknowledged_at", "time", "When the switch was read back."),
    Column("outcome", "text", "What the readback showed.", choices=ACK_OUTCOMES),
    Column("detail", "text", "In the actuator's words.", optional=True),
    _received(),
)

RECEIPT_STATUSES = ("accepted", "delivered", "undeliverable", "expired", "rejected")
_RECEIPT = (
    Column("notice_id", "text", "The notice answered."),
    Column("received_at", "time", "When the channel said so."),
    Column("status", "text", "What became of the SMS.", choices=RECEIPT_STATUSES),
    Column("detail", "text", "In the channel's words.", optional=True),
)

_TICK = (Column("ticked_at", "time", "The quarter of an hour that has passed."),)

_UNREADABLE = (
    Column("record_kind", "text", "The kind it was given as."),
    Column("file", "text", "Base name of the file."),
    Column("row", "int", "Row of the file, the header being row 1."),
    Column("column", "text", "The column at fault.", optional=True),
    Column("value", "text", "Its value as given.", optional=True),
    Column("reason", "text", "`not_an_integer`, `naive_time`, `missing_value`, `unknown_value` …"),
    Column("record", "json", "The whole row as JSON, as given."),
)

# In the order in which records of one moment are journalled (tick last: it comes after the records of its moment).
RECORDS: dict[str, tuple[Column, ...]] = {
    "tariff": _TARIFF,
    "policy": _POLICY,
    "account": _ACCOUNT,
    "meter_exchange": _METER_EXCHANGE,
    "payment": _PAYMENT,
    "adjustment": _ADJUSTMENT,
    "order": _ORDER,
    "reading": _READING,
    "acknowledgement": _ACKNOWLEDGEMENT,
    "receipt": _RECEIPT,
    "unreadable": _UNREADABLE,
    "tick": _TICK,
}
FILE_KINDS = tuple(kind for kind in RECORDS if kind not in ("unreadable", "tick"))

# The column that holds a record's own time (a tariff's is 00:00 Asia/Tashkent of its date).
OWN_TIME = {
    "tariff": "effective_on",
    "policy": "starts_at",
    "account": "effective_at",
    "meter_exchange": "exchanged_at",
    "payment": "paid_at",
    "adjustment": "adjusted_at",
    "order": "ordered_at",
    "reading": "read_at",
    "acknowledgement": "acknowledged_at",
    "receipt": "received_at",
    "tick": "ticked_at",
}

# What the `key` of cases/README.md is made of: these columns joined by "|", times in UTC ISO 8601.
KEY = {
    "tariff": ("tariff", "effective_on"),
    "policy": ("policy_id",),
    "account": ("account_id", "effective_at"),
    "meter_exchange": ("account_id", "exchanged_at"),
    "payment": ("payment_id",),
    "adjustment": ("adjustment_id",),
    "order": ("order_id",),
    "reading": ("meter_id", "read_at"),
    "acknowledgement": ("command_id", "acknowledged_at"),
    "receipt": ("notice_id", "received_at"),
    "unreadable": ("file", "row"),
}

ENTRY_KINDS = ("opening", "usage", "payment", "reversal", "correction", "adjustment")
BASES = ("measured", "estimated", "interpolated")
SUPPLY_STATES = ("connected", "disconnect_pending", "disconnected", "reconnect_pending", "unknown")
NOTICE_KINDS = ("low_credit", "low_credit_reminder", "disconnected", "reconnected")

_ENTRY_EVENT = (
    Column("account_id", "text", "The customer's account."),
    Column("kind", "text", "What moved the balance.", choices=ENTRY_KINDS),
    Column("from_at", "time", "Start of the usage charged.", optional=True),
    Column("to_at", "time", "End of the usage charged, or the time the credit stands at."),
    Column("from_wh", "int", "Register at from_at.", optional=True),
    Column("to_wh", "int", "Register at to_at.", optional=True),
    Column("usage_wh", "int", "Usage charged; negative where a correction gives it back."),
    Column("amount_tiyin", "int", "Credit +, charge −."),
    Column("balance_tiyin", "int", "The account's balance after this entry."),
    Column("tariff", "text", "Tariff in force, for usage and corrections.", optional=True),
    Column("basis", "text", "Measured, estimated or interpolated at a boundary.", True, BASES),
)
_REFUSED_EVENT = (
    Column("record_kind", "text", "Kind of the record refused."),
    Column("reason", "text", "The reason, by name (docs/refused.md)."),
    Column("detail", "text", "What was compared, in words.", optional=True),
    Column("record", "json", "The whole record."),
)
_RELEASED_EVENT = (
    Column("held_id", "text", "The held record that is held no longer."),
    Column("released_at", "time", "The last tick when it was let go.", optional=True),
    Column("outcome", "text", "What became of it.", choices=("settled", "unchanged", "refused")),
)
_FORECAST_EVENT = (
    Column("account_id", "text", "The customer's account."),
    Column("forecast_at", "time", "When it was made."),
    Column("balance_tiyin", "int", "Balance it starts from."),
    Column("usage_wh_per_day", "int", "Level of use; null before any is known.", optional=True),
    Column("depletes_at", "time", "When the credit runs out, with care; null: not within 400 days.", optional=True),
    Column("earliest_at", "time", "Should use rise as it rarely does.", optional=True),
    Column("latest_at", "time", "Should use stay just at its level.", optional=True),
)
_NOTICE_EVENT = (
    Column("account_id", "text", "The customer's account."),
    Column("noticed_at", "time", "When it was decided."),
    Column("send_after", "time", "Not to be sent before (quiet hours)."),
    Column("kind", "text", "What it tells.", choices=NOTICE_KINDS),
    Column("phone", "text", "Where to, E.164; null: none known.", optional=True),
    Column("language", "text", "Language of the text."),
    Column("text", "text", "The text."),
    Column("depletes_at", "time", "When the credit runs out.", optional=True),
    Column("episode", "int", "Which low-credit episode of the account, from 1."),
)
_COMMAND_EVENT = (
    Column("account_id", "text", "The customer's account."),
    Column("meter_id", "text", "The meter whose switch is meant."),
    Column("issued_at", "time", "When it was decided."),
    Column("expires_at", "time", "Not to be carried out from here on."),
    Column("action", "text", "What to do.", choices=("disconnect", "reconnect")),
    Column("cause", "text", "`credit`, or an order's cause."),
    Column("sequence", "int", "Count of commands of this account and meter, from 1."),
    Column("supersedes", "text", "The command that this one voids.", optional=True),
    Column("evidence", "json", "Readings, tariff, forecast, notices, receipts, policies and verdict."),
)
_SUPPLY_STATE_EVENT = (
    Column("account_id", "text", "The customer's account."),
    Column("changed_at", "time", "When it became so."),
    Column("state", "text", "State of the supply, as far as is known.", choices=SUPPLY_STATES),
    Column("cause", "text", "Why."),
)

# An event's id is `partition-ordinal-n`: the position that caused it and a count. It is stored as integers
# (`ordinal`, `n` beside the partition) and rendered at the edges under the name EVENT_ID gives.
EVENTS: dict[str, tuple[Column, ...]] = {
    "entry": _ENTRY_EVENT,
    "refused": _REFUSED_EVENT,
    "held": _REFUSED_EVENT,
    "released": _RELEASED_EVENT,
    "forecast": _FORECAST_EVENT,
    "notice": _NOTICE_EVENT,
    "command": _COMMAND_EVENT,
    "supply_state": _SUPPLY_STATE_EVENT,
}
EVENT_ID = {
    "entry": "entry_id",
    "refused": "refused_id",
    "held": "held_id",
    "notice": "notice_id",
    "command": "command_id",
}


def schema_of(columns: tuple[Column, ...]) -> pa.Schema:
    """The Arrow schema of a record's or event's columns."""
    return pa.schema([pa.field(c.name, TYPES[c.type]) for c in columns])


RECORD_SCHEMAS: dict[str, pa.Schema] = {kind: schema_of(columns) for kind, columns in RECORDS.items()}
EVENT_SCHEMAS: dict[str, pa.Schema] = {kind: schema_of(columns) for kind, columns in EVENTS.items()}


def render_id(partition: int, ordinal: int, n: int) -> str:
    """An event's id as text: `partition-ordinal-n`."""
    return f"{partition}-{ordinal}-{n}"


def parse_id(text: str) -> tuple[int, int, int]:
    """The (partition, ordinal, n) of an event's id. Raises ValueError for anything else."""
    partition, ordinal, n = text.split("-")
    if not (partition.isascii() and ordinal.isascii() and n.isascii()):
        raise ValueError(text)
    return int(partition), int(ordinal), int(n)
