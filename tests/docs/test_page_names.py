"""The page and the JavaScript client know no stage by name: what the service declares is all that they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.pipeline import registry
from app.protocol.stages import STAGES
from app.settings import ROOT

WEB = ROOT / "app" / "web"
NAMES = {*(stage.name for stage in registry.BUILT_IN), *STAGES, "detect", "pose", "ocr", "motion", "track", "face"}
NAMES |= {"segment", "obb", "classify"}
OTHER_THINGS = {
    "source.js": {"track"},  # a MediaStreamTrack
    "source-switch.js": {"track"},  # the same: NoVideoTrackError
    "saving.js": {"segment"},  # the Segment of a WebM file
    "tracks.js": {"track"},  # what glides on the page between two results, of any stage
}
"""Words that are a stage's name and mean something else there."""
PAGES_OWN = ('"Motion vectors"',)
"""The title of a switch of the page itself."""
COMMENT = re.compile(r"/\*.*?\*/|(?<![:\"'`\w])//[^\n]*", re.DOTALL)
DECLARED = re.compile(r"\{[^{}]*\}|@property \{?.*?\}? \[?(\w+)|@typedef .*")
"""What of a comment is no prose: types, and the names of properties."""
WORD = re.compile(r"\w+")


def words(text: str) -> set[str]:
    """The words of all names and strings: `scenePose` has scene and pose; `track_id`, one field's name, stays whole."""
    found: set[str] = set()
    for name in WORD.findall(text):
        found |= (
            {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)} if "_" not in name else {name}
        )
    return found


def names_in(source: str) -> set[str]:
    """The names of stages that the code of a module has, and the types in its comments."""
    for text in PAGES_OWN:
        source = source.replace(text, "")
    comments = " ".join(match.group() for comment in COMMENT.findall(source) for match in DECLARED.finditer(comment))
    return words(COMMENT.sub(" ", source) + " " + comments) & NAMES


@pytest.mark.parametrize("path", sorted(WEB.glob("*.js")), ids=lambda path: path.name)
def test_no_module_of_the_page_names_a_stage(path: Path) -> None:
    assert names_in(path.read_text()) - OTHER_THINGS.get(path.name, set()) == set()


def test_the_pages_markup_and_style_name_none() -> None:
    markup = re.sub(r">[^<]*<", "><", (WEB / "index.html").read_text())
    assert words(markup) & NAMES == set()
    style = re.sub(r"prefers-reduced-motion", "", (WEB / "style.css").read_text())
    assert words(COMMENT.sub(" ", style)) & NAMES == set()


@pytest.mark.parametrize(
    "line",
    [
        'const KINDS = ["detect", "other"];',
        "const { pose } = ready.models;",
        "result.stages.ocr?.age_ms",
        "function scenePose() {}",
        "/** @type {Record<string, Motion>} */",
        "/** @property {number} pose The pose. */",
        "#stage-segment",
        "OBB",
        "panel.toggle(`track`)",
    ],
)
def test_a_name_would_be_found(line: str) -> None:
    assert names_in(line)


@pytest.mark.parametrize(
    "line",
    ["// the camera's motion", "/** Draws a pose. */", "track_id", "motion_grid", "tracks", "emotion", "detection"],
)
def test_a_word_that_is_none_is_left_alone(line: str) -> None:
    assert not names_in(line)
