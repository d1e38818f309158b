"""`hisob demo`: the main job on real data, start to end, through the very same commands as anybody's data.

A home is made, a district lives five weeks in it round by round (hisob.demo), what came of it is loaded for audit, and told.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from hisob.commands import AsJson
from hisob.errors import HisobError

if TYPE_CHECKING:
    from connectors.home import Home
    from hisob.demo.rounds import Played
    from hisob.demo.world import World

DEFAULT_HOME = Path("hisob-demo")
MARK = "demo.json"
MADE_OF = (
    "Real is the usage: each lives other weeks of one house (Hebrail and Berard, UCI Machine Learning Repository, CC BY 4.0). "
    "Who they are, how they pay and what goes wrong is made up."
)
PARTITIONS = 4  # `init` makes 16: so few customers need them less than so many rounds mind them


@dataclass(frozen=True)
class Step:
    """One thing done: the command that does it for anybody's data, how long it took, what came of it."""

    command: str
    seconds: float
    says: str


def demo(
    context: typer.Context,
    customers: Annotated[int, typer.Option(min=10, max=390, help="Customers of the district.")] = 300,
    weeks: Annotated[int, typer.Option(min=1, max=8, help="Weeks they live.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed makes another district.")] = 1,
    as_json: AsJson = False,
) -> None:
    """The main job on bundled real data, start to end: a district, its money, its notices, its switches, in under two minutes.

    In ./hisob-demo, unless --home names another folder. Run again, it makes its own home anew.
    """
    from hisob.demo.district import build_district
    from hisob.demo.show import page
    from hisob.demo.world import World

    console = page(Console(stderr=as_json, highlight=False))
    folder = folder_of(context)
    make_room(folder)
    if not as_json:
        console.print(f"[bold]Hisob demo[/]: {customers} customers in autumn 2025, {weeks * 7} days. {MADE_OF}\n")
    began = perf_counter()
    home = begin(folder, {"customers": customers, "weeks": weeks, "seed": seed})
    steps = [say(console, Step("init", perf_counter() - began, "the Uzbek tariffs and default policies"))]
    lived, played = live(console, home, World(build_district(seed, customers, weeks)))
    steps += lived
    with console.status("hisob load: into DuckDB, checked, published") if console.is_terminal else nullcontext():
        loaded = load(home)
    steps.append(say(console, loaded))
    tell(console, home, folder, steps, played, as_json=as_json)


# ---- the home --------------------------------------------------------------------------------------------------------


def folder_of(context: typer.Context) -> Path:
    """The folder given with --home or HISOB_HOME, else the demo's own."""
    source = context.find_root().get_parameter_source("home")
    return DEFAULT_HOME if source is None or source.name == "DEFAULT" else Path(context.obj)


def make_room(folder: Path) -> None:
    """Take an earlier demo out of the folder, and nothing else. Raises HisobError (exit 2) where something else is in it."""
    from connectors.home import Home

    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MARK).is_file():
        raise HisobError(
            f"{folder} is there already and no demo made it, so it was not touched."
            " Name a folder for the demo alone: hisob --home DIR demo",
            exit_code=2,
        )
    home = Home(folder)
    made = ("devices.csv", "phones.json", "demo.log")
    others = (*folder.glob("*.db*"), *folder.glob("*.duckdb*"), *(folder / name for name in made))
    for path in (home.settings, home.warehouse, *others, *folder.glob("BK-*.svg")):
        path.unlink(missing_ok=True)
    for path in (home.recovery, home.lake, home.published.parent, home.scratch, home.run, folder / "given"):
        shutil.rmtree(path, ignore_errors=True)


def begin(folder: Path, district: dict[str, int]) -> Home:
    """A new home, marked as the demo's before anything else is in it."""
    from hisob.demo.live import SETTINGS
    from hisob.homes import make_home

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(json.dumps(district) + "\n", encoding="utf-8")
    return make_home(folder, PARTITIONS, SETTINGS)


# ---- the steps -------------------------------------------------------------------------------------------------------


