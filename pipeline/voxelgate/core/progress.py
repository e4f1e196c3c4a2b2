"""How work tells how far it has come."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Told how many are done, and how many there are."""
