"""Every call on one session, without IO: each is an operation for a driver to carry out."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any, Literal, SupportsFloat, TypeAlias, TypeVar

from numpy.typing import ArrayLike

from optimd._cutting import cut_of_pull, cut_of_push
from optimd._description import Fields, Tensors
from optimd._documents import Page, json_text, query, read_json, read_page
from optimd._dtypes import DTYPES
from optimd._exchange import JSON, SAFETENSORS, Body, Operation, Request
from optimd._filling import is_flat
from optimd._held import Held
from optimd._narrowing import Narrowed, narrowed
from optimd._retry import Retry, ask
from optimd._rows import Gradients, as_entries
from optimd._safetensors import Array, RawTensor, encode
from optimd._sink import Arriving, Out, TensorSink, check_out
from optimd._time_travel import IfMatch, TimeTravel
from optimd.errors import MalformedReply, SessionNotFound, StaleStep
from optimd.models import (
    Averaged,
    Event,
    ExchangeReport,
    Receipt,
    RollbackReport,
    SessionInfo,
    StateDict,
    Step,
    StepResult,
    WhatIfReport,
    WireDtype,
)


class Unchanged(enum.Enum):
    """Stands for what a session has, where None would switch it off."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED
Switched: TypeAlias = Fields | Literal[Unchanged.UNCHANGED] | None
Pull: TypeAlias = WireDtype | Literal["none"]

_LONGEST_WAIT_S = 60
# Parameters from which on a step takes longer than to say how it is wanted.
_LARGE = 2**18

T = TypeVar("T")


