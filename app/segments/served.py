"""Whether the models that are served now can do what a film is to be analysed for."""

from __future__ import annotations

from app.errors import InferenceError, InferenceUnavailable
from app.pipeline.models import ModelSet
from app.segments.keys import Mode

FACE = "face"
"""The class, in any spelling of its letters, whose boxes are faces."""


def any_model(vision: ModelSet) -> bool:
    """Whether anything looks at frames."""
    return vision.detect is not None or vision.pose is not None


def needed(vision: ModelSet, mode: Mode) -> frozenset[str]:
    """The stages that every frame of a film has to go through: those whose models are served.

    Raises:
        InferenceUnavailable: none is.
        InferenceError: the mode wants a model that is not served.
    """
    if not any_model(vision):
        reason = f": {vision.rejected}" if vision.rejected else ""
        raise InferenceUnavailable(f"this server serves neither a detection nor a pose model{reason}")
    classes = () if vision.detect is None else vision.detect.class_names
    if mode == "blur_faces" and vision.pose is None and FACE not in {name.casefold() for name in classes}:
        raise InferenceError("this server serves neither poses nor a class `face`: faces cannot be hidden")
    served = {"detect": vision.detect, "pose": vision.pose}
    return frozenset(name for name, reader in served.items() if reader is not None)
