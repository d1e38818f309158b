"""The settings of a home: hisob.toml, which a person edits, and HISOB_… of the environment, which counts before it.

They are few. What is data is no setting: tariffs and policies are journalled, the schedule of loads is in prefect.yaml. How
many partitions the logs have is fixed in the logs themselves.
"""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from connectors.home import Home
from hisob.errors import HisobError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Settings(BaseSettings):
    """Each setting's default is what `hisob init` writes; its description is the comment there."""

    model_config = SettingsConfigDict(env_prefix="HISOB_", extra="forbid")

    batch_rows: int = Field(
        default=65_536,
        ge=1,
        le=1_048_576,
        description="Records in one row of the journal, at most. Fewer: less memory; more: less work for each record.",
    )
    snapshot_seconds: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="Seconds between snapshots of the balances' state. A crash costs settling the journal since then again.",
    )
    dispatch: Literal["none", "modbus"] = Field(
        default="none",
        description='Who carries out commands: "modbus", the switches of devices.csv; "none", an actuator of your own that'
        " follows `hisob tail commands` and answers with `hisob ingest acknowledgement=-`.",
    )
    notify: Literal["outbox", "simulated"] = Field(
        default="outbox",
        description='Where notices go: "outbox", the file outbox.ndjson; "simulated", phones that answer as real ones do.',
    )
    clock: Literal["wall", "journal"] = Field(
        default="wall",
        description='By which clock switches and messages act: "wall", or "journal", the last tick (replays and demos).',
    )
    poll_minutes: int = Field(
        default=15,
        ge=0,
        le=1_440,
        description="Minutes between two readings of each meter of devices.csv, which has to be there for it. 0: no polling.",
    )
    load_minutes: int = Field(
        default=60,
        ge=0,
        le=10_080,
        description="Minutes between two loads into the warehouse while `hisob run` runs. 0: none; Prefect may do them.",
    )

    old_price_months: int = Field(
        default=0,
        ge=0,
        le=12,
        description="Calendar months for which energy prepaid before a price rise keeps the old price. 0: no such right.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (the signature is pydantic's)
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then the file, then the defaults: nothing else is looked at."""
        return env_settings, TomlConfigSettingsSource(settings_cls)


def open_home(path: Path) -> tuple[Home, Settings]:
    """The home in a folder, and its settings. Raises HisobError (exit 2) where there is none."""
    home = Home(path.absolute())
    if not home.settings.is_file():
        raise HisobError(f"There is no home in {path}. Make one: hisob --home {path} init", exit_code=2)
    return home, load_settings(home)


def load_settings(home: Home) -> Settings:
    """The home's settings. Raises HisobError naming what is wrong in which place."""

    class OfHome(Settings):
        model_config = SettingsConfigDict(toml_file=home.settings)

    try:
        return OfHome()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HisobError(f"{home.settings} is not TOML: {error}.", exit_code=2) from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given: {e['input']!r})" for e in error.errors())
        raise HisobError(f"A setting of {home.settings} or of HISOB_… is wrong: {wrong}.", exit_code=2) from error


def settings_text(partitions: int, values: Mapping[str, object]) -> str:
    """The hisob.toml of a new home: every setting under its description, at its default but for those given."""
    lines = [
        "# The settings of this Hisob home. Each may also be given for one call: HISOB_BATCH_ROWS=10000 hisob ingest …",
        f"# The logs were made with {partitions} account partitions, fixed for the life of the home.",
        "# Tariffs and policies are data: hisob ingest tariff=FILE policy=FILE. The schedule of loads is in prefect.yaml.",
    ]
    for name, field in Settings.model_fields.items():
        lines += ["", f"# {field.description}", f"{name} = {json.dumps(values.get(name, field.default))}"]
    return "\n".join(lines) + "\n"
