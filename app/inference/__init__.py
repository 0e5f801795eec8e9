"""The one client of the inference server, its gate, its shared memory, and the embedded server."""

import os

# gRPC's handlers around fork would only complain: what we start (Triton, OCR) is another program at once.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
