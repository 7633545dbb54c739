"""What a session does when something fails on the way, and where it computes; without HTTP, which cannot arrange it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch

from optimd_service.errors import StateDamaged
from optimd_service.history import History
from optimd_service.session import changing
from optimd_service.session import plan as planning
from optimd_service.session.arithmetic import Arithmetic
from optimd_service.session.creation import from_json
from optimd_service.session.description import OptimizerExchange, SessionChange
from optimd_service.session.preconditions import Precondition
from optimd_service.session.representation import represent
from optimd_service.session.session import Session
from optimd_service.session.sessions import Sessions
from optimd_service.store.device import DeviceStore
from optimd_service.wire.received import JsonBody

NUMBERS = 4
ADAM_BYTES = 4 * NUMBERS * 4  # weights, gradients, two moments
GRADS = JsonBody(bytearray(b'{"grads": {"w": [1, 2, 3, 4]}}'), "grads", "buffers")
RMSPROP = OptimizerExchange(name="rmsprop")


class Unrecorded:
    """A history that forgets everything."""

    def _forget(self, _row: object) -> None: ...

    session_created = session_changed = step = event = _forget


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    """Room for one session of Adam and a buffer, and not for two."""
    threads = torch.get_num_threads()
    arithmetic = Arithmetic(1)
    yield Sessions(DeviceStore(ADAM_BYTES + 4 * NUMBERS), arithmetic, cast("History", Unrecorded()))
    arithmetic.close()
    torch.set_num_threads(threads)


async def created(sessions: Sessions, **policy: Any) -> Session:
    body = {"optimizer": {"name": "adam"}, "tensors": [{"name": "w", "shape": [NUMBERS]}], **policy}
    return await sessions.create(from_json(bytearray(json.dumps(body), "utf-8"))[0])


async def push(session: Session) -> None:
    precondition = Precondition.read(None, "k")
    async with session.pushing(precondition):
        (await session.apply(GRADS, precondition)).snapshot.release()


def failing(*_: Any, **__: Any) -> None:
    raise ArithmeticError


async def test_a_session_that_cannot_begin_takes_no_memory(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("optimd_service.session.sessions.rehearse", failing)
        with pytest.raises(ArithmeticError):
            await created(sessions)
    assert (await created(sessions)).held_bytes == ADAM_BYTES


async def test_a_damaged_session_is_shown_all_the_same(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await created(sessions, loss_scale={"init_scale": 8.0})
    monkeypatch.setattr("optimd_service.session.push.update_groups_", failing)
    with pytest.raises(StateDamaged):
        await push(session)
    shown = represent(session)
    assert (shown["etag"], shown["loss_scale_now"], shown["bytes"]) == ("0.0", 8.0, ADAM_BYTES)


async def test_an_exchange_that_fails_half_way_is_never_shown(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await created(sessions)
    await push(session)
    monkeypatch.setattr("optimd_service.session.changing.exchange_", failing)
    with pytest.raises(StateDamaged):
        await changing.give_optimizer(session, RMSPROP, None)
    assert session.settings.optimizer.name == "adam"
    for use in (session.pull, session.state):
        with pytest.raises(StateDamaged):
            await use()


async def test_changes_are_rehearsed_before_a_push_meets_new_kernels(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, rehearsed = await created(sessions), list[tuple[str, bool]]()

    def note(plan: planning.Plan) -> None:
        on_the_loop = threading.current_thread() is threading.main_thread()
        rehearsed.append((plan.settings.optimizer.name, on_the_loop))

    monkeypatch.setattr("optimd_service.session.changing.rehearse", note)
    await changing.change(session, SessionChange(optimizer={"lr": 0.5}))
    await changing.give_optimizer(session, RMSPROP, None)
    assert rehearsed == [("adam", False), ("rmsprop", False)]


async def test_what_grows_with_the_tensors_is_worked_out_in_threads(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[threading.Thread]] = {"foresee": set(), "state_pieces": set()}

    def noting(name: str) -> Callable[..., Any]:
        function = getattr(planning, name)

        def noted(*arguments: Any) -> Any:
            threads[name].add(threading.current_thread())
            return function(*arguments)

        return noted

    for name in threads:
        monkeypatch.setattr(planning, name, noting(name))
    blueprint, _ = await sessions.arithmetic.small.run(
        from_json, bytearray(b'{"optimizer": {"name": "adam"}, "tensors": [{"name": "w", "shape": [4]}]}')
    )
    session = await sessions.create(blueprint)
    await changing.change(session, SessionChange(optimizer={"lr": 0.5}))
    await changing.give_optimizer(session, RMSPROP, None)
    for seen in threads.values():
        assert seen
        assert threading.main_thread() not in seen
