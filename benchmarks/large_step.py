"""One large step, push + AdamW + pull through the SDK, beside its floor and other ways to have it done elsewhere.

    python benchmarks/large_step.py [--parameters N] [--tensors N] [--dtype f32|bf16] [--transport tcp|uds]
                                    [--clients N] [--rounds N] [--peers NAME …]

The floor is the fastest of many ways to move the same bytes through bare sockets, without HTTP, plus torch's fused
AdamW in process. Every row is a client process and a server process of its own. optimd, the floor's ways and one peer
take their steps in turns, round after round; then optimd, the floor's ways and the next peer. "FastAPI, the obvious
way" takes part in the first rounds alone where its step takes seconds.
"""

from __future__ import annotations

import argparse

from cases import DTYPES, TRANSPORTS, Case
from comparison import compare
from interleaved import Contender

FEW_ROUNDS = 3
SLOW_FROM = 10_000_000
PEERS = {
    "gloo": "gloo send/recv + fused AdamW",
    "torch_rpc": "torch RPC + fused AdamW",
    "ray_actor": "Ray actor + fused AdamW",
    "fastapi_obvious": "FastAPI, the obvious way",
}


def guest(peer: str, case: Case) -> Contender:
    """The peer as it takes part."""
    is_slow = peer == "fastapi_obvious" and case.parameters * case.clients >= SLOW_FROM
    return Contender(PEERS[peer], peer, rounds=FEW_ROUNDS if is_slow else None)


def main() -> None:
    """Measure, print one table, and write benchmarks/out/large_step….json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--tensors", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    asked = parser.parse_args()
    case = Case(asked.parameters, asked.tensors, asked.dtype, asked.transport, asked.clients)
    kind = f"large_step_{case.parameters}_{case.tensors}x_{case.dtype}_{case.transport}_{case.clients}"
    compare(kind, case, [guest(peer, case) for peer in asked.peers], rounds=asked.rounds)


if __name__ == "__main__":
    main()
