"""Run by the interpreter of a throw-away environment with Ultralytics: exports detection networks of each family that
it has, in the ways in which it exports them, and says what they see.

    python ultralytics_heads.py FOLDER          pictures/*.jpg in it -> NAME.onnx, NAME.json

As `ultralytics_networks.py`, whose networks are installed by `make models`; these are served as they are. RT-DETR is
exported twice: with the rows that it picks today, and as it was before, with all queries and their scores.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics import RTDETR, YOLO
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics_networks import CONFIDENCE, FOLDER, IOU, SIZE, enliven, written

NETWORKS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "v5u": ("yolov5n.yaml", SIZE, {}),
    "v8-half": ("yolov8n.yaml", SIZE, {"half": True}),
    "v8-rectangular": ("yolov8n.yaml", (192, SIZE), {}),
    "v9-dynamic": ("yolov9t.yaml", SIZE, {"dynamic": True}),
    "v10": ("yolov10n.yaml", SIZE, {}),
    "v11-nms": ("yolo11n.yaml", SIZE, {"nms": True, "conf": 0.2, "iou": IOU}),
    "v12": ("yolo12n.yaml", SIZE, {}),
    "v26": ("yolo26n.yaml", SIZE, {}),
    "rtdetr-rows": ("yolov8n-rtdetr.yaml", SIZE, {}),
    "rtdetr": ("yolov8n-rtdetr.yaml", SIZE, {}),
}
"""By name: what it is made of, its size, and how it is exported."""


def main() -> None:
    torch.set_num_threads(2)
    pictures = [cv2.imread(str(path)) for path in sorted((FOLDER / "pictures").glob("*.jpg"))]
    wanted = sys.argv[2:] or [*NETWORKS]
    for name in wanted:
        source, size, how = NETWORKS[name]
        torch.manual_seed(len(source))
        transformer = "rtdetr" in source
        network = (RTDETR if transformer else YOLO)(source)
        (enliven_transformer if transformer else enliven)(network.model, pictures)
        network.model.names = {index: f"thing {index}" for index in range(len(network.model.names))}
        rows = RTDETRDecoder.postprocess
        if name == "rtdetr":  # as up to 8.3
            RTDETRDecoder.postprocess = lambda self, boxes, scores: torch.cat((boxes, scores), -1)
        shutil.move(network.export(format="onnx", imgsz=size, **how), FOLDER / f"{name}.onnx")
        RTDETRDecoder.postprocess = rows
        # Today's tool does not read the former head; the rows that it picks from the same network tell what that shows.
        asked_name = "rtdetr-rows" if name == "rtdetr" else name
        asked = (RTDETR if transformer else YOLO)(FOLDER / f"{asked_name}.onnx")
        limits = {"imgsz": size, "conf": CONFIDENCE, "iou": IOU, "max_det": 1000, "verbose": False, "rect": False}
        seen = [written(asked.predict(picture, **limits)[0]) for picture in pictures]
        if name == "rtdetr":
            seen = [best_of_each(found) for found in seen]
        (FOLDER / f"{name}.json").write_text(json.dumps(seen))
        print(name, [len(image["boxes"]) for image in seen], flush=True)


def best_of_each(found: dict[str, Any]) -> dict[str, Any]:
    """Of the rows of each query the first, its best class: so it was before the head picked rows
    (`RTDETRPredictor.postprocess`, ultralytics/models/rtdetr/predict.py, 8.3)."""
    kept: dict[tuple[float, ...], int] = {}
    for index, box in enumerate(found["boxes"]):
        first = kept.setdefault(tuple(box), index)
        assert found["scores"][first] >= found["scores"][index]
    return {key: [found[key][at] for at in kept.values()] for key in ("boxes", "scores", "classes")}


def enliven_transformer(network: Any, pictures: list[np.ndarray]) -> None:
    """Gives every layer's output the spread that training would, and some of the queries a score that counts."""
    stretched = [cv2.resize(picture, (SIZE, SIZE))[..., ::-1].transpose(2, 0, 1) for picture in pictures]
    batch = torch.from_numpy(np.ascontiguousarray(stretched)).float() / 255
    network.eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.train()
    head = network.model[-1]
    with torch.no_grad():
        for box_head in head.dec_bbox_head:
            torch.nn.init.normal_(box_head.layers[-1].weight, std=0.1)
        network(batch)
        network.eval()
        last = head.dec_score_head[head.decoder.eval_idx]
        seen: list[torch.Tensor] = []
        hook = last.register_forward_hook(lambda layer, _, out: seen.append(out))
        network(batch)
        hook.remove()
        scale = 1.5 / seen[0].std()
        last.weight *= scale
        best = ((seen[0] - last.bias) * scale).flatten(1).quantile(0.999, dim=1).median()
        last.bias.fill_(float(np.log(CONFIDENCE / (1 - CONFIDENCE)) - best))


if __name__ == "__main__":
    main()
