"""From axes to combinations: how one job becomes many tasks. Pure and deterministic.

A job multiplies by its matrix, by its rows (prompts, or the lines of a file) and by its
seeds, in that order; the last varies fastest. `expand` refuses by arithmetic, before a
single combination is built.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence

from processor.errors import ErrorKind, JobInvalid
from processor.models import MAX_SEED, Matrix, Scalar, SeedDraw, SeedRange, Seeds
from processor.problems import did_you_mean

Row = dict[str, Scalar]
"""What one task sets: axis, parameter or column → value."""

SEED = "seed"
"""The name under which seeds stand in a row."""

_EXCLUDE_SLACK = 10
"""`exclude` can bring a matrix below the limit; so many times the limit are looked at."""
_MAX_COMPARISONS = 5_000_000
"""Of cells with exclusions: some seconds' work; a matrix that needs more is no matrix."""
_DRAWN_SEED_BITS = 31
"""Many custom nodes take no seed above 2³¹ - 1."""
_CHOICE = re.compile(r"\{([^{}|]*(?:\|[^{}|]*)+)\}")
_MAX_CHOICES = 1000
_SHOWN_VALUES = 12
_SHOWN_CHARS = 60
_MAX_NESTING = 20
_MAX_CHARS = 32_000_000
"""Of all rows' texts: each stands in the plan, which is written and read whole."""


def cells(matrix: Matrix | None = None, rows: Sequence[Row] | None = None, seeds: Seeds | None = None) -> int:
    """How many tasks these would make if nothing were excluded: computed, not counted."""
    return _matrix_cells(matrix) * (1 if rows is None else len(rows)) * _seed_count(seeds)


def expand(
    matrix: Matrix | None = None,
    rows: Sequence[Row] | None = None,
    seeds: Seeds | None = None,
    *,
    draw_key: str,
    max_tasks: int,
) -> list[Row]:
    """Every combination as a row, in a fixed order.

    Args:
        rows: combinations given outright (prompts, lines of a file); each meets every cell.
        draw_key: seeds the draw of random seeds, so that planning twice draws the same.
    Returns:
        1..max_tasks rows; `[{}]` when nothing multiplies.
    Raises:
        JobInvalid: more than `max_tasks` (refused at once, whatever the size), more text than
            a plan should hold, none left, an axis given twice, or an exclusion of what is not there.
    """
    _check_names(matrix, rows, seeds)
    if matrix is not None:
        _check_exclusions(matrix)
    slack = _EXCLUDE_SLACK if matrix and matrix.exclude else 1
    total = cells(matrix, rows, seeds)
    if total > max_tasks * slack:
        raise _too_many(total, max_tasks)
    excluded = _Excluded(matrix.exclude if matrix else ())
    if excluded.shapes * total > _MAX_COMPARISONS:
        raise JobInvalid(
            f"{total:,} combinations with {excluded.shapes:,} kinds of exclusion are too many to compare",
            where="matrix.exclude",
            mend="Shorten an axis, or exclude by fewer different sets of axes",
            kind=ErrorKind.REFUSED,
        )
    drawn = draw_seeds(seeds, draw_key)
    found: list[Row] = []
    chars = 0
    for cell, row, seed in itertools.product(
        list(_matrix_rows(matrix, excluded)),
        rows if rows is not None else [{}],
        drawn if drawn is not None else [None],
    ):
        if len(found) == max_tasks:
            raise _too_many(total, max_tasks)
        chars += _chars(cell) + _chars(row)
        if chars > _MAX_CHARS:
            raise _too_long()
        found.append(cell | row | ({} if seed is None else {SEED: seed}))
    if not found:
        raise JobInvalid(
            "no combination is left to run", where="matrix.exclude", mend="Exclude less, or add an include"
        )
    return found


def draw_seeds(seeds: Seeds | None, draw_key: str) -> list[int] | None:
    """The seeds that a job asks for; random ones are distinct and depend on `draw_key` alone."""
    match seeds:
        case None:
            return None
        case SeedRange():
            if seeds.start + seeds.count - 1 > MAX_SEED:
                raise JobInvalid(f"seeds end at {MAX_SEED}", where="seeds")
            return list(range(seeds.start, seeds.start + seeds.count))
        case SeedDraw():
            # A string seeds Random through SHA-512, the same on every platform and version.
            source = random.Random(f"seeds\0{draw_key}")  # noqa: S311 - a draw to be repeated
            drawn: dict[int, None] = {}
            while len(drawn) < seeds.random:
                drawn[source.getrandbits(_DRAWN_SEED_BITS)] = None
            return list(drawn)
        case _:
            return list(seeds)


def choose(text: str, draw_key: str) -> str:
    """Settle `{a|b|c}` wildcards, nested ones too; the same key always chooses the same.

    Braces without a bar are left alone.
    """
    if "|" not in text:
        return text
    source = random.Random(f"choose\0{draw_key}\0{text}")  # noqa: S311 - a draw to be repeated
    left = _MAX_CHOICES
    for _ in range(_MAX_NESTING):
        text, replaced = _CHOICE.subn(lambda match: source.choice(match[1].split("|")), text, count=left)
        left -= replaced
        if not replaced or not left:
            break
    return text


