"""A training that keeps what it was told, and the same training by torch in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch

from optimd import Client, Receipt, Session, Step
from optimd.models import StateDict

SHAPES = {"weight": (128, 128), "bias": (128,)}
LR = 0.01
PAUSE_S = 0.05
PATIENCE_S = 180
# An outage is to cost time, and nothing else: the waits between these add up to minutes.
RETRIES = 30
# Of a connection whose other end was removed together with its network, nothing more is heard.
TIMEOUT_S = 5.0

Arrays = dict[str, np.ndarray]


def gradients(step: int) -> Arrays:
    """Those of one step, from its number alone."""
    drawn = np.random.default_rng(step)
    return {name: drawn.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}


def loss(step: int) -> float:
    """Of one step; no two are the same."""
    return 1.0 / step


@dataclass
class Run:
    """What was acknowledged and seen while a session was trained, and what it stands at afterwards.

    Attributes:
      seen: by a reader beside: the step of each pull, and its weights.
      stands_at: the step that the server names last.
    """

    receipts: list[Receipt] = field(default_factory=list)
    seen: list[tuple[int, Arrays]] = field(default_factory=list)
    stands_at: int = 0
    weights: Arrays = field(default_factory=dict)
    state: StateDict = field(default_factory=lambda: StateDict("", 0, {}))
    history: list[Step] = field(default_factory=list)


class Training:
    """Pushes steps, and reads beside them, while the context lasts; then looks at what has become of it.

    Args:
      backend: of the session's storage.
    """

    def __init__(self, url: str, *, backend: str) -> None:
        self.run = Run()
        self._client = Client(url, retries=RETRIES, timeout=TIMEOUT_S)
        self._backend = backend
        self._ending = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._repeat, args=(each,)) for each in (self._push, self._read)]

    def __enter__(self) -> Self:
        self._session = self._client.create_session(
            "adamw", tensors=SHAPES, lr=LR, storage={"backend": self._backend}, durability="step"
        )
        self._watched = self._client.session(self._session.id)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        with self._client:
            if error is None:
                assert not self._errors, self._errors
                self._look_back()

    def take(self, steps: int) -> None:
        """Wait until so many more steps are acknowledged."""
        wanted = len(self.run.receipts) + steps
        self._wait(lambda: len(self.run.receipts) >= wanted, f"{steps} more steps")

    def _wait(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert not self._errors, self._errors
            assert time.monotonic() < deadline, f"no {what} within {PATIENCE_S} s"
            time.sleep(PAUSE_S)

    def _repeat(self, what: Callable[[], None]) -> None:
        try:
            while not self._ending.wait(PAUSE_S):
                what()
        except BaseException as error:  # noqa: BLE001  `take` raises it where the test sees it
            self._errors.append(error)

    def _push(self) -> None:
        step = len(self.run.receipts) + 1
        self.run.receipts.append(self._session.push(gradients(step), loss=loss(step)))

    def _read(self) -> None:
        weights = self._watched.pull()
        self.run.seen.append((step_of(self._watched), weights))

    def _look_back(self) -> None:
        run, session = self.run, self._session
        session.refresh()
        run.stands_at, run.weights, run.state = step_of(session), session.pull(), session.state()
        # Rows are written behind the steps, and filled in after a crash.
        self._wait(lambda: any(session.history(after=run.stands_at - 1)), "row of the last step")
        run.history = list(session.history())


def step_of(session: Session) -> int:
    """The step of the version that the server named last."""
    assert session.etag is not None
    return int(session.etag.partition(".")[0])


def replay(steps: int) -> Iterator[dict[str, Arrays]]:
    """By torch, after each step from 0: `weights`, and from 1 on `exp_avg` and `exp_avg_sq`."""
    params = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    optimizer = torch.optim.AdamW(params.values(), LR, fused=True)
    yield {"weights": _copied(params)}
    for step in range(1, steps + 1):
        for name, grad in gradients(step).items():
            params[name].grad = torch.from_numpy(grad)
        optimizer.step()
        state = {name: optimizer.state[tensor] for name, tensor in params.items()}
        moments = {
            buffer: _copied({name: held[buffer] for name, held in state.items()})
            for buffer in ("exp_avg", "exp_avg_sq")
        }
        yield {"weights": _copied(params), **moments}


def _copied(tensors: dict[str, torch.Tensor]) -> Arrays:
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}