class SessionCore(TimeTravel):
    """A session's description, the version seen last, and its calls."""

    def __init__(self, info: SessionInfo, retry: Retry, *, cuts_bodies: bool = False) -> None:
        super().__init__(info, retry)
        self._may_cut = cuts_bodies
        self._cuts_bodies = cuts_bodies and bool(info.get("segments"))
        tensors = info.get("tensors", [])
        self._shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in tensors}
        self._numel = sum(map(math.prod, self._shapes.values()))
        self._is_large = self._numel >= _LARGE
        self._buffers = frozenset(tensor["name"] for tensor in tensors if tensor.get("role") == "buffer")
        self._held = Held(self._shapes)

    def step(
        self,
        grads: Gradients,
        metadata: Mapping[str, str],
        pull: Pull | None,
        if_match: IfMatch,
        key: str | None,
        out: Out | None,
        arriving: Arriving | None = None,
        send: WireDtype | None = None,
        contribution: str | None = None,
    ) -> Operation[StepResult]:
        check_out(out, self._shapes)
        shown = self._show(out, pull)
        sink = TensorSink(out, arriving, shown)
        headers = {"accept": SAFETENSORS, "content-type": SAFETENSORS, "idempotency-key": key or token_hex(16)}
        headers |= self._if_match(if_match)
        pull = pull or (self._whole if shown is None else None)
        complete = None if contribution is None else "true"
        sent = self._as_sent(grads, send)
        body = encode(sent, metadata)
        pull_at = None if shown is not None or arriving is not None else self._cut_of_pull(pull, out)
        # Weights in the reply come over one connection, on which the gradients are better off too.
        may_cut = self._cuts_bodies and contribution is None and (pull == "none" or pull_at is not None)
        cut_at = cut_of_push(sent, body) if may_cut else None
        if cut_at is not None and pull_at is not None:
            # The handle stands where it stood until the new weights are here.
            push = Request("POST", self._steps(pull="none"), headers, body, sink, cut_at=cut_at)
            reply = yield from ask(push, self._retry)
            tensors = yield from self._pull(query(dtype=pull), out, pull_at, reply.headers["etag"])
            return StepResult(receipt_in(sink.metadata), tensors)
        # Weights can leave while the step is being taken, if its receipt may follow them.
        last = "last" if self._is_large and pull != "none" else None
        target = self._steps(pull=pull, holds=shown, receipt=last, contribution=contribution, complete=complete)
        yield from self._ask(Request("POST", target, headers, body, sink, cut_at=cut_at))
        if shown is not None and out is not None:
            self._held.keep(sink.metadata.get("holds"), out)
        return StepResult(receipt_in(sink.metadata), sink.tensors)

    def _pull(self, asked: str, out: Out | None, cut_at: int | None, etag: str) -> Operation[dict[str, Array]]:
        """The weights of one version: in two halves if the session stands at ``etag``, else those that are there."""
        target, sink, headers = f"{self._path}/params{asked}", TensorSink(out), {"accept": SAFETENSORS}
        if cut_at is not None:
            halves = Request("GET", target, headers | {"if-match": etag}, sink=sink, cut_at=cut_at)
            with suppress(StaleStep):  # others have stepped meanwhile
                yield from self._ask(halves)
                return sink.tensors
        yield from self._ask(Request("GET", target, headers, sink=sink))
        return sink.tensors

    def contribute(
        self, grads: Gradients, contribution: str, send: WireDtype | None, if_match: IfMatch
    ) -> Operation[Receipt]:
        sink = TensorSink()
        headers = {"accept": SAFETENSORS, "content-type": SAFETENSORS} | self._if_match(if_match)
        body = encode(self._as_sent(grads, send), {})
        # Repeatable without a key: it writes the same bytes again.
        yield from self._ask(Request("POST", self._steps(contribution=contribution), headers, body, sink))
        return receipt_in(sink.metadata)

    def pull(
        self, names: Sequence[str] | None, dtype: WireDtype | None, out: Out | None, weights: Averaged | None
    ) -> Operation[dict[str, Array]]:
        check_out(out, self._shapes)
        self._let_go(out)
        wanted = dtype or self._whole
        all_of_them = names is None and weights is None and self.etag is not None
        cut_at = self._cut_of_pull(wanted, out) if all_of_them else None
        asked = query(dtype=wanted, names=names, weights=weights)
        return (yield from self._pull(asked, out, cut_at, f'"{self.etag}"'))

    def wait(
        self, timeout_s: float, names: Sequence[str] | None, dtype: WireDtype | None, out: Out | None
    ) -> Operation[dict[str, Array] | None]:
        check_out(out, self._shapes)
        self._let_go(out)
        target = f"{self._path}/params" + query(dtype=dtype or self._whole, names=names)
        left_s = math.ceil(timeout_s)
        while True:
            sink, span_s = TensorSink(out), min(left_s, _LONGEST_WAIT_S)
            headers = {"accept": SAFETENSORS, "prefer": f"wait={span_s}"}
            if self.etag is not None:
                headers["if-none-match"] = f'"{self.etag}"'
            reply = yield from self._ask(Request("GET", target, headers, sink=sink, wait_s=span_s))
            left_s -= span_s
            if reply.status != 304:
                return sink.tensors
            if left_s <= 0:
                return None

    def put_params(self, params: Tensors, if_match: IfMatch) -> Operation[None]:
        self._held.drop()
        yield from self._put("params", encode(self._in_layout_order(params), {}), if_match)

    def state(self) -> Operation[StateDict]:
        sink = TensorSink()
        yield from self._ask(Request("GET", f"{self._path}/state", {"accept": SAFETENSORS}, sink=sink))
        said = sink.metadata
        try:
            numbers = json.loads(said.get("numbers", "{}"))
            return StateDict(said["optimizer"], int(said["step"]), sink.tensors, numbers)
        except (KeyError, ValueError) as error:
            raise MalformedReply("The reply's state does not name its optimizer and step.") from error

    def put_state(self, state: StateDict, if_match: IfMatch, strict: bool) -> Operation[list[str]]:
        metadata = {"optimizer": state.optimizer, "step": str(state.step)}
        if state.numbers:
            metadata["numbers"] = bytes(json_text(state.numbers)).decode()
        what = "state" + query(strict=None if strict else "false")
        reply = yield from self._put(what, encode(state.tensors, metadata), if_match)
        return list(reply.get("passed_over") or ())

    def change_optimizer(self, wanted: Fields, if_match: IfMatch) -> Operation[ExchangeReport]:
        headers = {"accept": JSON, "content-type": JSON} | self._if_match(if_match)
        # Arriving twice, it would ask the new optimizer for the buffers of the old.
        request = Request("PUT", f"{self._path}/optimizer", headers, [json_text(wanted)], repeatable=False)
        report: ExchangeReport = read_json((yield from self._ask(request)))
        return report

    def update(self, changes: Fields) -> Operation[SessionInfo]:
        reply = yield from self._ask(
            Request("PATCH", self._path, {"content-type": JSON, "accept": JSON}, [json_text(changes)], repeatable=False)
        )
        self.info = read_json(reply)
        return self.info

    def refresh(self) -> Operation[SessionInfo]:
        self.info = read_json((yield from self._ask(Request("GET", self._path, {"accept": JSON}))))
        return self.info

    def rollback(self, moment: Fields, if_match: IfMatch) -> Operation[RollbackReport]:
        self._held.drop()
        report = yield from self._roll_back(moment, if_match)
        yield from self.refresh()  # hyperparameters and schedule are those of then
        return report

    def fork(self, wanted: Fields) -> Operation[SessionCore]:
        return SessionCore((yield from self._fork(wanted)), self._retry, cuts_bodies=self._may_cut)

    def what_if(self, grads: Tensors, candidates: Sequence[Fields], send: WireDtype | None) -> Operation[WhatIfReport]:
        metadata = {"candidates": bytes(json_text(list(candidates))).decode()}
        return (yield from self._what_if(encode(self._as_sent(grads, send), metadata)))

    def history(self, after: Any, limit: int | None) -> Operation[Page[Step]]:
        target = f"{self._path}/steps" + query(after=after, limit=limit and min(limit, 10_000))
        page = read_page((yield from self._ask(Request("GET", target, {"accept": JSON}))), "steps")
        return Page([Step.from_json(row) for row in page.rows], page.next)

    def recorded(self, step: int) -> Operation[Step]:
        reply = yield from self._ask(Request("GET", f"{self._path}/steps/{int(step)}", {"accept": JSON}))
        return Step.from_json(read_json(reply))

    def events(self, after: Any, limit: int | None) -> Operation[Page[Event]]:
        target = f"{self._path}/events" + query(after=after, limit=limit and min(limit, 10_000))
        return read_page((yield from self._ask(Request("GET", target, {"accept": JSON}))), "events")

    def delete(self) -> Operation[None]:
        try:
            yield from self._ask(Request("DELETE", self._path))
        except SessionNotFound as problem:
            # The first attempt may have deleted it, and its answer been lost.
            if problem.attempts == 1:
                raise

    def _put(self, what: str, body: Body, if_match: IfMatch) -> Operation[dict[str, Any]]:
        condition = self._if_match(if_match)
        headers = {"accept": JSON, "content-type": SAFETENSORS} | condition
        # Repeated under If-Match, a put whose first answer was lost would find its own new version and call it stale.
        request = Request("PUT", f"{self._path}/{what}", headers, body, repeatable=not condition)
        reply: dict[str, Any] = read_json((yield from self._ask(request)))
        self.etag = reply["etag"]
        return reply

    def _steps(self, **parameters: Any) -> str:
        return f"{self._path}/steps{query(**parameters)}"

    def _show(self, out: Out | None, pull: Pull | None) -> str | None:
        """What to show the server for a reply into ``out``; None where the reply cannot be a difference."""
        if pull is None and self._whole is not None and out is not None and self._held.takes(out):
            return self._held.show(out)
        self._let_go(out)
        return None

    def _let_go(self, out: Out | None) -> None:
        """Take note that ``out`` may be written, perhaps the arrays that the server knows the content of."""
        if out is not None:
            self._held.drop()

    def _cut_of_pull(self, dtype: Pull | None, out: Out | None) -> int | None:
        """Where a reply with all weights is cut; None where it is to come whole."""
        if not self._cuts_bodies or dtype == "none" or not all(map(is_flat, (out or {}).values())):
            return None
        wire = dtype or self._wire.get("params") or self.info["tensors"][0]["dtype"]
        return cut_of_pull(self._shapes, self._numel * DTYPES[wire.upper()].itemsize)

    @property
    def _wire(self) -> Mapping[str, Any]:
        return self.info.get("wire") or {}

    @property
    def _whole(self) -> WireDtype | None:
        """What to ask for where weights come whole: nothing is rounded in a session that takes care not to."""
        return "f32" if self._wire.get("difference") else None

    def _as_sent(self, grads: Gradients, send: WireDtype | None) -> Mapping[str, ArrayLike | RawTensor | Narrowed]:
        """The entries of a push, in layout order; gradients rounded as ``send`` says, else the session."""
        entries = as_entries(self._in_layout_order(grads))
        dtype = send or self._wire.get("grads")
        return entries if dtype is None else narrowed(entries, dtype.upper(), but=self._buffers)

    def _in_layout_order(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Layout order saves the server a copy; names it does not know follow, for it to refuse."""
        return {name: tensors[name] for name in self._shapes if name in tensors} | dict(tensors)


def pushed(grads: Gradients, buffers: Tensors | None) -> Gradients:
    """The tensors of a push. Raises: ValueError for a name that is in both."""
    if not buffers:
        return grads
    for name in buffers:
        if name in grads:
            raise ValueError(f"{name!r} is in grads and in buffers: a tensor is trained or it is a buffer")
    return {**grads, **buffers}


def session_changes(schedule: Switched, clip: Switched, **others: Any) -> Fields:
    """A PATCH body: of ``others`` what is not None, and of the two that can be switched off also None."""
    changes = {name: value for name, value in others.items() if value is not None}
    switched = {"schedule": schedule, "clip": clip}
    return changes | {name: value for name, value in switched.items() if value is not UNCHANGED}


def step_metadata(
    loss: SupportsFloat | None, num_examples: int | None, worker: str | None, hyperparameters: Mapping[str, Any] | None
) -> dict[str, str]:
    """What a push says of itself, in safetensors' strings; a loss that JSON cannot write is left out."""
    metadata = {}
    if loss is not None and math.isfinite(float(loss)):
        metadata["loss"] = repr(float(loss))
    if num_examples is not None:
        metadata["num_examples"] = str(int(num_examples))
    if worker is not None:
        metadata["worker"] = worker
    if hyperparameters:
        metadata["hyperparameters"] = bytes(json_text(hyperparameters)).decode()
    return metadata


def receipt_in(metadata: Mapping[str, str]) -> Receipt:
    """What a push's reply says of it. Raises: MalformedReply."""
    try:
        return Receipt.from_json(json.loads(metadata["receipt"]))
    except (KeyError, ValueError) as error:
        raise MalformedReply("The reply carries no receipt.") from error
