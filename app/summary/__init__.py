"""Summaries of streams in words: observations, the backlog that holds them, and the language model or rules that
summarize them.

The service opens `Summaries`. Start reading at `service`, or at `session` for one stream. The other names are for
programs that use one part, such as tests and benchmarks.
"""

from app.summary.backlog import Backlog, BacklogCounts
from app.summary.entities import Entity
from app.summary.llm import LanguageModel, NoAnswer, Spent
from app.summary.observations import Movement, ObjectCount, Observation, ObservationBuilder
from app.summary.service import Summaries
from app.summary.session import SendSummary, SessionSummaries
from app.summary.spill import Spill
from app.summary.summarizer import Summarizer

__all__ = [
    "Backlog",
    "BacklogCounts",
    "Entity",
    "LanguageModel",
    "Movement",
    "NoAnswer",
    "ObjectCount",
    "Observation",
    "ObservationBuilder",
    "SendSummary",
    "SessionSummaries",
    "Spent",
    "Spill",
    "Summaries",
    "Summarizer",
]
