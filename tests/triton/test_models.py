"""`make models` as it is called: files into a repository, or a reason and nothing changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
import pytest

from app.inference.launch import models_of
from app.settings import ROOT

NAMES = {"names": "{0: 'crane', 1: 'truck'}", "task": "detect"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The checked-in configurations alone."""
    for name in ("_mediapipe", "yolo", "yolo_pose", "vision"):
        (tmp_path / "repository" / name / "1").mkdir(parents=True)
        config = ROOT / "triton" / "cpu_repository" / name / "config.pbtxt"
        (tmp_path / "repository" / name / "config.pbtxt").write_text(config.read_text())
    return tmp_path / "repository"


def make_models(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # No network, and nothing from an earlier one.
    environment = os.environ | {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(repository.parent / "cache")}
    return subprocess.run(
        [sys.executable, ROOT / "triton" / "models.py", "--repository", repository, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def onnx_of(path: Path, channels: int, *, size: tuple[int, int] = (160, 192), **metadata: str) -> str:
    weights, bias = np.ones((channels, 3)), np.zeros(channels)
    return str(graphs.save(path, weights, bias, height=size[0], width=size[1], metadata=metadata))


def files(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_both_models_and_their_ensemble(repository: Path, tmp_path: Path) -> None:
    detect, pose = onnx_of(tmp_path / "site.onnx", 6, **NAMES), onnx_of(tmp_path / "people.onnx", 56, task="pose")
    done = make_models(repository, "--detect", detect, "--pose", pose)
    assert done.returncode == 0, done.stderr
    assert "AGPL" not in done.stdout  # nothing of Ultralytics' was asked for
    for name in ("yolo", "yolo_pose"):
        assert {path.name for path in (repository / name / "2").iterdir()} == {"model.onnx", "model.json", "model.py"}
    assert json.loads((repository / "yolo" / "2" / "model.json").read_text())["names"] == ["crane", "truck"]
    vision = (repository / "vision" / "configs" / "installed.pbtxt").read_text()
    assert "dims: [ 160, 192, 3 ]" in vision
    assert 'model_name: "yolo"' in vision
    assert 'model_name: "yolo_pose"' in vision
    assert models_of(repository) == ("vision", "yolo", "yolo_pose")


def test_a_newer_model_replaces_the_older(repository: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert make_models(repository, "--detect", onnx_of(tmp_path / f"{name}.onnx", 6)).returncode == 0
    assert sorted(path.name for path in (repository / "yolo").iterdir()) == ["1", "3", "config.pbtxt", "configs"]
    assert "versions: [ 3 ]" in (repository / "yolo" / "configs" / "installed.pbtxt").read_text()


def test_mediapipe_takes_the_size_of_what_is_installed(repository: Path, tmp_path: Path) -> None:
    assert make_models(repository, "--detect", onnx_of(tmp_path / "site.onnx", 6)).returncode == 0
    for name in ("_mediapipe", "yolo_pose"):
        assert "dims: [ 160, 192, 3 ]" in (repository / name / "configs" / "installed.pbtxt").read_text()
    assert 'model_name: "_mediapipe"' in (repository / "vision" / "configs" / "installed.pbtxt").read_text()


def test_two_sizes_have_no_ensemble(repository: Path, tmp_path: Path) -> None:
    detect, pose = onnx_of(tmp_path / "a.onnx", 6), onnx_of(tmp_path / "b.onnx", 56, size=(320, 320))
    done = make_models(repository, "--detect", detect, "--pose", pose)
    assert done.returncode == 0
    assert "no ensemble: yolo takes 160x192; yolo_pose takes 320x320" in done.stdout
    assert models_of(repository) == ("yolo", "yolo_pose")


def test_removed_it_is_as_before(repository: Path, tmp_path: Path) -> None:
    before = files(repository)
    detect, pose = onnx_of(tmp_path / "a.onnx", 6), onnx_of(tmp_path / "b.onnx", 56, size=(320, 320))
    assert make_models(repository, "--detect", detect, "--pose", pose).returncode == 0
    assert files(repository) != before
    assert make_models(repository, "--remove").returncode == 0
    assert files(repository) == before


def test_as_it_is_keeps_the_graph_and_its_tensors(repository: Path, tmp_path: Path) -> None:
    source = onnx_of(tmp_path / "site.onnx", 6, **NAMES)
    assert make_models(repository, "--as-is", "--detect", source).returncode == 0
    assert (repository / "yolo" / "2" / "model.onnx").read_bytes() == Path(source).read_bytes()
    config = (repository / "yolo" / "configs" / "installed.pbtxt").read_text()
    assert 'name: "images" data_type: TYPE_FP32 dims: [ 3, 160, 192 ]' in config
    assert 'name: "output0" data_type: TYPE_FP32 dims: [ 6, 480 ]' in config


def test_without_a_network_it_says_so_and_changes_nothing(repository: Path) -> None:
    before = files(repository)
    done = make_models(repository)
    assert done.returncode == 1
    assert "AGPL-3.0" in done.stdout
    assert "takes a network" in done.stderr
    assert "make models DETECT=path/to/best.onnx" in done.stderr
    assert files(repository) == before


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("nowhere/best.onnx", "nowhere/best.onnx: there is no such file"),
        ("not a model", "neither a file nor a model's name"),
    ],
)
def test_wrong_names_are_refused(repository: Path, given: str, reason: str) -> None:
    before = files(repository)
    done = make_models(repository, "--detect", given)
    assert done.returncode == 1
    assert reason in done.stderr
    assert files(repository) == before


def test_a_model_for_another_task_is_refused(repository: Path, tmp_path: Path) -> None:
    before = files(repository)
    detect, pose = onnx_of(tmp_path / "site.onnx", 6, **NAMES), onnx_of(tmp_path / "other.onnx", 6, **NAMES)
    done = make_models(repository, "--detect", detect, "--pose", pose)
    assert done.returncode == 1
    assert "other.onnx: is a detect model; yolo_pose wants one for pose" in done.stderr
    assert files(repository) == before
