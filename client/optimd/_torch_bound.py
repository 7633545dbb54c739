"""A torch optimizer bound to a session on the server: how it comes to it, and how it lets it go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeAlias

import torch

from optimd._torch_buffers import Buffers, LocalBuffers
from optimd._torch_groups import ParamGroup, Values, as_groups, check_parameters, direction, from_json
from optimd._torch_overlap import HiddenPushes, HiddenTransport
from optimd._torch_policy import differing, first_scale, scale_of
from optimd._torch_session import BoundSession
from optimd.client import Client
from optimd.errors import OptimdError
from optimd.session import Session

Overlap: TypeAlias = Literal["push"] | bool
KINDS: Mapping[Overlap, type[BoundSession]] = {False: BoundSession, "push": HiddenPushes, True: HiddenTransport}


class BoundOptimizer(torch.optim.Optimizer):
    """Parameter groups and the session that holds them; `RemoteOptimizer` trains with it, and explains the arguments.

    Args:
      params, optimizer, client, session, name, groups, buffers: as for `RemoteOptimizer`.
      own_client: whether ``client`` is closed with this.
      policy: what a session does around the optimizer's step, as `Client.create_session` takes it.
      said: the hyperparameters that were given, `maximize` among them.
      overlap: as for `RemoteOptimizer`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        optimizer: str | None,
        client: Client,
        *,
        own_client: bool,
        session: str | None,
        name: str,
        groups: str | None,
        buffers: Buffers | None,
        policy: Mapping[str, Any],
        said: Values,
        overlap: Overlap,
    ) -> None:
        self._client = client
        self._kind = KINDS[overlap]
        self._own_client = own_client
        self._bound: BoundSession | None = None
        self._create_session = partial(client.create_session, name=name or None, **policy)
        try:
            self._buffers = LocalBuffers(buffers)
            if session is None:
                self._start(as_groups(params), optimizer or "adamw", said, groups)
            else:
                self._attach(as_groups(params), optimizer, client.session(session), said, policy)
                self._rename(name)
        except BaseException:
            self.close()
            raise

    def _start(self, groups: list[ParamGroup], optimizer: str, said: Values, recipe: str | None) -> None:
        if recipe is not None and len(groups) > 1:
            raise ValueError(f"{recipe!r} makes the groups: give the parameters as one")
        super().__init__(groups, self._defaults_of(optimizer, {"maximize": False} | said))
        if recipe is None:
            self._bind()
        else:
            self._bind_by(recipe)
        self._scale = first_scale(self.session.info)

    def _attach(
        self, groups: list[ParamGroup], optimizer: str | None, session: Session, said: Values, policy: Mapping[str, Any]
    ) -> None:
        kind = session.info["optimizer"]["name"]
        if optimizer not in {None, kind}:
            raise ValueError(f"the session {session.id} is of {kind!r}, not of {optimizer!r}")
        changes = differing(policy, session.info)
        explicit = [group.keys() | said.keys() for group in groups]
        held_direction = {"maximize": bool(session.info.get("maximize"))}
        super().__init__(groups, self._defaults_of(kind, held_direction | said))
        check_parameters(self.param_groups)
        self._bound = self._kind.attach(session, self.param_groups, self._buffers)
        self._check_direction()
        for group, held, kept in zip(self.param_groups, self._bound.held(), explicit, strict=True):
            group.update({name: value for name, value in from_json(held).items() if name not in kept})
        if changes:
            session.update(**changes)
        self._scale = scale_of(session)
        self._bound.pull_weights()

    def _rename(self, name: str) -> None:
        if name and name != self.session.info["name"]:
            self.session.update(name=name)

    def _defaults_of(self, optimizer: str, said: Values) -> Values:
        info = self._client.optimizer(optimizer)
        defaults = from_json(info["defaults"])
        unknown = [name for name in said if name not in defaults and name != "maximize"]
        if unknown:
            raise TypeError(f"{optimizer} has no hyperparameter {unknown[0]!r}; it has {', '.join(defaults)}")
        self._optimizer = optimizer
        self._takes_rows = info.get("takes_rows", False)
        self._known = tuple(defaults)
        return defaults | said

    def _bind(self) -> None:
        """Create a session as the parameter groups now are."""
        check_parameters(self.param_groups)
        self._bound = self._kind.create(
            self._create_session, self._optimizer, self.param_groups, self._known, self._buffers
        )

    def _bind_by(self, recipe: str) -> None:
        """Create a session whose groups the server makes, and take them over."""
        check_parameters(self.param_groups)
        self._bound = self._kind.create_by(
            recipe, self._create_session, self._optimizer, self.param_groups[0], self._known, self._buffers
        )
        self.param_groups = self._bound.groups

    def _check_direction(self) -> None:
        if direction(self.param_groups) != self._binding.maximizes:
            raise ValueError("whether a session maximizes is fixed when it is created: make another optimizer")

    @property
    def session(self) -> Session:
        """The session on the server; weights that are on their way are waited for."""
        self._binding.wait()
        return self._binding.session

    @property
    def _binding(self) -> BoundSession:
        assert self._bound is not None  # noqa: S101 - the constructor leaves without one only by raising
        return self._bound

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Add parameters before the first step; the session is created anew.

        Raises: RuntimeError once the session has weights, since its tensors are fixed then.
        """
        if self._bound is not None and self._bound.begun:
            raise RuntimeError("a session's tensors are fixed once it has begun: add groups before the first step")
        super().add_param_group(param_group)
        if self._bound is not None:
            self._bind_anew()

    def _bind_anew(self) -> None:
        replaced = self._binding
        try:
            self._bind()
        except BaseException:
            self.param_groups.pop()
            raise
        replaced.close()
        replaced.session.delete()

    def close(self, *, delete: bool = False) -> None:
        """Close the connection, when the last weights are there; first delete the session with its history if told to.

        Raises: what has become of weights that were on their way.
        """
        try:
            if self._bound is not None:
                self._bound.close()
            if delete:
                self.session.delete()
        finally:
            if self._own_client:
                self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OptimdError:
            if error is None:  # else it would hide the error that ends the context
                raise

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RemoteOptimizer is the one writer of a session and cannot be copied or pickled: keep its state_dict(), "
            "or attach another process with session=opt.session.id"
        )
