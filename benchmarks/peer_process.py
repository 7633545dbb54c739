"""A peer's client, in a process of its own: it starts the peer's server, and takes a step when it is told to."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from cases import Case
from peers.together import Step

WARM_UP_S = 0.2
MOST_WARM_UPS = 100


class Absent(str):
    """Why a peer, or one way of it, gives no figures."""

    __slots__ = ()


def run(peer: str, case: Case, pipe: Connection, log: str) -> None:
    """Offer the peer's ways of taking a step, then time as many steps of one as each message asks for.

    Args:
      pipe: sends the ways' names, or why there are none. Receives (way, number of steps), and sends the seconds of
        each of them, or why it failed; until it receives None.
      log: file that this process and those it starts write what they would print to.
    """
    _print_to(log)
    torch.set_num_threads(1)
    try:
        with importlib.import_module(f"peers.{peer}").steps(case) as ways:
            for step in ways.values():
                _warm_up(step)
            pipe.send(list(ways))
            for way, steps in iter(pipe.recv, None):
                pipe.send(_timed(ways[way], steps))
    except ModuleNotFoundError as error:
        pipe.send(Absent("not installed" if error.name == "ray" else f"needs {error.name}"))
    except (EOFError, KeyboardInterrupt):
        pass  # whoever measured is gone
    except Exception as error:
        with contextlib.suppress(BrokenPipeError):
            pipe.send(Absent(f"failed: {type(error).__name__}: {error}"))
        raise


def _print_to(log: str) -> None:
    with Path(log).open("a") as lines:
        for descriptor in (1, 2):
            os.dup2(lines.fileno(), descriptor)


def _warm_up(step: Step) -> None:
    """Step twice, and on for a while: connections, pages and caches are then as they are in use."""
    step()
    began = time.perf_counter()
    for _ in range(MOST_WARM_UPS):
        step()
        if time.perf_counter() - began > WARM_UP_S:
            return


def _timed(step: Step, steps: int) -> list[float]:
    taken = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return taken
