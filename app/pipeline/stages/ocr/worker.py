"""The process that reads text. It runs in OCR's own environment, so it imports nothing of `app`.

Started as `python -E -P worker.py CACHE [MODELS]`. On stdin, each frame is its length (uint32, big-endian) and that
many bytes of JPEG. On stdout, each message is one JSON object a line: first `ready` (or `fatal`), then one `texts` or
`error` for every frame, in order. When stdin ends the process exits at once, also in the middle of a run, so that a
service that was killed leaves nothing behind.

PaddleOCR reads a model from a folder with `inference.onnx` and `inference.yml`. Bare ONNX files, such as those of the
`rapidocr` wheel (PP-OCRv6 small, Apache-2.0), have no such file: it is written here, with the values of PaddleOCR's own
exports and the recogniser's alphabet from its metadata.

PaddleOCR's detector finds a line in any orientation, but its recogniser takes every line as upright. A line that was
read the wrong way round is garbage with a middling score; therefore a doubtful line is read in the other orientations,
too, and the best reading is used. Turns are counted in quarters, anticlockwise, that bring the text upright.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import queue
import shutil
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

THREADS = 1
"""Threads of ONNX Runtime. One, because text may wait and live frames may not; a pool of one never spins."""

LONGEST_SIDE = 960
"""Pixels. Larger frames are searched for text at this size; lines are read at the frame's full size."""


def main(cache: Path, models: Path | None) -> None:
    frames, answer = open_wire()
    # Since 1.29 ONNX Runtime reports its use over the network unless this is set.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.nice(10)
    try:
        reader = open_reader(cache, models)
    except Exception as error:
        # The last place that can report the reason before the process ends.
        answer({"fatal": f"{type(error).__name__}: {error}"})
        raise
    answer({"ready": True, "rss": resident_bytes()})
    while True:
        jpeg = frames.get()
        try:
            found = reader(jpeg)
        except Exception as error:
            # A bad frame does not end the process; the service logs and counts it.
            found = {"error": f"{type(error).__name__}: {error}"}
        answer({**found, "rss": resident_bytes()})


