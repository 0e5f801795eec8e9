"""The one client of the inference server, its gate, its shared memory, and the embedded server."""
