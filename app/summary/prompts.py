"""The operator's prompts: a folder of `NAME.md`. Clients choose a name, never the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from app.errors import ConfigurationError, ProtocolError
from app.settings import SummarySettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MOST_BYTES = 16 * 1024
"""Of one prompt: it is sent with every request, and paid for."""


class Prompts:
    """Names and texts, read once."""

    def __init__(self, texts: Mapping[str, str], default: str) -> None:
        self._texts = dict(sorted(texts.items()))
        self.default = default

    @property
    def names(self) -> tuple[str, ...]:
        """What a client may choose, in alphabetical order."""
        return tuple(self._texts)

    def text(self, name: str) -> str:
        return self._texts[name]

    def chosen(self, name: str | None) -> str:
        """The name itself; the default for None.

        Raises:
            ProtocolError: no prompt has this name; lists those known.
        """
        if name is None:
            return self.default
        if name not in self._texts:
            raise ProtocolError(
                f"no prompt is named {name[:64]!r}; known: {', '.join(self.names)}",
                code="invalid_value",
                field="summary.prompt",
            )
        return name


def read(settings: SummarySettings) -> Prompts:
    """Every `NAME.md` of SUMMARY_PROMPTS.

    Raises:
        ConfigurationError: no such folder, none in it, one that cannot be used, or SUMMARY_PROMPT is not among them.
    """
    folder = settings.summary_prompts
    if not folder.is_dir():
        raise ConfigurationError(f"SUMMARY_PROMPTS='{folder}': should be a folder with one NAME.md a prompt")
    texts = {path.stem: _text(path) for path in sorted(folder.glob("*.md"))}
    if not texts:
        raise ConfigurationError(f"SUMMARY_PROMPTS='{folder}': no NAME.md is in it; at least one is wanted")
    if settings.summary_prompt not in texts:
        known = ", ".join(texts)
        raise ConfigurationError(f"SUMMARY_PROMPT={settings.summary_prompt!r}: should be one of {known} (in {folder})")
    return Prompts(texts, settings.summary_prompt)


def _text(path: Path) -> str:
    def wrong(why: str) -> ConfigurationError:
        return ConfigurationError(f"SUMMARY_PROMPTS: {path} {why}")

    if not _NAME.fullmatch(path.stem):
        raise wrong("should be named by letters, digits, - and _, at most 64")
    try:
        data = path.read_bytes()
        text = data.decode().strip()
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise wrong("should be UTF-8 text") from None
    if not text:
        raise wrong("is empty")
    if len(data) > MOST_BYTES:
        raise wrong(f"has {len(data)} bytes; at most {MOST_BYTES} are sent with every request")
    return text
