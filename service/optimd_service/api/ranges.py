"""`Range`: some of a reply's bytes, for a download over several connections, or one that goes on where it broke off."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.types import Scope

from optimd_service.api.headers import header
from optimd_service.errors import RangeNotSatisfiable
from optimd_service.types import Version
from optimd_service.wire.encode import Encoded

_ONE_RANGE = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.IGNORECASE)
ACCEPTED = {"accept-ranges": "bytes"}


@dataclass(frozen=True, slots=True)
class Range:
    """Attributes: first, last: numbers of bytes, both included; without ``first`` the ``last`` so many."""

    first: int | None
    last: int | None

    @classmethod
    def read(cls, scope: Scope, version: Version) -> Range | None:
        """The one range that a request wants of the body of ``version``; None where all of it is to be sent.

        Several ranges, other units and what cannot be read are passed over, as RFC 9110 allows; so is a range that is
        wanted only of another version (`If-Range`).
        """
        found = _ONE_RANGE.fullmatch(header(scope, b"range") or "")
        if not found or header(scope, b"if-range") not in {None, f'"{version.etag}"'}:
            return None
        first, last = (int(number) if number else None for number in found.groups())
        if last is None if first is None else last is not None and last < first:
            return None
        return cls(first, last)

    def of(self, encoded: Encoded) -> tuple[Encoded, dict[str, str]]:
        """These bytes of a body, and the header that says which they are. Raises: RangeNotSatisfiable."""
        length = len(encoded)
        if self.first is None:
            start, stop = max(0, length - (self.last or 0)), length
        else:
            start, stop = self.first, length if self.last is None else min(self.last + 1, length)
        if start >= stop:
            raise RangeNotSatisfiable(
                f"The body has {length} bytes, and none of these; ask for bytes between 0 and {length - 1}.",
                length=length,
            )
        return encoded.cut(start, stop), {"content-range": f"bytes {start}-{stop - 1}/{length}"}
