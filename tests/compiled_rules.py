"""Importing this brings the compiled rules into the process, compiling them where need be: its forks then have them too."""

from pathlib import Path

from tests.core_harness import settle_journal
from tests.oracle import journal_of, load_case

settle_journal(journal_of(load_case(Path(__file__).parent / "cases" / "adversary-11")), accounts=1)
