"""The documents say what the code does: every command, every column, every reason."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from accounting.bill import REASONS
from connectors.files import check
from hisob.cli import COMMANDS
from warehouse import health

ROOT = Path(__file__).parent.parent


def test_records_page_is_up_to_date() -> None:
    spec = spec_from_file_location("make_records", ROOT / "docs" / "make_records.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "records.md").read_text() == module.page(), "run: python docs/make_records.py"


def test_readme_covers_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"`hisob {name}" not in readme] == []


def test_every_reason_is_one_line_of_the_table() -> None:
    table = (ROOT / "docs" / "refused.md").read_text()
    named = set(re.findall(r"`(\w+)`", table))
    assert {reason for reason in (*REASONS, *check.REASONS) if reason} <= named


def test_every_check_of_the_metering_is_one_line_of_the_table() -> None:
    """With its thresholds, as the macro has them, and under the name the alarm has."""
    page = (ROOT / "docs" / "metering.md").read_text()
    assert [signature for signature in health.MACROS if f"| `{signature}` |" not in page] == []
    alarms = re.findall(r"SELECT '(\w+)' AS alarm", health.ALARMS)
    assert [alarm for alarm in alarms if f"| `{alarm}` |" not in page] == []
    assert len(alarms) == len(health.MACROS)
