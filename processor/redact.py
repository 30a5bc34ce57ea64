"""Keep secrets out of logs, reports, pages and manifests."""

from __future__ import annotations

import os
import re
from functools import lru_cache

MASK = "[redacted]"

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_MIN_SECRET = 8
"""Shorter values are words like `true`, whose removal would only garble texts."""

_SHAPES = re.compile(
    r"""
      \bhf_[A-Za-z0-9]{20,}                               # Hugging Face
    | \b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{20,}          # GitHub
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \bxox[abeoprs]-[A-Za-z0-9-]{10,}                    # Slack
    | \bsk-[A-Za-z0-9_-]{20,}                             # OpenAI and its like
    | \b(?:ak|as)-[A-Za-z0-9]{20,}                        # Modal
    | \bwhsec_[A-Za-z0-9+/=]{20,}                         # Standard Webhooks
    | \bAKIA[0-9A-Z]{16}\b                                # AWS key id
    | \bK00[0-9][A-Za-z0-9+/]{27}(?![A-Za-z0-9+/])        # Backblaze application key
    | \beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+   # JWT
    """,
    re.VERBOSE,
)
_LABELLED = re.compile(
    r"(?i)((?:authorization\s*[:=]\s*(?:bearer|basic)\s+)|(?:x-amz-(?:signature|credential|security-token)=)"
    r"|(?:(?:api[_-]?key|token|secret|password)[\"']?\s*[:=]\s*[\"']?))([^\s\"'&,;]{6,})"
)
_USERINFO = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def redact(text: str) -> str:
    """`text` without secrets: values of this process's secret variables, and known token shapes.

    Idempotent. The environment is read once; see `forget`.
    """
    if (values := _secret_values()) is not None:
        text = values.sub(MASK, text)
    text = _SHAPES.sub(MASK, text)
    text = _USERINFO.sub(MASK, text)
    return _LABELLED.sub(lambda match: match[1] + MASK, text)


def forget() -> None:
    """Read the environment anew at the next call; for those who change it in a running process."""
    _secret_values.cache_clear()


@lru_cache(maxsize=1)
def _secret_values() -> re.Pattern[str] | None:
    secrets = {
        value for name, value in os.environ.items() if len(value) >= _MIN_SECRET and _SECRET_NAME.search(name)
    }
    return re.compile("|".join(map(re.escape, sorted(secrets, key=len, reverse=True)))) if secrets else None
