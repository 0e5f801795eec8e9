"""A recorded film: looked at, cut into parts, put together again. Nothing of it is coded anew here."""

from __future__ import annotations

from app.segments.cutting import cut
from app.segments.footage import FilmError, FilmInfo, Position, Truncated, probe
from app.segments.joining import concat

__all__ = ["FilmError", "FilmInfo", "Position", "Truncated", "concat", "cut", "probe"]
