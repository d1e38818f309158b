"""A home made by an older Hisob: its warehouse gains what was added since, and its views follow with one load."""

from unittest.mock import patch

import duckdb
import pytest

from accounting import records
from tests.warehouse_homes import History, history_of, in_parts, load_and_publish
from warehouse import health, lake, views
from warehouse.audit import open_published
from warehouse.errors import WarehouseError

CASE = "plain-4-versions"
LATER = {"reading": "interval_wh", "payment": "channel"}  # as if these had come later
NO_ALARMS = f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind, _ in health.ALARMS_COLUMNS)} WHERE false"


def forget(monkeypatch, name):
    """As before there was this macro, and the view that is made of all of them."""
    monkeypatch.setattr(health, "ALARMS", NO_ALARMS)
    monkeypatch.setattr(health, "MACROS", {k: v for k, v in health.MACROS.items() if not k.startswith(name)})


@pytest.fixture
def older(monkeypatch):
    """A Hisob that does not know these columns, until it is called."""
    for kind, column in LATER.items():
        known = tuple(c for c in records.RECORDS[kind] if c.name != column)
        monkeypatch.setitem(records.RECORDS, kind, known)
        monkeypatch.setitem(records.RECORD_SCHEMAS, kind, records.schema_of(known))
    forget(monkeypatch, "sum_checks")
    return monkeypatch.undo


def rows(home, sql):
    with open_published(home) as con:
        return con.execute(sql).fetchall()


def test_columns_added_since_are_null_in_what_was_loaded_before_and_there_in_what_comes(tmp_path, older):
    history, (first, second) = History(tmp_path / "home"), in_parts(CASE, 2)
    history.append(first)
    load_and_publish(history.home)
    before = rows(history.home, "SELECT count(*), sum(register_wh) FROM readings")
    assert "interval_wh" not in [name for name, *_ in rows(history.home, "DESCRIBE readings")]
    older()
    history.append(
        [[(kind, {**row, **({"interval_wh": 7} if kind == "reading" else {})}) for kind, row in p] for p in second]
    )
    load_and_publish(history.home)
    ((old, total),) = rows(history.home, "SELECT count(*), sum(register_wh) FROM readings WHERE interval_wh IS NULL")
    assert [(old, total)] == before
    ((new,),) = rows(history.home, "SELECT count(*) FROM readings WHERE interval_wh = 7")
    assert new == sum(kind == "reading" for p in second for kind, _ in p)
    assert rows(history.home, "SELECT channel FROM payments LIMIT 1") is not None


def test_files_of_before_and_after_are_merged_into_one_with_all_columns(tmp_path, older):
    history, parts = History(tmp_path / "home"), in_parts(CASE, 6)
    with patch.object(lake, "MERGE_FILES", 2):
        for number, part in enumerate(parts):
            if number == 3:
                older()
            history.append(part)
            load_and_publish(history.home)
    whole = history_of(tmp_path / "whole", CASE).home
    load_and_publish(whole)
    with duckdb.connect(str(history.home.warehouse), read_only=True) as con:
        assert con.execute(
            "SELECT count(*) FROM load.files WHERE retired_at IS NOT NULL AND kind = 'reading'"
        ).fetchone() > (0,)
    sql = "SELECT account_id, read_at, register_wh, interval_wh FROM readings ORDER BY ALL"
    assert rows(history.home, sql) == rows(whole, sql)


def test_a_load_with_nothing_to_take_in_makes_the_views_anew_where_their_definitions_changed(tmp_path, monkeypatch):
    home = history_of(tmp_path / "home", CASE).home
    with monkeypatch.context() as old:
        forget(old, "silent_meters")
        load_and_publish(home)
    with open_published(home) as con, pytest.raises(WarehouseError, match="hisob load"):
        health.look_at(con, health.Thresholds())
    assert load_and_publish(home).records == 0
    with open_published(home) as con:
        assert health.look_at(con, health.Thresholds()).meters > 0


def test_a_load_with_nothing_to_take_in_leaves_views_that_have_not_changed(tmp_path, monkeypatch):
    home = history_of(tmp_path / "home", CASE).home
    load_and_publish(home)
    published = home.published.stat().st_ino
    monkeypatch.setattr("warehouse.load.make_views", None)
    load_and_publish(home)
    assert home.published.stat().st_ino == published


def test_a_database_from_before_definitions_were_noted_is_made_anew_too(tmp_path):
    home = history_of(tmp_path / "home", CASE).home
    load_and_publish(home)
    for path in (home.warehouse, home.published):
        with duckdb.connect(str(path)) as con:
            con.execute("DROP TABLE load.definitions; DROP TABLE load.added_columns; DROP MACRO TABLE silent_meters")
    load_and_publish(home)
    assert rows(home, "SELECT count(*) FROM silent_meters()")


def test_the_definitions_have_one_name_wherever_the_home_lies():
    assert views.definitions_digest(4) == views.definitions_digest(4) != views.definitions_digest(5)
