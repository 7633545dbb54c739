"""A session and the parameters bound to it: which weights, hyperparameters and version both sides agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optimd._torch_groups import (
    DEFAULT,
    ParamGroup,
    Values,
    changes,
    dtype_for,
    hyperparameters,
    match_session,
    named,
    tensor_names,
)
from optimd._torch_weights import LocalWeights, Wire
from optimd.models import Receipt, StateDict
from optimd.session import Session


class BoundSession:
    """A session whose parameters are ours to read and write.

    Whatever is sent builds on the version that was received here last, not on what the handle may have seen since.

    Args:
      session: its tensors are the groups' parameters.
      group_names: the session's name for each of ``groups``.
      begun: whether it holds weights that count; before, nobody else knows of it.

    Attributes:
      params: tensor name → parameter, in the order of the groups.
    """

    def __init__(self, session: Session, group_names: Sequence[str], groups: Sequence[ParamGroup], begun: bool) -> None:
        self.session = session
        self.params = named(groups)
        self.begun = begun
        self._group_names = group_names
        self._etag = session.etag
        double = session.info["tensors"][0]["dtype"] == "F64"
        self._weights = LocalWeights(self.params, np.float64 if double else np.float32)

    @classmethod
    def create(
        cls, create_session: Callable[..., Session], optimizer: str, groups: Sequence[ParamGroup], known: Sequence[str]
    ) -> BoundSession:
        """Create a session without weights; the first group's hyperparameters are those of the session as a whole."""
        names = [DEFAULT, *(f"group{i}" for i in range(1, len(groups)))]
        dtype = dtype_for(groups)
        tensors = [
            {"name": name, "shape": list(param.shape), "dtype": dtype, "group": group_name}
            for group_name, group, of_group in zip(names, groups, tensor_names(groups), strict=True)
            for name, param in zip(of_group, group["params"], strict=True)
        ]
        base, *own = (hyperparameters(group, known) for group in groups)
        declared = [{"name": name, **values} for name, values in zip(names[1:], own, strict=True)]
        session = create_session({"name": optimizer, **base}, tensors=tensors, groups=declared)
        return cls(session, names, groups, begun=False)

    @classmethod
    def attach(cls, session: Session, groups: Sequence[ParamGroup]) -> BoundSession:
        """Bind a session that exists. Raises: ValueError when it is of other parameters or groups."""
        return cls(session, match_session(session.info, groups), groups, begun=True)

    def held(self) -> list[Mapping[str, Any]]:
        """The session's hyperparameters for each parameter group."""
        return [self.session.info["hyperparameters"][name] for name in self._group_names]

    def step(
        self, grads: Mapping[str, Wire], wanted: Sequence[Values], loss: float | None, num_examples: int | None
    ) -> Receipt:
        """Step by the hyperparameters ``wanted`` of each group, from the weights that the parameters now hold."""
        if self._weights.edited:
            # Without a condition the put can be repeated, and before the session has begun none is needed.
            self.push_weights(self._etag if self.begun else None)
        base, own = self._changes(wanted)
        result = self.session.step(
            grads,
            loss=loss,
            num_examples=num_examples,
            hyperparameters={**base, "groups": own} if own else base,
            if_match=self._etag,
            out=self._weights.targets(),
        )
        self._received()
        return result.receipt

    def _changes(self, wanted: Sequence[Values]) -> tuple[Values, dict[str, Values]]:
        return changes(dict(zip(self._group_names, wanted, strict=True)), self.session.info["hyperparameters"])

    def _received(self) -> None:
        self._weights.received()
        self._etag = self.session.etag

    def push_weights(self, if_match: str | None = None) -> None:
        """Put the parameters in place of the session's weights."""
        self.session.put_params(self._weights.on_wire(), if_match=if_match)
        self._weights.settle()
        self._etag = self.session.etag
        self.begun = True

    def pull_weights(self) -> None:
        """Put the session's weights in place of the parameters."""
        self.session.pull(out=self._weights.targets())
        self._received()

    def set_hyperparameters(self, wanted: Sequence[Values]) -> None:
        """Make the session's hyperparameters those ``wanted`` of each group."""
        base, own = self._changes(wanted)
        if base or own:
            self.session.update(optimizer=base, groups=[{"name": name, **values} for name, values in own.items()])

    def put_state(self, state: StateDict) -> None:
        """Put the moments in place of the session's; one that has not begun is given its weights first."""
        if not self.begun:
            if not state.tensors and not state.step:
                return
            self.push_weights()
        self.session.put_state(state, if_match=self._etag)
        self._etag = self.session.etag
