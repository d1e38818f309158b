"""Who may import whom, and what the rules may touch.

Imports go one way: hisob → flows → warehouse → connectors, hisob → streams → connectors, all → accounting. The rules in
accounting/ are pure: no clock, no chance, no I/O, no engine, nothing whose last bit differs between machines. That is what
makes a replay give the same events row for row, so it is held here, by reading the sources and running nothing.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT = {
    "accounting": set(),
    "connectors": {"accounting"},
    "streams": {"accounting", "connectors"},
    "warehouse": {"accounting", "connectors"},
    "flows": {"accounting", "connectors", "warehouse"},
    "hisob": {"accounting", "connectors", "streams", "warehouse", "flows"},
}
NOT_SHIPPED = {"tests", "bench"}

# ---- what accounting may not touch -----------------------------------------------------------------------------------
LIBRARIES = {"numba", "numpy", "pyarrow"}

IMPURE_MODULES = {
    "the clock": "time calendar sched zoneinfo locale",
    "chance": "random secrets uuid numpy.random",
    "I/O": """os io pathlib glob fnmatch shutil tempfile fileinput mmap fcntl select selectors socket socketserver ssl http
        urllib ftplib smtplib sqlite3 dbm shelve csv configparser tomllib gzip bz2 lzma zipfile tarfile logging getpass
        platform subprocess signal multiprocessing threading asyncio concurrent queue ctypes importlib runpy pickle
        pyarrow.fs pyarrow.dataset pyarrow.parquet pyarrow.csv pyarrow.json pyarrow.feather pyarrow.flight pyarrow.orc""",
}
IMPURE_BUILTINS = {
    "I/O": "open input print exec eval compile __import__ breakpoint",
    "chance": "hash id",  # of text: another at each start
}
IMPURE_ATTRIBUTES = {
    "the clock": "now utcnow today fromtimestamp astimezone perf_counter monotonic",
    "chance": "random default_rng shuffle",
    "I/O": "memory_map OSFile input_stream output_stream fromfile tofile savez savetxt loadtxt genfromtxt memmap",
    "another last bit on another machine": "exp exp2 expm1 log log2 log10 log1p pow power sin cos tan tanh cbrt fastmath",
}

# One file has to do with the machine: before the rules load it names the folder of their compiled form by their sources.
HOUSEKEEPING = {"accounting/__init__.py": {"os", "pathlib", "platform", "tempfile"}}


def forbidden(table: dict[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in table.items() for name in names.split()}


MODULES, BUILTINS, ATTRIBUTES = forbidden(IMPURE_MODULES), forbidden(IMPURE_BUILTINS), forbidden(IMPURE_ATTRIBUTES)


def imported_modules(node: ast.AST) -> list[str]:
    """Every module that an import statement could mean: `from a import b` may be a.b. Relative ones stay at home."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def import_violations(package: str, tree: ast.AST) -> list[tuple[int, str]]:
    ours = (MAY_IMPORT.keys() | NOT_SHIPPED) - MAY_IMPORT[package] - {package}
    return [
        (node.lineno, f"{package} may not import {module}")
        for node in ast.walk(tree)
        for module in imported_modules(node)
        if module.split(".")[0] in ours
    ]


def impure_import(module: str, excused: set[str]) -> str | None:
    top = module.split(".", maxsplit=1)[0]
    for name, reason in MODULES.items():
        if (module == name or module.startswith(name + ".")) and top not in excused:
            return f"imports {name}: {reason}"
    if top not in LIBRARIES | sys.stdlib_module_names | {"accounting"}:
        return f"imports {top}: neither the standard library nor one of {', '.join(sorted(LIBRARIES))}"
    return None


def purity_violations(tree: ast.AST, excused: set[str]) -> list[tuple[int, str]]:
    """What in a file of accounting/ is not pure. Modules are told by name, so an alias does not hide one."""
    found = set()
    for node in ast.walk(tree):
        for module in imported_modules(node):
            if said := impure_import(module, excused):
                found.add((node.lineno, said))
        if isinstance(node, ast.ImportFrom):
            found |= {
                (node.lineno, f"imports {alias.name}: {ATTRIBUTES[alias.name]}")
                for alias in node.names
                if alias.name in ATTRIBUTES
            }
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            found.add((node.lineno, f"{node.id}: {BUILTINS[node.id]}"))
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            found.add((node.lineno, f".{node.attr}: {ATTRIBUTES[node.attr]}"))
        if isinstance(node, ast.keyword) and node.arg == "fastmath":
            found.add((node.value.lineno, f"fastmath=: {ATTRIBUTES['fastmath']}"))
        if isinstance(node, ast.Call) and any(
            isinstance(a, ast.Constant) and a.value in {"now", "today"} for a in node.args
        ):
            found.add((node.lineno, f"{ast.unparse(node)}: the clock"))
    return sorted(found)


