"""What a request builds on (`If-Match`) and who it is (`Idempotency-Key`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from optimd_service.errors import MalformedHeader, PreconditionRequired, StaleStep
from optimd_service.types import Version

MAX_KEY = 255
_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY}}}")
# W/ is read past: a proxy that compresses weakens our ETags, which name exact states all the same.
_ETAG = re.compile(r'(?:W/)?"(\d{1,19})(?:\.(\d{1,19}))?"')


class Match(NamedTuple):
    """The versions that a request accepts: (step, generation), or (step, None) for any generation of a step."""

    versions: Sequence[tuple[int, int | None]]

    @classmethod
    def read(cls, header: str, *, name: str = "If-Match") -> Match:
        """Read `"3.0"`, `"3"`, or several of them, separated by commas.

        Raises: MalformedHeader.
        """
        versions = []
        for part in header.split(","):
            found = _ETAG.fullmatch(part.strip())
            if not found:
                raise MalformedHeader(
                    f'{name} takes a version in quotes, such as "3.0", or the step alone, "3".', header=name
                )
            generation = found[2]
            versions.append((int(found[1]), None if generation is None else int(generation)))
        return cls(versions)

    def accepts(self, version: Version) -> bool:
        """Whether the version is one of these."""
        return any(
            step == version.step and generation in {None, version.generation} for step, generation in self.versions
        )

    def check(self, version: Version) -> None:
        """Raises: StaleStep, with the version that the server holds."""
        if not self.accepts(version):
            raise StaleStep(
                f"The session stands at {version.etag}, which is not what If-Match names. Pull its weights, compute "
                "the gradient anew and push that.",
                step=version.step,
                etag=version.etag,
            )


class Precondition(NamedTuple):
    """How a push makes sure that it happens once."""

    match: Match | None
    key: str | None

    @classmethod
    def read(cls, if_match: str | None, key: str | None) -> Precondition:
        """Read the two headers. Raises: MalformedHeader."""
        if key is not None and not _KEY.fullmatch(key):
            raise MalformedHeader(
                f"Idempotency-Key takes 1 to {MAX_KEY} visible ASCII characters, such as a UUID.",
                header="Idempotency-Key",
            )
        return cls(None if if_match is None else Match.read(if_match), key)

    def require_one(self, version: Version) -> None:
        """Raises: PreconditionRequired when the push names neither."""
        if self.match is None and self.key is None:
            raise PreconditionRequired(
                "Send `If-Match` with the version that the gradients were computed from, or an `Idempotency-Key` of "
                f"your own; without either a retry could step twice. The session stands at {version.etag}.",
                step=version.step,
                etag=version.etag,
            )

    def require_key(self, version: Version) -> None:
        """Raises: PreconditionRequired when the push has no key."""
        if self.key is None:
            raise PreconditionRequired(
                "Send an `Idempotency-Key`: where pushes are accumulated or losses scaled, a push may count and leave "
                f"the version as it is, and only a key can tell its retry. The session stands at {version.etag}.",
                step=version.step,
                etag=version.etag,
            )
