"""`RemoteOptimizer`: a torch optimizer whose arithmetic, moments and history are a session on the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from optimd._torch_buffers import Buffers, LocalBuffers
from optimd._torch_groups import (
    ParamGroup,
    Values,
    as_groups,
    check_parameters,
    direction,
    from_json,
    hyperparameters,
)
from optimd._torch_policy import differing, first_scale, given, scale_of
from optimd._torch_session import BoundSession
from optimd._torch_state import REST, TorchState, from_torch, loaded_groups, rest_of_numbers, to_torch
from optimd._torch_weights import MissingGrad, gradients
from optimd.client import Client
from optimd.models import Averaged, Receipt
from optimd.session import Session

Loss: TypeAlias = float | Tensor
L = TypeVar("L", bound=Loss)


class RemoteOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that steps on an optimd server.

        opt = RemoteOptimizer(model.named_parameters(), "adamw", lr=1e-3)
        loss.backward()
        opt.step()

    Schedulers, hooks, closures, `param_groups`, `zero_grad` and `state_dict` work as they do locally; what differs is
    in docs/frameworks.md. The session is created here, and takes its weights from the parameters at the first step.

    Args:
      params: named parameters, groups of them as dictionaries, or parameters without names (`param.0`, …). float32,
        float64, float16 or bfloat16; the session is float64 if all are, else float32.
      optimizer: its name in the catalogue; by default "adamw", or what ``session`` has.
      url, api_key: of the server, as for `Client`.   client: to use instead of one of its own; it is not closed here.
      session: id of a session to attach to: its weights replace the parameters', and its hyperparameters hold where
        none are given.
      name: of the session, for people.
      nonfinite: "reject", "skip" or "zero": what the server does with a gradient that is not finite.
      missing_grad: what `step` does about a parameter without gradient: raise, or send zeros.
      groups: "no_decay" to have the server split one group in two, the second without weight decay: biases,
        normalisation, and other tensors of one dimension.
      buffers: of the model, such as `model.named_buffers()` or, for one that will be moved, `model.named_buffers`:
        pushed with each step, and pulled where the weights are.
      maximize: step along the gradient, in all groups.
      schedule, clip, centralize, accumulate, loss_scale, ema, swa, state_dtype: done by the server, as
        `Client.create_session` takes them. On attaching, the first two are changed where they differ from the
        session's; the rest must be what it has.
      hyperparameters: such as ``lr=1e-3``; the catalogue's defaults, which are torch's, for the rest.

    Attributes:
      receipt: of the last push, or None; its `outcome` says whether a step was applied, or the push "buffered" or
        skipped, with the weights unchanged.

    Raises: TypeError for an unknown hyperparameter or a parameter that is not floating-point; ValueError for
      parameters that are there twice, or are not those of ``session``, and for what it does otherwise for good;
      InvalidHyperparameter, InvalidField, OptimizerNotFound, SessionNotFound, ConnectionFailed, TimedOut.
    """

    def __init__(
        self,
        params: Iterable[Any],
        optimizer: str | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        client: Client | None = None,
        session: str | None = None,
        name: str = "",
        nonfinite: Literal["reject", "skip", "zero"] | None = None,
        missing_grad: MissingGrad = "error",
        groups: Literal["no_decay"] | None = None,
        buffers: Buffers | None = None,
        maximize: bool | None = None,
        schedule: Mapping[str, Any] | None = None,
        clip: Mapping[str, Any] | None = None,
        centralize: bool | None = None,
        accumulate: Mapping[str, Any] | None = None,
        loss_scale: Mapping[str, Any] | None = None,
        ema: Mapping[str, Any] | None = None,
        swa: Mapping[str, Any] | None = None,
        state_dtype: Literal["f32", "bf16", "8bit"] | None = None,
        **hyperparameters: Any,
    ) -> None:
        if client is not None and (url is not None or api_key is not None):
            raise ValueError("url and api_key are the client's own; give either them or a client")
        if missing_grad not in {"error", "zero"}:
            raise ValueError(f"missing_grad is 'error' or 'zero', not {missing_grad!r}")
        if groups is not None and session is not None:
            raise ValueError("groups are those of the session to attach to: leave the recipe out")
        policy = given(nonfinite=nonfinite, schedule=schedule, clip=clip, centralize=centralize, accumulate=accumulate)
        policy |= given(loss_scale=loss_scale, ema=ema, swa=swa, state_dtype=state_dtype)
        said = hyperparameters | given(maximize=maximize)
        self.receipt: Receipt | None = None
        self._missing_grad = missing_grad
        self._bound: BoundSession | None = None
        self._client = client or Client(url, api_key=api_key)
        self._own_client = client is None
        self._create_session = partial(self._client.create_session, name=name or None, **policy)
        try:
            self._buffers = LocalBuffers(buffers)
            if session is None:
                self._start(as_groups(params), optimizer or "adamw", said, groups)
            else:
                self._attach(as_groups(params), optimizer, self._client.session(session), said, policy)
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
        self, groups: list[ParamGroup], optimizer: str | None, session: Session, said: Values, policy: Values
    ) -> None:
        kind = session.info["optimizer"]["name"]
        if optimizer not in {None, kind}:
            raise ValueError(f"the session {session.id} is of {kind!r}, not of {optimizer!r}")
        changes = differing(policy, session.info)
        explicit = [group.keys() | said.keys() for group in groups]
        held_direction = {"maximize": bool(session.info.get("maximize"))}
        super().__init__(groups, self._defaults_of(kind, held_direction | said))
        check_parameters(self.param_groups)
        self._bound = BoundSession.attach(session, self.param_groups, self._buffers)
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
        self._bound = BoundSession.create(
            self._create_session, self._optimizer, self.param_groups, self._known, self._buffers
        )

    def _bind_by(self, recipe: str) -> None:
        """Create a session whose groups the server makes, and take them over."""
        check_parameters(self.param_groups)
        self._bound = BoundSession.create_by(
            recipe, self._create_session, self._optimizer, self.param_groups[0], self._known, self._buffers
        )
        self.param_groups = self._bound.groups

    def _check_direction(self) -> None:
        if direction(self.param_groups) != self._binding.maximizes:
            raise ValueError("whether a session maximizes is fixed when it is created: make another optimizer")

    @property
    def session(self) -> Session:
        """The session on the server."""
        return self._binding.session

    @property
    def _binding(self) -> BoundSession:
        assert self._bound is not None  # noqa: S101 - the constructor leaves without one only by raising
        return self._bound

    @overload
    def step(self, closure: None = None, *, loss: Loss | None = None, num_examples: int | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], L], *, loss: Loss | None = None, num_examples: int | None = None) -> L: ...

    def step(
        self, closure: Callable[[], L] | None = None, *, loss: Loss | None = None, num_examples: int | None = None
    ) -> L | None:
        """Push the gradients, step on the server, and receive the new weights into the parameters.

        Parameters that were changed since the last step are sent first, so that nothing done to them here is lost.
        When no parameter has a gradient, nothing happens, as in torch.

        Args:
          closure: computes gradients and returns the loss, which it is recorded as.
          loss, num_examples: recorded beside the step; ``loss`` in place of the closure's, and before any scaling.

        Returns: what the closure returned.

        Raises: RuntimeError for a gradient that is missing, or sparse where the optimizer does not take that, before
          anything is sent; StaleStep when somebody else has moved the session (see `pull_weights`);
          NonfiniteGradients, InvalidHyperparameter, SessionLost, ConnectionFailed, TimedOut. The step of a call that
          raised either happened as a whole or not at all; when it happened, the next call raises StaleStep.
        """
        returned = None
        if closure is not None:
            with torch.enable_grad():
                returned = closure()
        grads = gradients(self._binding.params, self._missing_grad, self._takes_rows)
        if grads:
            self._check_direction()
            told = _number(returned if loss is None else loss)
            self.receipt = self._binding.step(grads, self._wanted(self.param_groups), told, num_examples)
        return returned

    @property
    def loss_scale(self) -> float:
        """What to multiply the next loss by, where the server scales losses; 1 elsewhere."""
        told = None if self.receipt is None else self.receipt.loss_scale
        return self._scale if told is None else told

    def _wanted(self, groups: Sequence[ParamGroup]) -> list[Values]:
        return [hyperparameters(group, self._known) for group in groups]

    def push_weights(self) -> None:
        """Make the session's weights and buffers those of the model, whatever it holds; moments stay.

        Needed after a change that `step` cannot see: one through `param.data` that stays in place.
        """
        self._binding.push_weights()

    def pull_weights(self) -> None:
        """Make parameters and buffers those of the session, whatever they hold: after StaleStep, or beside others.

        Raises: RuntimeError before the first step, since the session has no weights yet.
        """
        if not self._binding.begun:
            raise RuntimeError("the session has no weights yet: the first step sends it the parameters'")
        self._binding.pull_weights()

    def averaged(self, weights: Averaged) -> AbstractContextManager[None]:
        """While the context lasts, let the parameters hold other weights of the session: to evaluate or save them.

        Args:
          weights: "ema" or "swa", for an average that the session keeps; "eval", for the weights that its optimizer,
            such as a schedule-free one, is to be evaluated at.

        Raises: InvalidField when the session has none such, or none yet.
        """
        return self._binding.averaged(weights)

    def state_dict(self) -> TorchState:
        """The session's state in torch's format: it loads into the local optimizer of the same name, and back."""
        state, names = self.session.state(), self._binding.group_names
        self.state.update(to_torch(state, names, self.param_groups))
        for group, rest in zip(self.param_groups, rest_of_numbers(state, names), strict=True):
            group.update({REST: rest} if rest else {})
        try:
            return super().state_dict()
        finally:
            self.state.clear()
            for group in self.param_groups:
                group.pop(REST, None)

    def load_state_dict(self, state_dict: TorchState) -> None:
        """Make the session's moments and hyperparameters those of a `state_dict`, local or remote; weights stay.

        Raises: ValueError when it is of other groups or another optimizer, or counts steps tensor by tensor;
          TensorMismatch or ShapeMismatch when its tensors are not the session's; InvalidHyperparameter when it needs
          other buffers than the session has (amsgrad, centered); StaleStep. The parameter groups stay as they were.
        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            hooked = pre_hook(self, state_dict)
            state_dict = state_dict if hooked is None else hooked
        groups = loaded_groups(state_dict, self.param_groups, self._known, self._optimizer)
        state = from_torch(state_dict, self._binding.group_names, self.param_groups, self._optimizer)
        self._binding.set_hyperparameters(self._wanted(groups))
        self._binding.put_state(state)
        self.param_groups = groups
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

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
        replaced = self.session
        try:
            self._bind()
        except BaseException:
            self.param_groups.pop()
            raise
        replaced.delete()

    def close(self, *, delete: bool = False) -> None:
        """Close the connection, and first delete the session with its history if told to."""
        if delete:
            self.session.delete()
        if self._own_client:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RemoteOptimizer is the one writer of a session and cannot be copied or pickled: keep its state_dict(), "
            "or attach another process with session=opt.session.id"
        )


def _number(loss: Loss | None) -> float | None:
    return loss.item() if isinstance(loss, Tensor) else loss
