"""Replies held against the server's own OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

import httpx
from jsonschema import Draft202012Validator

# What the router itself answers, before there is an operation to document it.
ROUTING = {"/problems/route-not-found", "/problems/method-not-allowed"}
PAGES = {"/docs", "/openapi.json"}


class Contract:
    """What an OpenAPI document promises of every reply."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._paths = [(_pattern(path), operations) for path, operations in document["paths"].items()]
        self._validators: dict[str, Draft202012Validator] = {}

    def check(self, response: httpx.Response) -> None:
        """An httpx event hook: raises AssertionError for a reply that the document does not hold."""
        response.read()
        operation = self._operation(response.request)
        if operation is None:
            assert response.request.url.path in PAGES or response.json()["type"] in ROUTING, _shown(response)
            return
        promised = operation["responses"].get(str(response.status_code))
        assert promised is not None, f"undocumented status: {_shown(response)}"
        kind = response.headers.get("content-type")
        content = promised.get("content", {})
        assert kind in content if response.content else not content, f"undocumented {kind}: {_shown(response)}"
        if kind == "application/problem+json":
            slug = response.json()["type"].removeprefix("/problems/")
            assert slug in content[kind]["examples"], f"undocumented problem: {_shown(response)}"
        if kind is not None and "json" in kind:
            self.validate(content[kind]["schema"], response.json())

    def validate(self, schema: dict[str, Any], value: Any) -> None:
        """Raises jsonschema.ValidationError; ``schema`` may refer to the document's components."""
        key = repr(schema)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = Draft202012Validator(whole)
        self._validators[key].validate(value)

    def _operation(self, request: httpx.Request) -> dict[str, Any] | None:
        for pattern, operations in self._paths:
            if pattern.fullmatch(request.url.raw_path.decode().partition("?")[0]):
                found: dict[str, Any] | None = operations.get(request.method.lower())
                return found
        return None


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{\w+\}", "[^/]+", path))


def _shown(response: httpx.Response) -> str:
    return f"{response.request.method} {response.url} → {response.status_code} {response.text[:500]}"
