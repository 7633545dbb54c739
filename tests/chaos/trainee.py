"""A session under chaos: what its clients have sent, been told and seen, and whether all of it can be true."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import httpx
import numpy as np
from safetensors.torch import load

from raw_safetensors import tensor_file
from reaching import http_client
from torch_replay import Replay, Task

SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
# What a client is to try again: its server is away, drains, or says that nothing was changed.
PASSING = {408, 409, 503, 507}
# What a session in memory alone is after a crash; unknown, if not even its row was written.
GONE = {404, 410}
PATIENCE_S = 120


class Violation(AssertionError):
    """Something that must not be."""


def require(holds: object, what: str) -> None:
    """Raises: Violation."""
    if not holds:
        raise Violation(what)


@dataclass
class Log:
    """What clients know of one session.

    Attributes:
      steps: step → number of the push that was acknowledged with it.
      receipts: number → the receipt, as it was given first.
      seen: ETag → digest of the weights that a pull gave.   newest: step of any pull.
      promised: the newest `durable_step` of any receipt.
    """

    steps: dict[int, int] = field(default_factory=dict)
    receipts: dict[int, dict[str, Any]] = field(default_factory=dict)
    seen: dict[str, bytes] = field(default_factory=dict)
    newest: int = 0
    promised: int = 0


class Trainee:
    """One session, its clients, and a twin of it that nothing happens to.

    Args:
      proxy: URL through which clients reach the server.   direct: gives the server's own.
      quiet: a client of a server that is left alone.
    """

    def __init__(self, task: Task, proxy: str, direct: Callable[[], str], quiet: httpx.Client) -> None:
        self.task = task
        self.durability = str(task.description.get("durability", "step"))
        self.log = Log()
        self._proxy = proxy
        self._direct = direct
        self._quiet = quiet
        self._numbers = 0
        self._lock = threading.Lock()
        self._path = ""

    def create(self) -> None:
        """A new session in place of any before, with a twin."""
        with http_client(self._direct()) as http:
            self._path = _created(http, self.task)
        self.log = Log()
        self._again()

    def _again(self) -> None:
        """Begin the twin, and torch's replay, anew."""
        self._twin = _created(self._quiet, self.task, durability="memory")
        self._replay = Replay(self.task)
        self._replayed: list[int] = []

    def train(self, over: threading.Event, seed: int) -> None:
        """Push until it is over, then see the last push acknowledged. Raises: Violation."""
        with self._named():
            self._train(over, seed)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What is violated inside is of this session."""
        try:
            yield
        except AssertionError as violation:
            raise Violation(f"{self.task.name} at {self._path}: {violation}") from violation

    def _train(self, over: threading.Event, seed: int) -> None:
        dice = np.random.default_rng(seed)
        with ThreadPoolExecutor(1) as beside, http_client(self._proxy, timeout=10) as http:
            while not over.is_set():
                with self._lock:
                    self._numbers += 1
                    number = self._numbers
                # Where steps may be lost, whichever reply is read last may be of a server that is gone.
                doubles = dice.random() < 0.1 and self.durability != "checkpoint"
                twice = beside.submit(self._ask, http, number) if doubles else None
                self._settle(http, number)
                if twice is not None:
                    self._take(number, twice.result())
                if dice.random() < 0.2:
                    self._pull(http)

    def _settle(self, http: httpx.Client, number: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self._take(number, self._ask(http, number)):
            require(time.monotonic() < deadline, f"push {number} was not settled in {PATIENCE_S} s")
            time.sleep(0.01)

    def _ask(self, http: httpx.Client, number: int) -> httpx.Response | None:
        """Send a push; None where the connection broke."""
        headers = {**SAFETENSORS, "Accept": "application/json", "Idempotency-Key": f"{self.task.name}-{number}"}
        body = tensor_file(self.task.grads(number), {"loss": str(number)})
        try:
            return http.post(f"{self._path}/steps", content=body, headers=headers, params={"pull": "none"})
        except httpx.TransportError:
            return None

    def _take(self, number: int, reply: httpx.Response | None) -> bool:
        """What a reply to a push says; False where the push is to be sent again."""
        if reply is None or reply.status_code in PASSING:
            return False
        if reply.status_code in GONE and self.durability == "memory":
            require(not self.log.promised, "a session in memory promised to last")
            time.sleep(0.05)
            return True
        require(reply.status_code == 200, f"push {number}: {reply.status_code} {reply.text[:300]}")
        with self._lock:
            self._acknowledged(number, reply.json()["receipt"])
        return True

    def _acknowledged(self, number: int, receipt: dict[str, Any]) -> None:
        log, step = self.log, receipt["step"]
        require(receipt["outcome"] == "applied", f"push {number}: {receipt}")
        if self.durability == "checkpoint" and not (receipt["duplicate"] and log.steps.get(step) == number):
            self._lost_from(step)
        first = log.receipts.setdefault(number, receipt)
        require(_same(first, receipt), f"push {number} was told {first}, and now {receipt}")
        require(log.steps.setdefault(step, number) == number, f"step {step}: pushes {log.steps[step]} and {number}")
        log.promised = max(log.promised, receipt["durable_step"])
        if self.durability == "step":
            require(receipt["durable_step"] == step, f"durable_step of {receipt}")

    def _lost_from(self, step: int) -> None:
        """A crash has taken back steps from this one on, as the session's durability allows."""
        require(step > self.log.promised, f"step {step} came again, {self.log.promised} were promised to last")
        for lost in [known for known in self.log.steps if known >= step]:
            del self.log.receipts[self.log.steps.pop(lost)]

    def _pull(self, http: httpx.Client) -> None:
        """Look at the weights: one ETag never has two, and what was shown is not taken back."""
        try:
            reply = http.get(f"{self._path}/params", headers={"Accept": SAFETENSORS["Content-Type"]})
        except httpx.TransportError:
            return
        if reply.status_code == 200:
            etag, digest = reply.headers["ETag"], _digest(load(reply.content))
            with self._lock:
                require(self.log.seen.setdefault(etag, digest) == digest, f"two states are called {etag}")
                self.log.newest = max(self.log.newest, _step_of(etag))
        else:
            require(reply.status_code in PASSING | GONE, f"pull: {reply.status_code} {reply.text[:300]}")

    def check(self) -> None:
        """Hold everything against everything, while nobody trains. Raises: Violation."""
        with self._named(), http_client(self._direct()) as http:
            info = http.get(self._path)
            if self.durability == "memory" and (info.status_code == 404 or info.json()["status"] == "lost"):
                self.create()
                return
            require(info.status_code == 200, f"{info.status_code} {info.text[:300]}")
            step = info.json()["step"]
            if self.durability == "checkpoint":
                self._lost_from(step + 1)
            numbers = [self.log.steps.get(number) for number in range(1, len(self.log.steps) + 1)]
            require(None not in numbers, f"steps acknowledged: {sorted(self.log.steps)}")
            require(step == len(numbers), f"at step {step}, {len(numbers)} were acknowledged")
            if self.durability == "step":
                require(self.log.newest <= step, f"a pull showed step {self.log.newest}, now it stands at {step}")
            self._check_state(http, [number for number in numbers if number is not None])
            self._check_history(http, numbers)

    def _check_state(self, http: httpx.Client, numbers: list[int]) -> None:
        """Weights and moments are those of torch with these pushes, and to the bit those of a server left alone."""
        if self._replayed != numbers[: len(self._replayed)]:
            self._quiet.delete(self._twin)
            self._again()
        for step, number in enumerate(numbers[len(self._replayed) :], len(self._replayed) + 1):
            self._replay.step(number)
            self._step_twin(step, number)
            self._replayed.append(number)
        weights, state = (http.get(self._path + below) for below in ("/params", "/state"))
        require((weights.status_code, state.status_code) == (200, 200), f"{weights.text[:300]} {state.text[:300]}")
        self._replay.assert_equal(load(weights.content), load(state.content))
        for below, ours in (("/params", weights), ("/state", state)):
            twins = load(self._quiet.get(self._twin + below).content)
            require(_digest(load(ours.content)) == _digest(twins), f"{below} differ from those of a run left alone")

    def _step_twin(self, step: int, number: int) -> None:
        """Take the twin a step, and compare with what pulls of that step gave."""
        headers = {**SAFETENSORS, "Idempotency-Key": str(number)}
        body = tensor_file(self.task.grads(number), {"loss": str(number)})
        reply = self._quiet.post(f"{self._twin}/steps", content=body, headers=headers, params={"pull": "f32"})
        digest = _digest(load(reply.content))
        for etag, seen in self.log.seen.items():
            if _step_of(etag) == step and self.durability == "step":
                require(seen == digest, f"a pull of {etag} gave other weights than a run left alone has")

    def _check_history(self, http: httpx.Client, numbers: list[int | None]) -> None:
        """Each step has its row, once; where steps may be lost, each row is of a step that was not."""
        rows: list[dict[str, Any]] = []
        while True:
            query = {"after": rows[-1]["step"] if rows else 0, "limit": 1000}
            reply = http.get(f"{self._path}/steps", params=query)
            require(reply.status_code == 200, f"{reply.status_code} {reply.text[:300]}")
            if not (new := reply.json()["steps"]):
                break
            rows += new
        found = [row["step"] for row in rows]
        if self.durability == "step":
            require(found == list(range(1, len(numbers) + 1)), f"history has steps {found} of {len(numbers)}")
        require(len(set(found)) == len(found), f"history has steps twice: {found}")
        for row in rows:
            require(row["step"] <= len(numbers), f"history has step {row['step']} of {len(numbers)}")
            require(row["loss"] == numbers[row["step"] - 1], f"history says of step {row['step']}: {row}")


def _created(http: httpx.Client, task: Task, **description: Any) -> str:
    reply = http.post("/v1/sessions", json=task.session | description)
    require(reply.status_code == 201, f"{reply.status_code} {reply.text[:300]}")
    return str(reply.headers["Location"])


def _same(first: dict[str, Any], again: dict[str, Any]) -> bool:
    return first | {"duplicate": None} == again | {"duplicate": None}


def _step_of(etag: str) -> int:
    return int(etag.strip('"').partition(".")[0])


def _digest(tensors: dict[str, Any]) -> bytes:
    digest = blake2b()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.digest()
