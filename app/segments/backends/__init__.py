"""The inference backends, one a file. INFERENCE_BACKEND chooses one of them, or a plug-in."""

from __future__ import annotations

from collections.abc import Callable

from app import plugins
from app.errors import ConfigurationError
from app.segments.ports import Backend, BackendContext
from app.settings import Settings, starting

GROUP = "sightline.backends"
"""The group of entry points by which a package adds backends."""
BUILT_IN = ("stub", "http", "sagemaker", "pipeline")


def chosen_plugin(settings: Settings) -> Callable[[BackendContext], Backend] | None:
    """What makes the plug-in that INFERENCE_BACKEND names; None if it names a built-in backend.

    Raises:
        ConfigurationError: there is no such backend.
        PluginError: a plug-in, chosen or not, cannot be loaded.
    """
    found = plugins.find(GROUP, Backend, settings.server.plugins, taken=BUILT_IN)  # type: ignore[type-abstract]
    name = settings.segments.inference_backend
    if name in BUILT_IN:
        return None
    if name not in found:
        raise ConfigurationError(
            f"INFERENCE_BACKEND={name!r}: should be one of {', '.join([*BUILT_IN, *found])}; others are plug-ins, from "
            f"files in PLUGINS or from packages with the entry point {GROUP}"
        )
    kind: Callable[[BackendContext], Backend] = found[name]

    def make(context: BackendContext) -> Backend:
        with starting(f"backend {name!r}"):
            return kind(context)

    return make
