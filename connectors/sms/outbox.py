"""The outbox: a file one can follow, a line of JSON a message. For one's own gateway to read, and to see what would be sent.

A line is whole and on disk before the message counts as accepted, and what stands in the file was accepted: so the file
itself says what became of a message that was on its way when its sender died. A torn line is taken off at the start.
Nothing else is ever known of a message here: no receipt comes, and `accepted` opens no way to a cut.
"""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

from connectors.sms import LostTouchError, Message, NotTakenError, Receipt
from connectors.sms.segments import count_segments

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Collection, Sequence
    from pathlib import Path

NAME = "outbox.ndjson"
CHUNK = 1 << 16


class Outbox:
    """Appends messages to a file. One process at a time."""

    window = 1  # lines stand in the order in which they were given

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._take_off_torn_line()

    async def send(self, message: Message, at: dt.datetime) -> Receipt:
        """Append the message's line and see it to the disk."""
        line = line_of(message, at)
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))  # noqa: TRY301 (the disk filled up within)
            os.fsync(self._descriptor)
        except OSError as error:
            self._take_back(before, error)
            raise NotTakenError(
                f"{self.path} cannot be written: {error.strerror}. Make room; it is tried again by itself."
            ) from error
        return Receipt(message.notice_id, at, "accepted", "outbox")

    async def recall(self, notice_ids: Collection[str], at: dt.datetime) -> dict[str, Receipt | None]:
        """The file has every message that was accepted, and no other: so it can tell of each."""
        known: dict[str, Receipt | None] = dict.fromkeys(notice_ids)
        if known:
            with self.path.open(encoding="utf-8") as file:
                for line in file:
                    notice_id = json.loads(line)["notice_id"]
                    if notice_id in known:
                        known[notice_id] = Receipt(notice_id, at, "accepted", "outbox")
        return known

    async def receipts(self, at: dt.datetime) -> Sequence[Receipt]:  # noqa: ARG002 (no message answers from here)
        """None ever come."""
        return ()

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _take_back(self, size: int, why: OSError) -> None:
        """Cut the file back to what it was before a line that did not get to the disk."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError:
            raise LostTouchError(f"{self.path} cannot be written, nor cut back: {why.strerror}.") from why

    def _take_off_torn_line(self) -> None:
        size = end = os.fstat(self._descriptor).st_size
        while end:
            start = max(0, end - CHUNK)
            at = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end != size:
            os.ftruncate(self._descriptor, end)


def line_of(message: Message, at: dt.datetime) -> bytes:
    """The message as a line of the outbox."""
    encoding, segments = count_segments(message.text)
    columns = {
        "notice_id": message.notice_id,
        "sent_at": at.isoformat().replace("+00:00", "Z"),
        "account_id": message.account_id,
        "kind": message.kind,
        "phone": message.phone,
        "language": message.language,
        "encoding": encoding,
        "segments": segments,
        "text": message.text,
    }
    return json.dumps(columns, ensure_ascii=False).encode() + b"\n"
