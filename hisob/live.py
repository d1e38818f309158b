"""What `hisob run` shows: on a terminal a screen that is kept up to date, elsewhere a line a minute and one for each event."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from contextlib import ExitStack, suppress
from typing import IO, TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hisob.watch import Seen, Watch, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectors.home import Home
    from hisob.supervisor import Supervised

SCREEN_EVERY_S, LINE_EVERY_S = 1.0, 60.0
STYLES = {"running": "green", "elsewhere": "yellow", "waiting": "red"}


def is_screen(stream: IO[str]) -> bool:
    """Whether somebody watches."""
    return Console(file=stream).is_terminal


class Board:
    """Tells what goes on. `say` may be called from any thread, the rest from one."""

    def __init__(self, home: Home, *, on_screen: bool) -> None:
        self._home, self._on_screen = home, on_screen
        self._every_s = SCREEN_EVERY_S if on_screen else LINE_EVERY_S
        self._console = Console(highlight=False, soft_wrap=True)
        self._stack = ExitStack()
        self._live: Live | None = None
        self._watcher = _Watcher(home, min(self._every_s, 5.0))
        self._shown_s = time.monotonic()
        self._complaint = ""
        self._one_writer, self._is_closed = threading.Lock(), False

    def __enter__(self) -> Self:
        self._stack.enter_context(self._watcher)
        if self._on_screen:
            self._live = self._stack.enter_context(Live(console=self._console, auto_refresh=False))
        return self

    def __exit__(self, *_: object) -> None:
        with self._one_writer:  # nobody may be writing while Python ends
            self._stack.close()
            self._is_closed = True

    def say(self, name: str, text: str) -> None:
        """A line of the log: something happened."""
        line = f"{dt.datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {name}: {text}"
        with self._one_writer:
            if self._live and not self._is_closed:
                self._console.print(Text(line))
            elif not self._is_closed:
                print(line, flush=True)

    def show(self, processes: Sequence[Supervised], *, is_changed: bool) -> None:
        """Show how things stand, if it is time; keep it for `hisob status` when processes have come or gone."""
        if is_changed:
            self._keep(processes)
        if self._watcher.complaint != self._complaint:
            self._complaint = self._watcher.complaint
            if self._complaint:
                self.say("run", self._complaint)
        if time.monotonic() - self._shown_s < self._every_s:
            return
        self._shown_s = time.monotonic()
        if self._live:
            self._live.update(_screen(self._home, self._watcher.seen, self._watcher.rate(), processes), refresh=True)
        elif self._watcher.seen:
            self.say("run", _line(self._watcher.seen, self._watcher.rate(), processes))

    def _keep(self, processes: Sequence[Supervised]) -> None:
        text = json.dumps({one.service.name: one.as_dict() for one in processes})
        new = self._home.processes.with_suffix(".new")
        with suppress(OSError):  # a full disk: nobody's life depends on it
            new.write_text(text, encoding="utf-8")
            new.rename(self._home.processes)


class _Watcher:
    """Looks at the home in a thread of its own: a long look back must not keep a dead process waiting."""

    def __init__(self, home: Home, every_s: float) -> None:
        self.seen: Seen | None = None
        self.complaint = ""
        self._home, self._every_s = home, every_s
        self._ended = threading.Event()
        self._looks: list[tuple[float, int]] = []  # the last few: when, and how many readings there had been

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True, name="watch").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def rate(self) -> float:
        """Readings a second, over the last looks."""
        if len(self._looks) < 2:
            return 0.0
        (from_s, before), (to_s, after) = self._looks[0], self._looks[-1]
        return (after - before) / max(to_s - from_s, 1e-3)

    def _watch(self) -> None:
        while not self._ended.is_set():
            try:
                with Watch(self._home) as watch:
                    while not self._ended.is_set():
                        self.seen = watch.look()
                        self.complaint = ""
                        self._looks = [*self._looks[-12:], (time.monotonic(), self.seen.readings)]
                        self._ended.wait(self._every_s)
            except Exception as error:  # noqa: BLE001  a look that fails is said, and is no reason to stop anything
                self.complaint = f"what goes on cannot be seen: {error}"
                self._looks = []
                self._ended.wait(self._every_s)


def _line(seen: Seen, rate: float, processes: Sequence[Supervised]) -> str:
    """All in a line."""
    behind = f"settle {seen.lag['settle']:,} behind" if seen.lag["settle"] else "all settled"
    restarted = [f"{one.service.name} {one.restarts}×" for one in processes if one.restarts]
    down = [one.service.name for one in processes if one.state != "running" and one.service.every_s is None]
    return "; ".join(
        [
            f"{rate:,.0f} readings/s",
            f"last tick {shown(seen.last_tick) or 'none yet'}",
            behind,
            f"open: {seen.open_commands:,} commands, {seen.open_notices:,} notices",
            f"{seen.refused:,} refused",
            *([f"restarted: {', '.join(restarted)}"] if restarted else []),
            *([f"not running: {', '.join(down)}"] if down else []),
        ]
    )


def _screen(home: Home, seen: Seen | None, rate: float, processes: Sequence[Supervised]) -> Group:
    """The screen."""
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="bold cyan", no_wrap=True)
    figures.add_column()
    figures.add_row("Home", str(home.path))
    if seen:
        figures.add_row("Readings", f"{rate:,.0f} a second")
        figures.add_row("Last tick", shown(seen.last_tick) or "none yet")
        lags = (
            f"{name} {lag:,} behind" if lag else f"{name} up to date"
            for name, lag in seen.lag.items()
            if lag is not None
        )
        figures.add_row("Lag", ", ".join(lags))
        figures.add_row("Open", f"{seen.open_commands:,} commands, {seen.open_notices:,} notices")
        figures.add_row("Refused", f"{seen.refused:,}")
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for name in ("process", "", "pid", "restarts"):
        table.add_column(name, justify="right" if name in {"pid", "restarts"} else "left")
    for one in processes:
        state, pid = one.state, one.as_dict()["pid"]
        is_between = state == "waiting" and one.service.every_s is not None and not one.failures
        word = "until its time" if is_between else {"waiting": "will be started again"}.get(state, state)
        style = "dim" if is_between else STYLES[state]
        table.add_row(one.service.name, Text(word, style), str(pid or ""), str(one.restarts or ""))
    return Group(Text(), figures, Text(), table)
