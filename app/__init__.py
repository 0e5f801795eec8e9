"""Sightline: live video in, structured sight out."""

__version__ = "0.1.0"
