"""The functions' settings, read from environment variables. `template.yaml` sets every variable named here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}")
_MOST_SECRET = 64 * 1024


class WrongVariable(Exception):
    """A variable of the function is missing or wrong. The message names it, its value and valid values."""


@dataclass(frozen=True)
class Start:
    """Settings of `start_server`."""

    instance_id: str
    tokens: tuple[str, ...]
    origins: tuple[str, ...]
    service_url: str
    health_url: str

    @classmethod
    def read(cls) -> Start:
        """From the environment.

        Raises:
            WrongVariable: one of them is missing or wrong.
        """
        tokens = _commas(_secret("START_TOKENS"))
        if not tokens and os.environ.get("ALLOW_ANONYMOUS") != "true":
            raise WrongVariable(
                "START_TOKENS='': set a token, or ALLOW_ANONYMOUS=true if everybody may start the machine"
            )
        return cls(
            instance_id=_instance_id(),
            tokens=tokens,
            origins=_commas(os.environ.get("ALLOWED_ORIGINS", "")),
            service_url=_address("SERVICE_URL"),
            health_url=_address("HEALTH_URL"),
        )


@dataclass(frozen=True)
class Watch:
    """Settings of `watch_start`."""

    instance_id: str
    health_url: str

    @classmethod
    def read(cls) -> Watch:
        """From the environment.

        Raises:
            WrongVariable: one of them is missing or wrong.
        """
        return cls(instance_id=_instance_id(), health_url=_address("HEALTH_URL"))


@dataclass(frozen=True)
class Idle:
    """Settings of `stop_idle`. Times are in seconds."""

    instance_id: str
    idle_s: float
    grace_s: float
    recheck_s: float
    namespace: str
    dry_run: bool

    @classmethod
    def read(cls) -> Idle:
        """From the environment.

        Raises:
            WrongVariable: one of them is missing or wrong.
        """
        return cls(
            instance_id=_instance_id(),
            # Below 5 minutes, late figures would look like missing ones. Above 23 hours, the query would exceed the
            # 1,440 data points that CloudWatch returns at most.
            idle_s=60 * _number("IDLE_MINUTES", "15", 5, 1380),
            grace_s=60 * _number("GRACE_MINUTES", "15", 0, 1440),
            recheck_s=_number("RECHECK_SECONDS", "20", 0, 60),
            namespace=os.environ.get("ACTIVITY_NAMESPACE") or "Sightline",
            dry_run=os.environ.get("DRY_RUN") == "true",
        )


def _instance_id() -> str:
    value = os.environ.get("INSTANCE_ID", "")
    if not _INSTANCE.fullmatch(value):
        raise WrongVariable(f"INSTANCE_ID={value!r}: should be an EC2 instance, for example i-0123456789abcdef0")
    return value


def _commas(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r"[,\r\n]", value) if part.strip())


def _secret(name: str) -> str:
    """The variable's value, or the content of the file that `NAME_FILE` names (in a layer or a mounted file system)."""
    value, path = os.environ.get(name, ""), os.environ.get(f"{name}_FILE", "")
    if not path:
        return value
    if value:
        raise WrongVariable(f"{name} and {name}_FILE={path!r} are both set: should be one of them")
    try:
        with open(path, encoding="utf-8-sig") as file:
            held = file.read(_MOST_SECRET)
    except (OSError, ValueError) as error:  # ValueError: no UTF-8
        why = getattr(error, "strerror", None) or "no UTF-8 text"
        raise WrongVariable(f"{name}_FILE={path!r}: {why}; should be a file that holds the value of {name}") from None
    if not held.strip() or len(held) == _MOST_SECRET:
        what = "too large" if held.strip() else "empty"
        raise WrongVariable(f"{name}_FILE={path!r}: {what}; should be a file that holds the value of {name}")
    return held


def _address(name: str) -> str:
    value = os.environ.get(name, "")
    if value and not value.startswith(("http://", "https://")):
        raise WrongVariable(f"{name}={value!r}: should be a web address, for example https://sight.example")
    return value.rstrip("/")


def _number(name: str, default: str, least: float, most: float) -> float:
    value = os.environ.get(name) or default
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise WrongVariable(f"{name}={value!r}: should be a number from {least:g} to {most:g}")
    return number
