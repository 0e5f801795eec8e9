"""`make models ARCFACE=`: what is taken, and faces embedded by it through a real Triton."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from arcface import ARCFACE, install_arcface, read_arcface
from install import DETECT, POSE, compose, remove
from layouts import UnknownLayout

from app.inference.embedded import models_of
from app.inference.triton import TritonClient
from app.pipeline.multimodal import Pipeline
from app.pipeline.registry import create
from app.pipeline.stages.faces import TEMPLATE, FaceDetection, decode_embedding, face_reader
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Stages, StreamSettings
from app.protocol.result import FrameResult
from app.settings import ROOT, Settings
from tests.support import faces
from tests.support.service import running_triton


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The checked-in models, without what this machine may have installed beside them."""
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "triton" / "cpu_repository", repository, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (DETECT, POSE, ARCFACE):
        remove(name, repository)
    compose(repository)
    return repository


def make_models(repository: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "triton" / "models.py", "--repository", repository, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_it_is_installed_beside_what_detects(repository: Path, tmp_path: Path) -> None:
    before = models_of(repository)
    done = make_models(repository, "--arcface", faces.save(tmp_path / "w600k.onnx"))
    assert done.returncode == 0, done.stderr
    assert "AGPL" not in done.stdout  # no YOLO was asked for
    assert models_of(repository) == ("arcface", *before)
    about = json.loads((repository / "arcface" / "2" / "model.json").read_text())
    assert (about["source"], about["input_mean"], about["input_std"]) == ("w600k.onnx", "127.5", "127.5")
    assert make_models(repository, "--remove").returncode == 0
    assert models_of(repository) == before


def test_a_model_that_scales_by_itself_is_given_bare_pixels(tmp_path: Path) -> None:
    assert read_arcface(faces.save(tmp_path / "torch.onnx")).input_std == 127.5
    mxnet = read_arcface(faces.save(tmp_path / "mxnet.onnx", scaled=True))
    assert (mxnet.input_mean, mxnet.input_std) == (0, 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ({"side": 224}, r"data FLOAT \[None, 3, 224, 224\]; embedding"),
        ({"length": 128}, r"embedding FLOAT \[None, 128\]"),
    ],
)
def test_other_shapes_are_refused_with_those_found(
    repository: Path, tmp_path: Path, make: dict[str, int], words: str
) -> None:
    source = faces.save(tmp_path / "other.onnx", **make)
    with pytest.raises(UnknownLayout, match=words):
        read_arcface(source)
    done = make_models(repository, "--arcface", source)
    assert done.returncode == 1
    assert "an ArcFace takes FP32 or FP16 [N, 3, 112, 112]" in done.stderr
    assert not (repository / "arcface").exists()


def test_a_file_that_is_not_there(repository: Path) -> None:
    done = make_models(repository, "--arcface", "nowhere.onnx")
    assert done.returncode == 1
    assert "ARCFACE=nowhere.onnx: there is no such .onnx file" in done.stderr


@pytest.mark.parametrize("batch", ["N", 1])
def test_a_photograph_of_a_person_gets_the_embedding_of_its_face(
    triton_python: Path, repository: Path, tmp_path: Path, batch: str | int
) -> None:
    """MediaPipe finds person and pose; the crop is cut a second time here, by other means, out of Pillow's pixels."""
    install_arcface(faces.save(tmp_path / "w600k.onnx", batch=batch), repository)
    jpeg = (ROOT / "app" / "web" / "sample.jpg").read_bytes()

    async def analyze(url: str) -> tuple[FrameResult, np.ndarray]:
        settings = Settings(ocr="off", triton_url=url, state_dir=tmp_path)
        client = TritonClient(url, settings.triton)
        await client.open()
        pipeline = Pipeline(client, settings, create(settings, ("detect", "pose", "track", "motion", "face")))
        try:
            await pipeline.load()
            stages = Stages(face=True)
            job = FrameJob(Frame("a", jpeg, time.perf_counter(), 0.0, 1), StreamMemory(), StreamSettings(stages=stages))
            (result,) = await pipeline.analyze([job], entry="fleet")
            assert isinstance(result, FrameResult)
            # 16 crops, as many as one request may hold.
            reader = face_reader(await client.describe("arcface"))
            buffer = client.buffer((16, 3, 112, 112), "FP32")
            reader.fill(np.stack([faces.chart(seed) for seed in range(16)]), buffer.array)
            reply = await client.infer(reader.spec, buffer, stream="a")
            vectors = reader.read(reply.outputs[reader.output_name])
            buffer.release()
            return result, vectors
        finally:
            pipeline.close()
            await client.close()

    with running_triton(repository, tmp_path / "state") as url:
        result, vectors = asyncio.run(analyze(url))
    assert result.stages["face"].status == "ok"
    (person,) = [detection for detection in result.objects if isinstance(detection, FaceDetection)]
    assert person.class_name == "person"
    vector = decode_embedding(person.embedding)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    head = np.array([(point.x, point.y) for point in result.poses[0].keypoints[:5]])
    assert float(vector @ faces.embedding(upright(jpeg, head))) > 0.999
    # A crop some pixels beside it is told apart.
    assert float(vector @ faces.embedding(upright(jpeg, np.add(head, 12)))) < 0.99
    for seed, embedding in enumerate(vectors):
        assert float(embedding @ faces.embedding(faces.chart(seed))) > 0.9999


def upright(jpeg: bytes, head: np.ndarray) -> np.ndarray:
    """The crop by OpenCV's own estimate, which knows no weights: each point counts as often as it weighs."""
    import io

    from PIL import Image

    times = np.array([2, 4, 4, 1, 1])
    seen, wanted = head.repeat(times, axis=0), TEMPLATE.repeat(times, axis=0)
    matrix, _ = cv2.estimateAffinePartial2D(seen, wanted, method=cv2.RANSAC, ransacReprojThreshold=1000)
    picture = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    return np.asarray(Image.fromarray(picture).transform((112, 112), Image.Transform.AFFINE, inverse(matrix), 2))


def inverse(matrix: np.ndarray) -> tuple[float, ...]:
    """The inverse transform, from crop to image, which Pillow expects."""
    return tuple(cv2.invertAffineTransform(matrix).ravel().tolist())
