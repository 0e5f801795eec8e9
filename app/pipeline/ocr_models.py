"""Lays OCR models out as PaddleOCR wants them. Runs inside OCR's own environment: imports nothing of `app`.

PaddleOCR reads a model from a folder with `inference.onnx` and `inference.yml`. Bare ONNX files, as
the `rapidocr` wheel carries them (PP-OCRv6 small, Apache-2.0), have no such file: it is written here,
with the values of PaddleOCR's own exports, and the recogniser's alphabet out of its metadata.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

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
