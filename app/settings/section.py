"""The base class of every section of settings, and secrets read from files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent.parent
"""The folder that contains `app/`: the repository, if the program runs from one."""

Commas = Annotated[tuple[str, ...], NoDecode]
"""A list written as `a,b,c` in the environment."""

_FIXED = "fixed"
_WEB_ADDRESS = re.compile(r"https?://[^\s/;,'\"?#@]+(/[^\s;,'\"]*)?")


_MOST_SECRET_BYTES = 64 * 1024
"""Most bytes of a file that holds a secret; a larger file is something else."""


class Section(BaseSettings):
    """The settings of one part, frozen, read from the environment or `.env`; secrets also from the files named there.

    Raises:
        ConfigurationError: a file that should hold a secret cannot be used.
    """

    model_config = SettingsConfigDict(frozen=True, env_file=".env", extra="ignore", case_sensitive=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, highest precedence first: arguments, files of secrets, the environment, `.env`."""
        files = _SecretFiles(settings_cls, env_settings, dotenv_settings)
        return init_settings, files, _Settable(settings_cls, env_settings), _Settable(settings_cls, dotenv_settings)


def fixed(default: Any = PydanticUndefined, **options: Any) -> Any:
    """A field that no variable sets, because it follows from other settings, or because no deployment needs another.

    Code may still pass another value, and tests do. A variable of its name is ignored, and a warning says so.
    """
    return Field(default, json_schema_extra={_FIXED: True}, **options)


def is_fixed(field: FieldInfo) -> bool:
    """Whether the field was made by `fixed`, so that no variable sets it."""
    return isinstance(field.json_schema_extra, dict) and _FIXED in field.json_schema_extra


class _Settable(PydanticBaseSettingsSource):
    """The values of a source of variables, without those of `fixed` fields."""

    def __init__(self, section: type[BaseSettings], source: PydanticBaseSettingsSource) -> None:
        super().__init__(section)
        self._source = source

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        return {
            name: value for name, value in self._source().items() if name not in fields or not is_fixed(fields[name])
        }


def variables() -> dict[str, str]:
    """The variables of the environment and of `.env`, names in upper case; the environment wins."""
    found = DotEnvSettingsSource(Section).env_vars
    return {name.upper(): value for name, value in {**found, **os.environ}.items() if value}


class _SecretFiles(PydanticBaseSettingsSource):
    """`NAME_FILE` names a file with the value of `NAME`, as Docker and Kubernetes provide secrets."""

    def __init__(self, section: type[BaseSettings], *variables: PydanticBaseSettingsSource) -> None:
        super().__init__(section)
        self._set: dict[str, str] = {}
        for source in reversed(variables):  # the environment wins over `.env`
            assert isinstance(source, EnvSettingsSource | DotEnvSettingsSource)
            self._set |= {name.lower(): value for name, value in source.env_vars.items() if value}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The secret of one setting, from its file; None if no file is named."""
        path = self._set.get(f"{field_name}_file") if is_secret(field) else None
        if path is None:
            return None, field_name, False
        name = field_name.upper()
        if field_name in self._set:
            raise ConfigurationError(f"{name} and {name}_FILE={path!r} are both set: should be one of them")
        return read_secret(name, path), field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        problems = []
        for name, field in self.settings_cls.model_fields.items():
            try:
                value, _, _ = self.get_field_value(field, name)
            except ConfigurationError as error:
                problems.append(str(error))
            else:
                found |= {} if value is None else {name: value}
        if problems:
            raise ConfigurationError("\n".join(problems))
        return found


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting holds a secret: its value is never written out, and may come from a file."""

    def holds(annotation: Any) -> bool:
        return annotation is SecretStr or any(map(holds, get_args(annotation)))

    return holds(field.annotation)


def secret_given(name: str, environment: Mapping[str, str]) -> str | None:
    """The secret of a variable that is no setting, from `NAME` or the file that `NAME_FILE` names; None without either.

    Raises:
        ConfigurationError: both are set, or the file cannot be used.
    """
    value, path = environment.get(name) or None, environment.get(f"{name}_FILE")
    if path and value:
        raise ConfigurationError(f"{name} and {name}_FILE={path!r} are both set: should be one of them")
    return read_secret(name, path) if path else value


def service_token(given: str | None) -> str | None:
    """A client command's token: `given` by its option, else SIGHTLINE_TOKEN, else the file SIGHTLINE_TOKEN_FILE names.

    Raises:
        ConfigurationError: both variables are set, or the file cannot be used.
    """
    variable = secret_given("SIGHTLINE_TOKEN", os.environ)
    return given or variable


def read_secret(name: str, path: str) -> str:
    """The secret in a file, without the line ends after it.

    Raises:
        ConfigurationError: there is no such file, or it cannot be read, is empty, too large or no text.
    """
    wanted = f"should be a readable file that holds the value of {name} and nothing else"
    try:
        # O_NONBLOCK, because opening a named pipe without a writer would block the start forever.
        with open(path, "rb", opener=lambda at, flags: os.open(at, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigurationError(f"{name}_FILE={path!r}: no regular file; {wanted}")
            content = file.read(_MOST_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{name}_FILE={path!r}: {why}; {wanted}") from None
    if len(content) > _MOST_SECRET_BYTES:
        raise ConfigurationError(f"{name}_FILE={path!r}: more than {_MOST_SECRET_BYTES} bytes; {wanted}")
    try:
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name}_FILE={path!r}: no UTF-8 text; {wanted}") from None
    if not text.strip() or "\0" in text:
        raise ConfigurationError(f"{name}_FILE={path!r}: {'no text' if text.strip() else 'empty'}; {wanted}")
    return text


def split(value: object) -> object:
    """Splits a string at commas and line ends into a tuple; returns any other value unchanged.

    Line ends count, because a file of secrets may have one a line.
    """
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in re.split(r"[,\r\n]", value) if part.strip())


def web_address(value: str | None, example: str) -> str | None:
    """The address without slashes at its end; None if `value` is None or empty.

    Raises:
        ValueError: `value` is no http(s) address.
    """
    if not value:
        return None
    if not _WEB_ADDRESS.fullmatch(value):
        raise ValueError(f"a web address, for example {example}")
    return value.rstrip("/")
