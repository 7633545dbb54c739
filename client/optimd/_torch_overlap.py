"""Bound sessions that hide their transport: gradients leave during the backward pass, weights come during the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import prod
from typing import Any, TypeAlias
from uuid import uuid4

from torch import Tensor, nn

from optimd._courier import Courier
from optimd._torch_arrivals import Arrivals
from optimd._torch_buckets import GradientBuckets
from optimd._torch_called import CalledModules, before_each_forward
from optimd._torch_part import Part, names_there
from optimd._torch_session import BoundSession, Facts
from optimd._torch_weights import Gradient, to_send
from optimd.errors import ConnectionFailed, ContributionIncomplete, KeyReused
from optimd.models import Receipt

Grads: TypeAlias = Mapping[str, Tensor]


class HiddenPushes(BoundSession):
    """Sends gradients in parts while the backward pass makes the next ones; `step` sends the rest, and waits.

    Parts decide nothing: where there is any doubt about them, everything is pushed whole. A session of a single bucket
    has nothing to send ahead.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._courier = Courier()
        self._contribution = uuid4().hex
        tensors = self.session.info["tensors"]
        sizes = {tensor["name"]: 4 * prod(tensor["shape"]) for tensor in tensors if tensor["name"] in self.params}
        self._buckets = GradientBuckets(self.params, sizes, self._send, self._check)

    def _check(self, name: str) -> None:
        """A gradient of this parameter has appeared."""

    def _send(self, part: Part) -> Future[None] | None:
        return self._courier.send(partial(self._contribute, part, self._contribution)) if self.begun else None

    def _contribute(self, part: Part, contribution: str) -> None:
        self.session.contribute(part.to_send(), contribution=contribution, if_match=self._etag)

    def _exchange(self, grads: Grads, facts: Facts) -> None:
        if len(self._buckets) < 2:
            super()._exchange(grads, facts)
            return
        self._receipt = self._courier.send(self._completion(grads, facts)).result()
        self._received()

    def _completion(self, grads: Grads, facts: Facts, arrivals: Arrivals | None = None) -> partial[Receipt]:
        """An errand: push these gradients, of which some may have gone ahead."""
        parts, contribution = self._buckets.gather(), self._contribution
        self._contribution = uuid4().hex
        ahead = {name for part in parts for name in part.grads}
        rest = to_send({name: grad for name, grad in grads.items() if name not in ahead})
        facts = {**facts, "if_match": self._etag, "out": self._weights.targets(), "arriving": arrivals}
        return partial(self._complete, parts, contribution, rest, grads, facts)

    def _complete(
        self, parts: list[Part], contribution: str, rest: Mapping[str, Gradient], grads: Grads, facts: Facts
    ) -> Receipt:
        there = names_there(parts)
        if there and not any(grad.is_sparse for grad in grads.values()):
            left = {name: grad for name, grad in grads.items() if name not in there and name not in rest}
            try:
                return self._step({**rest, **to_send(left)}, {**facts, "contribution": contribution})
            except ContributionIncomplete:  # it was forgotten, and nothing has happened
                pass
        return self._step(to_send(grads), facts)

    def _step(self, grads: Mapping[str, Gradient], facts: Facts) -> Receipt:
        return self.session.step(grads, **facts).receipt

    def push_weights(self, if_match: str | None = None) -> None:
        self._buckets.gather()  # the server forgets parts that were made from other weights
        super().push_weights(if_match)

    def no_sync(self) -> AbstractContextManager[None]:
        return self._buckets.paused()

    def close(self) -> None:
        self._buckets.close()
        self._courier.close()


class HiddenTransport(HiddenPushes):
    """Beside that, lets `step` return as soon as the push has been judged, while the weights are on their way.

    A module that is called waits for the parameters that it is about to use; `step` itself waits for those that no
    module has been seen to use, and `wait` for all.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = CalledModules()
        self._watching = before_each_forward(self._modules.add)
        self._arrivals: Arrivals | None = None
        self._awaited: dict[int, str] = {}

    def _exchange(self, grads: Grads, facts: Facts) -> None:
        self._watching.remove()
        if len(self._buckets) < 2:
            super()._exchange(grads, facts)
            return
        arrivals = Arrivals(self._weights)
        completion = self._completion(grads, facts, arrivals)
        with self._letting_go():
            self._expect(arrivals)
            self._courier.send(completion).add_done_callback(arrivals.end)
            arrivals.wait_for_judgement()
        self._weights.expect()
        for param in self._modules.unclaimed(self.params.values()):
            self._await(param)

    def _expect(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._awaited = {id(param): name for name, param in self.params.items()}
        self._watching = before_each_forward(self._called)

    def _step(self, grads: Mapping[str, Gradient], facts: Facts) -> Receipt:
        arrivals: Arrivals = facts["arriving"]
        try:
            receipt = super()._step(grads, facts)
        except KeyReused as problem:
            if not arrivals.judged:
                raise
            raise ConnectionFailed(
                "The connection broke while weights were arriving, and the gradients that have to be sent for asking "
                "again have been changed meanwhile: opt.pull_weights() fetches the weights."
            ) from problem
        self._etag = self.session.etag
        return receipt

    def _called(self, module: nn.Module) -> None:
        self._modules.add(module)
        for param in self._modules.parameters_of(module):
            self._await(param)

    def _await(self, param: Tensor) -> None:
        name = self._awaited.pop(id(param), None)
        if name is None or self._arrivals is None:
            return
        with self._letting_go():
            if self._arrivals.wait(name):
                self._courier.give_way()  # who has been woken may have been put where the waker runs
        if not self._awaited:
            self._watching.remove()
        self._weights.agree(name)

    def _check(self, name: str) -> None:
        if id(self.params[name]) in self._awaited:
            raise RuntimeError(
                f"the parameter {name!r} was used before its new weights had been waited for, outside the forward of "
                "the module that holds it, or in compiled code: call opt.wait() before the forward pass, or use "
                "overlap='push'"
            )

    def wait(self) -> None:
        if self._arrivals is None:
            return
        with self._letting_go():
            self._receipt = self._arrivals.wait_for_all()
        unseen = list(self._awaited.values())
        self._let_go()
        for name in unseen:
            self._weights.agree(name)

    @contextmanager
    def _letting_go(self) -> Iterator[None]:
        """What is raised is raised once: nothing is awaited any more."""
        try:
            yield
        except Exception:
            self._let_go()
            raise

    def _let_go(self) -> None:
        self._watching.remove()
        self._arrivals, self._awaited = None, {}

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._watching.remove()
            super().close()
