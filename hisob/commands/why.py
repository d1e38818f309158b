"""`hisob why`: why an account's supply is as it is, from the published database: in sentences, and as a picture."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hisob.commands import AsJson, home_of
from hisob.errors import HisobError

if TYPE_CHECKING:
    from rich.console import Console

    from warehouse.why import Sentence


def why(
    context: typer.Context,
    account: Annotated[str, typer.Argument(help="The account.")],
    at: Annotated[
        str | None, typer.Option(help="Another moment than the present: 2025-09-02T10:00, by the clocks of Tashkent.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it too: a file ending in .svg, .png or .html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which readings, tariff, notice, receipt, policy and rule led to the state of the supply; ids at the end of lines."""
    from warehouse import why as words
    from warehouse.audit import open_published
    from warehouse.statement import UnknownAccountError
    from warehouse.story import OutsideError, read_story

    moment = parse_moment(at)
    home, _ = home_of(context)
    with open_published(home) as con:
        try:
            story = read_story(con, account, moment)
        except (UnknownAccountError, OutsideError) as error:
            raise HisobError(str(error), exit_code=2) from error
    sentences = words.explain(story)
    if picture is not None:
        from warehouse.picture import UnknownFormatError, draw

        try:
            draw(story, picture)
        except UnknownFormatError as error:
            raise HisobError(str(error), exit_code=2) from error
    if as_json:
        print(json.dumps(words.as_json(story, sentences), ensure_ascii=False))
        return
    from rich.console import Console

    print_sentences(Console(highlight=False), sentences)


def print_sentences(console: Console, sentences: list[Sentence]) -> None:
    """Sentences on the screen, each with its sources at the end."""
    from rich.text import Text

    for number, sentence in enumerate(sentences):
        text = Text(sentence.text, style="bold" if number == 0 else "")
        if sentence.sources:
            text.append(f"  [{', '.join(sentence.sources)}]", style="dim")
        console.print(text)


def parse_moment(text: str | None) -> datetime | None:
    """A moment as a person writes it: with an offset, or by the clocks of Tashkent."""
    from accounting.moments import TASHKENT

    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise HisobError(f"--at is a time such as 2025-09-02T10:00, not {text}.", exit_code=2) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=TASHKENT)
