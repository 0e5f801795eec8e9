"""Finds plug-ins: classes that installed packages and the files of a folder add to the service.

A package names its classes as entry points of a group, such as `sightline.stages`. A folder, the setting PLUGINS, holds
`.py` files, each of which may define classes of any kind. A file or class whose name begins with `_` is no plug-in; the
other files import such a file relatively (`from ._common import …`).
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import traceback
import zlib
from collections.abc import Collection, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeGuard, TypeVar

from app.errors import ConfigurationError

log = logging.getLogger(__name__)

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class PluginError(ConfigurationError):
    """A plug-in cannot be loaded. The message names it, where it comes from, and why."""


def find(group: str, base: type[T], folder: Path | None, taken: Collection[str] = ()) -> dict[str, type[T]]:
    """The plug-ins of one kind: classes that inherit from `base`, by their class attribute `name`.

    First come those of the group's entry points, by name, then those that the folder's files define, by file and in the
    order of the file. A file is executed once in a process, however often it is asked for.

    Args:
        group: of entry points, such as `sightline.stages`.
        base: the class, perhaps a Protocol, from which every plug-in of this kind inherits explicitly.
        folder: the setting PLUGINS; None: no folder.
        taken: names that no plug-in may have, because the service's own classes have them.

    Raises:
        PluginError: the folder cannot be read; a plug-in raises while it is imported, is no class of this kind, lacks
            an abstract method, or has no name, a wrong or a taken one.
    """
    found: dict[str, type[T]] = {}
    origins = dict.fromkeys(taken, "the service itself")
    for origin, plugin in (*_installed(group, base), *_in_folder(base, folder)):
        if missing := getattr(plugin, "__abstractmethods__", None):
            raise PluginError(f"{origin}: should define {', '.join(sorted(missing))}")
        name = getattr(plugin, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(
                f"{origin}: its class attribute `name` is {name!r}; should be 1 to 64 of a-z, 0-9 and _, a letter first"
            )
        if name in found and found[name] is plugin:  # named by an entry point twice
            continue
        if name in origins:
            raise PluginError(f"{origin}: the name {name!r} is taken by {origins[name]}")
        found[name], origins[name] = plugin, origin
        log.info("%s adds %s", origin, name)
    return found


def _installed(group: str, base: type[T]) -> Iterator[tuple[str, type[T]]]:
    """(where it comes from, class) of the entry points of a group."""
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        package = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
        origin = f"plug-in {point.name!r}{package} (entry point {group}: {point.value})"
        try:
            plugin = point.load()
        except (Exception, SystemExit) as error:
            raise PluginError(f"{origin} cannot be loaded: {_reason(error)}") from error
        if not _is_kind(plugin, base):
            raise PluginError(f"{origin} should be a class that inherits from {base.__module__}.{base.__qualname__}")
        yield origin, plugin


def _in_folder(base: type[T], folder: Path | None) -> Iterator[tuple[str, type[T]]]:
    """(where it comes from, class) of the classes that the files of a folder define."""
    if folder is None:
        return
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".py" and not path.name.startswith("_"))
    except OSError as error:
        raise PluginError(f"PLUGINS={str(folder)!r}: {error.strerror}; should be a folder of .py files") from None
    package = _package(folder.resolve())
    for path in paths:
        if "." in path.stem:
            raise PluginError(f"plug-in {str(path)!r}: a file's name should have no dot before .py")
        try:
            module = importlib.import_module(f"{package}.{path.stem}")
        except (Exception, SystemExit) as error:
            raise PluginError(f"plug-in {str(path)!r} cannot be loaded: {_reason(error)}") from error
        for plugin in vars(module).values():
            # Classes that the file imports are not its own.
            if _is_kind(plugin, base) and plugin.__module__ == module.__name__ and not plugin.__name__.startswith("_"):
                yield f"plug-in {plugin.__qualname__} in {str(path)!r}", plugin


def _package(folder: Path) -> str:
    """The name of a package whose modules are the folder's files, made if it does not exist yet."""
    name = f"sightline_plugins_{zlib.crc32(bytes(folder)):08x}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _is_kind(plugin: object, base: type[T]) -> TypeGuard[type[T]]:
    # Not issubclass(), which takes no Protocol with attributes.
    return isinstance(plugin, type) and plugin is not base and base in plugin.__mro__


def _reason(error: BaseException) -> str:
    """The error, and the line that raised it."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):  # names file and line itself
        return reason
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{reason} ({last[0].filename}:{last[0].lineno})" if last else reason
