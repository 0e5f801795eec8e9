"""Run by the interpreter of a throw-away environment with Ultralytics: exports networks, and says what they see.

    python ultralytics_networks.py FOLDER          pictures/*.jpg in it -> NAME.onnx, NAME.json

Ultralytics is AGPL-3.0 and never a dependency of this project; nothing here is imported by it. The networks are
untrained: their weights are drawn from a seed, then scaled by what comes out, so that dozens of boxes of all kinds of
scores are found in any picture.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1]).resolve()
os.environ["YOLO_CONFIG_DIR"] = str(FOLDER / "settings")
os.environ["YOLO_OFFLINE"] = "true"

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ultralytics import YOLO  # noqa: E402
from ultralytics.data.augment import LetterBox  # noqa: E402

SIZE = 320
CONFIDENCE, IOU = 0.35, 0.45
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "v8": ("yolov8n.yaml", {}),
    "v8-pose": ("yolov8n-pose.yaml", {}),
    "v26": ("yolo26n.yaml", {"nms": False}),
    "v26-pose": ("yolo26n-pose.yaml", {"nms": False}),
    "v11": ("yolo11n.yaml", {"nms": True, "conf": 0.2, "iou": IOU}),
    "v11-pose": ("yolo11n-pose.yaml", {"batch": 4}),
}
"""By name: what it is made of, and how it is exported."""


def main() -> None:
    torch.set_num_threads(1)
    pictures = [cv2.imread(str(path)) for path in sorted((FOLDER / "pictures").glob("*.jpg"))]
    for seed, (name, (source, how)) in enumerate(NETWORKS.items()):
        torch.manual_seed(seed)
        network = YOLO(source)
        enliven(network.model, pictures)
        network.model.names = {index: f"thing {index}" for index in range(len(network.model.names))}
        exported = network.export(format="onnx", imgsz=SIZE, **how)
        shutil.move(exported, FOLDER / f"{name}.onnx")
        task = "pose" if "pose" in name else "detect"
        # An export of its own is asked: what it says is what Ultralytics makes of the same graph.
        served = YOLO(FOLDER / f"{name}.onnx", task=task)
        batch = int(how.get("batch", 1))
        seen: list[Any] = []
        for at in range(0, len(pictures), batch):
            some = pictures[at : at + batch]
            limits = {"imgsz": SIZE, "conf": CONFIDENCE, "iou": IOU, "max_det": 300, "verbose": False}
            seen += served.predict(some, batch=batch, rect=False, **limits)
        (FOLDER / f"{name}.json").write_text(json.dumps([written(result) for result in seen]))
        print(name, [len(result.boxes) for result in seen], flush=True)


def written(seen: Any) -> dict[str, Any]:
    points = [] if seen.keypoints is None else seen.keypoints.data.tolist()
    return {
        "boxes": seen.boxes.xyxy.tolist(),
        "scores": seen.boxes.conf.tolist(),
        "classes": seen.boxes.cls.int().tolist(),
        "keypoints": points,
    }


def enliven(network: Any, pictures: list[np.ndarray]) -> None:
    """Gives every layer's output the spread that training would, and about one anchor in thirty a score that counts."""
    letterboxed = [LetterBox((SIZE, SIZE), auto=False)(image=picture) for picture in pictures]
    squares = [picture[..., ::-1].transpose(2, 0, 1) for picture in letterboxed]
    batch = torch.from_numpy(np.ascontiguousarray(squares)).float() / 255
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    head = network.model[-1]
    outputs: dict[Any, torch.Tensor] = {}
    lasts = {}
    for kind in ("cv2", "cv3", "cv4", "cv4_kpts", "one2one_cv2", "one2one_cv3", "one2one_cv4", "one2one_cv4_kpts"):
        for branch in getattr(head, kind, None) or []:
            last = branch[-1] if isinstance(branch, torch.nn.Sequential) else branch
            if isinstance(last, torch.nn.Conv2d):
                lasts[last] = kind.removeprefix("one2one_")
    with torch.no_grad():
        network.train()
        network(batch)
        network.eval()
        for last in lasts:
            last.bias.zero_()
            last.register_forward_hook(lambda layer, _, out: outputs.__setitem__(layer, out))
        network(batch)
        for last, kind in lasts.items():
            out = outputs[last]
            spread = {"cv2": 1.5 if head.reg_max > 1 else 0.7, "cv3": 1.5}.get(kind, 1.0)
            last.weight *= spread / out.std()
            out = out * spread / out.std()
            if kind == "cv3":
                # Of each picture by itself: half of them have more than one anchor in thirty, half have fewer.
                best = out.amax(1).flatten(1).quantile(0.97, dim=1).median()
                last.bias.fill_(float(np.log(CONFIDENCE / (1 - CONFIDENCE)) - best))
            elif kind == "cv2" and head.reg_max == 1:
                last.bias.fill_(3.0 - float(out.mean()))
    for last in lasts:
        last._forward_hooks.clear()


if __name__ == "__main__":
    main()
