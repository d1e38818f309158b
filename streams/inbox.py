"""The inbox: a folder of the home into which files of records are dropped while it is live.

A file is named KIND*.csv, .parquet or .ndjson (`readings-0930.csv`, `payment.ndjson`): its name begins with its kind.
It is taken once it is complete: written elsewhere and renamed into the inbox, or unchanged for a second. What begins
with a dot or ends in .tmp or .part is left alone: somebody is at it. Files that are complete at the same time are
journalled together, in order of arrival.

What is promised: a file is journalled once, whatever is killed when (the journal knows files by their content, and
moving one away comes after), and then lies in `taken/`; one that cannot be taken lies in `refused/`. Beside either
stands NAME.txt where there is something to say: why it was refused, or which of its rows were unreadable. Nothing is
ever deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from accounting.records import FILE_KINDS
from connectors.directory import Directory
from connectors.home import Home
from connectors.log.sqlite import open_log
from streams.ingest import IngestReport, WrongUseError, ingest_files

ENDINGS = (".csv", ".parquet", ".ndjson")
UNFINISHED = (".tmp", ".part")
SETTLED_S = 1.0  # so long unchanged is complete
Stamp = tuple[int, int]  # size and time of the last change


class Inbox:
    """The inbox of a home. To be looked at often, by one process alone."""

    def __init__(self, home: Home, *, batch_rows: int, makes_ticks: bool, say: Callable[[str], None]) -> None:
        """Make the folders. makes_ticks: whether the records' own time passes, as in `hisob ingest` where nothing is live."""
        self.say = say
        self._home, self._batch_rows, self._makes_ticks = home, batch_rows, makes_ticks
        self._taken, self._refused = home.inbox / "taken", home.inbox / "refused"
        for folder in (home.inbox, self._taken, self._refused):
            folder.mkdir(exist_ok=True)
        self._seen: dict[Path, tuple[Stamp, float]] = {}  # how each file was, and since when
        self._directory: Directory | None = None  # None too after an error, of no use then

    def look(self, now_s: float) -> None:
        """Journal what is complete. Raises TransientLogError; what it could not journal stays for the next look."""
        complete = self._complete(now_s)
        files = [(kind, path) for path in complete if (kind := kind_of(path.name))]
        for path in complete:
            if not kind_of(path.name):
                self._refuse(path, f"Its name does not say what it holds. {HOW_TO_NAME}")
        if not files:
            return
        try:
            self._journal(files)
        except WrongUseError:  # of one, or of several: each by itself, so that it stops no other
            ranks = {kind: rank for rank, kind in enumerate(FILE_KINDS)}
            for kind, path in sorted(files, key=lambda file: ranks[file[0]]):
                self._journal_alone(kind, path)

    def _complete(self, now_s: float) -> list[Path]:
        """The files that nobody writes to any more, in order of their names."""
        there: dict[Path, Stamp] = {}
        for path in sorted(self._home.inbox.iterdir()):
            if path.name.startswith(".") or path.name.endswith(UNFINISHED):
                continue
            with suppress(FileNotFoundError):  # taken away again
                if path.is_file():
                    stat = path.stat()
                    there[path] = (stat.st_size, stat.st_mtime_ns)
        self._seen = {
            path: self._seen[path] if path in self._seen and self._seen[path][0] == stamp else (stamp, now_s)
            for path, stamp in there.items()
        }
        return [path for path, (stamp, since) in self._seen.items() if now_s - min(since, stamp[1] / 1e9) >= SETTLED_S]

    def _journal_alone(self, kind: str, path: Path) -> None:
        stamp = self._seen[path][0]
        try:
            self._journal([(kind, path)])
        except WrongUseError as error:
            now = path.stat() if path.exists() else None
            if now and (now.st_size, now.st_mtime_ns) == stamp:  # else it was not complete after all
                self._refuse(path, str(error))

    def _journal(self, files: Sequence[tuple[str, Path]]) -> None:
        directory, self._directory = self._directory or self._load_directory(), None
        report = ingest_files(
            self._home, files, batch_rows=self._batch_rows, directory=directory, makes_ticks=self._makes_ticks
        )
        self._directory = directory
        for _, path in files:
            self._move(path, self._taken, _unreadable(report, path.name))
        taken = ", ".join(f"{count:,} {kind}" for kind, count in report.taken.items()) or "nothing new"
        bad = f", {report.unreadable.total():,} rows unreadable" if report.unreadable else ""
        self.say(f"inbox: {taken} from {', '.join(path.name for _, path in files)}{bad}")

    def _load_directory(self) -> Directory:
        with closing(open_log(self._home.journal, readonly=True)) as log:
            return Directory.load(self._home.scratch / "directory.npz", log)

    def _refuse(self, path: Path, why: str) -> None:
        self.say(f"inbox: {path.name} is refused: {why}")
        self._move(path, self._refused, why)

    def _move(self, path: Path, folder: Path, note: str) -> None:
        """Move the file out of the inbox; the note first, so that none is ever missing."""
        name, count = path.name, 1
        while (folder / name).exists():
            name, count = f"{path.stem}.{count}{path.suffix}", count + 1
        if note:
            (folder / f"{name}.txt").write_text(note + "\n", encoding="utf-8")
        path.rename(folder / name)
        self._seen.pop(path, None)


HOW_TO_NAME = (
    f"Name it by its kind ({', '.join(FILE_KINDS)}) and its format ({', '.join(ENDINGS)}), such as readings-0930.csv or"
    " payment.ndjson, and put it back into the inbox."
)


def kind_of(name: str) -> str | None:
    """The kind that a file's name begins with; None: it is no file of records by its name."""
    if not name.endswith(ENDINGS):
        return None
    return next((kind for kind in FILE_KINDS if name.startswith(kind)), None)


def _unreadable(report: IngestReport, name: str) -> str:
    """Which rows of a file were unreadable, in words; nothing if none were."""
    examples = [example for example in report.examples if example.file == name]
    if not examples:
        return ""
    shown = [f"row {e.row}, {e.column or 'the whole of it'}: {e.value!r} ({e.reason})" for e in examples]
    return "\n".join(
        [
            "Rows of this file could not be read. They are journalled whole and come out as `refused`: hisob tail refused.",
            "Mend them and give them in a file of their own. The first ones:",
            *shown,
        ]
    )
