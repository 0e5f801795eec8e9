"""The stages of a frame, one file each."""
