"""botocore's errors as ours. The only module that reads their codes."""

from __future__ import annotations

from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from processor.errors import (
    AccessDenied,
    AlreadyExists,
    CapReached,
    InvalidKey,
    NotFound,
    StoreError,
    StoreUnavailable,
    TooLarge,
)

Failure = ClientError | BotoCoreError

CAPABILITIES_MEND: Final = (
    "The key needs listBuckets, listFiles, readFiles, writeFiles and deleteFiles on this bucket "
    "and prefix (S3: ListBucket, ListBucketVersions, Get-, Put-, DeleteObject and their Version "
    "forms)."
)
_CAP_MEND: Final = "Raise the cap on Backblaze's page 'Caps & Alerts', or wait until midnight UTC."
_REGION_MEND: Final = (
    "The endpoint and the region must be the bucket's own; B2 shows them on its 'Buckets' page "
    "(s3.<region>.backblazeb2.com)."
)
_KEY_MEND: Final = (
    "Use an application key's id and secret; B2's master key doesn't work here, and a secret is "
    "shown only once, when its key is made."
)
_WRONG_REGION: Final = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "301",
        "307",
    }
)
_WRONG_KEY: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "UnauthorizedAccess", "InvalidToken"}
)
_NOT_FOUND: Final = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound", "405", "MethodNotAllowed"})
_TOO_LARGE: Final = frozenset({"EntityTooLarge", "MaxMessageLengthExceeded"})


def code_of(error: Failure) -> str:
    """The server's code, e.g. `NoSuchKey`; "" if it wasn't the server that failed."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def status_of(error: Failure) -> int:
    """The HTTP status; 0 if there was no reply."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_bare_denial(error: Failure) -> bool:
    """A 403 that gives no reason but a missing capability, as B2 answers for a missing key
    to a key that may not list buckets. A HEAD reply never gives one."""
    return (
        status_of(error) == 403
        and code_of(error) not in _WRONG_KEY
        and code_of(error) != "RequestTimeTooSkewed"
        and not _is_cap(error)
    )


def translate(error: Failure, where: str) -> StoreError:
    """Our error for one of botocore's, after botocore's own retries."""
    if isinstance(error, ClientError):
        return _from_reply(error, where)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return AccessDenied("no credentials were given or found", where=where, mend=_KEY_MEND)
    if isinstance(error, ParamValidationError):
        return StoreError(f"refused before sending: {error}", where=where)
    if isinstance(error, EndpointConnectionError):
        return StoreUnavailable(
            f"nothing answers ({error})", where=where, mend="Check the endpoint and the network."
        )
    if isinstance(error, HTTPClientError):
        return StoreUnavailable(f"the connection failed ({error})", where=where)
    return StoreUnavailable(f"the request failed ({type(error).__name__}: {error})", where=where)


def _from_reply(error: ClientError, where: str) -> StoreError:
    code, status = code_of(error), status_of(error)
    message = str(error.response.get("Error", {}).get("Message", "")).rstrip(".")
    said = f"{status} {code}: {message}" if message else f"{status} {code}"
    match code:
        case "NoSuchBucket":
            # Not NotFound: a wrong bucket must never be read as an absent object.
            return AccessDenied("there is no such bucket at this endpoint", where=where, mend=_REGION_MEND)
        case "NoSuchUpload":
            # Completed by a try whose reply was lost, or aborted by the bucket's rules.
            return StoreUnavailable("the multipart upload is gone", where=where)
        case "KeyTooLongError" | "InvalidURI":
            return InvalidKey(f"the store refuses the key ({said})", where=where)
        case "PreconditionFailed" | "412":
            return AlreadyExists("something stands there", where=where)
        case "RequestTimeTooSkewed":
            return AccessDenied(f"the store refuses ({said})", where=where, mend="Set this machine's clock.")
        case _ if code in _NOT_FOUND:
            return NotFound("there is no such object", where=where)
        case _ if code in _TOO_LARGE:
            return TooLarge(f"the store refuses the size ({said})", where=where)
        case _ if code in _WRONG_REGION or status in (301, 307):
            return AccessDenied(f"the store refuses ({said})", where=where, mend=_REGION_MEND)
        case _ if code in _WRONG_KEY or status == 401:
            return AccessDenied(f"the store refuses ({said})", where=where, mend=_KEY_MEND)
        case _ if status == 403:
            kind, mend = (CapReached, _CAP_MEND) if _is_cap(error) else (AccessDenied, CAPABILITIES_MEND)
            return kind(f"the store refuses ({said})", where=where, mend=mend)
        case _ if status in (409, 429) or (status >= 500 and status != 501):
            return StoreUnavailable(f"the store failed ({said})", where=where)
        case _:
            return StoreError(f"the store can't do that ({said})", where=where)


def _is_cap(error: Failure) -> bool:
    """B2 answers 403 when a daily cap is reached, and says so only in the message."""
    return " cap " in f" {error} ".lower() or "cap exceeded" in str(error).lower()
