"""The token of what a client holds: it never names two contents."""

from __future__ import annotations

import math

import pytest
import torch

from optimd_service.session.held import Held, Moving

PARAMS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def make(moving: Moving | None, params: torch.Tensor, upto: int = 4) -> torch.Tensor:
    """The reply, made piece by piece up to an element; released if that is all."""
    assert moving is not None
    out = torch.empty(4, dtype=moving.dtype)
    for start in range(0, upto, 2):
        moving.convert_(out[start : start + 2], params[start : start + 2], start)
    if upto == 4:
        moving.release()
    return out


@pytest.fixture
def held() -> Held:
    return Held(torch.zeros(4))


def begun(held: Held) -> str:
    """The token of PARAMS."""
    moving = held.move("none")
    make(moving, PARAMS)
    assert moving is not None
    return moving.token


def base_of(held: Held, shown: str) -> str | None:
    """What a reply to a client that shows this would be the difference to; it is never made."""
    moving = held.move(shown)
    assert moving is not None
    moving.release()
    return moving.base


def test_first_come_whole_weights_and_then_differences(held: Held) -> None:
    first = held.move("none")
    assert first is not None
    assert torch.equal(make(first, PARAMS), PARAMS)
    assert first.metadata == {"holds": first.token}
    second = held.move(first.token)
    assert second is not None
    assert torch.equal(make(second, PARAMS + 0.5), torch.full((4,), 0.5, dtype=torch.bfloat16))
    assert second.metadata == {"holds": second.token, "difference": first.token}
    assert base_of(held, second.token) == second.token


def test_a_token_holds_once(held: Held) -> None:
    token = begun(held)
    assert base_of(held, token) == token
    assert base_of(held, token) is None


@pytest.mark.parametrize("shown", ["none", "", "0" * 16])
def test_other_words_hold_nothing(held: Held, shown: str) -> None:
    begun(held)
    assert base_of(held, shown) is None


def test_a_reply_that_was_not_made_whole_leaves_no_token(held: Held) -> None:
    token = begun(held)
    moving = held.move(token)
    make(moving, PARAMS + 1, upto=2)
    assert moving is not None
    moving.release()
    for shown in (token, moving.token):
        assert base_of(held, shown) is None


def test_one_reply_at_a_time_moves_what_is_held(held: Held) -> None:
    token = begun(held)
    moving = held.move(token)
    assert held.move(token) is None
    assert held.move("none") is None
    make(moving, PARAMS + 1)
    assert moving is not None
    moving.release()
    assert base_of(held, moving.token) == moving.token


def test_what_is_made_is_moved_although_it_may_still_be_on_its_way(held: Held) -> None:
    moving = held.move("none")
    assert moving is not None
    for start in (0, 2):
        moving.convert_(torch.empty(2), PARAMS[start : start + 2], start)
    assert base_of(held, moving.token) == moving.token


def test_a_late_release_ends_no_other_reply(held: Held) -> None:
    first = held.move("none")
    make(first, PARAMS)
    second = held.move("none")
    assert first is not None
    first.release()
    assert second is not None
    assert held.move("none") is None


def test_what_is_forgotten_does_not_hold_nor_does_what_was_under_way(held: Held) -> None:
    token = begun(held)
    held.forget()
    assert base_of(held, token) is None
    moving = held.move("none")
    held.forget()
    make(moving, PARAMS)
    assert moving is not None
    assert base_of(held, moving.token) is None


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_are_not_finite_come_and_do_not_hold(held: Held, number: float, whole: bool) -> None:
    moving = held.move("none" if whole else begun(held))
    broken = torch.tensor([1.0, number, 3.0, 4.0])
    torch.testing.assert_close(make(moving, broken).float()[1], torch.tensor(number), equal_nan=True)
    assert moving is not None
    assert base_of(held, moving.token) is None