def open_wire() -> tuple[queue.SimpleQueue[bytes], Callable[[dict[str, Any]], None]]:
    """Reserves stdin and stdout for the wire: from now on the output of libraries goes to stderr."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)

    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=receive, args=(incoming, frames), name="stdin", daemon=True).start()

    def answer(message: dict[str, Any]) -> None:
        line = memoryview(json.dumps(message).encode() + b"\n")
        while line:
            line = line[outgoing.write(line) :]

    return frames, answer


def receive(incoming: BinaryIO, frames: queue.SimpleQueue[bytes]) -> None:
    while len(head := incoming.read(4)) == 4:
        (size,) = struct.unpack(">I", head)
        body = incoming.read(size)
        if len(body) < size:
            break
        frames.put(body)
    os._exit(0)


def open_reader(cache: Path, models: Path | None) -> Callable[[bytes], dict[str, Any]]:
    """Loads the models and returns a function that reads a JPEG.

    The function returns `size` (width, height) and `texts`, lines in reading order: `text`, `confidence` 0 to 1, and
    `polygon`, four corners in pixels of the frame as sent (without its EXIF orientation), clockwise from the text's own
    top left in any orientation, clipped to the frame. It raises ValueError for an image that OpenCV cannot decode.
    """
    detector, recogniser = prepare(cache, models)

    import cv2
    from paddleocr import PaddleOCR  # type: ignore[import-not-found,unused-ignore]

    cv2.setNumThreads(THREADS)
    pipeline = PaddleOCR(
        engine="onnxruntime",
        # Without the arena, memory is freed after a large frame instead of staying at its peak.
        engine_config={"intra_op_num_threads": THREADS, "inter_op_num_threads": 1, "enable_cpu_mem_arena": False},
        device="cpu",
        text_detection_model_name=DETECT,
        text_detection_model_dir=str(detector),
        text_recognition_model_name=RECOGNISE,
        text_recognition_model_dir=str(recogniser),
        text_det_limit_side_len=LONGEST_SIDE,
        text_det_limit_type="max",
        use_doc_orientation_classify=False,
        use_doc_unwarping=False,
        use_textline_orientation=False,
    )

    def read(jpeg: bytes) -> dict[str, Any]:
        if not jpeg:
            raise ValueError("not an image: no bytes at all")
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise ValueError("not an image that can be decoded")
        height, width = image.shape[:2]
        (page,) = pipeline.predict(image)
        read_once = [
            (text, float(score), polygon)
            for text, score, polygon in zip(page["rec_texts"], page["rec_scores"], page["rec_polys"], strict=True)
        ]
        lines = upright(read_once, lambda polygon: inside._crop_by_polys(image, [polygon])[0], recognise)
        texts = [
            {
                "text": line.text,
                "confidence": line.score,
                "polygon": np.clip(corners(line), 0, (width, height)).astype(float).tolist(),
            }
            for line in in_order(lines, width, height)
            if line.text.strip()
        ]
        return {"size": [width, height], "texts": texts}

    # PaddleOCR's inner pipeline, for single lines: its cropping and its recogniser. Private, but PaddleX is pinned.
    inside = pipeline.paddlex_pipeline._pipeline

    def recognise(image: Any) -> tuple[str, float]:
        (line,) = inside.text_rec_model([image])
        return line["rec_text"], float(line["rec_score"])

    return read


def resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:  # not Linux: the peak instead
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- models, laid out as PaddleOCR wants them ---

DETECT = "PP-OCRv6_small_det"
RECOGNISE = "PP-OCRv6_small_rec"
"""PaddleX picks the reader of a model by these names. Every DB detector and CTC recogniser is read alike."""


def prepare(cache: Path, models: Path | None) -> tuple[Path, Path]:
    """Folders of the detector and of the recogniser, built once for each pair of files and kept under `cache`.

    `models` has `det.onnx` and `rec.onnx`; None takes those of the `rapidocr` wheel.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the recogniser brings no alphabet (metadata `character`, one character a line).
    """
    detector, recogniser = _sources(models)
    built = cache / f"models-{_digest(detector, recogniser)}"
    if not built.is_dir():
        _build(built, detector, recogniser)
    return built / "det", built / "rec"


def _sources(models: Path | None) -> tuple[Path, Path]:
    if models is not None:
        files = models / "det.onnx", models / "rec.onnx"
    else:
        spec = importlib.util.find_spec("rapidocr")
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                "the package `rapidocr`, which carries the models, is not installed: run `make ocr-env`"
            )
        folder = Path(spec.origin).parent / "models"
        files = folder / f"{_carried(DETECT)}.onnx", folder / f"{_carried(RECOGNISE)}.onnx"
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
    return files


def _carried(name: str) -> str:
    version, size, kind = name.split("_")
    return f"{version}_{kind}_{size}"


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in (*files, Path(__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _build(built: Path, detector: Path, recogniser: Path) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place and then renamed: a service killed half way leaves nothing that looks whole.
    with tempfile.TemporaryDirectory(dir=built.parent, prefix=".models-") as name:
        draft = Path(name) / "models"
        _lay(draft / "det", detector, detector_config())
        _lay(draft / "rec", recogniser, recogniser_config(alphabet(recogniser)))
        try:
            os.rename(draft, built)
        except OSError:
            if not built.is_dir():  # otherwise another worker was faster, with the same content
                raise


def _lay(folder: Path, onnx: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    shutil.copyfile(onnx, folder / "inference.onnx")
    # JSON is YAML.
    (folder / "inference.yml").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")


def alphabet(recogniser: Path) -> list[str]:
    """The recogniser's characters in the order of its classes, without CTC's blank."""
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    session = onnxruntime.InferenceSession(str(recogniser), providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get("character")
    if not text:
        raise ValueError(f"{recogniser} has no alphabet: its ONNX metadata needs `character`, one character a line")
    return [line for line in text.split("\n") if line]


def detector_config() -> dict[str, Any]:
    """ImageNet's mean and deviation on BGR, DB post-processing."""
    return {
        "Global": {"model_name": DETECT},
        "PreProcess": {
            "transform_ops": [
                {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
                {"DetResizeForTest": {"resize_long": 960}},
                {
                    "NormalizeImage": {
                        "mean": [0.485, 0.456, 0.406],
                        "std": [0.229, 0.224, 0.225],
                        "scale": 1 / 255,
                        "order": "hwc",
                    }
                },
                {"ToCHWImage": None},
                {"KeepKeys": {"keep_keys": ["image", "shape"]}},
            ]
        },
        "PostProcess": {
            "name": "DBPostProcess",
            "thresh": 0.3,
            "box_thresh": 0.6,
            "max_candidates": 1000,
            "unclip_ratio": 1.5,
        },
    }


def recogniser_config(characters: list[str]) -> dict[str, Any]:
    """Lines 48 pixels high, CTC over `characters` and a space."""
    return {
        "Global": {"model_name": RECOGNISE},
        "PreProcess": {
            "transform_ops": [
                {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
                {"RecResizeImg": {"image_shape": [3, 48, 320]}},
                {"KeepKeys": {"keep_keys": ["image"]}},
            ]
        },
        "PostProcess": {"name": "CTCLabelDecode", "character_dict": characters},
    }


# --- lines that are not upright ---

SURE = 0.9
"""Score from which a reading is not doubted. No garbage scored above 0.75."""
GAIN = 0.1
"""Least gain in score for another orientation."""
_LEAST = 2
"""Least letters and digits of a line that may take another orientation alone."""
MOST = 12
"""Lines of one image that are read again, the largest first: each costs as much as a first reading."""
TALL = 1.5
"""Height over width from which PaddleX's `get_rotate_crop_image` turns a crop on its side."""

Recognise = Callable[[Any], tuple[str, float]]


class Line(NamedTuple):
    text: str
    score: float
    polygon: Any
    """`[4, 2]`, clockwise from the corner at the upper left of the image."""
    turns: int
    """The turns at which `text` was read, 0 to 3."""


def upright(lines: Sequence[tuple[str, float, Any]], crop: Callable[[Any], Any], recognise: Recognise) -> list[Line]:
    """The lines, each in the orientation that reads best.

    Args:
        lines: text, score and polygon, as PaddleOCR reads them.
        crop: gives the image of a polygon as PaddleOCR cuts it out, turned on its side where that is tall.
        recognise: reads such an image.
    """
    found = [Line(text, score, polygon, _first(polygon)) for text, score, polygon in lines]
    doubtful = sorted((i for i, line in enumerate(found) if line.score < SURE), key=lambda i: -_area(found[i].polygon))
    images: dict[int, Any] = {}
    for i in doubtful[:MOST]:
        images[i] = crop(found[i].polygon)
        found[i] = _best(found[i], _others(found[i].polygon), images[i], recognise, GAIN)
    # A line that reads in two orientations ("NOON", "69") takes that of the rest of the image.
    way = _way(found)
    left = MOST - len(images)
    for i, line in enumerate(found):
        if left > 0 and i not in images and line.turns != way and way in _others(line.polygon):
            left -= 1
            found[i] = _best(line, (way,), crop(line.polygon), recognise, -GAIN)
    return found


def in_order(lines: Sequence[Line], width: int, height: int) -> list[Line]:
    """The lines in reading order, with the image turned so that most of its text is upright."""
    way = _way(lines)
    if way == 0:
        return list(lines)
    places = [_turned(np.asarray(line.polygon, float), way, width, height).min(axis=0) for line in lines]
    heights = [min(np.ptp(_turned(np.asarray(line.polygon, float), way, width, height), axis=0)) for line in lines]
    row = max(10.0, float(np.median(heights)) / 2) if heights else 10.0
    order = sorted(range(len(lines)), key=lambda i: (round(places[i][1] / row), places[i][0]))
    return [lines[i] for i in order]


def corners(line: Line) -> Any:
    """The polygon of a line, clockwise from the text's own top left."""
    return np.roll(np.asarray(line.polygon), -line.turns, axis=0)


def _best(line: Line, turns: Sequence[int], image: Any, recognise: Recognise, gain: float) -> Line:
    """The line in the first of these orientations that is sure and scores more than the line by `gain`; else unchanged.

    The best of several readings of garbage scores up to 0.85; that of a lone sign, which may be a shadow, up to 0.91:
    it takes another orientation only where the rest of the image has it (`gain` below 0).
    """
    first = _first(line.polygon)
    best, bar = line, max(SURE, line.score + gain)
    for turn in turns:
        text, score = recognise(np.ascontiguousarray(np.rot90(image, turn - first)))
        if sum(map(str.isalnum, text)) >= (_LEAST if gain > 0 else 1) and score > bar:
            best, bar = Line(text, score, line.polygon, turn), score
            break
    return best


def _first(polygon: Any) -> int:
    width, height = _sides(polygon)
    return 1 if int(height) >= TALL * int(width) else 0


def _others(polygon: Any) -> tuple[int, ...]:
    """The other orientations of a line of this shape, the likelier ones first."""
    width, height = _sides(polygon)
    if _first(polygon):
        return (3, 0) if height < 2 * TALL * width else (3,)
    return (2, 1, 3) if width < TALL * height else (2,)


def _sides(polygon: Any) -> tuple[float, float]:
    a, b, c, d = np.asarray(polygon, float)
    return (
        max(1.0, float(np.linalg.norm(a - b)), float(np.linalg.norm(c - d))),
        max(1.0, float(np.linalg.norm(a - d)), float(np.linalg.norm(b - c))),
    )


def _area(polygon: Any) -> float:
    width, height = _sides(polygon)
    return width * height


def _way(lines: Sequence[Line]) -> int:
    """The orientation of most of the surely read letters; 0 where there are none."""
    letters = [sum(len(line.text) for line in lines if line.turns == turn and line.score >= SURE) for turn in range(4)]
    return int(np.argmax(letters))


def _turned(points: Any, turns: int, width: int, height: int) -> Any:
    """Points of the image after it is turned by so many quarters, anticlockwise."""
    x, y = points[:, 0], points[:, 1]
    if turns == 1:
        return np.stack((y, width - x), -1)
    if turns == 2:
        return np.stack((width - x, height - y), -1)
    return np.stack((height - y, x), -1) if turns == 3 else points


if __name__ == "__main__":
    # uvloop hands down inheritable descriptors, also the listening socket, whose port must be free after the service.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
