"""A session and the parameters bound to it: which weights, hyperparameters and version both sides agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from optimd._safetensors import Array
from optimd._torch_buffers import LocalBuffers
from optimd._torch_groups import (
    DEFAULT,
    ParamGroup,
    Values,
    changes,
    described,
    direction,
    hyperparameters,
    match_session,
    named,
    split,
)
from optimd._torch_weights import LocalWeights, to_send
from optimd.errors import ProblemError
from optimd.models import Averaged, Receipt, SessionInfo, StateDict, WireDtype
from optimd.session import Session

Facts: TypeAlias = Mapping[str, Any]
"""What a push says beside its gradients, as `Session.step` takes it."""


class BoundSession:
    """A session whose parameters are ours to read and write.

    Whatever is sent builds on the version that was received here last, not on what the handle may have seen since.

    Args:
      session: its tensors are the groups' parameters.
      group_names: the session's name for each of ``groups``.
      buffers: its tensors that are not trained.
      begun: whether it holds weights that count; before, nobody else knows of it.

    Attributes:
      groups: of parameters, as the session has them.
      params: tensor name → parameter, in the order of the groups.
    """

    def __init__(
        self,
        session: Session,
        group_names: Sequence[str],
        groups: list[ParamGroup],
        buffers: LocalBuffers,
        begun: bool,
    ) -> None:
        self.session = session
        self.groups = groups
        self.group_names = group_names
        self.params = named(groups)
        self.begun = begun
        self._buffers = buffers
        self._etag = session.etag
        self._receipt: Receipt | None = None
        self._whole: WireDtype = "f64" if session.info["tensors"][0]["dtype"] == "F64" else "f32"
        dtype = np.float64 if self._whole == "f64" else np.float32
        self._weights = LocalWeights(self.params, dtype, _beside(session.info))

    @classmethod
    def create(
        cls,
        create_session: Callable[..., Session],
        optimizer: str,
        groups: list[ParamGroup],
        known: Sequence[str],
        buffers: LocalBuffers,
    ) -> BoundSession:
        """Create a session without weights; the first group's hyperparameters are those of the session as a whole."""
        names = [DEFAULT, *(f"group{i}" for i in range(1, len(groups)))]
        base, *own = (hyperparameters(group, known) for group in groups)
        session = create_session(
            {"name": optimizer, **base},
            tensors=described(groups, buffers.tensors, names),
            groups=[{"name": name, **values} for name, values in zip(names[1:], own, strict=True)],
            maximize=direction(groups) or None,
        )
        return cls(session, names, groups, buffers, begun=False)

    @classmethod
    def create_by(
        cls,
        recipe: str,
        create_session: Callable[..., Session],
        optimizer: str,
        group: ParamGroup,
        known: Sequence[str],
        buffers: LocalBuffers,
    ) -> BoundSession:
        """Create a session without weights whose groups the server makes of one; `groups` has them then."""
        session = create_session(
            {"name": optimizer, **hyperparameters(group, known)},
            tensors=described([group], buffers.tensors, []),
            groups=recipe,
            maximize=direction([group]) or None,
        )
        groups = split(session.info, group)
        return cls(session, match_session(session.info, groups, buffers.tensors), groups, buffers, begun=False)

    @classmethod
    def attach(cls, session: Session, groups: list[ParamGroup], buffers: LocalBuffers) -> BoundSession:
        """Bind a session that exists. Raises: ValueError when it is of other tensors or groups."""
        return cls(session, match_session(session.info, groups, buffers.tensors), groups, buffers, begun=True)

    @property
    def maximizes(self) -> bool:
        """Whether the session steps along the gradient."""
        return bool(self.session.info.get("maximize"))

    def held(self) -> list[Mapping[str, Any]]:
        """The session's hyperparameters for each parameter group."""
        return [self.session.info["hyperparameters"][name] for name in self.group_names]

    def step(
        self, grads: Mapping[str, Tensor], wanted: Sequence[Values], loss: float | None, num_examples: int | None
    ) -> None:
        """Step by the hyperparameters ``wanted`` of each group, from the weights that the parameters now hold."""
        self.wait()
        if self._weights.edited:
            # Without a condition the put can be repeated, and before the session has begun none is needed.
            self.push_weights(self._etag if self.begun else None)
        base, own = self._changes(wanted)
        facts = {
            "buffers": self._buffers.on_wire(),
            "loss": loss,
            "num_examples": num_examples,
            "hyperparameters": {**base, "groups": own} if own else base,
        }
        self._exchange(grads, facts)

    def _exchange(self, grads: Mapping[str, Tensor], facts: Facts) -> None:
        """Push gradients with these facts, and receive the weights."""
        result = self.session.step(to_send(grads), **facts, if_match=self._etag, out=self._weights.targets())
        self._receipt = result.receipt
        self._received()

    @property
    def receipt(self) -> Receipt | None:
        """Of the last push; None before the first."""
        self.wait()
        return self._receipt

    def wait(self) -> None:
        """Wait until nothing is on its way. Raises: what has become of it, once."""

    def no_sync(self) -> AbstractContextManager[None]:
        """While the context lasts, gradients are being accumulated: nothing is sent of them."""
        return nullcontext()

    def close(self) -> None:
        """Let go of the parameters."""

    def _changes(self, wanted: Sequence[Values]) -> tuple[Values, dict[str, Values]]:
        return changes(dict(zip(self.group_names, wanted, strict=True)), self.session.info["hyperparameters"])

    def _received(self) -> None:
        self._weights.received()
        self._etag = self.session.etag

    def push_weights(self, if_match: str | None = None) -> None:
        """Put the parameters in place of the session's weights."""
        self.wait()
        self.session.put_params({**self._weights.on_wire(), **self._buffers.on_wire()}, if_match=if_match)
        self._weights.settle()
        self._etag = self.session.etag
        self.begun = True

    def pull_weights(self) -> None:
        """Put the session's weights and buffers in place of the local ones."""
        self.wait()
        received = self.session.pull(dtype=self._whole, out=self._weights.targets())
        self._received()
        self._buffers.take(received)

    def averaged(self, weights: Averaged) -> AbstractContextManager[None]:
        """Put an average of the session's weights in place of the parameters for a while."""
        self.wait()
        return self._weights.replaced(self.session.pull(dtype=self._whole, weights=weights))

    def set_hyperparameters(self, wanted: Sequence[Values]) -> None:
        """Make the session's hyperparameters those ``wanted`` of each group."""
        base, own = self._changes(wanted)
        if base or own:
            self.session.update(optimizer=base, groups=[{"name": name, **values} for name, values in own.items()])

    def load(self, state: StateDict, wanted: Sequence[Values]) -> None:
        """Make moments and hyperparameters those given; when the moments are refused, the hyperparameters stay, too."""
        self.wait()
        held = [dict(values) for values in self.held()]
        self.set_hyperparameters(wanted)
        try:
            self.put_state(state)
        except ProblemError:
            self.set_hyperparameters(held)
            raise

    def put_state(self, state: StateDict) -> None:
        """Put the moments in place of the session's; one that has not begun is given its weights first."""
        if not self.begun:
            if not state.tensors and not state.step:
                return
            self.push_weights()
        self.session.put_state(state, if_match=self._etag)
        self._etag = self.session.etag


def _beside(info: SessionInfo) -> dict[str, Array] | None:
    """Arrays for the tensors that are no parameters, in a session that sends differences; None in any other."""
    if not (info.get("wire") or {}).get("difference"):
        return None
    buffers = (tensor for tensor in info.get("tensors", []) if tensor.get("role") == "buffer")
    return {tensor["name"]: np.empty(tensor["shape"], np.float32) for tensor in buffers}
