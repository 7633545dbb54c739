"""A body in JSON that holds some of a session's tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import torch

from optimd_service.errors import InvalidField
from optimd_service.types import Layout
from optimd_service.wire.body import Body
from optimd_service.wire.json import land_json_
from optimd_service.wire.match import check_some
from optimd_service.wire.received import JsonBody, receive_json
from optimd_service.wire.rows import refuse_rows


class JsonPart(JsonBody):
    """Some gradients, each whole, and perhaps new values of buffers."""

    @cached_property
    def _given(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        grads, buffers = self._object.get(self.tensors), self._object.get(self.buffers or "")
        buffers = {} if buffers is None else buffers
        if not isinstance(grads, dict) or not isinstance(buffers, dict):
            raise InvalidField("`grads` and `buffers` must map tensor names to nested lists.", field=self.tensors)
        return grads, buffers

    @property
    def names(self) -> Collection[str]:
        """The tensors that it holds. Raises: InvalidField."""
        grads, buffers = self._given
        return {**grads, **buffers}

    def land_(
        self,
        flat: torch.Tensor,
        layout: Layout,
        by_rows: Collection[str] = (),  # noqa: ARG002  there are none in a part
    ) -> None:
        grads, buffers = self._given
        check_some(layout.trained, grads)
        check_some(layout.of_buffers, buffers)
        for name, value in grads.items():
            if isinstance(value, dict):
                refuse_rows(name)
        land_json_(flat, layout, {**grads, **buffers}, what=self.tensors, check=check_some)


async def receive_json_part(body: Body) -> JsonPart:
    """Receive a JSON body of at most 16 MiB. Raises: TooLarge."""
    received = await receive_json(body, tensors="grads", buffers="buffers")
    return JsonPart(received.text, received.tensors, received.buffers)
