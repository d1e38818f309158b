"""Each promise against its guard taken out: without it, the test that holds the promise fails. So no such test is idle.

The sources are copied with one edit, and the test is run in the copy, uncompiled.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = (
    "accounting",
    "connectors",
    "flows",
    "hisob",
    "streams",
    "warehouse",
    "tests",
    "pyproject.toml",
    "docs",
    "README.md",
)


@dataclass(frozen=True)
class Guard:
    """A line of the rules and what stands there without it; the promise it keeps, and the test that holds it."""

    promise: int
    file: str
    guard: str
    without: str
    test: str


IN_RULES, IN_DISPATCH = "tests/test_decisions.py::", "tests/test_dispatch.py::"
SUPPLY, DISPATCH = "accounting/supply.py", "streams/dispatch.py"
GUARDS = (
    Guard(1, SUPPLY, "        and measured_balance(s) + s.emergency_credit_tiyin < 0\n", "",
          IN_RULES + "test_no_cut_while_the_emergency_credit_lasts"),
    Guard(1, SUPPLY, "        and measured_balance(s) + s.emergency_credit_tiyin < 0\n",
          "        and s.balance_tiyin + s.emergency_credit_tiyin < 0\n",
          IN_RULES + "test_no_cut_on_a_standing_estimate_alone"),
    Guard(1, SUPPLY, "        and now - s.last_at <= rules.max_reading_age_us\n", "",
          IN_RULES + "test_no_cut_on_a_register_older_than_a_day"),
    Guard(2, SUPPLY, "        and s.gate_at != NONE\n        and now - s.gate_at >= rules.notice_gap_us\n", "",
          IN_RULES + "test_no_cut_without_word_of_the_notice"),
    Guard(2, SUPPLY, "        and now - s.gate_at >= rules.notice_gap_us\n", "",
          IN_RULES + "test_no_cut_within_a_day_of_the_delivery"),
    Guard(2, SUPPLY, "        s.notice_ordinal, s.gate_at, s.gate = -1, NONE, 0\n", "        s.notice_ordinal = -1\n",
          IN_RULES + "test_no_cut_on_the_notice_of_an_earlier_episode"),
    Guard(3, SUPPLY, "        and rules.window_until != NONE\n", "", IN_RULES + "test_no_cut_outside_the_window"),
    Guard(3, SUPPLY, "        and not rules.forbidden\n", "", IN_RULES + "test_no_cut_in_a_moratorium"),
    Guard(3, SUPPLY, "        and not s.protected\n", "", IN_RULES + "test_no_cut_of_a_protected_account"),
    Guard(3, DISPATCH, "if command.is_held_by_caps and not self._caps.leave_room(command, now):", "if False:",
          IN_DISPATCH + "test_above_a_cap_disconnections_are_held_and_that_is_said"),
    Guard(4, SUPPLY, "        return due | RECONNECT\n", "        return due | RECONNECT if at_tick else due\n",
          IN_RULES + "test_a_payment_reconnects_on_a_holiday_and_in_a_moratorium"),
    Guard(4, DISPATCH, "        return self.target is SwitchState.OPENED, self.issued_at",
          "        return self.target is SwitchState.CLOSED, self.issued_at",
          IN_DISPATCH + "test_reconnections_go_ahead_of_disconnections"),
    Guard(4, DISPATCH, "            await self._know_all(command)\n", "            pass\n",
          IN_DISPATCH + "test_a_payment_that_is_journalled_but_not_settled_holds_a_disconnection"),
    Guard(5, SUPPLY, "    if s.notice_ordinal >= 0 or s.phase != STARTED", "    if s.phase != STARTED",
          IN_RULES + "test_one_notice_an_episode_however_long_the_debt"),
    Guard(7, DISPATCH, "        if after is not command.target:\n", "        if False:\n",
          IN_DISPATCH + "test_a_switch_that_does_not_obey_is_a_mismatch_never_opened"),
)  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: f"promise {g.promise}: {g.test.partition('::')[2]}")
def test_without_its_guard_a_promise_is_seen_to_be_broken(guard, tmp_path):
    for name in LINKED:
        (tmp_path / name).symlink_to(ROOT / name)
    folder = Path(guard.file).parent
    (tmp_path / folder).unlink()
    shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = (tmp_path / guard.file).read_text()
    assert source.count(guard.guard) == 1, "the guard is written otherwise now"
    (tmp_path / guard.file).write_text(source.replace(guard.guard, guard.without))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", guard.test],
        cwd=tmp_path,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, f"with its guard gone the test still passes, or could not be run:\n{run.stdout[-2000:]}"
