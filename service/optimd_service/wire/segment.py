"""A part of a body by its bytes, as `Content-Range` names it, and what of the body's tensors it holds."""

from __future__ import annotations

from typing import NamedTuple

from optimd_service.errors import SegmentMisplaced, SegmentsNotTaken
from optimd_service.wire.landing import Landing
from optimd_service.wire.runs import Run

# In each dtype whole blocks of the flat buffer, of which no two threads then bring the same.
GRID = 2**23


class Segment(NamedTuple):
    """Bytes ``start`` up to ``stop`` of a body of ``total``."""

    start: int
    stop: int
    total: int

    @property
    def leads(self) -> bool:
        """Whether the body begins here: its header, and whatever the request says of the whole."""
        return self.start == 0

    def run(self, landing: Landing, behind: int) -> Run:
        """The elements that it brings of a body that ``landing`` plans.

        Args:
          behind: where the payload begins.

        Raises: SegmentsNotTaken, SegmentMisplaced.
        """
        if len(landing.runs) != 1 or landing.runs[0].start:
            raise SegmentsNotTaken(
                "Segments are taken of a body that holds its tensors in the session's order and in one dtype, and none "
                "by rows. Send this one whole."
            )
        total = behind + landing.payload_bytes
        if self.total != total:
            raise SegmentMisplaced(
                f"The header speaks of a body of {total} bytes, Content-Range of {self.total}.", total=total
            )
        for end in (self.start, self.stop):
            if end not in {0, self.total} and (end <= behind or (end - behind) % GRID):
                raise SegmentMisplaced(
                    f"A segment cannot begin or end at byte {end}: only at multiples of {GRID} bytes behind the "
                    f"header, which is {behind} bytes long with its length.",
                    header_bytes=behind,
                    multiple=GRID,
                )
        itemsize = landing.payload_bytes // landing.runs[0].stop
        first, last = max(self.start - behind, 0) // itemsize, (self.stop - behind) // itemsize
        return landing.runs[0]._replace(start=first, stop=last)
