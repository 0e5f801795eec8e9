"""A stage from outside: the average colour of each object that was found."""

from __future__ import annotations

from dataclasses import dataclass

import cv2

from app.pipeline.stage import Batch, Box, FrameState, Part, PipelineStage, Shape


@dataclass
class ObjectColour:
    """The average colour of one object."""

    box: Box
    track_id: int | None
    rgb: tuple[int, int, int]
    """Red, green and blue, 0 to 255."""
    hex: str
    """The same as `#rrggbb`."""


class AverageColour(PipelineStage):
    name = "average_colour"
    title = "Colours"
    description = "The average colour of each object."
    part = Part("colours", list[ObjectColour], shapes=(Shape("box", "box", label="{hex}", colour="{rgb}"),))
    needs = ("detect", "track")
    needs_image = True

    def write(self, state: FrameState, batch: Batch) -> list[ObjectColour]:
        objects = state.parts.get("objects", [])
        if not objects:
            return []
        image = self.host.preprocessor.image(state, batch)  # RGB uint8 [height, width, 3]
        colours = []
        for found in objects:
            box = found.box
            crop = image[int(box.y1) : int(box.y2) + 1, int(box.x1) : int(box.x2) + 1]
            red, green, blue = (round(value) for value in cv2.mean(crop)[:3])
            colours.append(ObjectColour(box, found.track_id, (red, green, blue), f"#{red:02x}{green:02x}{blue:02x}"))
        return colours
