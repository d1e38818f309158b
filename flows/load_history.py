"""Load, validate, publish: the flow that brings both logs into DuckDB for audit.

Scheduled by prefect.yaml, each step is a task of its own, and a load that finds a log locked is tried again. With no
server (`hisob load`) the same flow runs as plain functions: `load_history.fn(home)`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.context import FlowRunContext

from connectors.home import Home
from connectors.log import TransientLogError
from warehouse import expectations, publish
from warehouse import load as loading
from warehouse.errors import BusyError, WarehouseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Task


@dataclass
class Outcome:
    """What the flow came to, as plain data."""

    home: str
    published: str
    load: int = 0
    records: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    merged_files: int = 0
    waiting: int = 0
    new: bool = False  # whether a new database was published
    warnings: list[dict[str, Any]] = field(default_factory=list)


def worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """Whether the load failed for a reason that passes by itself."""
    try:
        state.result()
    except (BusyError, TransientLogError):
        return True
    except Exception:  # noqa: BLE001 (any other error is not worth it; Prefect reports it)
        return False
    return False


@task(name="load", retries=3, retry_delay_seconds=60, retry_condition_fn=worth_retrying)
def load(home: Home) -> loading.Loaded:
    """Take in what both logs have gained."""
    return loading.load(home)


@task(name="validate")
def validate(home: Home) -> list[expectations.Finding]:
    """Copy the warehouse beside the published database and hold the copy against the expectations."""
    checked = publish.published_load(home)
    return expectations.validate(publish.make_candidate(home), home.scratch, checked)


@task(name="publish")
def put_in_place(home: Home) -> None:
    """Give the checked copy the published name."""
    publish.publish(home)


@flow(name="load_history")
def load_history(home: str) -> dict[str, Any]:
    """Bring both logs of the home into DuckDB, check it, and publish it. Twice in a row, the second time changes nothing."""
    where = Home(Path(home).absolute())
    if not where.settings.is_file():
        raise WarehouseError(f"There is no home in {home}. Make one: hisob --home {home} init")
    outcome = Outcome(str(where.path), str(where.published))
    with loading.holding(where):
        loaded = run(load, where)
        for name, value in asdict(loaded).items():
            setattr(outcome, name, value)
        if not publish.is_published(where):
            outcome.warnings = [asdict(finding) for finding in run(validate, where)]
            run(put_in_place, where)
            outcome.new = True
    return asdict(outcome)


def run(step: Task[..., Any], *arguments: Any) -> Any:
    """A step as Prefect's task within a run of the flow, as a plain function where there is none."""
    call: Callable[..., Any] = step if FlowRunContext.get() else step.fn
    return call(*arguments)
