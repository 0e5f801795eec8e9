"""Run by the interpreter of a throw-away environment with Ultralytics: exports networks of its other tasks.

And says what they see; as ultralytics_networks.py, whose means it uses.

    python ultralytics_tasks.py FOLDER             pictures/*.jpg in it -> NAME.onnx, NAME.npz
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import YAML, ops
from ultralytics_networks import CONFIDENCE, FOLDER, IOU, SIZE, enliven

NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "v8-seg": ("yolov8n-seg.yaml", {}, {}),
    "v26-seg": ("yolo26n-seg.yaml", {}, {"nms": False}),
    "v11-seg": ("yolo11n-seg.yaml", {}, {"nms": True, "conf": 0.2, "iou": IOU}),
    "v8-obb": ("yolov8n-obb.yaml", {}, {}),
    "v26-obb": ("yolo26n-obb.yaml", {}, {"nms": False}),
    "v8-hands": ("yolov8n-pose.yaml", {"kpt_shape": [21, 3], "nc": 2}, {}),
    "v11-cards": ("yolo11n-pose.yaml", {"kpt_shape": [5, 2], "nc": 1}, {}),
    "v8-cls": ("yolov8n-cls.yaml", {"nc": 10}, {}),
}
"""By name: what it is made of, what is changed in it, and how it is exported."""


def main() -> None:
    torch.set_num_threads(1)
    pictures = [cv2.imread(str(path)) for path in sorted((FOLDER / "pictures").glob("*.jpg"))]
    for seed, (name, (source, changes, how)) in enumerate(NETWORKS.items()):
        torch.manual_seed(seed)
        made = yaml_model_load(source) | changes
        path = FOLDER / f"{source.removesuffix('.yaml').replace('yolo', f'yolo_{seed}_')}.yaml"
        YAML.save(path, made)
        task = {"seg": "segment", "obb": "obb", "cls": "classify"}.get(name.partition("-")[2], "pose")
        network = YOLO(path, task=task)
        if task == "classify":
            with torch.no_grad():
                network.model.model[-1].linear.weight *= 30
        else:
            enliven(network.model, pictures)
        network.model.names = {index: f"thing {index}" for index in range(len(network.model.names))}
        shutil.move(network.export(format="onnx", imgsz=SIZE, **how), FOLDER / f"{name}.onnx")
        served = YOLO(FOLDER / f"{name}.onnx", task=task)
        limits = {"imgsz": SIZE, "conf": CONFIDENCE, "iou": IOU, "max_det": 300, "verbose": False}
        seen = [served.predict([picture], rect=False, **limits)[0] for picture in pictures]
        found = {f"{number}_{key}": value for number, one in enumerate(seen) for key, value in written(one).items()}
        np.savez(FOLDER / f"{name}.npz", **found)
        print(name, [len(one.probs.top5) if one.probs is not None else len(one) for one in seen], flush=True)


def written(seen: Any) -> dict[str, np.ndarray]:
    if seen.probs is not None:
        return {"classes": np.array(seen.probs.top5), "scores": seen.probs.top5conf.numpy()}
    boxes = seen.obb if seen.obb is not None else seen.boxes
    out = {"scores": boxes.conf.numpy(), "classes": boxes.cls.numpy().astype(int), "boxes": boxes.xyxy.numpy()}
    if seen.obb is not None:
        out |= {"xywhr": seen.obb.xywhr.numpy(), "corners": seen.obb.xyxyxyxy.numpy()}
    elif seen.keypoints is not None:
        out["keypoints"] = seen.keypoints.data.numpy()
    elif seen.masks is not None:
        on_frame = ops.scale_masks(seen.masks.data[None].float(), seen.orig_shape)[0] > 0.5
        out["masks"] = np.packbits(on_frame.numpy(), axis=2)
        out["points"] = np.array([len(points) for points in seen.masks.xy])
    return out


if __name__ == "__main__":
    Path(FOLDER).mkdir(exist_ok=True)
    main()
