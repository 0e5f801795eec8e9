"""The stages of a frame: one file each, for OCR a package."""