def _matrix_cells(matrix: Matrix | None) -> int:
    if matrix is None:
        return 1
    total = 1 if matrix.product or matrix.zip else 0
    for values in matrix.product.values():
        total *= len(values)
    if matrix.zip:
        total *= len(next(iter(matrix.zip.values())))
    total += len(matrix.include)
    # An empty matrix (`{}`) multiplies by nothing, not by zero.
    return total or 1


def _seed_count(seeds: Seeds | None) -> int:
    match seeds:
        case None:
            return 1
        case SeedRange():
            return seeds.count
        case SeedDraw():
            return seeds.random
        case _:
            return len(seeds)


def _matrix_rows(matrix: Matrix | None, excluded: _Excluded) -> Iterator[Row]:
    if matrix is None or not (matrix.product or matrix.zip or matrix.include):
        yield {}
        return
    if matrix.product or matrix.zip:
        axes: list[list[Row]] = [
            [{name: value} for value in values] for name, values in matrix.product.items()
        ]
        if matrix.zip:
            axes.append(
                [
                    dict(zip(matrix.zip, values, strict=True))
                    for values in zip(*matrix.zip.values(), strict=True)
                ]
            )
        for parts in itertools.product(*axes):
            row: Row = {}
            for part in parts:
                row.update(part)
            if row not in excluded:
                yield row
    yield from (dict(row) for row in matrix.include)


class _Excluded:
    """The rules of `exclude`, by the axes they speak of: one look-up each, however many rules."""

    def __init__(self, rules: Sequence[Row]) -> None:
        self._rules: dict[tuple[str, ...], set[tuple[tuple[bool, Scalar], ...]]] = {}
        for rule in rules:
            names = tuple(sorted(rule))
            self._rules.setdefault(names, set()).add(_values(rule, names))

    @property
    def shapes(self) -> int:
        """How many different sets of axes are spoken of."""
        return len(self._rules)

    def __contains__(self, row: Row) -> bool:
        return any(_values(row, names) in rules for names, rules in self._rules.items())


def _values(row: Row, names: tuple[str, ...]) -> tuple[tuple[bool, Scalar], ...]:
    return tuple(_comparable(row[name]) for name in names)


def _comparable(value: Scalar) -> tuple[bool, Scalar]:
    # True == 1 in Python; on a form they are different answers.
    return isinstance(value, bool), value


def _check_names(matrix: Matrix | None, rows: Sequence[Row] | None, seeds: Seeds | None) -> None:
    axes = set() if matrix is None else matrix.product.keys() | matrix.zip.keys()
    included = set() if matrix is None else {name for row in matrix.include for name in row}
    columns = {name for row in rows or () for name in row}
    for name in sorted((axes | included) & columns):
        raise JobInvalid(f"{name!r} is given both by the matrix and by the prompts", where=f"matrix.{name}")
    if seeds is not None and SEED in axes | included | columns:
        raise JobInvalid("seeds are given twice: by `seeds` and by an axis or column `seed`", where="seeds")


def _check_exclusions(matrix: Matrix) -> None:
    """Refuse a rule that could exclude nothing: its author means something else."""
    axes = matrix.product | matrix.zip
    known = {name: {_comparable(value) for value in values} for name, values in axes.items()}
    for rule in matrix.exclude:
        if not rule:
            raise JobInvalid("an empty combination would exclude everything", where="matrix.exclude")
        for name, value in rule.items():
            if name not in axes:
                raise _no_such_axis(name, axes)
            if _comparable(value) not in known[name]:
                raise _no_such_value(name, value, axes[name])


def _no_such_axis(name: str, axes: Iterable[str]) -> JobInvalid:
    mend = did_you_mean(name, axes, listed=0) or f"The axes are: {', '.join(sorted(axes)) or 'none'}"
    return JobInvalid(f"{name!r} is not an axis of the matrix", where="matrix.exclude", mend=mend)


def _no_such_value(name: str, value: Scalar, values: Sequence[Scalar]) -> JobInvalid:
    texts = [other for other in values if isinstance(other, str) and len(other) <= _SHOWN_CHARS]
    mend = did_you_mean(str(value)[:_SHOWN_CHARS], texts, listed=0)
    for other in values:
        if str(other) == str(value) or other == value:
            mend = f"Write {_as_json(other)}"
    if mend is None and len(values) <= _SHOWN_VALUES:
        mend = f"Its values are: {', '.join(map(_as_json, values))}"
    return JobInvalid(f"{_as_json(value)} is no value of {name!r}", where="matrix.exclude", mend=mend)


def _as_json(value: Scalar) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _chars(row: Row) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str))


def _too_long() -> JobInvalid:
    return JobInvalid(
        f"the tasks' texts come to more than {_MAX_CHARS:,} characters",
        where="matrix",
        mend="Split the job, or put what all tasks share in `overrides`",
        kind=ErrorKind.REFUSED,
    )


def _too_many(total: int, max_tasks: int) -> JobInvalid:
    return JobInvalid(
        f"{total:,} tasks; the limit is {max_tasks:,} a job",
        where="matrix",
        mend="Shorten an axis, split the job, or raise max_tasks",
        kind=ErrorKind.REFUSED,
    )
