"""Which lease store rules a bucket, so that two runners with different ones can't both work it.

`state/authority.json` in the bucket and the key `authority` in the lease store hold one
id. A runner whose lease store holds another id, or none, claims and commits nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from pydantic import AwareDatetime, ValidationError

from processor.clock import Clock
from processor.errors import AlreadyExists, ForeignAuthority, NotFound, StoreError, StoreUnavailable
from processor.layout import AUTHORITY
from processor.leases.protocol import LeaseStore, Record
from processor.models import Model
from processor.policy import Policy
from processor.records import dump
from processor.store import Store, read_bytes

_KEY = "authority"
_MAX_BYTES = 64 * 1024
_STALE_S = 10.0
"""Half of the usual `founding_grace_s`: the other half is for the write to arrive."""


class Founding(Model):
    """`state/authority.json`."""

    id: str
    backend: str
    founded_at: AwareDatetime
    lease_s: float
    previous: str = ""
    """The id before the lease store was wiped, if it ever was."""


class Authority:
    """Compares the bucket's authority with the lease store's; founds it where there is none."""

    def __init__(
        self,
        store: Store,
        leases: LeaseStore,
        clock: Clock,
        policy: Policy,
        *,
        nonce: Callable[[], str],
    ) -> None:
        self._store = store
        self._leases = leases
        self._clock = clock
        self._policy = policy
        self._nonce = nonce
        self._checked_at: float | None = None
        self._held_at = 0.0
        self._founding: Founding | None = None

    def check(self, *, max_age_s: float = 0.0, since: float = 0.0) -> Founding:
        """Make sure that this runner's lease store is the bucket's.

        Args:
            max_age_s: an earlier success this fresh is good enough, and costs nothing;
            since: unless that was before this moment, on the monotonic clock: then the lease store
                at least is asked once more, which may have been wiped since. The bucket need not
                be: it names another founding only after the lease store holds another.
        Raises:
            ForeignAuthority: another lease store rules here.
            StoreUnavailable: unknown, or the lease store was wiped and its longest lease
                may still be running out.
            StoreError: what stands in the bucket does not read as an authority.
        Cost: 1 request and 1 of the lease store, or 1 of the lease store; founding up to 4 more.
        """
        now = self._clock.monotonic()
        founding, at = self._founding, self._checked_at
        fresh = at is not None and now - at <= max_age_s
        if founding and fresh and (self._held_at >= since or self._still_held(founding, now)):
            return founding
        # What is known stays meanwhile, and should this fail: other threads' jobs ask how old it is.
        self._checked_at = None
        self._founding = founding = self._compare(now)
        self._checked_at = self._held_at = now
        return founding

    def look(self) -> Founding | None:
        """What rules here, as `check` has it, but nothing is founded; None where nothing rules yet.

        Raises:
            ForeignAuthority, StoreError: as `check`.
        Cost: 1 request and 1 of the lease store.
        """
        if (standing := self._read()) is not None:
            self._refuse_foreign(standing, self._leases.read(_KEY))
        return standing

    def _still_held(self, founding: Founding, asked_at: float) -> bool:
        held = self._leases.read(_KEY)
        if held is None or held["nonce"] != founding.id:
            return False
        self._held_at = max(asked_at, self._held_at)
        return True

    def older_than_founding(self, modified: datetime) -> bool:
        """Whether a drop may have attempts that a wiped lease store has forgotten."""
        founding = self._founding
        return founding is not None and bool(founding.previous) and modified <= founding.founded_at

    def _compare(self, asked_at: float) -> Founding:
        standing = self._read()
        held = self._leases.read(_KEY)
        if standing is None:
            if held is None:
                self._still_true(asked_at)
                held = self._leases.create(_KEY, {"nonce": self._nonce(), "previous": ""})
            return self._found(held, asked_at)
        self._refuse_foreign(standing, held)
        if held is None:
            held = self._replace_forgotten(standing, asked_at)
        if held["nonce"] == standing.id:
            return standing
        if held["previous"] == standing.id:
            return self._found(held, asked_at)
        raise _foreign(standing, self._leases.backend)

    def _refuse_foreign(self, standing: Founding, held: Record | None) -> None:
        """The id counts: a folder may be moved, with its leases. Only without one does the name."""
        if held is None:
            foreign = standing.backend != self._leases.backend
        else:
            foreign = held["nonce"] != standing.id and held["previous"] != standing.id
        if foreign:
            raise _foreign(standing, self._leases.backend)

    def _still_true(self, asked_at: float) -> None:
        """Found nothing upon what was read too long ago: another may rule by now.

        Raises:
            StoreUnavailable: nothing was done; the next tick asks again.
        """
        taken_s = self._clock.monotonic() - asked_at
        if taken_s > _STALE_S:
            raise StoreUnavailable(
                f"the answers took {taken_s:.0f} s, too long to found an authority upon", where=AUTHORITY
            )

    def _replace_forgotten(self, standing: Founding, asked_at: float) -> Record:
        """Found a new authority once no lease of the wiped store can still be held."""
        seen = self._leases.create(
            f"refound/{standing.id}", {"nonce": self._nonce(), "at": self._clock.now().isoformat()}
        )
        longest_s = max(standing.lease_s, self._policy.lease_s) + 2 * self._policy.margin_s
        free_at = datetime.fromisoformat(str(seen["at"])) + timedelta(seconds=longest_s)
        if self._clock.now() < free_at:
            raise StoreUnavailable(
                f"the lease store {standing.backend} has lost its contents; "
                f"old leases may run until {free_at:%H:%M:%S} UTC",
                where=AUTHORITY,
                mend="Nothing to do: work starts again then",
            )
        self._still_true(asked_at)
        return self._leases.create(_KEY, {"nonce": self._nonce(), "previous": standing.id})

    def _found(self, held: Record, asked_at: float) -> Founding:
        self._still_true(asked_at)
        founding = Founding(
            id=str(held["nonce"]),
            backend=self._leases.backend,
            founded_at=self._clock.now(),
            lease_s=self._policy.lease_s,
            previous=str(held["previous"]),
        )
        if self._store.capabilities.put_if_absent and not founding.previous:
            # Another founder may be first; the comparison below tells whether it is ours.
            with suppress(AlreadyExists):
                self._store.put(AUTHORITY, dump(founding), media_type="application/json", if_absent=True)
        else:
            # Without put-if-absent a founder with another lease store may be writing at this
            # very moment. Whoever still stands after every such write has landed, rules.
            self._store.put(AUTHORITY, dump(founding), media_type="application/json")
            self._clock.sleep(self._policy.founding_grace_s)
        standing = self._read()
        if standing is None or standing.id != founding.id:
            raise _foreign(standing, self._leases.backend)
        return standing

    def _read(self) -> Founding | None:
        try:
            return Founding.model_validate_json(read_bytes(self._store, AUTHORITY, limit_bytes=_MAX_BYTES))
        except NotFound:
            return None
        except ValidationError as error:
            raise StoreError(
                f"the bucket's authority does not read as one ({error.error_count()} errors)",
                where=AUTHORITY,
                mend="It was changed by hand, or by a newer Dropbatch: restore it, or update this one",
            ) from None


_RENAMED = (
    "If this machine's name has changed: while nothing runs, rename the old folder to the new and delete "
    "this object. Else configure the same lease store; or, if no runner uses the old one any more, delete it"
)


def _foreign(standing: Founding | None, backend: str) -> ForeignAuthority:
    ruler = standing.backend if standing else "unknown"
    return ForeignAuthority(
        f"this bucket's leases live in {ruler}, this runner is configured for {backend}; it claims nothing",
        where=AUTHORITY,
        mend=_RENAMED
        if ruler.startswith("directory:") and backend.startswith("directory:")
        else "Configure the same lease store; or, if no runner uses the old one any more, delete this object",
    )
