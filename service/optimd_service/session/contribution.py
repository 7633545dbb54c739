"""A push that comes in parts: which parts belong together, what has come of them, and what is missing."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from optimd_service.errors import ContributionIncomplete, InvalidField
from optimd_service.session.incoming import Incoming
from optimd_service.types import Layout, Version

MAX_ID = 64
_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID}}}")
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Part:
    """What a push says of the contribution that it is a part of.

    Attributes:
      contribution: its id.
      completes: nothing follows: the step is to be taken.
    """

    contribution: str
    completes: bool

    @classmethod
    def read(cls, contribution: str | None, complete: str | None) -> Part | None:
        """Read the two query parameters; None for a push that comes whole. Raises: InvalidField."""
        if complete not in {None, "true", "false"}:
            raise InvalidField("complete is true or false.", field="complete")
        if contribution is None:
            if complete is not None:
                raise InvalidField("complete says something of a contribution; name it too.", field="complete")
            return None
        if not _ID.fullmatch(contribution):
            raise InvalidField(
                f"contribution takes 1 to {MAX_ID} visible ASCII characters, such as a UUID.", field="contribution"
            )
        return cls(contribution, complete == "true")


@dataclass(eq=False)
class Contribution:
    """Gradients that lie in a session's buffer, and wait for those that are missing.

    Attributes:
      version: what the session stood at when the first of them came.
      incoming: judges them as they come, if anything does.
    """

    id: str
    version: Version
    incoming: Incoming | None
    _arrived: set[str] = field(default_factory=set)

    def arriving(self, names: Collection[str], layout: Layout) -> None:
        """These, of ``layout``, are about to be written: they are missing until they have come whole."""
        self._arrived.difference_update(names)
        if self.incoming is not None:
            for name in names:
                self.incoming.expect(layout.spans[name])

    def arrived(self, names: Collection[str]) -> None:
        """These have come; they take the place of any that came before."""
        self._arrived.update(names)

    def require_all(self, layout: Layout) -> None:
        """Raises: ContributionIncomplete unless every tensor of ``layout`` has come."""
        missing = [tensor for tensor in layout.shapes if tensor not in self._arrived]
        if missing:
            named = [name[:80] for name in missing[:_NAMED]]
            raise ContributionIncomplete(
                f"Of {len(layout.shapes)} gradients {len(missing)} have not come in this contribution "
                f"({', '.join(map(repr, named))}), or are forgotten since the session moved or somebody else pushed. "
                "Nothing was changed; push all gradients whole.",
                contribution=self.id,
                missing=named,
            )
