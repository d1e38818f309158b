"""The log: durable, ordered, partitioned. One small interface, several engines.

A **record** has a position: its ordinal within its partition, counted from 0 whatever rows it came in. A **row** is a
slice of one partition's sequence, written and read whole; its body (`connectors.log.body`) holds records of mixed kinds in
their order. A writer names itself (`producer`) and numbers what it writes (`sequence`, increasing): a row offered again
under a sequence already used is not written twice. A **consumer** keeps, by `commit`, how far it has come in each
partition, or any whole number it wants kept beside the rows.

Everything written by one `append`, and the commits given with it, becomes durable together or not at all; on Kafka that
is one transaction of the producer, here one of SQLite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager


@dataclass(frozen=True)
class NewRow:
    """A row to append: `count` records, whose positions the log assigns."""

    partition: int
    sequence: int
    count: int
    body: bytes


@dataclass(frozen=True)
class Row:
    """A row as it stands in the log: records `position … position + count − 1` of its partition."""

    partition: int
    position: int
    count: int
    producer: str
    sequence: int
    body: bytes

    @property
    def end(self) -> int:
        """The position after its last record."""
        return self.position + self.count


class LogError(Exception):
    """The log cannot do what was asked; the message says why and what to do next."""


class TransientLogError(LogError):
    """Worth trying again later: the disk is full, another process holds the lock."""


class TerminalLogError(LogError):
    """Trying again will not help: the file is corrupted, or no log, or of another version."""


class DivergedError(TerminalLogError):
    """Another row stands under that producer and sequence: what wrote it is not deterministic."""


class Transaction(Protocol):
    """A writer's turn: nobody else writes to the log until it ends. What it wrote is durable once it has ended."""

    def end(self, partition: int) -> int:
        """The position after the partition's last record, this transaction's own included."""

    def last(self, partition: int, producer: str) -> int | None:
        """The highest sequence this producer has written to the partition; None: nothing yet."""

    def committed(self, consumer: str) -> dict[str, int]:
        """What the consumer has committed, by key."""

    def append(self, producer: str, rows: Sequence[NewRow]) -> list[int]:
        """Write rows in their order; each one's position.

        A row whose sequence its producer has used already in its partition is left out if it is the same as what stands there
        (the position is then the old one); a different one raises DivergedError and nothing of the transaction stays.
        """

    def commit(self, consumer: str, values: Mapping[str, int]) -> None:
        """Keep these whole numbers for the consumer, by key (a partition's number as text, or a name)."""


class Log(Protocol):
    """A durable, ordered, partitioned log. Safe for several processes; open one for each process."""

    @property
    def partitions(self) -> int:
        """How many partitions there are, numbered from 0; fixed for the log's life."""

    def writing(self) -> AbstractContextManager[Transaction]:
        """Wait for the turn to write and hold it. An exception inside undoes all of it."""

    def append(
        self, producer: str, rows: Sequence[NewRow], commits: Mapping[str, Mapping[str, int]] | None = None
    ) -> list[int]:
        """`writing` in one call: the rows, and commits as {consumer: {key: value}}, together."""

    def read(self, partition: int, position: int, *, max_rows: int = 64, max_bytes: int = 1 << 26) -> list[Row]:
        """Rows in order from the one that holds `position`; at least one if there is one, then up to the limits."""

    def end(self, partition: int) -> int:
        """The position after the partition's last record."""

    def last(self, partition: int, producer: str) -> int | None:
        """The highest sequence this producer has written to the partition; None: nothing yet."""

    def commit(self, consumer: str, values: Mapping[str, int]) -> None:
        """Keep these whole numbers for the consumer, by key."""

    def committed(self, consumer: str) -> dict[str, int]:
        """What the consumer has committed, by key."""

    def close(self) -> None:
        """Let go of the log. What was appended is durable already."""
