"""What a stream showed, in words: observations, the backlog that holds them, and who writes the summaries."""

from app.summary.service import Summaries
from app.summary.session import Send, SessionSummaries

__all__ = ["Send", "SessionSummaries", "Summaries"]
