"""Where plans are filed, and which file serves on this host. Standard library alone.

engines/source/                        what `engine.py source` writes: nothing in it depends on a GPU
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

from engine_device import Device, Stop


@dataclass(frozen=True)
class Source:
    """A model that a plan can be made of."""

    folder: Path
    name: str
    """Triton's: yolo, yolo_pose, arcface."""
    task: str
    """detect, pose or face."""
    sha256: str
    """Of model.onnx."""
    input: str
    shape: list[int]
    """Of one picture, without the batch."""
    made_of: str
    """The file that the user brought."""

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    def config(self, kind: str) -> str:
        """`plan` or `onnx`: the configuration to serve it by, with version 1 in it."""
        return (self.folder / f"{kind}.pbtxt").read_text()


@dataclass(frozen=True)
class Sidecar:
    """The JSON beside a plan: what it was built of, on what."""

    device: Device
    model: str
    onnx_sha256: str
    plan_sha256: str


@dataclass(frozen=True)
class Choice:
    """What is to serve a model here."""

    source: Source
    kind: str
    """`plan` or `onnx`."""
    file: Path
    reason: str

    @property
    def sha256(self) -> str:
        return checksum(self.file)


def has_sources(engines: Path) -> bool:
    """Whether `engine.py source` found a model."""
    return any((engines / "source").glob("*/sheet.json"))


def sources(engines: Path) -> list[Source]:
    """Every model of `engines/source`.

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
    """Writes it beside the plan, or beside what is about to become one."""
    sidecar = Sidecar(device, source.name, source.sha256, checksum(plan))
    plan.with_suffix(".json").write_text(json.dumps(asdict(sidecar), indent=2) + "\n")


def read_sidecar(plan: Path) -> Sidecar | None:
    """None where it is missing or of another make: such a plan is never served."""
    try:
        found = json.loads(plan.with_suffix(".json").read_text())
        return Sidecar(**{**found, "device": Device(**found["device"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def choose(engines: Path, device: Device, source: Source) -> Choice:
    """The plan that was built of this very ONNX on this very device; else the ONNX itself, and why."""
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
