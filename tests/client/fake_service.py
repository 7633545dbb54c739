"""A stand-in for the server, small enough to read: plain SGD on NumPy arrays behind the routes that the SDK calls.

`FakeService.answer` is a function from request to reply. It is served through `httpx.MockTransport` or by a thread
with a real HTTP/1.1 socket, so one fake tests every transport.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import safetensors.numpy

from reaching import listening

SAFETENSORS = "application/vnd.safetensors"
CREATED = {"id": 1, "kind": "created", "step": 0, "at": "2026-01-01T00:00:00Z", "detail": {}}
SGD = {
    "name": "sgd",
    "summary": "Plain.",
    "hyperparameters": {"properties": {"lr": {"description": "step size"}}},
    "defaults": {"lr": 1e-3},
    "state": [],
    "bytes_per_parameter": 0,
    "source": "Robbins & Monro 1951",
}

ADVICE = {
    "recommendations": [
        {
            "optimizer": "sgd",
            "hyperparameters": {"lr": 0.1, "nesterov": True},
            "groups": "no_decay",
            "schedule": {"name": "cosine", "total_steps": 1000},
            "clip": {"max_norm": 1.0},
            "state_dtype": "f32",
            "memory": {"bytes_per_parameter": 4.0, "state_bytes": 4096, "total_bytes": 12288},
            "score": 10.0,
            "reasons": [{"text": "It serves well.", "source": "Robbins & Monro 1951"}],
        }
    ],
    "warnings": [{"text": "adam needs 8192 bytes of state.", "source": None}],
    "needed_bytes": None,
}


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def in_json(document: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, {"content-type": "application/json"} | headers, json.dumps(document).encode())


def problem(slug: str, status: int, *, retry_after: str | None = None, **evidence: Any) -> Answer:
    document = {"type": f"/problems/{slug}", "title": "T.", "status": status, "detail": f"{slug} here"} | evidence
    headers = {"content-type": "application/problem+json"} | ({"retry-after": retry_after} if retry_after else {})
    return Answer(status, headers, json.dumps(document).encode())


def read_safetensors(body: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    length = int.from_bytes(body[:8], "little")
    return safetensors.numpy.load(body), json.loads(body[8 : 8 + length]).get("__metadata__", {})


class FakeService:
    """One session, `s1`, under SGD. `planned` answers are given first, in turn, in place of the real ones."""

    def __init__(self, params: dict[str, np.ndarray] | None = None, name: str = "digits") -> None:
        self.params = {"b": np.zeros(2, np.float32), "w": np.ones((2, 3), np.float32)} if params is None else params
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self.keys: dict[str, dict[str, Any]] = {}
        self.parts: dict[str, dict[str, np.ndarray]] = {}
        self.seen: list[Seen] = []
        self.planned: list[Answer | Exception | None] = []
        self.deleted = False
        self.generation = 0
        self._lock = threading.Lock()

    @property
    def etag(self) -> str:
        return f"{len(self.rows)}.{self.generation}"

    def info(self) -> dict[str, Any]:
        tensors = [
            {"name": n, "shape": list(a.shape), "dtype": "F32", "group": "default"} for n, a in self.params.items()
        ]
        facts = {
            "id": "s1",
            "name": self.name,
            "status": "live",
            "created_at": "2026-01-01T00:00:00Z",
            "skipped": 0,
            "loss_scale_now": None,
        }
        figures = {"step": len(self.rows), "etag": self.etag, "parameters": 8, "bytes": 64, "nonfinite": "reject"}
        chosen = {"optimizer": {"name": "sgd", "lr": 0.5}, "groups": [], "hyperparameters": {"default": {"lr": 0.5}}}
        return facts | figures | chosen | {"tensors": tensors}

    def answer(self, seen: Seen) -> Answer:
        with self._lock:
            self.seen.append(seen)
            planned = self.planned.pop(0) if self.planned else None
            if isinstance(planned, Exception):
                raise planned
            return planned or self._route(seen)

    def _route(self, seen: Seen) -> Answer:
        path = urlsplit(seen.target).path
        if path.startswith("/v1/sessions/") and (self.deleted or not path.startswith("/v1/sessions/s1")):
            return problem("session-not-found", 404)
        route = path.replace("/v1/sessions/s1", "S").removeprefix("/v1")
        if route.startswith("S/steps/"):
            return in_json(self.rows[int(route[8:]) - 1])
        known: dict[str, Callable[[Seen], Answer]] = {
            "POST /sessions": lambda _: in_json(self.info(), 201, etag=f'"{self.etag}"'),
            "GET /sessions": self._list,
            "GET S": lambda _: in_json(self.info(), etag=f'"{self.etag}"'),
            "PATCH S": lambda _: in_json(self.info(), etag=f'"{self.etag}"'),
            "DELETE S": self._delete,
            "GET S/params": self._params,
            "PUT S/params": self._put_params,
            "GET S/state": self._state,
            "PUT S/state": self._put_state,
            "PUT S/optimizer": self._put_state,
            "POST S/steps": self._step,
            "GET S/steps": self._history,
            "GET S/events": lambda _: in_json({"events": [CREATED], "next": None}),
            "GET /optimizers": lambda _: in_json({"optimizers": [SGD]}),
            "GET /optimizers/sgd": lambda _: in_json(SGD),
            "POST /advice": lambda _: in_json(ADVICE),
            "GET /readyz": lambda _: in_json({"status": "ready", "sessions": 1}),
        }
        call = known.get(f"{seen.method} {route}")
        return call(seen) if call else problem("route-not-found", 404)

    def _list(self, seen: Seen) -> Answer:
        summary = {name: value for name, value in self.info().items() if name != "tensors"}
        return in_json({"sessions": [summary], "next": None if "after" in seen.query else "s1"})

    def _delete(self, _: Seen) -> Answer:
        self.deleted = True
        return Answer(204)

    def _put_params(self, seen: Seen) -> Answer:
        self.params = read_safetensors(seen.body)[0]
        return self._put_state(seen)

    def _put_state(self, _: Seen) -> Answer:
        self.generation += 1
        return in_json({"step": len(self.rows), "etag": self.etag}, etag=f'"{self.etag}"')

    def _state(self, _: Seen) -> Answer:
        return self._tensors(
            {"w.momentum_buffer": self.params["w"]}, {"optimizer": "sgd", "step": "3", "etag": self.etag}
        )

    def _history(self, seen: Seen) -> Answer:
        after, limit = int(seen.query.get("after", 0)), int(seen.query.get("limit", 2))
        following = after + limit if after + limit < len(self.rows) else None
        return in_json({"steps": self.rows[after : after + limit], "next": following})

    def _params(self, seen: Seen) -> Answer:
        if seen.headers.get("if-none-match") == f'"{self.etag}"':
            return Answer(304, {"etag": f'"{self.etag}"'})
        return self._tensors(self.params, {"step": str(len(self.rows)), "etag": self.etag})

    def _step(self, seen: Seen) -> Answer:
        key = seen.headers.get("idempotency-key", "")
        if key in self.keys:
            return self._stepped(self.keys[key] | {"duplicate": True}, seen)
        if seen.headers.get("if-match", f'"{self.etag}"') != f'"{self.etag}"':
            return problem("stale-step", 412, step=len(self.rows), etag=self.etag)
        grads, metadata = read_safetensors(seen.body)
        contribution = seen.query.get("contribution", "")
        grads = self.parts.pop(contribution, {}) | grads
        if "complete" not in seen.query and contribution:
            self.parts[contribution] = grads
            return self._stepped(self._receipt("buffered", len(self.rows)), seen)
        if missing := [name for name in self.params if name not in grads]:
            return problem("contribution-incomplete", 409, contribution=contribution, missing=missing)
        self.params = {name: self.params[name] - np.float32(0.5) * grads[name].astype("f4") for name in self.params}
        receipt = self._receipt("applied", len(self.rows) + 1)
        receipt["loss"] = float(metadata["loss"]) if "loss" in metadata else None
        said = {"num_examples": None, "worker": metadata.get("worker"), "hyperparameters": None}
        self.rows.append(receipt | {"duplicate": False} | said | {"committed_at": "2026-01-01T00:00:00Z"})
        self.keys[key] = receipt
        return self._stepped(receipt | {"duplicate": False}, seen)

    def _receipt(self, outcome: str, step: int) -> dict[str, Any]:
        receipt = {"session": "s1", "step": step, "base_step": len(self.rows), "outcome": outcome}
        figures = {"lr": 0.5, "loss": None, "grad_norm": 1.0, "clip_scale": 1.0, "update_norm": 0.5}
        return receipt | figures | {"param_norm": None, "durable_step": 0, "loss_scale": None}

    def _stepped(self, receipt: dict[str, Any], seen: Seen) -> Answer:
        params = {} if seen.query.get("pull") == "none" or receipt["outcome"] == "buffered" else self.params
        return self._tensors(params, {"receipt": json.dumps(receipt), "etag": self.etag})

    def _tensors(self, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Answer:
        headers = {"content-type": SAFETENSORS, "etag": f'"{self.etag}"'}
        return Answer(200, headers, safetensors.numpy.save(tensors, metadata))

    def transport(self) -> httpx.MockTransport:
        """Serve both the blocking and the asyncio client, without a socket."""

        def reply(request: httpx.Request) -> httpx.Response:
            seen = Seen(request.method, request.url.raw_path.decode(), dict(request.headers), request.content)
            answer = self.answer(seen)
            return httpx.Response(answer.status, headers=answer.headers, content=answer.body)

        async def reply_async(request: httpx.Request) -> httpx.Response:
            await request.aread()
            return reply(request)

        return _BothWays(reply, reply_async)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve over a real socket; yields the URL."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = service.answer(Seen(self.command, self.path, headers, body))
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.status not in {204, 304}:
                    self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any  # noqa: N815 - http.server's names

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        with (
            listening() as (listener, url),
            ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False) as server,
        ):
            server.socket.close()
            server.socket = listener
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield url
            finally:
                server.shutdown()
                thread.join()


class _BothWays(httpx.MockTransport):
    """A mock transport with one function for each kind of client."""

    def __init__(self, reply: Any, reply_async: Any) -> None:
        super().__init__(reply)
        self._reply_async = reply_async

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._reply_async(request)
