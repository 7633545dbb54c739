"""`RemoteOptimizer`: a torch optimizer whose arithmetic, moments and history are a session on the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from optimd._torch_bound import KINDS, BoundOptimizer, Overlap
from optimd._torch_buffers import Buffers
from optimd._torch_groups import ParamGroup, Values, hyperparameters
from optimd._torch_policy import given, in_server_words
from optimd._torch_state import REST, TorchState, from_torch, loaded_groups, rest_of_numbers, to_torch
from optimd._torch_weights import MissingGrad, gradients
from optimd.client import Client
from optimd.models import Averaged, Receipt

Loss: TypeAlias = float | Tensor
L = TypeVar("L", bound=Loss)


class RemoteOptimizer(BoundOptimizer):
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
      schedule, clip, centralize, accumulate, loss_scale, ema, swa, state_dtype, grad_dtype: done by the server, as
        `Client.create_session` takes them. On attaching, the first two are changed where they differ from the
        session's; the rest must be what it has.
      wire: dtypes of gradients and weights on their way, `{"grads": "bf16", "params": "bf16"}`; with
        `"difference": True`, the parameters stay within one rounding of a step's change of the session's weights, and
        those that are not float32 have a float32 copy beside them. On attaching, dtypes that differ are changed.
      durability, checkpoint, storage: what outlives the server, and where the session lives, as
        `Client.create_session` takes them; by default each step is on the server's disk when `step` returns.
      overlap: hide the transport: with "push", gradients are sent while the backward pass makes the next ones; with
        True, new weights also come while the next forward pass uses those before them (see `wait`). Never changes a
        result. For models above 12 MiB; smaller ones have nothing to hide.
      hyperparameters: such as ``lr=1e-3``; the catalogue's defaults, which are torch's, for the rest.

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
        grad_dtype: Literal["BF16"] | None = None,
        wire: Mapping[str, Any] | None = None,
        durability: Literal["step", "checkpoint", "memory"] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
        storage: Mapping[str, Any] | None = None,
        overlap: Overlap = False,
        **hyperparameters: Any,
    ) -> None:
        if client is not None and (url is not None or api_key is not None):
            raise ValueError("url and api_key are the client's own; give either them or a client")
        if missing_grad not in {"error", "zero"}:
            raise ValueError(f"missing_grad is 'error' or 'zero', not {missing_grad!r}")
        if overlap not in KINDS:
            raise ValueError(f"overlap is False, True or 'push', not {overlap!r}")
        if groups is not None and session is not None:
            raise ValueError("groups are those of the session to attach to: leave the recipe out")
        policy = given(nonfinite=nonfinite, schedule=schedule, clip=clip, centralize=centralize, accumulate=accumulate)
        policy |= given(loss_scale=loss_scale, ema=ema, swa=swa, state_dtype=state_dtype, grad_dtype=grad_dtype)
        policy |= given(wire=in_server_words(wire), durability=durability, checkpoint=checkpoint, storage=storage)
        self._missing_grad = missing_grad
        super().__init__(
            params,
            optimizer,
            client or Client(url, api_key=api_key),
            own_client=client is None,
            session=session,
            name=name,
            groups=groups,
            buffers=buffers,
            policy=policy,
            said=hyperparameters | given(maximize=maximize),
            overlap=overlap,
        )

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
            self._binding.step(grads, self._wanted(self.param_groups), told, num_examples)
        return returned

    def wait(self) -> None:
        """With ``overlap=True``, wait until the parameters hold the new weights.

        Modules wait by themselves when they are called, and so does everything here. Call this before parameters are
        used otherwise, after `step`: to save or change them, or to average them oneself.

        Raises: ConnectionFailed, TimedOut, when the weights have not come; `pull_weights` fetches them. RuntimeError
          when a parameter was changed meanwhile. A forward pass raises the same, whichever comes first.
        """
        self._binding.wait()

    def no_sync(self) -> AbstractContextManager[None]:
        """While the context lasts, gradients are being accumulated: with ``overlap``, they are not sent ahead.

        For all backward passes but the last before a `step`, as with DistributedDataParallel. Without it, too, the
        results are right, and the wire is used for nothing.
        """
        return self._binding.no_sync()

    @property
    def receipt(self) -> Receipt | None:
        """Of the last push, or None; its `outcome` says whether a step was applied, or the push "buffered" or skipped.

        It comes with the last of the weights: with ``overlap=True``, asking for it waits for them.
        """
        return self._binding.receipt

    @property
    def loss_scale(self) -> float:
        """What to multiply the next loss by, where the server scales losses; 1 elsewhere."""
        receipt = self.receipt
        told = None if receipt is None else receipt.loss_scale
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
        self._check_begun()
        self._binding.pull_weights()

    def averaged(self, weights: Averaged) -> AbstractContextManager[None]:
        """While the context lasts, let the parameters hold other weights of the session: to evaluate or save them.

        Args:
          weights: "ema" or "swa", for an average that the session keeps; "eval", for the weights that its optimizer,
            such as a schedule-free one, is to be evaluated at.

        Raises: RuntimeError before the first step; InvalidField when the session has none such, or none yet.
        """
        self._check_begun()
        return self._binding.averaged(weights)

    def _check_begun(self) -> None:
        if not self._binding.begun:
            raise RuntimeError("the session has no weights yet: the first step sends it the parameters'")

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
        self._binding.load(state, self._wanted(groups))
        self.param_groups = groups
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)


def _number(loss: Loss | None) -> float | None:
    return loss.item() if isinstance(loss, Tensor) else loss