def live(console: Console, home: Home, world: World) -> tuple[list[Step], Played]:
    """Let the district live, round by round: what it sends is ingested, what comes out is done, and goes back to it."""
    from connectors.directory import Directory
    from hisob.demo.live import living
    from hisob.demo.rounds import play
    from streams.ingest import ingest_files

    bar = Progress(
        TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    with bar, living(home, world.district) as processes:
        weeks = bar.add_task(
            "loading the rules (compiling them, the first time)", total=(world.end - world.now).total_seconds()
        )

        def watch(until: Any, played: Played) -> None:
            done = f"{until:%a %d %b %H:%M}  {played.records['reading']:,} readings, {played.records['payment']:,} payments"
            bar.update(weeks, description=done, completed=bar.tasks[0].total - (world.end - until).total_seconds())

        directory = Directory(PARTITIONS)
        played = play(
            world,
            home.path / "given",
            ingest=lambda files: ingest_files(home, files, directory=directory),
            settled=processes.settled,
            watch=watch,
        )
    given = f"{played.rounds} rounds: {sum(played.records.values()):,} records of {len(played.records)} kinds"
    done = "settle, dispatch, notify beside a fleet of switches on Modbus and as many phones"
    steps = [Step("ingest", played.ingest_s, given), Step("run", played.live_s, done)]
    return [say(console, step) for step in steps], played


def load(home: Home) -> Step:
    """The flow that anybody's `hisob load` runs."""
    began = perf_counter()
    os.environ.setdefault("PREFECT_HOME", str(home.scratch / "prefect"))
    from flows.load_history import load_history

    outcome = load_history.fn(str(home.path))
    says = f"{outcome['records']:,} records checked and published"
    return Step("load", perf_counter() - began, says)


def say(console: Console, step: Step) -> Step:
    """One line for the step, as soon as it is done."""
    console.print(Text.assemble((f"  hisob {step.command:<16}", "green"), f"{step.seconds:6.1f} s  {step.says}"))
    return step


# ---- what came of it -------------------------------------------------------------------------------------------------


def tell(console: Console, home: Home, folder: Path, steps: list[Step], played: Played, *, as_json: bool) -> None:
    """The summary, one customer's statement, and what to try next."""
    from hisob.commands.statement import print_statement
    from hisob.commands.why import print_sentences
    from hisob.demo.show import show_summary, title
    from hisob.demo.summary import summarize, typical_customer
    from warehouse.audit import open_published
    from warehouse.picture import draw
    from warehouse.statement import make_statement
    from warehouse.story import read_story
    from warehouse.why import explain

    with open_published(home) as audit:
        summary = summarize(audit) | {"light_seconds": sorted(round(s, 3) for s in played.light_s)}
        account_id, month, told_at = typical_customer(audit)
        story, picture = read_story(audit, account_id, told_at), folder / f"{account_id}.svg"
        draw(story, picture)
        if as_json:
            done = [{"command": step.command, "seconds": round(step.seconds, 3)} for step in steps]
            found = {
                "home": str(folder),
                "steps": done,
                "summary": summary,
                "customer": account_id,
                "picture": str(picture),
            }
            print(json.dumps(found))
            return
        title(console, "What came of it")
        show_summary(console, summary)
        title(console, f"How it went with {account_id}")
        print_sentences(console, explain(story))
        console.print(f"\n{picture} has it as a picture.", soft_wrap=True)
        title(console, f"The statement of {account_id}")
        print_statement(make_statement(audit, account_id, month))
    title(console, "Next")
    hisob = f"{program()} --home {folder}"
    for call in (
        f"why {account_id}",
        f"query \"FROM commands WHERE account_id = '{account_id}' ORDER BY issued_at\"",
        "tail notices --until-end",
    ):
        console.print(f"  {hisob} {call}", soft_wrap=True)


def program() -> str:
    """How the caller can call `hisob` again."""
    if shutil.which("hisob"):
        return "hisob"
    called, here = Path(sys.argv[0]).absolute(), Path.cwd()
    if called.name == "__main__.py":
        return "python -m hisob"
    return str(called.relative_to(here) if called.is_relative_to(here) else called)