def violations(path: str, source: str) -> list[str]:
    """All that is wrong with one file, as `path:line: what`."""
    package, tree = path.split("/", maxsplit=1)[0], ast.parse(source, path)
    found = import_violations(package, tree)
    if package == "accounting":
        found += purity_violations(tree, HOUSEKEEPING.get(path, set()))
    return [f"{path}:{line}: {what}" for line, what in sorted(set(found))]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way_and_the_rules_are_pure(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ has no sources"
    found = [
        line
        for file in files
        for line in violations(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("accounting/bill.py", "import connectors.log"),
        ("accounting/bill.py", "def f():\n    from hisob import settings"),
        ("connectors/files.py", "from streams.ingest import take"),
        ("connectors/files.py", "import tests.oracle"),
        ("streams/settle.py", "import warehouse"),
        ("warehouse/load.py", "from flows import history"),
        ("flows/history.py", "import streams.settle"),
        ("flows/history.py", "import hisob.settings as s"),
        ("accounting/bill.py", "import time"),
        ("accounting/bill.py", "import os.path"),
        ("accounting/bill.py", "from pathlib import Path"),
        ("accounting/bill.py", "import bytewax.dataflow"),
        ("accounting/bill.py", "import duckdb"),
        ("accounting/bill.py", "from numpy import random"),
        ("accounting/bill.py", "import numpy as np\nnp.random.default_rng()"),
        ("accounting/bill.py", "from pyarrow import parquet"),
        ("accounting/bill.py", "import pyarrow.parquet as pq"),
        ("accounting/bill.py", "from datetime import datetime as d\nd.now()"),
        ("accounting/bill.py", "import datetime\ndatetime.date.today()"),
        ("accounting/bill.py", "import numpy as np\nnp.datetime64('now')"),
        ("accounting/bill.py", "read = open\nread('prices')"),
        ("accounting/bill.py", "key = hash('account')"),
        ("accounting/bill.py", "import numba\n@numba.njit(fastmath=True)\ndef f(): ..."),
        ("accounting/bill.py", "from math import exp"),
        ("accounting/bill.py", "import math\nmath.log(2.0)"),
        ("accounting/__init__.py", "import random"),
    ],
)
def test_a_breach_is_caught(path, source):
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "accounting/bill.py",
            "import math, json, numpy as np\nfrom numba import njit\nfrom accounting.records import READING",
        ),
        ("accounting/bill.py", "from . import records\nfrom .records import READING\nimport pyarrow.compute as pc"),
        ("accounting/__init__.py", "import os, pathlib\nos.environ.setdefault('A', 'b')"),
        (
            "connectors/files.py",
            "import time, duckdb\nfrom accounting import records\nfrom connectors.log import protocol",
        ),
        ("hisob/cli.py", "import flows.history, streams.settle, warehouse.load\nfrom connectors import log"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(path, source) == []


# ---- no file speaks of one machine -----------------------------------------------------------------------------------
PRUNED = {"__pycache__", "build", "dist", "node_modules", "hisob-data", "hisob-demo"}

# Written in pieces, so that this file can be read by its own test.
OF_ONE_MACHINE = re.compile(
    "|".join(
        [
            r"(?<![\w.~-])/(?:" + "|".join(["wo" + "rk", "fa" + "rm", "ro" + "ot", "U" + "sers", "o" + "pt"]) + r")/",
            "/tmp/" + "bash",
            "(?i:"
            + "|".join(
                [
                    "py" + "pi" + r"\.org",
                    "python" + "hosted" + r"\.org",
                    "regis" + "try" + r"\.npmjs",
                    "deb" + r"\.deb" + "ian",
                ]
            )
            + ")",
            "--(?:extra-)?index" + "-url",
        ]
    )
)


def sources(folder: Path):
    """The text files here, but for what the tools made."""
    for entry in sorted(folder.iterdir()):
        hidden = entry.name.startswith(".") and entry.name not in {".ci", ".gitignore", ".gitattributes"}
        if hidden or entry.name in PRUNED or entry.name.endswith(".egg-info"):
            continue
        if entry.is_dir():
            yield from sources(entry)
        elif b"\0" not in (head := entry.read_bytes()):
            yield entry, head.decode("utf-8", errors="replace")


def test_no_file_names_a_path_or_a_registry_of_one_machine():
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for file, text in sources(ROOT)
        for number, line in enumerate(text.splitlines(), 1)
        if OF_ONE_MACHINE.search(line)
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line", ["see /wo" + "rk/notes", "'/tmp/" + "bash_jobs'", "https://py" + "pi.org/simple", "pip --index" + "-url x"]
)
def test_a_path_of_one_machine_is_caught(line):
    assert OF_ONE_MACHINE.search(line)


@pytest.mark.parametrize(
    "line", ["https://example.org/wo" + "rk/x", "from ./wo" + "rk/a.csv", "/usr/bin/env bash", "--no-emit-index-url"]
)
def test_other_paths_pass(line):
    assert not OF_ONE_MACHINE.search(line)
