"""MediaPipe's networks as plain functions of one image, without its Python API.

The networks and their graphs ship in the wheel (Apache 2.0). Its `import mediapipe` pulls in plotting, audio and
a second framework; only the graph runner is needed, so the package is entered from the side.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from dataclasses import dataclass

import numpy as np

FACES = """
num_threads: 1 input_stream: "image" output_stream: "faces"
node { calculator: "FaceDetectionFullRangeCpu" input_stream: "IMAGE:image" output_stream: "DETECTIONS:faces" }
"""
PERSONS = """
num_threads: 1 input_stream: "image" output_stream: "persons"
node { calculator: "PoseDetectionCpu" input_stream: "IMAGE:image" output_stream: "DETECTIONS:persons" }
"""
LANDMARKS = """
num_threads: 1 input_stream: "image" input_stream: "roi" input_side_packet: "model_complexity"
output_stream: "landmarks"
node {
  calculator: "PoseLandmarkByRoiCpu"
  input_side_packet: "MODEL_COMPLEXITY:model_complexity"
  input_stream: "IMAGE:image" input_stream: "ROI:roi" output_stream: "LANDMARKS:landmarks"
}
"""
FULL = 1  # of lite, full and heavy, the one that the wheel carries


def _enter_mediapipe() -> str:
    """Makes `mediapipe.*` importable without running the package's own `__init__`; returns its folder."""
    spec = importlib.util.find_spec("mediapipe")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"mediapipe is not installed for Python {sys.version_info.major}.{sys.version_info.minor} (it has no "
            "wheel from 3.13 on): make the embedded Triton's environment with Python 3.11 or 3.12, or install YOLO "
            "for both models with `make models`"
        )
    folder = next(iter(spec.submodule_search_locations))
    for name, path in (("mediapipe", folder), ("mediapipe.python", f"{folder}/python")):
        package = types.ModuleType(name)
        package.__path__ = [path]
        sys.modules[name] = package
    return folder


_folder = _enter_mediapipe()

# The first two are not named again: importing them registers what the graphs answer with.
from mediapipe.framework.formats import detection_pb2, landmark_pb2, rect_pb2  # noqa: E402, F401
from mediapipe.python import packet_creator, packet_getter  # noqa: E402
from mediapipe.python._framework_bindings import calculator_graph, image_frame, resource_util  # noqa: E402

resource_util.set_resource_dir(_folder.removesuffix("/mediapipe"))


@dataclass(frozen=True)
class Found:
    """A face or a person. All lengths are shares of the image's width (x) or height (y)."""

    score: float
    box: tuple[float, float, float, float]
    """x, y of the upper left corner, width, height. Of a person: the face."""
    points: np.ndarray
    """[n, 2]. Of a person: middle of the hips, a point on the circle around the whole body, then the same for
    the upper body."""

    def moved(self, part: tuple[int, int, int, int], width: int, height: int) -> Found:
        """Converts a detection in a part of an image (x1, y1, x2, y2 in pixels) to shares of the whole image."""
        x1, y1, x2, y2 = part
        start = np.array([x1 / width, y1 / height])
        scale = np.array([(x2 - x1) / width, (y2 - y1) / height])
        corner, size = start + scale * self.box[:2], scale * self.box[2:]
        return Found(self.score, (*corner, *size), start + scale * self.points)


class Graph:
    """A graph that processes one image at a time, and keeps no state between two images."""

    def __init__(self, text: str, output: str, **side: object) -> None:
        self._graph = calculator_graph.CalculatorGraph(graph_config=text)
        self._packets: list = []
        self._graph.observe_output_stream(output, lambda _, packet: self._packets.append(packet))
        self._graph.start_run(side)
        self._time = 0

    def __call__(self, **inputs: object) -> list:
        """The output's packets: one, or none where nothing was found."""
        self._packets = []
        self._time += 1
        for name, packet in inputs.items():
            self._graph.add_packet_to_input_stream(name, packet.at(self._time))
        self._graph.wait_until_idle()
        return self._packets


class People:
    """Detects faces, people and their landmarks in one image."""

    def __init__(self) -> None:
        self._faces = Graph(FACES, "faces")
        self._persons = Graph(PERSONS, "persons")
        self._landmarks = Graph(LANDMARKS, "landmarks", model_complexity=packet_creator.create_int(FULL))

    def warm_up(self) -> None:
        """Loads the networks, which otherwise the first frame would wait for."""
        blank = packet(np.zeros((256, 256, 3), np.uint8))
        self.faces(blank)
        self.persons(blank)
        self.landmarks(blank, Found(1.0, (0, 0, 1, 1), np.array([(0.5, 0.5), (0.5, 0.1)])), 256, 256)

    def faces(self, image: object) -> list[Found]:
        return _found(self._faces(image=image))

    def persons(self, image: object) -> list[Found]:
        return _found(self._persons(image=image))

    def landmarks(self, image: object, person: Found, width: int, height: int) -> np.ndarray | None:
        """[33, 3]: x, y in pixels and visibility 0..1; None where there is no body after all."""
        packets = self._landmarks(image=image, roi=packet_creator.create_proto(_region(person, width, height)))
        if not packets:
            return None
        points = packet_getter.get_proto(packets[0]).landmark
        return np.array([(p.x * width, p.y * height, p.visibility) for p in points], np.float32)


def packet(image: np.ndarray) -> object:
    """An image, RGB uint8 [H, W, 3] and contiguous, as the graphs take it."""
    return packet_creator.create_image_frame(image, image_format=image_frame.ImageFormat.SRGB)


def _found(packets: list) -> list[Found]:
    found = []
    for detection in packet_getter.get_proto_list(packets[0]) if packets else ():
        place = detection.location_data
        box = place.relative_bounding_box
        points = np.array([(point.x, point.y) for point in place.relative_keypoints], np.float64)
        found.append(Found(detection.score[0], (box.xmin, box.ymin, box.width, box.height), points))
    return found


def _region(person: Found, width: int, height: int) -> object:
    """The square around the body, turned so that the person stands upright in it.

    As MediaPipe's `pose_detection_to_roi.pbtxt`: centred on the hips, the circle's diameter times 1.25, the
    rotation that brings hips to head to 90 degrees.
    """
    (x, y), (edge_x, edge_y) = person.points[0] * (width, height), person.points[1] * (width, height)
    side = 2 * 1.25 * math.hypot(edge_x - x, edge_y - y)
    turn = math.pi / 2 - math.atan2(-(edge_y - y), edge_x - x)
    return rect_pb2.NormalizedRect(
        x_center=x / width, y_center=y / height, width=side / width, height=side / height, rotation=turn
    )
