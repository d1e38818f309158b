"""Old price: the flow that has the right to old prices posted every night, on homes that have it (`old_price_months`).

Posting is the command's work, so the flow calls it: flows know the warehouse and no more. Scheduled by prefect.yaml.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from prefect import flow

from connectors.home import Home
from warehouse.errors import WarehouseError

ROOT = Path(__file__).parent.parent


@flow(name="post_old_price")
def post_old_price(home: str) -> dict[str, Any]:
    """Post what is due by the right to old prices. On a home without that right nothing is done."""
    where = Home(Path(home).absolute())
    if not where.settings.is_file():
        raise WarehouseError(f"There is no home in {home}. Make one: hisob --home {home} init")
    given = os.environ.get("HISOB_OLD_PRICE_MONTHS") or tomllib.loads(where.settings.read_text()).get(
        "old_price_months", 0
    )
    if not int(given):
        return {"on": False}
    command = [
        sys.executable,
        "-m",
        "hisob",
        "--home",
        str(where.path),
        "tariff",
        "old-price",
        "--author",
        "nightly",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise WarehouseError(done.stderr.strip())
    told = json.loads(done.stdout)
    return {
        "on": True,
        "posted": len(told["adjustments"]),
        "credit_tiyin": told["credit_tiyin"],
        "charge_tiyin": told["charge_tiyin"],
    }
