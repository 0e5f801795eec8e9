"""Files that appear only when they are complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.files import partial_path, written_atomically


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with written_atomically(target) as temporary:
        temporary.write_text("complete")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert target.read_text() == "complete"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with written_atomically(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with written_atomically(target) as first:
        first.write_text("first")
        with written_atomically(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"


def test_a_temporary_name_is_short_enough_and_hidden(tmp_path: Path) -> None:
    temporary = partial_path(tmp_path / ("映" * 85))
    temporary.touch()
    assert temporary.name.startswith(".")
    assert temporary.name.endswith(".part")
