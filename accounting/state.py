"""The state of a partition's accounts as columns: one row an account, in one NumPy structured array.

`ACCOUNT` is everything the rules need to know of an account at its next record. Its first fields are those that the commonest
case reads and writes, so that they share a cache line or two. Moments are UTC µs; NONE stands for "there is none".
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from accounting.compiled import row_type

NONE = -(2**63)  # no such moment
FOREVER = 2**63 - 1

# phase: how far an account has come
ABSENT, ARRIVED, STARTED = 0, 1, 2

# supply, numbered as accounting.records.SUPPLY_STATES
CONNECTED, DISCONNECT_PENDING, DISCONNECTED, RECONNECT_PENDING, UNKNOWN = 0, 1, 2, 3, 4

ACCOUNT = row_type(
    [
        # the last measured register, and what the next piece of usage counts on from
        ("last_at", "i8"),
        ("last_wh", "i8"),
        ("month_wh", "i8"),  # used since the month's start (or the account's), at last_at
        ("next_change_at", "i8"),  # first month, segment or hour's price after last_at: before it a step is one piece
        ("segment", "i8"),  # of the Book, in force at last_at
        ("balance_tiyin", "i8"),
        ("usage_wh", "i8"),  # measured usage since the start
        ("modulus_wh", "i8"),
        ("max_power_w", "i8"),
        ("watch_tiyin", "i8"),  # below this balance the next tick looks at the account,
        ("pace_at", "i8"),  # and where it has used more since here
        ("pace_wh", "i8"),
        ("pace_rate", "f8"),  # than so many Wh a µs
        ("estimate_at", "i8"),  # the standing estimate; NONE: there is none
        ("held_at", "i8"),  # the held reading; NONE: there is none
        ("closed_at", "i8"),  # FOREVER while open
        ("meter", "i4"),  # the meter it has now
        ("phase", "u1"),
        ("closing", "u1"),  # a version with closed_at has arrived
        ("supply", "u1"),
        ("protected", "u1"),
        # the account's frame
        ("effective_at", "i8"),  # of its first version
        ("start_at", "i8"),
        ("schedule", "i4"),
        ("place", "i4"),
        # the standing estimate
        ("estimate_wh", "i8"),
        ("estimate_usage_wh", "i8"),
        ("estimate_tiyin", "i8"),  # what it charged
        # the last gap, a step that held a boundary, and how far back a late reading may reach
        ("gap_from_at", "i8"),
        ("gap_from_wh", "i8"),
        ("gap_to_at", "i8"),
        ("gap_to_wh", "i8"),
        ("gap_usage_wh", "i8"),
        ("gap_month_wh", "i8"),  # used since the month's start at gap_from_at
        ("late_limit_at", "i8"),
        ("mark", "i4"),  # newest price change at a measured register since the gap's end (see bill.Mark); −1: none
        ("held_n", "i4"),
        ("held_wh", "i8"),
        ("held_ordinal", "i8"),  # held_id of the held reading, with held_n
        # the level of use
        ("sampled_at", "i8"),
        ("sampled_wh", "i8"),
        ("level_wh", "f8"),  # Wh a day; < 0: not known yet
        ("variance", "f8"),  # of a day's use around the level
        ("samples", "u1"),  # whole days seen, of the first MOST_SAMPLES
        ("episode", "i4"),
        ("depletes_at", "i8"),  # the last forecast; FOREVER: not within the horizon
        # the low-credit notice of this episode
        ("notice_ordinal", "i8"),  # −1: none given
        ("notice_n", "i4"),
        ("command_n", "i4"),
        ("noticed_at", "i8"),
        ("gate_at", "i8"),  # when it was delivered, or its failure recorded; NONE: neither
        # supply
        ("command_ordinal", "i8"),  # the last command; −1: none
        ("command_expires_at", "i8"),
        ("proven_at", "i8"),  # when the switch was last read back
        ("emergency_credit_tiyin", "i8"),
        ("sequence", "i4"),
        ("reachable", "u1"),  # a phone number is known
        ("hold", "u1"),  # an order holds the supply on
        ("ordered_off", "u1"),  # 0, or 1 + the number of the cause of a standing order to disconnect
        ("command_cause", "u1"),  # 0 credit, or 1 + the number of an order's cause
        ("told_off", "u1"),  # the customer was told that the supply is off
        ("version_digest", "i8"),  # of the first version taken
        ("gate", "u1"),  # how the gate was passed: a number of GATES
        ("owed", "u1"),  # a reconnection was asked for, and the supply has not been read back closed since
    ]
)

Account: TypeAlias = Any  # one row of ACCOUNT, its fields as attributes
Accounts: TypeAlias = Any  # rows of ACCOUNT

GATES = ("", "delivered", "no_phone", "undeliverable", "expired", "rejected")


def new_accounts(count: int) -> Accounts:
    """Rows for accounts that have not arrived."""
    accounts = np.zeros(count, ACCOUNT)
    for name in ("estimate_at", "held_at", "gap_from_at", "gap_to_at", "gate_at", "proven_at", "start_at", "last_at"):
        accounts[name] = NONE
    for name in ("notice_ordinal", "command_ordinal", "mark"):
        accounts[name] = -1
    accounts["closed_at"] = FOREVER
    accounts["depletes_at"] = FOREVER
    accounts["watch_tiyin"] = FOREVER
    accounts["level_wh"] = -1.0
    return accounts
