"""Prompts from the job itself or from a file: rows of parameters, frozen into the plan."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from processor.errors import InvalidKey, JobInvalid, NotFound, TooLarge
from processor.expand import Row
from processor.reading import parse_json, prompt_lines
from processor.store import Store, check_key, read_bytes

PROMPT = "prompt"
"""The parameter that a plain line of text sets."""
MAX_FILE_BYTES = 32 * 1024**2


def read_prompts(
    prompts: Sequence[str] | str | None, store: Store, *, drop_key: str, max_rows: int
) -> list[Row] | None:
    """The rows that a job's `prompts` make; None when it has none.

    A file is looked for next to the drop, then by its key. Of a .txt, lines that begin with `#`
    are remarks. In a .csv the header names parameters and empty cells set nothing; a line of a
    .jsonl is a text or an object.

    Raises:
        JobInvalid: no such file, not UTF-8, a bad line (its number is given), too many rows.
    """
    if prompts is None:
        return None
    if not isinstance(prompts, str):
        if not prompts:
            raise JobInvalid("the list of prompts is empty", where="prompts")
        return [{PROMPT: text} for text in prompts]
    text = _read_text(store, prompts, drop_key)
    readers = {".txt": _text_rows, ".csv": _csv_rows, ".jsonl": _jsonl_rows}
    reader = readers.get(PurePosixPath(prompts).suffix.lower())
    if reader is None:
        raise JobInvalid(
            f"{prompts!r} is no prompt file",
            where="prompts",
            mend="Use a .txt, .csv or .jsonl file, or a list",
        )
    rows: list[Row] = []
    for row in reader(text, prompts):
        if len(rows) == max_rows:
            raise JobInvalid(f"more than {max_rows:,} prompts; the limit of tasks a job", where=prompts)
        rows.append(row)
    if not rows:
        raise JobInvalid("the file has no prompts", where=prompts)
    return rows


def _read_text(store: Store, name: str, drop_key: str) -> str:
    folder = drop_key.rpartition("/")[0]
    for key in dict.fromkeys((f"{folder}/{name}" if folder else name, name)):
        try:
            data = read_bytes(store, check_key(key), limit_bytes=MAX_FILE_BYTES)
            return data.decode("utf-8-sig")
        except NotFound:
            continue
        except (InvalidKey, TooLarge) as error:
            raise JobInvalid(error.what, where=f"prompts: {name}") from None
        except UnicodeDecodeError as error:
            raise JobInvalid(
                f"not UTF-8 at byte {error.start}", where=f"prompts: {name}", mend="Save it as UTF-8"
            ) from None
    raise JobInvalid(
        f"there is no prompt file {name!r}",
        where="prompts",
        mend=f"Put it next to the job under {folder}/, or give its key" if folder else "Give its key",
    )


def _text_rows(text: str, _name: str) -> Iterator[Row]:
    return ({PROMPT: line} for line in prompt_lines(text))


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or []]
        if not all(columns) or len(set(columns)) < len(columns):
            raise JobInvalid("every column needs a name of its own", where=f"{name}: line 1")
        reader.fieldnames = columns
        for record in reader:
            # DictReader files surplus cells under None, and fills missing ones with None.
            if set(record) != set(columns) or None in record.values():
                raise JobInvalid(f"expected {len(columns)} columns", where=f"{name}: line {reader.line_num}")
            if row := {column: value.strip() for column, value in record.items() if value.strip()}:
                yield dict(row)
    except csv.Error as error:
        raise JobInvalid(str(error), where=f"{name}: line {reader.line_num}") from None


def _jsonl_rows(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{name}: line {number}"
        value: Any = parse_json(line.encode(), key=place)
        if isinstance(value, str):
            yield {PROMPT: value}
        elif (
            isinstance(value, dict)
            and value
            and all(isinstance(v, (str, int, float, bool)) for v in value.values())
        ):
            yield value
        else:
            raise JobInvalid("a line is a text, or an object of texts and numbers", where=place)
