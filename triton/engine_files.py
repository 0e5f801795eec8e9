"""Where plans are stored, and which file serves a model on this host. Uses only the standard library.

engines/source/                        written by `engine.py source`; independent of the GPU
    yolo/  model.onnx  sheet.json  plan.pbtxt  onnx.pbtxt  picture.bin  answer.json
    vision.pbtxt
engines/nvidia-a10g-sm86-trt10.3.0/    one folder for each GPU and TensorRT
    yolo-0123456789ab.plan  yolo-0123456789ab.json
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from engine_check import Head
from engine_device import Device, Stop


@dataclass(frozen=True)
class Source:
    """A model from which plans can be built."""

    folder: Path
    name: str
    """The model's name in Triton, such as yolo or arcface."""
    task: str
    """detect, pose, segment, obb, classify or face."""
    sha256: str
    """Checksum of model.onnx."""
    input: str
    """Name of the input tensor."""
    shape: list[int]
    """Shape of one image, without the batch dimension."""
    made_of: str
    """Name of the file that the user installed."""
    layout: str = ""
    """The parameter `layout` of its configuration."""
    numbers: int = 3
    """Of each keypoint."""

    @property
    def head(self) -> Head:
        """What its outputs mean."""
        height, width = self.shape[:2] if self.shape[-1] == 3 else self.shape[1:]
        return Head(self.task, self.layout, (height, width), self.numbers)

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    def config(self, kind: str) -> str:
        """The configuration for a kind, `plan` or `onnx`; its version is 1."""
        return (self.folder / f"{kind}.pbtxt").read_text()


@dataclass(frozen=True)
class Sidecar:
    """The JSON file beside a plan: the ONNX and the device that it was built from and for."""

    device: Device
    model: str
    onnx_sha256: str
    plan_sha256: str


@dataclass(frozen=True)
class Choice:
    """The file that serves a model on this device."""

    source: Source
    kind: str
    """`plan` or `onnx`."""
    file: Path
    reason: str

    @property
    def sha256(self) -> str:
        return checksum(self.file)


def has_sources(engines: Path) -> bool:
    """Whether `engine.py source` has written a model."""
    return any((engines / "source").glob("*/sheet.json"))


def sources(engines: Path) -> list[Source]:
    """All models in `engines/source`.

    Raises:
        Stop: there is none.
    """
    sheets = sorted((engines / "source").glob("*/sheet.json"))
    if not sheets:
        raise Stop(
            f"no model in {engines / 'source'}: run `make models` (DETECT= and POSE= name your own), "
            "then `make engine`, both on the host"
        )
    return [Source(folder=sheet.parent, **json.loads(sheet.read_text())) for sheet in sheets]


def plan_path(engines: Path, device: Device, source: Source) -> Path:
    return engines / device.slug / f"{source.name}-{source.sha256[:12]}.plan"


def file_sidecar(plan: Path, device: Device, source: Source) -> None:
    """Writes the sidecar of a plan; the plan may still be in a temporary folder."""
    sidecar = Sidecar(device, source.name, source.sha256, checksum(plan))
    plan.with_suffix(".json").write_text(json.dumps(asdict(sidecar), indent=2) + "\n")


def read_sidecar(plan: Path) -> Sidecar | None:
    """The plan's sidecar; None if it is missing or has another format. A plan without a sidecar is never served."""
    try:
        found = json.loads(plan.with_suffix(".json").read_text())
        return Sidecar(**{**found, "device": Device(**found["device"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def choose(engines: Path, device: Device, source: Source) -> Choice:
    """The plan that was built from this ONNX on this device; else the ONNX itself, with the reason."""
    plan = plan_path(engines, device, source)
    if plan.exists():
        sidecar = read_sidecar(plan)
        if sidecar is not None and sidecar.device == device and sidecar.onnx_sha256 == source.sha256:
            if sidecar.plan_sha256 == checksum(plan):
                return Choice(source, "plan", plan, f"built on {device.slug}")
            return Choice(source, "onnx", source.onnx, f"{plan.name} is damaged: run `make engine`")
        return Choice(source, "onnx", source.onnx, f"{plan.name} has no sidecar that fits it: run `make engine`")
    others = [found for path in sorted(engines.glob(f"*/{source.name}-*.plan")) if (found := read_sidecar(path))]
    same_model = [found.device.slug for found in others if found.onnx_sha256 == source.sha256]
    if same_model:
        reason = f"its plan was built on {', '.join(same_model)}; this is {device.slug}: run `make engine` here"
    elif others:
        reason = "its plans were built of another ONNX: run `make engine`"
    else:
        reason = "no plan was built yet: run `make engine`"
    return Choice(source, "onnx", source.onnx, reason)


def checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
