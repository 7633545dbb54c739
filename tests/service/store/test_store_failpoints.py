"""Failpoints fail where and when they are told to, and are all known."""

from __future__ import annotations

import errno
import re
import time
from pathlib import Path

import pytest

import optimd_service
from optimd_service.store import failpoints
from optimd_service.store.failpoints import POINTS, failpoint, parse


def failures(monkeypatch: pytest.MonkeyPatch, points: str, seed: int = 0, times: int = 10) -> list[int]:
    """At which times ``disk.write`` fails."""
    monkeypatch.setattr(failpoints, "_SET", parse(points, seed))
    failed = []
    for number in range(1, times + 1):
        try:
            failpoint("disk.write")
        except OSError:
            failed.append(number)
    return failed


def test_every_failpoint_is_listed_and_every_one_listed_is_there() -> None:
    package = Path(optimd_service.__file__).parent
    called = set()
    for file in package.rglob("*.py"):
        called |= set(re.findall(r"\bfailpoint\(\"([\w.]+)\"\)", file.read_text()))
    assert called == POINTS.keys()


def test_nothing_fails_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(monkeypatch, "") == []
    assert failures(monkeypatch, "disk.sync=eio") == []


def test_a_point_fails_every_time_or_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(monkeypatch, "disk.write=eio") == list(range(1, 11))
    assert failures(monkeypatch, "disk.sync=kill; disk.write=eio@3;") == [3]


def test_chance_is_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    first = failures(monkeypatch, "disk.write=eio%0.3", seed=1, times=1000)
    assert 200 < len(first) < 400
    assert first == failures(monkeypatch, "disk.write=eio%0.3", seed=1, times=1000)
    assert first != failures(monkeypatch, "disk.write=eio%0.3", seed=2, times=1000)


@pytest.mark.parametrize(("action", "code"), [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_a_failure_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch, action: str, code: int) -> None:
    monkeypatch.setattr(failpoints, "_SET", parse(f"disk.write={action}"))
    with pytest.raises(OSError, match="failpoint") as failure:
        failpoint("disk.write")
    assert failure.value.errno == code


def test_a_point_can_be_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_SET", parse("session.received=memory"))
    with pytest.raises(MemoryError):
        failpoint("session.received")


def test_a_point_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert failures(monkeypatch, "disk.write=sleep:250", times=1) == []
    assert waited == [0.25]


@pytest.mark.parametrize(
    "text", ["disk.wirte=eio", "disk.write", "disk.write=burn", "disk.write=eio@x", "disk.write=sleep"]
)
def test_a_slip_is_no_silence(text: str) -> None:
    with pytest.raises(ValueError, match="OPTIMD_FAILPOINTS"):
        parse(text)
