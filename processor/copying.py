"""Results of other jobs as an attempt's own: no job's results point into another's."""

from __future__ import annotations

from typing import Any

from processor.attempt import Trying
from processor.errors import NotFound
from processor.execute import record
from processor.layout import execution_prefix
from processor.records import TaskResult


def own_copy(trying: Trying, result: TaskResult, **changes: Any) -> TaskResult | None:
    """A result whose files are copied under this attempt, and recorded for the next; it costs nothing.

    Args:
        changes: fields in which it differs from the other job's.
    Returns:
        None where someone has removed one of its files, or put another in its place.
    Cost: 1 request, and 1 per file.
    """
    own = result.model_copy(update={"attempt": trying.name, "cost_usd": 0.0, **changes})
    prefix = execution_prefix(trying.job_id, own.attempt, own.index, own.execution)
    store, files = trying.machine.stores.main, []
    try:
        for file in result.files:
            if store.copy(file.key, prefix + file.name).size_bytes != file.size_bytes:
                return None
            files.append(file.model_copy(update={"key": prefix + file.name}))
    except NotFound:
        return None
    own = own.model_copy(update={"files": files})
    record(store, trying.job_id, own)
    return own
