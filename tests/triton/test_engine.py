"""`make engine` without a GPU: every step but NVIDIA's own.

Two small scripts stand where nvidia-smi and trtexec are on a GPU host. The one says what it is told to. The other
takes trtexec's arguments, "builds" a plan by copying the ONNX, and runs that copy in ONNX Runtime: so naming,
arguments, comparison and the swap are real, TensorRT itself is not there.
"""

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest
from arcface import install_arcface
from configs import parsed
from engine_check import Head, boxes_of, compare, difference, read_outputs, write_outputs
from engine_device import Device, Stop, library_version, version_of
from engine_files import choose, sources
from engine_graph import for_tensorrt
from engine_swap import installed_version
from install import CLASSIFY, DETECT, OBB, POSE, SEGMENT, install
from onnx import TensorProto, helper, numpy_helper

from app.inference.triton import TritonClient
from app.pipeline.models import describe
from app.pipeline.registry import create
from app.settings import ROOT, Settings, TritonSettings
from tests.support import faces
from tests.support.service import running_triton

HEIGHT, WIDTH = 160, 192
A10G = ("NVIDIA A10G, 8.6", "v100300")
L4 = ("NVIDIA L4, 8.9", "v100300")
NAMES = {"names": "{0: 'person', 1: 'crane'}"}
TRTEXEC = """#!{python}
import json, os, re, shutil, sys
arguments = dict(one.removeprefix("--").partition("=")[::2] for one in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT " + os.environ["TENSORRT"] + "] # trtexec")
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
if os.environ.get("FAIL"):
    sys.exit("[E] " + os.environ["FAIL"])
if "onnx" in arguments:
    shutil.copyfile(os.environ.get("INSTEAD", arguments["onnx"]), arguments["saveEngine"])
if "loadEngine" in arguments:
    import numpy as np, onnxruntime
    session = onnxruntime.InferenceSession(arguments["loadEngine"], providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    name, path = arguments["loadInputs"].split(":")
    shape = [int(size) for size in arguments["shapes"].split(":")[1].split("x")]
    kind = np.uint8 if given.type == "tensor(uint8)" else np.float32
    found = zip(session.get_outputs(), session.run(None, {{name: np.fromfile(path, kind).reshape(shape)}}))
    written = [
        {{"name": given.name, "dimensions": "x".join(map(str, values.shape)), "values": values.ravel().tolist()}}
        for given, values in found
    ]
    with open(arguments["exportOutput"], "w") as output:
        json.dump(written, output)
"""


class Host:
    """A folder of models and plans, and a GPU host's commands on the PATH."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.python = folder, python
        self.models, self.engines = folder / "models", folder / "engines"
        self.repository = folder / "repository"

    def set_up(self) -> None:
        """Two small models installed, and the commands in place."""
        shutil.copytree(ROOT / "triton" / "model_repository", self.repository)
        (self.folder / "bin").mkdir()
        self.command("trtexec", TRTEXEC.format(python=self.python))
        self.command("nvidia-smi", '#!/bin/sh\necho "$GPU"\n')
        install(head(self.folder / "site.onnx", 6, NAMES), DETECT, self.models)
        install(head(self.folder / "people.onnx", 56, {"task": "pose"}), POSE, self.models)

    def command(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, command: str, *arguments: str, device: tuple[str, str] = A10G, **environment: str) -> str:
        """Its output; what it says when it fails is an AssertionError."""
        done = self.attempt(command, *arguments, device=device, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def attempt(
        self, command: str, *arguments: str, device: tuple[str, str] = A10G, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        folders = ("--models", self.models, "--engines", self.engines, "--repository", self.repository)
        known = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "CALLS": str(self.folder / "calls.jsonl")}
        return subprocess.run(
            [
                sys.executable,
                ROOT / "triton" / "engine.py",
                command,
                *folders,
                "--onnx-python",
                self.python,
                *arguments,
            ],
            env=os.environ | known | {"GPU": device[0], "TENSORRT": device[1]} | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def calls(self) -> list[dict[str, str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def serves(self, name: str) -> str:
        """Which file the repository serves: `plan` or `onnx`."""
        folder = self.repository / name
        version = folder / str(installed_version(folder))
        kind = json.loads((version / "engine.json").read_text())["kind"]
        config = (folder / "configs" / "installed.pbtxt").read_text()
        assert ('platform: "tensorrt_plan"' if kind == "plan" else 'platform: "onnxruntime_onnx"') in config
        assert (version / f"model.{kind}").exists()
        return kind


@pytest.fixture(scope="module")
def ready_host(triton_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host after `engine.py source`."""
    host = Host(tmp_path_factory.mktemp("ready"), triton_python)
    host.set_up()
    assert "yolo_pose: people.onnx prepared for TensorRT" in host.run("source")
    return host


