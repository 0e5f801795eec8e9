"""How much moved, where to, and what the camera did: sums over frames, and the words for them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import add
from typing import Literal

from app.protocol.result import CameraMotion, Image, Motion

Level = Literal["still", "some", "much"]

_SOME_FRACTION = 0.01
_MUCH_FRACTION = 0.25
"""Shares of a frame's cells that move, from which it moves at all, and moves much."""
_SOME_OF_FRAMES = 10
_MUCH_OF_FRAMES = 4
"""One frame in so many must move (much) before the word is said."""
_CAMERA_MOVES = 300
"""Mean way of the picture's own motion a frame, hundred-thousandths of the diagonal; of a turn or zoom, at a corner."""
_UNIT = 1000
_DIAGONAL = 100_000

_DIRECTIONS = ("right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right")


@dataclass(frozen=True, slots=True)
class Movement:
    """Sums, in whole numbers so that adding them up in any grouping gives the same; the words are read off them."""

    frames: int = 0
    """Frames whose motion was measured."""
    some: int = 0
    """Of those, frames in which something moved, but not much."""
    much: int = 0
    directed: int = 0
    """Frames with one direction."""
    dx: int = 0
    dy: int = 0
    """Their directions as unit vectors, thousandths, x right and y down, summed."""
    camera_dx: int = 0
    camera_dy: int = 0
    """The whole picture's motion, hundred-thousandths of the frame's diagonal, summed."""
    camera_path: int = 0
    """Its lengths, summed."""
    camera_turn: int = 0
    """The way of a corner of the picture as it turned, clockwise, in the same unit, summed."""
    turn_path: int = 0
    """The lengths of that, summed."""
    camera_zoom: int = 0
    """The way of a corner as the picture grew, likewise."""
    zoom_path: int = 0

    @property
    def level(self) -> Level | None:
        """None when no motion was measured."""
        if not self.frames:
            return None
        if self.much * _MUCH_OF_FRAMES >= self.frames:
            return "much"
        return "some" if (self.some + self.much) * _SOME_OF_FRAMES >= self.frames else "still"

    @property
    def direction(self) -> str | None:
        """One of eight: `left`, `up and right`, ...; None when nothing moved, or not one way."""
        if (
            self.level in (None, "still")
            or math.hypot(self.dx, self.dy) < self.directed * _UNIT / 2
            or not self.directed
        ):
            return None
        return _DIRECTIONS[round(math.degrees(math.atan2(self.dy, self.dx)) / 45) % 8]

    @property
    def camera(self) -> str | None:
        """`panning left`, `tilting up`, `zooming in`, `shaking`, ...; None while it stands.

        Of several, what moves the picture most. A pan right moves the picture left, a roll clockwise turns it the other
        way.
        """
        way = max(self.camera_path, self.turn_path, self.zoom_path)
        if way < _CAMERA_MOVES * max(1, self.frames):
            return None
        if way == self.camera_path:
            gone = math.hypot(self.camera_dx, self.camera_dy)
        else:
            gone = abs(self.camera_zoom if way == self.zoom_path else self.camera_turn)
        if gone < way / 2:
            return "shaking"
        if way == self.zoom_path > self.camera_path:
            return "zooming in" if self.camera_zoom > 0 else "zooming out"
        if way == self.turn_path > self.camera_path:
            return "rolling clockwise" if self.camera_turn < 0 else "rolling anticlockwise"
        if abs(self.camera_dx) >= abs(self.camera_dy):
            return "panning right" if self.camera_dx < 0 else "panning left"
        return "tilting down" if self.camera_dy < 0 else "tilting up"

    def numbers(self) -> tuple[int, ...]:
        """The fields in their order (dataclasses.astuple copies each and takes ten times as long)."""
        return (
            self.frames,
            self.some,
            self.much,
            self.directed,
            self.dx,
            self.dy,
            self.camera_dx,
            self.camera_dy,
            self.camera_path,
            self.camera_turn,
            self.turn_path,
            self.camera_zoom,
            self.zoom_path,
        )

    def __add__(self, other: Movement) -> Movement:
        return Movement(*map(add, self.numbers(), other.numbers()))


STILL = Movement()
_NUMBERS = len(STILL.numbers())


class MovementSum:
    """Adds frames up in place, about a microsecond each."""

    def __init__(self) -> None:
        self._sums = [0] * _NUMBERS

    def add(self, motion: Motion, image: Image) -> None:
        sums = self._sums
        sums[0] += 1
        if motion.moving_fraction >= _SOME_FRACTION:
            sums[2 if motion.moving_fraction >= _MUCH_FRACTION else 1] += 1
        if motion.direction_deg is not None:
            angle = math.radians(motion.direction_deg)
            sums[3] += 1
            sums[4] += round(math.cos(angle) * _UNIT)
            sums[5] += round(math.sin(angle) * _UNIT)
        camera: CameraMotion = motion.camera
        if camera.rotation_deg:
            way = round(math.radians(camera.rotation_deg) * _DIAGONAL / 2)
            sums[9] += way
            sums[10] += abs(way)
        if camera.zoom != 1:
            way = round((camera.zoom - 1) * _DIAGONAL / 2)
            sums[11] += way
            sums[12] += abs(way)
        if camera.dx or camera.dy:
            unit = _DIAGONAL / math.hypot(image.width, image.height)
            sums[6] += round(camera.dx * unit)
            sums[7] += round(camera.dy * unit)
            sums[8] += round(math.hypot(camera.dx, camera.dy) * unit)

    def take(self) -> Movement:
        """The sums so far; begins anew."""
        sums, self._sums = self._sums, [0] * _NUMBERS
        return Movement(*sums)
