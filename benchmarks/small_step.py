"""One small step, push + AdamW + pull of 10,000 float32 parameters through the SDK, beside its floor and peers.

    python benchmarks/small_step.py [--parameters N] [--transport tcp|uds] [--steps N] [--rounds N] [--peers NAME …]

The floor is the same bytes there and back through bare sockets, without HTTP, plus torch's fused AdamW in process.
"bare ASGI + http.client" is a route that reads the body and sends it back: no optimizer, no history, no checks. Every
row is a client process and a server process of its own. optimd, the floor's ways and one peer take turns of many steps
each; then optimd, the floor's ways and the next peer.
"""

from __future__ import annotations

import argparse

from cases import TRANSPORTS, Case
from comparison import compare
from interleaved import Contender

PEERS = {
    "bare_asgi": "bare ASGI + http.client",
    "gloo": "gloo send/recv + fused AdamW",
    "torch_rpc": "torch RPC + fused AdamW",
    "ray_actor": "Ray actor + fused AdamW",
    "fastapi_obvious": "FastAPI, the obvious way",
}
OTHERS_STEPS = 100
"""In each turn; optimd, whose 99th percentile is wanted, takes more."""


def main() -> None:
    """Measure, print one table, and write benchmarks/out/small_step_….json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp")
    parser.add_argument("--steps", type=int, default=21_000, help="of optimd, over all rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    asked = parser.parse_args()
    turns = asked.rounds * max(1, len(asked.peers))
    steps = -(-asked.steps // turns)
    few = min(steps, OTHERS_STEPS)
    case = Case(asked.parameters, transport=asked.transport)
    peers = [Contender(PEERS[peer], peer, few) for peer in asked.peers]
    compare(f"small_step_{case.parameters}_{case.transport}", case, peers, asked.rounds, steps, few)


if __name__ == "__main__":
    main()
