"""Who analyses a segment: one file each, chosen by INFERENCE_BACKEND."""
