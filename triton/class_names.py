"""Reads class names from a text file, from a YAML file in the format of data sets, or from a comma-separated list."""

from __future__ import annotations

from pathlib import Path

import yaml
from layouts import UnknownLayout

_YAML = (".yaml", ".yml")
_MOST = 100_000


def given_names(text: str) -> tuple[str, ...]:
    """The names by class id.

    Args:
        text: the path of a text file (one name a line) or of a YAML file (a list, a mapping from ids to names, or
            either under `names`, as in Ultralytics' data sets), or names separated by commas.

    Raises:
        UnknownLayout: the text is none of these; the message says what was found.
    """
    path = Path(text).expanduser()
    if not _is_file(path):
        if path.suffix.lower() in (*_YAML, ".txt", ".names") or "/" in text:
            raise UnknownLayout(f"NAMES={text}: there is no such file")
        try:
            return _checked([name.strip() for name in text.split(",")])
        except UnknownLayout as error:
            raise UnknownLayout(f"NAMES={text[:80]}: {error}") from None
    if path.stat().st_size > _MOST:
        raise UnknownLayout(f"NAMES={text}: {path.stat().st_size} bytes; a list of class names has at most {_MOST}")
    try:
        content = path.read_text("utf-8-sig")
        found = yaml.safe_load(content) if path.suffix.lower() in _YAML else content.splitlines()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UnknownLayout(f"NAMES={text}: cannot be read: {error}") from None
    if isinstance(found, dict) and "names" in found:
        found = found["names"]
    try:
        return names_of(found)
    except UnknownLayout as error:
        raise UnknownLayout(f"NAMES={text}: {error}") from None


def names_of(found: object) -> tuple[str, ...]:
    """The names in a list, or in a mapping from ids.

    Raises:
        UnknownLayout: it is neither, or ids or names are missing.
    """
    if isinstance(found, dict):
        ids = sorted(found, key=lambda key: (not isinstance(key, int), str(key) if not isinstance(key, int) else key))
        if ids != list(range(len(ids))):
            raise UnknownLayout(f"its ids are {', '.join(map(str, ids))[:80]}; want 0, 1, 2, … without gaps")
        found = [found[index] for index in ids]
    if not isinstance(found, list):
        raise UnknownLayout("want a list of names, or a mapping from ids to names, also under `names`")
    names = [str(name).strip() if isinstance(name, str | int | float) else "" for name in found]
    while names and not names[-1]:
        names.pop()  # empty lines at the end of a text file
    return _checked(names)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a list of names may be longer than a path
        return False


def _checked(names: list[str]) -> tuple[str, ...]:
    empty = [index for index, name in enumerate(names) if not name]
    if not names or empty:
        where = f"number {empty[0]} is empty" if empty else "there are none"
        raise UnknownLayout(f"{where}; want a name for every class id, the first for 0")
    return tuple(names)
