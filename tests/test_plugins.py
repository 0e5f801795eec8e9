"""Plug-ins of installed packages and of a folder: what is found, and what stops the start."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from app.plugins import PluginError, find


class Greeter(ABC):
    """A kind of plug-in."""

    name: str

    @abstractmethod
    def greet(self) -> str: ...


class Waver(Protocol):
    """A kind of plug-in that is a Protocol."""

    name: str

    def wave(self) -> None: ...


Install = Callable[..., None]
GROUP = "sightline.tests"
HELLO = """
from tests.test_plugins import Greeter, Waver

class Hello(Greeter):
    name = "hello"
    def greet(self):
        return "hello"
"""


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package of one module, with entry points, into a folder of the module search path."""

    def install(package: str, module: str, **points: str) -> None:
        site = write(tmp_path / "site", **{package: module})
        info = site / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, package, raising=False)

    return install


def test_classes_of_a_folder_are_found_by_their_kind_and_in_order(tmp_path: Path) -> None:
    second = """
from ._common import WORD
from .a import Hello
from tests.test_plugins import Greeter, Waver

class _Base(Greeter):
    pass

class Ciao(_Base):
    name = "ciao"
    def greet(self):
        return WORD

class Wave(Waver):
    name = "wave"
    def wave(self):
        pass
"""
    folder = write(tmp_path / "plugins", b=second, a=HELLO, _common="WORD = 'ciao'\n")
    (folder / "notes.txt").write_text("no plug-in")
    found = find(GROUP, Greeter, folder)
    assert list(found) == ["hello", "ciao"]
    assert [plugin().greet() for plugin in found.values()] == ["hello", "ciao"]
    assert list(find(GROUP, Waver, folder)) == ["wave"]
    assert find(GROUP, Greeter, folder) == found  # the same classes: a file is executed once
    assert find(GROUP, Greeter, None) == {}


def test_entry_points_of_installed_packages_are_found_first(tmp_path: Path, install: Install) -> None:
    install("hello_package", HELLO.replace('"hello"', '"installed"'), greeting="hello_package:Hello")
    found = find(GROUP, Greeter, write(tmp_path / "plugins", a=HELLO))
    assert list(found) == ["installed", "hello"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import missing_module", "No module named 'missing_module' ({path}:1)"),
        ("\n\n1 / 0", "ZeroDivisionError: division by zero ({path}:3)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        (HELLO.replace("def greet", "def great"), "should define greet"),
        (HELLO.replace('name = "hello"', ""), "`name` is None"),
        (HELLO.replace('name = "hello"', 'name = "Hello there"'), "`name` is 'Hello there'"),
        (HELLO.replace('name = "hello"', 'name = "built_in"'), "the name 'built_in' is taken by the service itself"),
        (HELLO + HELLO.replace("Hello", "Again"), "the name 'hello' is taken by plug-in Hello in '{path}'"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    folder = write(tmp_path / "plugins", a=text)
    with pytest.raises(PluginError) as caught:
        find(GROUP, Greeter, folder, taken=["built_in"])
    assert str(folder / "a.py") in str(caught.value)
    assert reason.format(path=folder / "a.py") in str(caught.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("broken_package:Hello", "cannot be loaded: ZeroDivisionError: division by zero"),
        ("hello_package:Missing", "cannot be loaded: AttributeError"),
        ("hello_package:HELLO", "should be a class that inherits from tests.test_plugins.Greeter"),
        ("hello_package:Other", "should be a class that inherits from tests.test_plugins.Greeter"),
        ("nowhere:Hello", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_an_entry_point_that_cannot_be_loaded_is_named_with_the_reason(
    install: Install, tmp_path: Path, value: str, reason: str
) -> None:
    write(tmp_path / "site", broken_package="1 / 0")
    install("hello_package", f"{HELLO}\nHELLO = Hello()\nclass Other: pass\n", greeting=value)
    with pytest.raises(PluginError) as caught:
        find(GROUP, Greeter, None)
    assert f"plug-in 'greeting' of hello_package 1.2 (entry point {GROUP}: {value})" in str(caught.value)
    assert reason in str(caught.value)


def test_a_folder_that_is_none_stops_the_start(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", write(tmp_path, a="") / "a.py"):
        with pytest.raises(PluginError, match=r"PLUGINS=.*should be a folder of .py files"):
            find(GROUP, Greeter, folder)
    with pytest.raises(PluginError, match="no dot"):
        find(GROUP, Greeter, write(tmp_path / "dots", **{"a.b": ""}))
