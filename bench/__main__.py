"""`make bench`: how fast it is, as a table and as bench/latest.json.

    python -m bench [--only STAGE…] [--scale 0.1] [--keep DIR] [--crashes]

The work is 100,000 meters × 200 half-hours (20 M readings) in 16 partitions, ticks on, under the household tariff and
the policies of `hisob init`. Every stage is a process of its own, after a small run that compiles the rules. Nothing
else should be running.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.figures import FIGURES, ratios
from bench.stages import CRASHES, MEASURING, STAGES, in_order, result_file

ROOT = Path(__file__).parent.parent
LATEST = ROOT / "bench" / "latest.json"
ON_DISK = Path("/var/tmp")  # /tmp may be memory, where nothing is durable


def main() -> int:
    """Run the stages and print each figure as it is known."""
    options = parse_options()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        return run(options, options.keep.absolute())
    with TemporaryDirectory(prefix="hisob-bench-", dir=ON_DISK if ON_DISK.is_dir() else None) as folder:
        return run(options, Path(folder))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m bench", description="How fast it is, as a table and as bench/latest.json."
    )
    parser.add_argument("--only", nargs="+", choices=MEASURING, metavar="STAGE", help=f"some of: {' '.join(MEASURING)}")
    parser.add_argument("--scale", type=float, default=1.0, help="a part of the work, for a quick look: 0.1")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep files and homes there; what is there is not made anew"
    )
    parser.add_argument(
        "--crashes", action="store_true", help="also kill ingest and settle a hundred times: some minutes"
    )
    return parser.parse_args()


def run(options: argparse.Namespace, folder: Path) -> int:
    """All stages wanted, and those they need that were not kept."""
    (folder / "results").mkdir(exist_ok=True)
    check_scale(folder, options.scale)
    wanted = (options.only or list(MEASURING)) + list(CRASHES if options.crashes else ())
    print(title(options.scale), flush=True)
    values: dict[str, Any] = {
        "scale": options.scale,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine(),
    }
    failed: set[str] = set()
    for name in in_order(wanted):
        is_done = name not in wanted and result_file(folder, name).exists()
        if failed.intersection(STAGES[name].needs) or not (is_done or do_stage(name, folder, options.scale)):
            failed.add(name)
            continue
        result = json.loads(result_file(folder, name).read_text())
        values[f"stage_{name}"] = result.pop("stage")
        before = set(values)
        values |= result
        values |= ratios(values)
        print_figures(values, before)
    LATEST.write_text(json.dumps(values, indent=2) + "\n")
    return 1 if failed else 0


def check_scale(folder: Path, scale: float) -> None:
    """A kept folder is of one scale."""
    file = folder / "scale"
    if not file.exists():
        file.write_text(f"{scale}\n")
    elif float(file.read_text()) != scale:
        sys.exit(f"{folder} holds work of scale {file.read_text().strip()}: give that --scale, or another folder.")


def do_stage(name: str, folder: Path, scale: float) -> bool:
    """Do a stage in a process of its own; whether it came to its end. What it printed is shown only if it did not."""
    result_file(folder, name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.stages", name, str(folder), str(scale)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(f"bench: stage {name} failed:\n{done.stdout[-4000:]}", file=sys.stderr, flush=True)
    return done.returncode == 0


def title(scale: float) -> str:
    of = machine()
    part = "" if scale == 1 else f" × {scale:g}"
    return (
        f"100,000 meters{part} × 200 half-hours, 16 partitions, on {of['processors']} processors, Python {of['python']}"
        f" (load average before: {of['load_average']:.1f})"
    )


def machine() -> dict[str, Any]:
    return {"processors": os.cpu_count(), "python": platform.python_version(), "load_average": os.getloadavg()[0]}


def print_figures(values: dict[str, Any], before: set[str]) -> None:
    """The figures that are known now and were not before."""
    for figure in FIGURES:
        if figure.key in values and figure.key not in before:
            value = values[figure.key]
            verdict = "met" if figure.met(value) else "short"
            print(f"{figure.what:<32} {figure.form.format(value):>16}   target {figure.aim():<16} {verdict}")
            print(f"    {figure.how}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
