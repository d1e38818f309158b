"""Files of records: CSV, Parquet and NDJSON, read by the contract of `accounting.records`.

A file is **staged** before anything of it is journalled: read once, in bounded memory, every value checked, the good
rows written to scratch as Arrow in order of arrival, the bad ones beside them as `unreadable` records. So a file that
cannot be taken at all (an unknown or missing column, another type, cut off in the middle) is refused before it has
left a trace, and a bad row never stops the good ones.

    formats  what the file is, its fingerprint, its rows as text or typed columns
    text     whole numbers, times and dates out of text, compiled
    check    each value against the contract: the good rows typed, the bad ones with column, value and reason
    stage    the rows on disk, in order of arrival
"""

from connectors.files.check import REASONS, arrivals
from connectors.files.formats import FileError, Inspected, inspect_file
from connectors.files.stage import STATUSES, Example, StagedFile, read_run, stage_file

__all__ = [
    "REASONS",
    "STATUSES",
    "Example",
    "FileError",
    "Inspected",
    "StagedFile",
    "arrivals",
    "inspect_file",
    "read_run",
    "stage_file",
]
