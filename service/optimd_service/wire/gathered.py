"""A body whose segments come over several connections, each straight to where its bytes belong."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optimd_service.wire.arrival import Arrival, Watch
from optimd_service.wire.body import Body
from optimd_service.wire.digest import BodyDigest
from optimd_service.wire.elsewhere import Elsewhere
from optimd_service.wire.landing import Landing
from optimd_service.wire.received import SafetensorsBody
from optimd_service.wire.safetensors import PREFIX_BYTES
from optimd_service.wire.segment import Segment


@dataclass(frozen=True)
class GatheredBody:
    """A checked header, and the place where the payload gathers.

    Attributes:
      flat: at least as long as the layout.
      watch: told what has come, in the threads in which it comes.
    """

    header: bytes
    metadata: dict[str, str]
    landing: Landing
    flat: torch.Tensor
    digest: BodyDigest
    watch: Watch

    async def receive(self, segment: Segment, body: Body, run: Elsewhere) -> None:
        """Receive one segment, of which nothing is read yet but the header of the body.

        Raises: SegmentsNotTaken, SegmentMisplaced, MalformedSafetensors when it ends early.
        """
        part = segment.run(self.landing, PREFIX_BYTES + len(self.header))
        places = Arrival(self.flat, [part], self.digest, self.watch).places()
        await body.pour(places, (part.stop - part.start) * part.dtype.itemsize, run=run, what="the segment")

    def whole(self) -> SafetensorsBody:
        """The body, once all segments have come."""
        return SafetensorsBody(self.header, self.metadata, self.landing, None, self.digest)
