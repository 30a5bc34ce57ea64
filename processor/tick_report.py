"""What one pass over the inbox found, and what of it was taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from processor.attempt import Claim
from processor.errors import StoreError
from processor.folders import Look
from processor.inbox import Drop, Inbox
from processor.peek import Peeked

_MAX_FAILURES = 8
"""Drops that may be out of reach in one pass; at more it is the store that is."""
_MAX_REFUSED = 256
"""Drops that this runner may not read, of those that one pass looks at; a used-up cap refuses them all."""
_ASKING_S = 0.25
"""Between two passes, for each job that was found to be another runner's."""

Glance = Peeked | StoreError
"""What a drop says, or why it could not be read."""


@dataclass(slots=True)
class TickReport:
    """What one pass found and took."""

    claims: list[Claim] = field(default_factory=list)
    pending: int = 0
    """Job files that were due, claimed or not."""
    young: int = 0
    """Of those looked at: perhaps still being written."""
    later: int = 0
    """Of those looked at: not due yet, for another place, or of a kind of which enough is in hand."""
    leased: int = 0
    """Of those looked at: another runner's."""
    folders: dict[str, Look] = field(default_factory=dict)
    """Dataset folders with something in them, and how far each is."""
    failures: int = 0
    """Of those looked at: could not be read, or their leases not be asked for."""
    stuck: int = 0
    """Of those looked at: an older version of theirs could not be removed."""
    why_not: str | None = None
    """What a store said of the last that failed or is stuck."""
    refused_keys: list[str] = field(default_factory=list)
    """Of those looked at: refused to this runner."""
    unfinished: bool = False
    """Whether there was more to remove than one pass does."""
    paused: bool = False
    inbox: Inbox | None = None
    looked: int = 0
    """How many of the inbox's due drops were looked at."""
    ready: list[Peeked] = field(default_factory=list)
    """Those found ready and not claimed yet."""
    glanced: dict[Drop, Glance] = field(default_factory=dict)
    """What the last drops of a long queue say, until their turn comes."""
    problem: str | None = None
    """Why nothing could be done, for people."""
    refused: Literal["authority"] | None = None
    over_budget: str | None = None
    """Why nothing was claimed although jobs are due: the day's budget is used up."""

    @property
    def has_more(self) -> bool:
        """Whether `claim_more` may find anything."""
        due = self.inbox.due if self.inbox and not self.paused else []
        return bool(self.ready) or (self.looked < len(due) and not self.out_of_reach)

    @property
    def out_of_reach(self) -> bool:
        """Whether it is no use to ask for more in this pass."""
        return self.failures > _MAX_FAILURES or len(self.refused_keys) > _MAX_REFUSED

    @property
    def unclaimed(self) -> int:
        """Of those looked at: left where they are, since a store failed."""
        return self.failures + self.stuck

    @property
    def next_wake_s(self) -> float:
        """How long until another pass is worth while, without being woken."""
        if self.problem:
            return 30.0
        if self.young or self.unfinished:
            return 2.0
        # Asking about another's job costs as much whether 3 or 300 are asked about: the more, the rarer.
        return min(60.0, max(2.0, self.leased * _ASKING_S)) if self.leased else 60.0
