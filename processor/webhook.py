"""A notifier that posts JSON, signed as Standard Webhooks have it.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md:
the signature is HMAC-SHA256 over `id.timestamp.body`, in base64, after `v1,`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable

import urllib3
from urllib3.util import Retry, Timeout

from processor.errors import ConfigError, DropbatchError
from processor.notify import Notice
from processor.version import VERSION

_RETRIES = Retry(
    total=3,
    backoff_factor=0.5,
    status_forcelist=(408, 429, 500, 502, 503, 504),
    allowed_methods=None,
    redirect=0,
    raise_on_status=False,
    respect_retry_after_header=False,
)
"""A receiver tells a repetition by `webhook-id`, so posting again is safe."""
_TIMEOUT = Timeout(connect=5.0, read=10.0)


class NotDelivered(DropbatchError):
    """The receiver did not take it, after all tries."""


class Webhook:
    """Posts to one URL.

    Args:
        secret: base64 after `whsec_`, as the receiver has it.
    Raises:
        ConfigError: the URL or the secret is none.
    """

    name = "webhook"

    def __init__(self, url: str, secret: str, *, retries: Retry = _RETRIES) -> None:
        if not url.startswith(("https://", "http://")):
            raise ConfigError("a webhook is an http(s) URL", where="webhook_url")
        self._url = url
        self._key = key_of(secret)
        self._pool = urllib3.PoolManager(retries=retries, timeout=_TIMEOUT)

    def send(self, notice: Notice, picture: Callable[[], bytes | None]) -> None:  # noqa: ARG002 - JSON has none
        body = json.dumps(
            {
                "type": "night.reported" if notice.event == "night" else f"job.{notice.event}",
                "timestamp": notice.at.isoformat(),
                "data": {**notice.data, "title": notice.title, "url": notice.url},
            },
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
        headers = {
            "content-type": "application/json",
            "user-agent": f"dropbatch/{VERSION}",
            **signed(self._key, notice.id, int(time.time()), body),
        }
        response = self._pool.request("POST", self._url, body=body, headers=headers)
        if not 200 <= response.status < 300:
            raise NotDelivered(f"answered {response.status}", where="webhook_url")


def signed(key: bytes, message: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a message."""
    content = f"{message}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def key_of(secret: str) -> bytes:
    """The key in a webhook's secret.

    Raises:
        ConfigError: it is none.
    """
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) < 16:
        raise ConfigError(
            "a webhook's secret is whsec_ and the base64 of at least 16 bytes",
            where="DROPBATCH_WEBHOOK_SECRET",
            mend="Make one with `openssl rand -base64 24`, and put whsec_ before it",
        )
    return key
