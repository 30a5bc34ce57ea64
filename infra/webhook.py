"""Backblaze's event notifications: a wake-up within seconds. The cron stays the truth.

Facts (Backblaze, event notifications): HTTPS POST of 1 to 50 events, signed with HMAC-SHA256 over
the raw body; at least once, without order; 3 s to answer, retried unless it gets 200.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import structlog

from infra.asgi import Reply, Request
from infra.waking import Notes

log = structlog.get_logger(__name__)

SIGNATURE_HEADER: Final = "x-bz-event-notification-signature"
MAX_BODY_BYTES: Final = 256 * 1024
"""50 events with names of 1,024 bytes are a third of that."""
EVENT_TYPES: Final = ("b2:ObjectCreated:*",)
_CREATED: Final = "b2:ObjectCreated:"
_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class Event:
    """One of a notification's events, as far as it matters here."""

    event_id: str
    event_type: str
    key: str
    """Of the object, with the bucket's root prefix; "" in a test event."""


def signature(secret: str, body: bytes) -> str:
    """The header that Backblaze sends with a body."""
    return "v1=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def is_signed(secret: str, body: bytes, header: str | None) -> bool:
    """Whether the header is this body's signature. Takes as long for a wrong one as for a right one."""
    return hmac.compare_digest(signature(secret, body).encode(), (header or "").encode())


def events_of(body: bytes) -> list[Event]:
    """The events in a body, those of unknown form left out.

    Raises:
        ValueError: it is no notification.
    """
    value = json.loads(body)
    events = value.get("events") if isinstance(value, dict) else None
    if not isinstance(events, list):
        raise ValueError("no list of events")  # noqa: TRY004 - of the body, not of an argument
    found = []
    for event in events:
        if isinstance(event, dict) and isinstance(event.get("eventId"), str):
            kind, key = event.get("eventType"), event.get("objectName", "")
            found.append(Event(event["eventId"], str(kind), key if isinstance(key, str) else ""))
    return found


def wakes(event: Event, inbox: str) -> bool:
    """Whether there may be something to do: an object was made in the inbox."""
    return event.event_type.startswith(_CREATED) and event.key.startswith(inbox)


@dataclass(frozen=True)
class Door:
    """The endpoint's function.

    Args:
        inbox: the inbox's prefix in the bucket, root prefix included.
        wake: has a tick begin; whether it was this call that did it.
    """

    secret: str
    inbox: str
    notes: Notes
    wake: Callable[[], bool]

    def __call__(self, request: Request) -> Reply:
        """Answer one notification. Cost: 2 requests to the Dict for each event in the inbox, and 2."""
        if request.method != "POST":
            return Reply.of_json({"error": "POST"}, 405)
        if not is_signed(self.secret, request.body, request.headers.get(SIGNATURE_HEADER)):
            return Reply.of_json({"error": "wrong signature"}, 401)
        try:
            events = events_of(request.body)
        except ValueError as error:
            return Reply.of_json({"error": f"no notification: {error}"}, 400)
        fresh = self._fresh([event for event in events if wakes(event, self.inbox)])
        woke = bool(fresh) and self.wake()
        # Marked only now: a notification that failed on the way is to be sent again.
        self._mark(fresh)
        log.info("webhook", events=len(events), fresh=len(fresh), woke=woke)
        return Reply.of_json({"events": len(events), "fresh": len(fresh), "woke": woke})

    def _fresh(self, events: list[Event]) -> list[Event]:
        with ThreadPoolExecutor(_THREADS) as pool:
            seen = list(pool.map(lambda event: self.notes.contains(_mark(event)), events))
        return [event for event, known in zip(events, seen, strict=True) if not known]

    def _mark(self, events: list[Event]) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda event: self.notes.put(_mark(event), True), events))


def _mark(event: Event) -> str:
    return f"event/{event.event_id}"


def rule(*, name: str, inbox: str, url: str) -> dict[str, Any]:
    """The rule to create at Backblaze (`b2 bucket notification-rule create`), without its secret."""
    return {
        "name": name,
        "eventTypes": list(EVENT_TYPES),
        "objectNamePrefix": inbox,
        "isEnabled": True,
        "targetConfiguration": {"targetType": "webhook", "url": url},
    }


def trial_body() -> bytes:
    """What Backblaze sends to try a rule out."""
    event = {"eventId": "dropbatch-test", "eventType": "b2:TestEvent", "eventVersion": 1, "eventTimestamp": 0}
    return json.dumps({"events": [event]}).encode()
