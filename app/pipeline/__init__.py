"""The pipeline: a frame's way from its bytes to a result. `multimodal.Pipeline` is its only entry.

Entry points use `startup.open_pipeline`, `types` (`Frame`, `FrameJob`, `StreamMemory`), `ordering`, `batching` and
`multimodal`. This file re-exports nothing, so that importing one module (such as `decode` in `app.sources`) loads no
model readers and no inference client.
"""
