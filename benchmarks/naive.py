"""The service that `live` is compared with: it follows the tutorials and does the same work.

FastAPI and uvicorn as they come; `cv2.imdecode`; Farneback on the whole frame; letterbox, FP32 NCHW over 255 by
numpy; two calls to Triton through `tritonclient` with all numbers in the messages; raw heads, read by numpy and
`cv2.dnn.NMSBoxes`; `json.dumps`. Nothing in it is slow on purpose: heads are not read in a Python loop, as
many tutorials do.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import cv2
import numpy as np
import tritonclient.grpc.aio as grpcclient
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

CONFIDENCE, IOU = 0.35, 0.45


def create_app(triton_url: str, detect_model: str, pose_model: str, size: int = 640) -> FastAPI:
    app = FastAPI()
    clients: list[Any] = []

    async def infer(model: str, tensor: np.ndarray) -> np.ndarray:
        if not clients:
            clients.append(grpcclient.InferenceServerClient(url=triton_url))
        image = grpcclient.InferInput("images", list(tensor.shape), "FP32")
        image.set_data_from_numpy(tensor)
        outputs = [grpcclient.InferRequestedOutput("output0")]
        answer = await clients[0].infer(model_name=model, inputs=[image], outputs=outputs)
        return answer.as_numpy("output0")

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.websocket("/ws/inference")
    async def inference(websocket: WebSocket) -> None:
        await websocket.accept()
        previous = None
        try:
            while True:
                frame = cv2.imdecode(np.frombuffer(await websocket.receive_bytes(), np.uint8), cv2.IMREAD_COLOR)
                grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
                motion = None
                if previous is not None:
                    flow = cv2.calcOpticalFlowFarneback(previous, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
                    magnitude, angle = cv2.cartToPolar(flow[..., 0], flow[..., 1], angleInDegrees=True)
                    motion = {"score": float(magnitude.mean()), "direction_deg": float(angle.mean())}
                previous = grey
                tensor, scale, left, top = preprocess(frame, size)
                objects = detections(await infer(detect_model, tensor), scale, left, top)
                poses = keypoints(await infer(pose_model, tensor), scale, left, top)
                result = {"type": "result", "objects": objects, "poses": poses, "motion": motion}
                await websocket.send_text(json.dumps(result))
        except WebSocketDisconnect:
            pass

    return app


def preprocess(frame: np.ndarray, size: int) -> tuple[np.ndarray, float, int, int]:
    height, width = frame.shape[:2]
    scale = min(size / width, size / height)
    resized = cv2.resize(frame, (round(width * scale), round(height * scale)))
    left, top = (size - resized.shape[1]) // 2, (size - resized.shape[0]) // 2
    right, bottom = size - resized.shape[1] - left, size - resized.shape[0] - top
    padded = cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    rgb = cv2.cvtColor(padded, cv2.COLOR_BGR2RGB)
    tensor = np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32) / 255.0
    return np.expand_dims(tensor, 0), scale, left, top


def boxes_of(columns: np.ndarray, scale: float, left: int, top: int) -> np.ndarray:
    """x, y, width, height in frame pixels of centres and sizes on the canvas."""
    x, y, width, height = columns.T
    return np.stack(((x - width / 2 - left) / scale, (y - height / 2 - top) / scale, width / scale, height / scale), 1)


def corners(box: np.ndarray) -> dict[str, float]:
    x, y, width, height = (float(value) for value in box)
    return {"x1": x, "y1": y, "x2": x + width, "y2": y + height}


def detections(output: np.ndarray, scale: float, left: int, top: int) -> list[dict[str, Any]]:
    rows = output[0].T
    class_ids = rows[:, 4:].argmax(1)
    scores = rows[:, 4:].max(1)
    keep = scores > CONFIDENCE
    boxes, scores, class_ids = boxes_of(rows[keep, :4], scale, left, top), scores[keep], class_ids[keep]
    indices = cv2.dnn.NMSBoxesBatched(boxes.tolist(), scores.tolist(), class_ids.tolist(), CONFIDENCE, IOU)
    return [{"class_id": int(class_ids[i]), "confidence": float(scores[i]), "box": corners(boxes[i])} for i in indices]


def keypoints(output: np.ndarray, scale: float, left: int, top: int) -> list[dict[str, Any]]:
    rows = output[0].T
    rows = rows[rows[:, 4] > CONFIDENCE]
    boxes = boxes_of(rows[:, :4], scale, left, top)
    found = []
    for i in cv2.dnn.NMSBoxes(boxes.tolist(), rows[:, 4].tolist(), CONFIDENCE, IOU):
        points = [
            {"x": float((x - left) / scale), "y": float((y - top) / scale), "confidence": float(confidence)}
            for x, y, confidence in rows[i, 5:].reshape(17, 3)
        ]
        found.append({"confidence": float(rows[i, 4]), "box": corners(boxes[i]), "keypoints": points})
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--triton", required=True, help="host:port of its gRPC")
    parser.add_argument("--models", nargs=2, default=("raw_yolo", "raw_yolo_pose"), help="detection and pose")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(create_app(options.triton, *options.models), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
