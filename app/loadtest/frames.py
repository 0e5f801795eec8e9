"""What the load sends: JPEGs out of a film, a folder, or our own picture seen through a moving window."""

from __future__ import annotations

from itertools import islice

import cv2
import numpy as np
import simplejpeg

from app.settings import ROOT
from app.sources.address import parse
from app.sources.reader import OnDamage, SourceError, encode, open_source

MOST = 120
QUALITY = 85
_SCENE = ROOT / "app" / "web" / "scene.jpg"
_WIDTH, _HEIGHT = 640, 480


def frames(source: str, on_damage: OnDamage = lambda problem, code: None) -> list[bytes]:
    """At most MOST JPEGs, to be sent over and over.

    Args:
        source: `clip`, our own; else a film, a picture, a folder of pictures.
        on_damage: is told what cannot be decoded, and so is not sent.

    Raises:
        SourceError: it cannot be read.
    """
    if source == "clip":
        return _clip()
    address = parse(source)
    with open_source(address, on_damage=on_damage) as reader:
        found = [shot.encoded(QUALITY) for shot in islice(reader, MOST)]
    if not found:
        raise SourceError(f"{address.shown}: there is no picture in it")
    return found


def _clip() -> list[bytes]:
    """640x480 out of the page's picture (800x600), to and fro in steps of 8 pixels: 40 frames."""
    scene = simplejpeg.decode_jpeg(_SCENE.read_bytes(), "RGB")
    scene = cv2.resize(scene, (800, 600)) if scene.shape[:2] != (600, 800) else scene
    there = [np.ascontiguousarray(scene[60 : 60 + _HEIGHT, x : x + _WIDTH]) for x in range(0, 161, 8)]
    return [encode(picture) for picture in there + there[-2:0:-1]]
