"""`make models`, run as a command: it installs the files, or prints a reason and changes nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
import pytest

from app.inference.embedded import models_of
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
    assert "needs a package index" in done.stderr
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
    assert "other.onnx: is a detect model; POSE= takes one for pose. It goes with DETECT=" in done.stderr
    assert files(repository) == before


def installed(repository: Path) -> dict[str, str]:
    """The parameters of the detection model's configuration."""
    text = (repository / "yolo" / "configs" / "installed.pbtxt").read_text()
    found = re.findall(r'key: "(\w+)" value { string_value: ("(?:[^"\\]|\\.)*") }', text)
    return {key: json.loads(value) for key, value in found}


def names_of(repository: Path) -> list[str]:
    found: list[str] = json.loads(installed(repository)["class_names"])
    return found


@pytest.mark.parametrize("names", [{}, {"names": "{0: '0', 1: '1'}"}])
@pytest.mark.parametrize("as_is", [(), ("--as-is",)])
def test_e7_an_export_without_class_names_is_warned_of(
    repository: Path, tmp_path: Path, names: dict[str, str], as_is: tuple[str, ...]
) -> None:
    done = make_models(repository, *as_is, "--detect", onnx_of(tmp_path / "site.onnx", 6, **names))
    assert done.returncode == 0, done.stderr
    assert "WARNING: site.onnx has no class names" in done.stderr
    assert "NAMES=" in done.stderr
    assert names_of(repository) == ["class_0", "class_1"]
    quiet = make_models(repository, "--detect", onnx_of(tmp_path / "named.onnx", 6, **NAMES))
    assert quiet.stderr == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "crane\n truck \n\n"),
        ("data.yaml", "path: x\nnames:\n  0: crane\n  1: truck\n"),
        ("data.yml", "names: [crane, truck]\n"),
        ("list.yaml", "- crane\n- truck\n"),
        ("obj.names", "\ufeffcrane\r\ntruck\r\n"),
        (None, "crane, truck"),
    ],
)
def test_e7_names_are_given(repository: Path, tmp_path: Path, name: str | None, content: str) -> None:
    given = content
    if name is not None:
        (tmp_path / name).write_text(content)
        given = str(tmp_path / name)
    done = make_models(repository, "--detect", onnx_of(tmp_path / "site.onnx", 6), "--names", given)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert names_of(repository) == ["crane", "truck"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (None, "crane", "6 rows are 2 classes, but the number of names is 1"),
        (None, "crane,,truck", "number 1 is empty"),
        (None, "nowhere/names.txt", "there is no such file"),
        ("names.txt", "", "there are none"),
        ("gaps.yaml", "names: {0: crane, 2: truck}", "its ids are 0, 2"),
        ("odd.yaml", "names: crane", "want a list of names"),
        ("broken.yaml", "names: [", "cannot be read"),
        ("latin.txt", b"Gru\xe9\n", "cannot be read"),
    ],
)
def test_e7_wrong_names_change_nothing(
    repository: Path, tmp_path: Path, name: str | None, content: str | bytes, why: str
) -> None:
    before = files(repository)
    given = content
    if name is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        given = str(tmp_path / name)
    done = make_models(repository, "--detect", onnx_of(tmp_path / "site.onnx", 6), "--names", str(given))
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert files(repository) == before


def test_e7_names_without_a_detection_model_are_refused(repository: Path, tmp_path: Path) -> None:
    pose, obb = onnx_of(tmp_path / "p.onnx", 56), onnx_of(tmp_path / "o.onnx", 7, task="obb")
    done = make_models(repository, "--pose", pose, "--obb", obb, "--names", "person")
    assert done.returncode == 1
    assert "DETECT=" in done.stderr


@pytest.mark.parametrize(("as_is", "layout"), [((), "prepared"), (("--as-is",), "raw")])
def test_c3_the_configuration_says_what_the_rows_are(
    repository: Path, tmp_path: Path, as_is: tuple[str, ...], layout: str
) -> None:
    assert make_models(repository, *as_is, "--detect", onnx_of(tmp_path / "site.onnx", 6, **NAMES)).returncode == 0
    assert installed(repository)["layout"] == layout
    weights, bias = np.ones((6, 3)), np.zeros(6)
    graphs.save(tmp_path / "v26.onnx", weights, bias, end2end=True, metadata=NAMES | {"end2end": "True"})
    assert make_models(repository, *as_is, "--detect", str(tmp_path / "v26.onnx")).returncode == 0
    assert installed(repository)["layout"] == "end_to_end"


@pytest.mark.parametrize("as_is", [(), ("--as-is",)])
def test_c4_a_head_that_is_not_read_is_refused_at_installation(
    repository: Path, tmp_path: Path, as_is: tuple[str, ...]
) -> None:
    before = files(repository)
    weights, bias = np.ones((6, 3)), np.zeros(6)
    graphs.save(tmp_path / "r.onnx", weights, bias, end2end=True, metadata=NAMES | {"head": "RTDETRDecoder"})
    done = make_models(repository, *as_is, "--detect", str(tmp_path / "r.onnx"))
    assert done.returncode == 1
    assert "RT-DETR" in done.stderr
    assert files(repository) == before


def test_c5_a_fixed_batch_is_warned_of(repository: Path, tmp_path: Path) -> None:
    weights, bias = np.ones((6, 3)), np.zeros(6)
    for batch in (1, 4):
        graphs.save(tmp_path / f"b{batch}.onnx", weights, bias, batch=batch, metadata=NAMES)
        done = make_models(repository, "--detect", str(tmp_path / f"b{batch}.onnx"))
        assert done.returncode == 0, done.stderr
        assert ("exported with batch=4" in done.stderr) == (batch == 4)
    # Its suppression is written out for one picture, though the batch is open.
    about = NAMES | {"args": "{'nms': True, 'dynamic': True}", "batch": "1"}
    graphs.save(tmp_path / "nms.onnx", weights, bias, end2end=True, metadata=about)
    assert make_models(repository, "--as-is", "--detect", str(tmp_path / "nms.onnx")).returncode == 0
    assert installed(repository)["batch"] == "1"
    assert make_models(repository, "--detect", str(tmp_path / "nms.onnx")).returncode == 0
    assert json.loads(next((repository / "yolo").glob("*/model.json")).read_text())["batch"] == 1
