"""The parts of one running machine, put together once and handed down."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from processor.budget import DayBudget
from processor.clock import StoreClock
from processor.events import Observer, ignore
from processor.handler import Handler, Stop, Stores
from processor.launch import Launcher
from processor.layout import AUTHORITY
from processor.leases.authority import Authority
from processor.leases.lease import Leases
from processor.notify import Notices
from processor.policy import Policy

if TYPE_CHECKING:
    from processor.recurring import Recurring


def new_nonce() -> str:
    """Names one process's try at something; 64 random bits, so that no two are ever equal."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Machine:
    """Everything the protocol needs, injected: a simulation builds a fleet of these.

    `handlers` plan jobs here, on a CPU; `launcher` runs their tasks, here or elsewhere.
    """

    stores: Stores
    leases: Leases
    authority: Authority
    clock: StoreClock
    launcher: Launcher
    handlers: Mapping[str, Handler]
    policy: Policy
    observe: Observer = ignore
    notices: Notices | None = None
    """Who is told how jobs end; None for nobody."""
    gpus: Collection[str] | None = None
    """The classes of GPU that a job may ask for; None where nothing is rented for it."""
    stop: Stop = field(default_factory=Stop)
    """Set to wind down: nothing new is claimed or submitted, leases are given back."""
    nonce: Callable[[], str] = new_nonce
    host: str = field(default_factory=socket.gethostname)

    @cached_property
    def recurring(self) -> Recurring:
        """What this process knows of the bucket's recurring templates."""
        from processor.recurring import Recurring  # late: it drops jobs, and so needs this module

        return Recurring()

    @cached_property
    def budget(self) -> DayBudget:
        """What the day has cost, as far as this process knows."""
        return DayBudget(self.stores.main, self.policy, self.clock)

    def with_stop(self, stop: Stop) -> Machine:
        """The same machine with a stop of its own; what the day has cost it goes on knowing."""
        other = replace(self, stop=stop)
        vars(other)["budget"] = self.budget
        return other

    def set_clock(self) -> None:
        """Set the clock by the store's, where no tick has: this host's own may be wrong.

        Raises:
            StoreError: the store is out of reach, or took too long to answer.
        Cost: 1 request.
        """
        sent_at = self.clock.monotonic()
        page = next(iter(self.stores.main.list(AUTHORITY)))
        self.clock.sync(page.date, sent_at=sent_at)

    def close(self) -> None:
        """Stop the launcher's engines, then close leases and stores. Idempotent."""
        self.launcher.close()
        self.leases.close()
        for store in {
            id(s): s for s in (self.stores.main, self.stores.models, self.stores.datasets)
        }.values():
            store.close()
