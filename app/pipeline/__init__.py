"""One frame's way from bytes to a result. `multimodal.Pipeline` is the only entry."""
