"""What Modal's client raises when Modal does not answer, or not as it should."""

from __future__ import annotations

from typing import Final

import grpclib
import modal
from grpclib.exceptions import StreamTerminatedError

NO_ANSWER: Final[tuple[type[Exception], ...]] = (
    modal.exception.Error,
    grpclib.GRPCError,
    # Of no base that the others have; the client lets it through once its retries are used up.
    StreamTerminatedError,
    OSError,
    TimeoutError,
)
