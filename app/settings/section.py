"""What every section of the settings is made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent.parent
"""The folder that holds `app/`: the repository, where it runs from one."""

Commas = Annotated[tuple[str, ...], NoDecode]
"""A list written as `a,b,c` in the environment."""

_WEB_ADDRESS = re.compile(r"https?://[^\s/;,'\"?#@]+(/[^\s;,'\"]*)?")


class Section(BaseSettings):
    """One room's settings, frozen, read from the environment or `.env`."""

    model_config = SettingsConfigDict(frozen=True, env_file=".env", extra="ignore", case_sensitive=False)


def split(value: object) -> object:
    """`a, b` as a tuple; what is no string as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def web_address(value: str | None, example: str) -> str | None:
    """The address without its last slash; None where none is given.

    Raises:
        ValueError: it is no http(s) address.
    """
    if not value:
        return None
    if not _WEB_ADDRESS.fullmatch(value):
        raise ValueError(f"a web address, for example {example}")
    return value.rstrip("/")
