"""The clients of the inference server, the memory shared with it, and the embedded server."""

import os

# gRPC's fork handlers would only log complaints: our child processes (Triton, OCR) are other programs at once.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
