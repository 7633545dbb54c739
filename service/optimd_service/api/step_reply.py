"""The reply to a push: its receipt and, as far as they are wanted, the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from optimd_service.api.media import MEDIA_TYPES
from optimd_service.api.pull import Pull
from optimd_service.api.reply import EncodedResponse, Sending
from optimd_service.session.following import Following
from optimd_service.session.held import Moving
from optimd_service.session.session import Session
from optimd_service.session.stepped import Stepped
from optimd_service.types import Receipt, Version
from optimd_service.wire.encode import Encoded, encode_json
from optimd_service.wire.json import write_json
from optimd_service.wire.payload import Payload

RECEIPT = "receipt"
TRAILING = "#receipt"
"""The tensor that the receipt stands in where it comes last; no tensor of a session is called so."""


class StepReply(NamedTuple):
    """How pushes to a session are answered that want the same."""

    session: Session
    pull: Pull
    sending: Sending

    async def to(self, stepped: Stepped) -> EncodedResponse:
        """The reply to a step that has been taken."""
        snapshot, moving = stepped.snapshot, self.session.move(self.pull.holds)

        def release() -> None:
            snapshot.release()
            _release(moving)

        try:
            if self.pull.is_quick(self.session):
                encoded = self._encoded(stepped, moving)
            else:
                encoded = await self.session.lane.run(self._encoded, stepped, moving)
        except BaseException:
            release()
            raise
        return self._response(encoded, snapshot.version, release)

    def behind(self, following: Following) -> EncodedResponse:
        """The reply to a step that is being taken: what has been written leaves while the rest is."""
        moving = self.session.move(self.pull.holds)

        def receipt() -> bytes:
            return write_json(receipt_fields(following.stepped().receipt))

        encoded = self._tensors(following.params, moving, receipt, following.ready)
        return self._response(encoded, following.version, lambda: _release(moving))

    @property
    def may_follow(self) -> bool:
        """Whether the reply can begin before the step has ended."""
        return self.pull.receipt_last and self.session.follows and self.sending.transfer is not None

    def _response(self, encoded: Encoded, version: Version, release: Callable[[], None]) -> EncodedResponse:
        return EncodedResponse(
            encoded,
            media_type=MEDIA_TYPES[self.pull.kind],
            headers={"etag": f'"{version.etag}"'},
            sending=self.sending,
            release=release,
        )

    def _encoded(self, stepped: Stepped, moving: Moving | None) -> Encoded:
        receipt = receipt_fields(stepped.receipt)
        if self.pull.kind == "safetensors":
            if not self.pull.weights:
                return self.session.encoder.nothing({RECEIPT: write_json(receipt).decode()})
            return self._tensors(stepped.snapshot.params, moving, lambda: write_json(receipt))
        reply: dict[str, Any] = {RECEIPT: receipt}
        if self.pull.weights:
            reply["params"] = self.session.encoder.json(stepped.snapshot.params, dtype=self._dtype)
        return encode_json(reply)

    def _tensors(
        self,
        params: torch.Tensor,
        moving: Moving | None,
        receipt: Callable[[], bytes],
        ready: Callable[[int], None] | None = None,
    ) -> Encoded:
        encoder = self.session.encoder
        metadata = {} if moving is None else dict(moving.metadata)
        payload = Payload([params], self._dtype, ready)
        if moving is not None:
            payload = replace(payload, dtype=moving.dtype, convert_=moving.convert_)
        if self.pull.receipt_last:
            return encoder.trailed(metadata, payload, TRAILING, receipt)
        return encoder.whole({RECEIPT: receipt().decode(), **metadata}, payload)

    @property
    def _dtype(self) -> torch.dtype:
        # Whole, where the difference cannot be given: nothing is rounded then.
        usual = self.session.params_dtype if self.pull.holds is None else self.session.layout.dtype
        return self.pull.dtype or usual


def _release(moving: Moving | None) -> None:
    if moving is not None:
        moving.release()


def receipt_fields(receipt: Receipt) -> dict[str, Any]:
    """A receipt as JSON has it."""
    return receipt._asdict()
