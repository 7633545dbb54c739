"""JSON documents, queries and pages, as the core writes and reads them."""

from __future__ import annotations

import json
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

import numpy as np

from optimd._exchange import Reply
from optimd.errors import MalformedReply

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """Some rows of a list, and where the next ones start; None when there are no more."""

    rows: list[T]
    next: Any


def query(**parameters: Any) -> str:
    """A query string of the parameters that are given; a list repeats its name."""
    given = {name: value for name, value in parameters.items() if value is not None}
    return "?" + urlencode(given, doseq=True) if given else ""


def json_text(document: Any) -> memoryview:
    """UTF-8 JSON; NumPy scalars are written as numbers.

    Raises: ValueError for NaN and infinity, which JSON cannot say; TypeError for what is no JSON value.
    """
    return memoryview(json.dumps(document, allow_nan=False, default=_plain).encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(reply: Reply) -> Any:
    """The object in a reply. Raises: MalformedReply when there is none."""
    try:
        document = json.loads(bytes(reply.body))
    except (ValueError, RecursionError) as error:
        raise MalformedReply("The reply is not JSON: is this URL an optimd server's?") from error
    if not isinstance(document, dict):
        raise MalformedReply("The reply is not a JSON object: is this URL an optimd server's?")
    return document


def read_page(reply: Reply, member: str) -> Page[Any]:
    """One page of the list called ``member``. Raises: MalformedReply when it is not there."""
    document = read_json(reply)
    rows = document.get(member)
    if not isinstance(rows, list):
        raise MalformedReply(f"The reply holds no list of {member}.")
    return Page(rows, document.get("next"))
