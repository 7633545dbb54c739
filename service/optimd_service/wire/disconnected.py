"""The end of a conversation."""

from __future__ import annotations


class Disconnected(Exception):
    """The client went away in the middle of a body: there is nobody to answer."""