@pytest.fixture(scope="module")
def built_host(ready_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host after `engine.py source` and `engine.py build`, on an A10G."""
    host = copy(ready_host, tmp_path_factory.mktemp("built"))
    assert "yolo: serves plan" in host.run("build")
    return host


@pytest.fixture
def host(ready_host: Host, tmp_path: Path) -> Host:
    """A host of the test's own after `engine.py source`."""
    return copy(ready_host, tmp_path)


@pytest.fixture
def built(built_host: Host, tmp_path: Path) -> Host:
    """A host of the test's own after `engine.py build`."""
    return copy(built_host, tmp_path)


def copy(host: Host, folder: Path) -> Host:
    shutil.copytree(host.folder, folder, dirs_exist_ok=True)
    return Host(folder, host.python)


def plan_of(host: Host, name: str) -> Path:
    (plan,) = (host.engines / "nvidia-a10g-sm86-trt10.3.0").glob(f"{name}-*.plan")
    return plan


def head(
    path: Path,
    channels: int,
    metadata: dict[str, str],
    *,
    width: float = 60.0,
    batch: int | str = "batch",
    masks: int = 0,
) -> Path:
    """Boxes `width` wide in every cell, the surer the redder it is; the sample picture has red cells and others."""
    weights, bias = np.zeros((channels, 3)), np.zeros(channels)
    weights[0, 1], weights[1, 2] = 90, 80  # no two cells give the same box
    bias[2:4] = width, 50
    weights[4, 0] = 0.9
    size = {"height": HEIGHT, "width": WIDTH}
    return graphs.save(path, weights, bias, **size, batch=batch, masks=masks, metadata=metadata)


def test_names_of_devices() -> None:
    assert Device("NVIDIA A10G", "8.6", "10.3.0").slug == "nvidia-a10g-sm86-trt10.3.0"
    assert Device("Tesla T4", "7.5", "8.6.1").slug == "tesla-t4-sm75-trt8.6.1"
    assert version_of("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help") == "10.3.0"
    assert version_of("[TensorRT v101302] [b5] # trtexec") == "10.13.2"
    assert version_of("[TensorRT v8601] # trtexec") == "8.6.1"
    with pytest.raises(Stop, match="does not say"):
        version_of("usage: something else")
    assert library_version(["libnvinfer.so.10", "libnvinfer.so.10.3.0"]) == "10.3.0"
    with pytest.raises(Stop, match="no TensorRT here"):
        library_version([])


def test_plans_are_built_checked_filed_and_swapped_in(built: Host) -> None:
    assert (built.serves("yolo"), built.serves("yolo_pose")) == ("plan", "plan")
    build = next(call for call in built.calls if "/yolo/" in call.get("onnx", ""))
    assert (build["minShapes"], build["optShapes"]) == ("images:1x160x192x3", "images:8x160x192x3")
    assert build["maxShapes"] == "images:16x160x192x3"
    assert {"fp16", "skipInference"} <= set(build)
    plan = plan_of(built, "yolo")
    sidecar = json.loads(plan.with_suffix(".json").read_text())
    assert sidecar["device"] == {"gpu": "NVIDIA A10G", "capability": "8.6", "tensorrt": "10.3.0"}
    assert sidecar["model"] == "yolo"
    assert not list(plan.parent.glob(".building-*"))
    before = len(built.calls)
    assert "exists already" in built.run("build")
    assert not any("onnx" in call for call in built.calls[before:])


def test_a_plan_for_another_gpu_stays_filed_and_the_onnx_serves(built: Host) -> None:
    said = built.run("select", device=L4)
    assert "built on nvidia-a10g-sm86-trt10.3.0; this is nvidia-l4-sm89-trt10.3.0: run `make engine` here" in said
    assert built.serves("yolo") == "onnx"
    # The same GPU with another TensorRT is another device.
    assert "serves onnx" in built.run("select", device=("NVIDIA A10G, 8.6", "v100800"))
    built.run("select")
    assert built.serves("yolo") == "plan"


def test_the_version_before_stays_until_the_next_change(host: Host) -> None:
    folder = host.repository / "yolo"
    host.run("select")
    first = installed_version(folder)
    host.run("build")
    second = installed_version(folder)
    assert (folder / str(first) / "model.onnx").exists()
    host.run("select")
    assert installed_version(folder) == second
    assert (folder / str(first) / "model.onnx").exists()
    host.run("select", device=L4)
    assert not (folder / str(first)).exists()
    assert (folder / str(second) / "model.plan").exists()


def test_a_plan_that_says_something_else_is_not_used(built: Host) -> None:
    plan = plan_of(built, "yolo")
    before, version = plan.read_bytes(), installed_version(built.repository / "yolo")
    bent = install(head(built.folder / "bent.onnx", 6, NAMES, width=70), DETECT, built.folder / "bent")
    done = built.attempt("build", "--force", INSTEAD=str(bent / "model.onnx"))
    assert done.returncode == 1
    assert "output differs from its ONNX's" in done.stderr
    assert plan.read_bytes() == before
    assert installed_version(built.repository / "yolo") == version
    assert built.serves("yolo") == "plan"


def test_a_failed_build_says_what_trtexec_said(host: Host) -> None:
    host.run("select")
    done = host.attempt("build", FAIL="out of memory")
    assert done.returncode == 1
    assert "the build failed (trtexec ended with 1)" in done.stderr
    assert "out of memory" in done.stderr
    assert host.serves("yolo") == "onnx"


def test_a_damaged_plan_is_never_served(built: Host) -> None:
    plan = plan_of(built, "yolo")
    plan.write_bytes(plan.read_bytes()[:-1])
    plan_of(built, "yolo_pose").with_suffix(".json").unlink()
    said = built.run("select")
    assert "is damaged" in said
    assert "has no sidecar that fits it" in said
    assert (built.serves("yolo"), built.serves("yolo_pose")) == ("onnx", "onnx")


def test_an_arcface_goes_the_same_way(built: Host) -> None:
    install_arcface(faces.save(built.folder / "w600k.onnx", batch=1), built.models)
    built.run("source")
    assert built.serves("yolo") == "plan"
    assert "arcface: serves plan" in built.run("build")
    config = (built.repository / "arcface" / "configs" / "installed.pbtxt").read_text()
    assert 'input [ { name: "data" data_type: TYPE_FP32 dims: [ 3, 112, 112 ] } ]' in config
    assert 'parameters { key: "input_std" value { string_value: "127.5" } }' in config
    build = next(call for call in built.calls if "/arcface/" in call.get("onnx", ""))
    assert build["maxShapes"] == "data:16x3x112x112"


def test_every_task_goes_the_same_way(built: Host) -> None:
    install(head(built.folder / "s.onnx", 14, NAMES | {"task": "segment"}, masks=8), SEGMENT, built.models)
    install(head(built.folder / "o.onnx", 7, NAMES | {"task": "obb"}), OBB, built.models)
    install(graphs.classifier(built.folder / "c.onnx", {"task": "classify"}), CLASSIFY, built.models)
    assert "not in the ensemble, but asked apart: yolo_classify takes 64x64 (crop)" in built.run("source")
    said = built.run("build")
    for name in (SEGMENT, OBB, CLASSIFY):
        assert f"{name}: serves plan" in said
        assert built.serves(name) == "plan"
    vision = (built.repository / "vision" / "configs" / "installed.pbtxt").read_text()
    for name in (DETECT, POSE, SEGMENT, OBB):
        assert f'model_name: "{name}"' in vision
    assert json.loads(parsed(vision).parameters["outputs"].string_value)[SEGMENT] == {
        "segments": "segments", "protos": "protos",
    }  # fmt: skip
    config = parsed((built.repository / SEGMENT / "configs" / "installed.pbtxt").read_text())
    assert (config.parameters["task"].string_value, config.parameters["layout"].string_value) == ("segment", "prepared")
    bent = install(
        head(built.folder / "bent.onnx", 14, NAMES | {"task": "segment"}, width=75, masks=8),
        SEGMENT,
        built.folder / "bent",
    )
    done = built.attempt("build", "--force", INSTEAD=str(bent / "model.onnx"))
    assert done.returncode == 1
    assert "output differs from its ONNX's" in done.stderr


def test_a_model_of_single_images_has_no_plan(built: Host) -> None:
    sheet = built.models / "yolo" / "2" / "model.json"
    about = json.loads(sheet.read_text())
    sheet.write_text(json.dumps(about | {"parameters": about["parameters"] | {"layout": "torchvision"}}))
    done = built.attempt("source")
    assert done.returncode == 1
    assert "takes one image at a time, but a plan is built for batches" in done.stderr


def test_without_a_gpu_it_says_so(host: Host) -> None:
    host.command("nvidia-smi", "#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    done = host.attempt("select")
    assert done.returncode == 1
    assert "reports no GPU: No devices were found" in done.stderr


def test_nothing_installed_says_what_to_do(host: Host) -> None:
    shutil.rmtree(host.models)
    shutil.rmtree(host.engines)
    assert "run `make models` first" in host.attempt("source").stderr
    assert "run `make models`" in host.attempt("build").stderr


def test_a_model_that_sees_nothing_on_the_picture_cannot_be_checked(host: Host) -> None:
    weights, bias = np.zeros((6, 3)), np.zeros(6)
    blind = graphs.save(host.folder / "blind.onnx", weights, bias, height=HEIGHT, width=WIDTH)
    install(blind, DETECT, host.models)
    done = host.attempt("source")
    assert done.returncode == 1
    assert "make engine PICTURE=path.jpg" in done.stderr


def test_serve_becomes_tritonserver_with_what_is_there(host: Host) -> None:
    host.command("tritonserver", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    said = host.run("serve", "--", "--http-port=8123").splitlines()
    assert {"--load-model=yolo", "--load-model=yolo_pose", "--load-model=vision"} <= set(said)
    assert {"--model-config-name=installed", "--model-control-mode=explicit", "--http-port=8123"} <= set(said)


def test_serve_leaves_a_repository_of_ones_own_alone(host: Host) -> None:
    shutil.rmtree(host.engines)
    host.command("tritonserver", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    assert "run `make models`" in host.attempt("serve").stderr
    (host.repository / "yolo" / "1" / "model.plan").write_bytes(b"built elsewhere")
    said = host.run("serve")
    assert "--load-model=yolo\n" in said
    assert "--load-model=yolo_pose" not in said


def test_what_is_swapped_in_is_served(built: Host, tmp_path: Path) -> None:
    """The repository as `select` leaves it, by a real Triton; the Python backend runs the plans that are ONNX here."""
    for name in ("yolo", "yolo_pose"):
        folder = built.repository / name
        version = folder / str(installed_version(folder))
        (version / "model.plan").rename(version / "model.onnx")
        shutil.copyfile(ROOT / "triton" / "onnx_model.py", version / "model.py")
        config = folder / "configs" / "installed.pbtxt"
        text = config.read_text().replace('platform: "tensorrt_plan"', 'backend: "python"')
        text += 'parameters { key: "precision" value { string_value: "f32" } }\n'  # where OpenVINO would take BF16
        config.write_text(text.replace("KIND_GPU", "KIND_CPU"))
    images = np.random.default_rng(5).integers(0, 256, (16, HEIGHT, WIDTH, 3), np.uint8)

    async def ask(url: str) -> np.ndarray:
        client = TritonClient(url, TritonSettings(triton_shm="off"))
        await client.open()
        try:
            vision = await describe(client, "vision", create(Settings()))
            assert vision.readers["detect"].class_names == ("person", "crane")
            buffer = client.buffer(images.shape, "UINT8")
            buffer.array[:] = images
            try:
                reply = await client.infer(vision.ensemble["detect"].spec, buffer, stream="a")
            finally:
                buffer.release()
            return np.array(reply.outputs["detections"])
        finally:
            await client.close()

    with running_triton(built.repository, tmp_path / "state") as url:
        answer = asyncio.run(ask(url))
    weights, bias = np.zeros((6, 3)), np.zeros(6)
    weights[0, 1], weights[1, 2], weights[4, 0] = 90, 80, 0.9
    bias[2:4] = 60, 50
    expected = graphs.candidates(graphs.head(images, weights, bias), 2)
    np.testing.assert_allclose(np.sort(answer[..., 4]), np.sort(expected[..., 4]), atol=2e-3)


# --- the graph made ready for TensorRT ---


def test_a_batch_of_one_is_opened(host: Host) -> None:
    """Shapes as Ultralytics writes them down for single frames; ONNX Runtime runs three at once afterwards."""
    shape = numpy_helper.from_array(np.array([1, 6, -1]), "shape")
    constant = helper.make_node("Constant", [], ["split"], value=numpy_helper.from_array(np.array([1, 2, 3, 480])))
    nodes = [
        constant,
        helper.make_node("AveragePool", ["images"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Concat", ["cells", "cells"], ["both"], axis=1),
        helper.make_node("Reshape", ["both", "shape"], ["flat"]),
        helper.make_node("Reshape", ["flat", "split"], ["parts"]),
        helper.make_node("Reshape", ["parts", "shape"], ["output0"]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])
    gives = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, 480])
    graph = helper.make_graph(nodes, "single", [given], [gives], [shape])
    source = host.folder / "single.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    install(source, DETECT, host.models)
    (host.models / "yolo_pose" / "configs" / "installed.pbtxt").unlink()
    assert "prepared for TensorRT" in host.run("source")
    (ready,) = sources(host.engines)
    assert onnx.load(ready.onnx).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_a_batch_that_cannot_be_opened_is_refused(host: Host) -> None:
    """The sum over the batch makes every answer depend on the others: no export does so, but it must show."""
    source = head(host.folder / "site.onnx", 6, NAMES, batch=1)
    model = onnx.load(source)
    model.graph.node[-1].output[0] = "alone"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis0"))
    model.graph.node.append(helper.make_node("ReduceSum", ["alone", "axis0"], ["output0"], keepdims=1))
    onnx.save(model, source)
    install(source, DETECT, host.models)
    done = host.attempt("source")
    assert done.returncode == 1
    assert "dynamic=True" in done.stderr


def test_bytes_are_cast_before_they_are_moved(host: Host) -> None:
    """TensorRT takes UINT8 at the input alone; the numbers stay the same."""
    model = onnx.load(host.models / "yolo" / "2" / "model.onnx")
    ready = for_tensorrt(model)
    assert [node.op_type for node in model.graph.node[:2]] == ["Transpose", "Cast"]
    assert [node.op_type for node in ready.graph.node[:2]] == ["Cast", "Transpose"]
    assert ready.graph.node[1].output == model.graph.node[1].output


# --- the comparison ---

ROW = (10.0, 20.0, 110.0, 220.0, 0.9, 0.0)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ([ROW, (0.0,) * 6], True),
        ([(0.0,) * 6, ROW], True),  # another order
        ([(12.0, 18.5, 113.0, 224.0, 0.87, 0.0), (0.0,) * 6], True),
        ([(15.0, 20.0, 110.0, 220.0, 0.9, 0.0), (0.0,) * 6], False),  # 5 pixels, of 200 at most 4
        ([(10.0, 20.0, 110.0, 220.0, 0.8, 0.0), (0.0,) * 6], False),
        ([(10.0, 20.0, 110.0, 220.0, 0.9, 1.0), (0.0,) * 6], False),
        ([ROW, (300.0, 300.0, 340.0, 340.0, 0.5, 0.0)], False),  # one too many
        ([ROW, (300.0, 300.0, 340.0, 340.0, 0.3, 0.0)], True),  # unsure of it
        ([ROW], False),
    ],
)
def test_rows_are_compared_as_what_they_mean(given: list[tuple[float, ...]], same: bool) -> None:
    wrong = difference("detect", [ROW, (0.0,) * 6], given)
    assert (wrong is None) == same, wrong


def test_sure_keypoints_are_compared() -> None:
    def pose(x: float, confidence: float) -> tuple[float, ...]:
        return (*ROW, x, 50.0, confidence, *((60.0, 60.0, 0.9) * 16))

    assert difference("pose", [pose(50, 0.9)], [pose(53, 0.9)]) is None
    assert difference("pose", [pose(50, 0.9)], [pose(60, 0.9)]) is not None
    assert difference("pose", [pose(50, 0.2)], [pose(90, 0.2)]) is None


def test_embeddings_are_compared_by_their_angle() -> None:
    vector = [1.0, 0.0, 0.0]
    assert difference("face", [vector], [[2.0, 0.05, 0.0]]) is None
    assert "a cosine of 0.9806" in str(difference("face", [vector], [[1.0, 0.2, 0.0]]))
    assert difference("face", [vector], [[0.0, 0.0, 0.0]]) is not None


def test_answers_are_read_as_trtexec_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(
        '[\n  { "name" : "detections"\n  , "dimensions" : "1x2x3"\n  , "values" : [ 1, 2, 3, 4, 5, 6.5 ]\n  }\n]'
    )
    assert read_outputs(path) == {"detections": [[1, 2, 3], [4, 5, 6.5]]}
    write_outputs(path, {"detections": ((1, 1, 2), [1.0, float("nan")])})
    with pytest.raises(ValueError, match="detections has values that are no numbers"):
        read_outputs(path)


def test_angles_and_masks_are_compared() -> None:
    def turned(angle: float, width: float = 90.0) -> tuple[float, ...]:
        return (50.0, 60.0, width, 30.0, 0.9, 0.0, angle)

    assert difference("obb", [turned(0.5)], [turned(0.53)]) is None
    assert difference("obb", [turned(0.01)], [turned(3.13)]) is None
    assert difference("obb", [turned(0.5)], [turned(0.8)]) is not None
    assert difference("obb", [turned(0.5)], [turned(0.5 + 1.5708)]) is not None
    assert difference("obb", [turned(0.5, 30.0)], [turned(0.5 + 1.5708, 30.0)]) is None

    masks = Head("segment", "prepared", (160, 192))
    wanted = {"segments": [(*ROW, 1.0, 0.0)], "protos": [(0.5, 0.1), (0.2, 0.9)]}
    assert compare(masks, wanted, {**wanted, "segments": [(*ROW, 1.0, 0.01)]}) is None
    assert "only the ONNX" in str(compare(masks, wanted, {**wanted, "segments": [(*ROW, 1.0, 0.5)]}))
    assert "protos are apart by" in str(compare(masks, wanted, {**wanted, "protos": [(0.5, 0.1), (0.2, -0.9)]}))
    assert "outputs segments instead of" in str(compare(masks, wanted, {"segments": wanted["segments"]}))

    scores = {"scores": [(0.9, 0.1)]}
    assert compare(Head("classify"), scores, {"scores": [(0.88, 0.12)]}) is None
    assert "class 0 has a score of 0.800" in str(compare(Head("classify"), scores, {"scores": [(0.8, 0.2)]}))


@pytest.mark.parametrize(
    ("layout", "outputs", "row"),
    [
        ("rtdetr", {"output0": [(0.5, 0.25, 0.1, 0.2, 0.1, 0.8)]}, (96, 40, 19.2, 32, 0.8, 1)),
        ("rtdetr_rows", {"output0": [(0.5, 0.25, 0.1, 0.2, 0.8, 1)]}, (96, 40, 19.2, 32, 0.8, 1)),
        ("objectness", {"output": [(96, 40, 19, 32, 0.5, 0.2, 0.8)]}, (96, 40, 19, 32, 0.4, 1)),
        ("boxes_logits", {"labels": [(-9, 0)], "dets": [(0.5, 0.25, 0.1, 0.2)]}, (96, 40, 19.2, 32, 0.5, 1)),
        ("boxes_scores", {"boxes": [(1, 2, 3, 4)], "scores": [(0.1, 0.7)]}, (1, 2, 3, 4, 0.7, 1)),
        ("rows_apart", {"labels": [(7,)], "boxes": [(1, 2, 3, 4)], "scores": [(0.7,)]}, (1, 2, 3, 4, 0.7, 7)),
        (
            "efficient_nms",
            {"num_dets": [(1,)], "det_boxes": [(1, 2, 3, 4)], "det_scores": [(0.7,)], "det_classes": [(7,)]},
            (1, 2, 3, 4, 0.7, 7),
        ),
    ],
)
def test_other_families_are_compared_as_the_same_rows(layout: str, outputs: dict, row: tuple[float, ...]) -> None:
    head = Head("detect", layout, (160, 192))
    assert boxes_of(head, outputs) == [pytest.approx(row)]
    assert compare(head, outputs, outputs) is None


def test_a_plan_of_another_onnx_is_not_taken(built: Host) -> None:
    install(head(built.folder / "newer.onnx", 6, NAMES, width=64), DETECT, built.models)
    built.run("source")
    yolo = next(source for source in sources(built.engines) if source.name == "yolo")
    choice = choose(built.engines, Device("NVIDIA A10G", "8.6", "10.3.0"), yolo)
    assert (choice.kind, choice.reason) == ("onnx", "its plans were built of another ONNX: run `make engine`")
