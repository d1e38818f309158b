"""Messages to customers' phones: one small interface, several channels.

A **channel** takes a message and says whether it accepted it; what became of it, it says later, as a receipt. An SMPP gateway
answers `submit_sm` and sends receipts back, an HTTP gateway answers its request and calls back: both fit. What is promised:

- A message carries the notice's id. A channel hands it on as its own reference where the gateway takes one, so that it can be
  asked about it afterwards (`recall`).
- `send` raises NotTakenError only where the channel surely has not got the message. Anything else it raises leaves open
  whether it has: the caller may not send it again before `recall` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Collection, Sequence


@dataclass(frozen=True)
class Message:
    """A notice on its way to a phone."""

    notice_id: str
    account_id: str
    kind: str
    phone: str
    language: str
    text: str


@dataclass(frozen=True)
class Receipt:
    """What a channel said of a message. status: one of the contract's (`accounting.records.RECEIPT_STATUSES`)."""

    notice_id: str
    received_at: dt.datetime
    status: str
    detail: str | None = None


class ChannelError(Exception):
    """The channel cannot do what was asked; the message says why and what to do next."""


class NotTakenError(ChannelError):
    """The channel surely has not got the message: it may be sent again, later."""


class LostTouchError(ChannelError):
    """Whether the channel has got the message is not known."""


class Channel(Protocol):
    """A way to customers' phones. `window` is how many sends may be under way at once."""

    window: int

    async def send(self, message: Message, at: dt.datetime) -> Receipt:
        """Hand over a message, at this time by the clock of the effects: the answer, `accepted` or `rejected`."""

    async def recall(self, notice_ids: Collection[str], at: dt.datetime) -> dict[str, Receipt | None]:
        """What the channel knows of messages that may have been on their way when their sender died: the answer it gave; None
        where it surely never got the message. Those it cannot tell of are left out.
        """

    async def receipts(self, at: dt.datetime) -> Sequence[Receipt]:
        """What has become known by then of messages accepted: all that was not settled yet."""

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        """These receipts are durable elsewhere: they need not be given again."""

    def close(self) -> None:
        """Let go of the channel."""
