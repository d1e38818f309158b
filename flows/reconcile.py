"""Reconcile: the flow that has the published ledger recomputed every night, and fails with what differs.

Scheduled by prefect.yaml. Without a server the same function does it at once: `reconcile_ledger.fn(home)`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow

from connectors.home import Home
from warehouse.audit import open_for_audit
from warehouse.errors import WarehouseError
from warehouse.reconcile import reconcile

NAMED = 3  # differences that the failure names


class LedgerDiffersError(WarehouseError):
    """The ledger is not what the registers and tariffs come to."""


@flow(name="reconcile_ledger")
def reconcile_ledger(home: str) -> dict[str, Any]:
    """Recompute every entry and balance of the home's published database. Fails if one differs by a tiyin, and says which."""
    where = Home(Path(home).absolute())
    if not where.settings.is_file():
        raise WarehouseError(f"There is no home in {home}. Make one: hisob --home {home} init")
    with open_for_audit(where) as con:
        result = reconcile(con)
    if result.different:
        first = "; ".join(
            f"{d.account_id} {d.what} {d.at or ''} ledger {d.ledger}, registers and tariffs {d.audit}"
            for d in result.differences[:NAMED]
        )
        raise LedgerDiffersError(
            f"{result.different:,} differences in {result.accounts:,} accounts: {first}. All of them: "
            f"hisob --home {where.path} reconcile"
        )
    return {name: value for name, value in asdict(result).items() if name != "differences"}
