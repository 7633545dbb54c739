"""Small steps from 16 connections at once, push + AdamW + pull of 10,000 float32 parameters, by one server process.

    python benchmarks/many_clients.py [--durability step] [--parameters N] [--connections N] [--seconds S] [--rounds N]

The load comes from wrk over TCP, each push with an Idempotency-Key of its own: all connections on one session, then
each connection on a session of its own. After each round the steps on record are counted: every step that a session has
taken must be there, and they may be more than wrk saw acknowledged only by the pushes that were under way when its time
was over, one a connection at most.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import Any, TypeAlias

import numpy as np
from safetensors.numpy import save

from figures import milliseconds, progress, show, write
from optimd import Client, Session
from optimd_server import optimd_server

SCRIPT = Path(__file__).with_name("wrk.lua")
RECORD_S = 30
"""How long the record may take to be written behind the steps."""
COLUMNS = ("sessions", "steps/s", "median ms", "p99 ms", "acknowledged", "refused", "broken", "taken", "on record")
Round: TypeAlias = dict[str, Any]


def main() -> None:
    """Measure, print one table, and write benchmarks/out/many_clients.json; fail when a step is not on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=3, help="of each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--durability", choices=("memory", "step", "checkpoint"), default="memory")
    asked = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    rounds: dict[int, list[Round]] = {1: [], asked.connections: []}
    with optimd_server() as server, Client(server.url) as client:
        for _ in progress(range(asked.rounds), "rounds"):
            for sessions, taken in rounds.items():
                taken.append(one_round(client, asked, sessions))
    report(asked, rounds)


def one_round(client: Client, asked: argparse.Namespace, number: int) -> Round:
    """Let wrk push to so many fresh sessions, and count what has become of it."""
    described = {"tensors": {"w": [asked.parameters]}, "durability": asked.durability}
    sessions = [client.create_session("adamw", **described) for _ in range(number)]
    said = load(client.url, asked, [session.id for session in sessions])
    steps = sum(session.refresh()["step"] for session in sessions)
    said |= {"taken": steps, "on_record": sum(on_record(session) for session in sessions)}
    for session in sessions:
        session.delete()
    return said


def load(url: str, asked: argparse.Namespace, session_ids: Sequence[str]) -> Round:
    """What wrk says of its pushes: a thread a session, and the connections shared among the threads."""
    grads = np.random.default_rng(0).standard_normal(asked.parameters, dtype=np.float32)
    with NamedTemporaryFile(prefix="bench-") as body:
        body.write(save({"w": grads}))
        body.flush()
        shares = [f"-t{len(session_ids)}", f"-c{asked.connections}", f"-d{asked.seconds}"]
        command = ["wrk", *shares, "-s", str(SCRIPT), url, "--", body.name, *session_ids]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    said: Round = json.loads(output.splitlines()[-1])
    return said


def on_record(session: Session) -> int:
    """Rows of the session's history, once they are as many as its steps or have had time to be."""
    deadline = time.monotonic() + RECORD_S
    while True:
        rows = sum(1 for _ in session.history())
        if rows == session.info["step"] or time.monotonic() > deadline:
            return rows
        time.sleep(0.1)


def report(asked: argparse.Namespace, rounds: dict[int, list[Round]]) -> None:
    """Print and write the figures."""
    title = f"{asked.connections} connections, {asked.parameters:,} float32 parameters, tcp"
    rows = [_cells(sessions, taken) for sessions, taken in rounds.items()]
    show(f"{title}, medians of {asked.rounds} rounds of {asked.seconds} s", COLUMNS, rows)
    write("many_clients", {"settings": vars(asked), "rounds": rounds})
    for each in chain.from_iterable(rounds.values()):
        if each["on_record"] != each["taken"]:
            sys.exit(f"the record does not hold every step: {each}")
        if not 0 <= each["taken"] - each["acknowledged"] <= asked.connections:
            sys.exit(f"the sessions have not taken the steps that were acknowledged: {each}")


def _cells(sessions: int, rounds: list[Round]) -> list[str]:
    rate = median(each["acknowledged"] / each["seconds"] for each in rounds)
    waits = [milliseconds(median(each[what] for each in rounds)) for what in ("median_s", "p99_s")]
    counts = ("acknowledged", "refused", "broken", "taken", "on_record")
    sums = [f"{sum(each[what] for each in rounds):,}" for what in counts]
    return ["one" if sessions == 1 else f"{sessions}, a connection each", f"{rate:,.0f}", *waits, *sums]


if __name__ == "__main__":
    main()
