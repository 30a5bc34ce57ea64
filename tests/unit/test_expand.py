"""Expansion: how many tasks, in which order, the same every time, and never too many."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.errors import ErrorKind, JobInvalid
from processor.expand import Row, cells, choose, draw_seeds, expand
from processor.models import MAX_SEED, Matrix, Scalar, SeedDraw, SeedRange
from processor.reading import read_job

names = st.sampled_from(["a", "b", "c", "d"])
values = st.lists(st.integers(0, 9) | st.text(max_size=3), min_size=1, max_size=4)
axes = st.dictionaries(names, values, max_size=3)
seeds = (
    st.none()
    | st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=4)
    | st.builds(SeedRange, start=st.integers(0, 100), count=st.integers(1, 5))
    | st.builds(SeedDraw, random=st.integers(1, 5))
)
rows = st.none() | st.lists(st.fixed_dictionaries({"prompt": st.text(max_size=5)}), min_size=1, max_size=3)


def run(*args: Any, draw_key: str = "job", max_tasks: int = 100_000) -> list[Row]:
    return expand(*args, draw_key=draw_key, max_tasks=max_tasks)


class TestProperties:
    @given(axes, rows, seeds)
    def test_count_is_known_before(self, axis: Any, row: Any, seed: Any) -> None:
        """`cells` says how many without building any."""
        matrix = Matrix(product=axis)
        assert len(run(matrix, row, seed)) == cells(matrix, row, seed)

    @given(axes, rows, seeds)
    def test_planning_twice_is_the_same(self, axis: Any, row: Any, seed: Any) -> None:
        """Same job id, same tasks: drawn seeds too."""
        matrix = Matrix(product=axis)
        assert run(matrix, row, seed) == run(matrix, row, seed)

    @given(axes)
    def test_order_is_the_product_last_fastest(self, axis: Any) -> None:
        """As `itertools.product` has it, which people know from nested loops."""
        expected = [dict(zip(axis, combination, strict=True)) for combination in product(*axis.values())]
        assert run(Matrix(product=axis)) == expected

    @given(axes, rows, seeds, st.integers(1, 20))
    def test_never_more_than_allowed(self, axis: Any, row: Any, seed: Any, limit: int) -> None:
        matrix = Matrix(product=axis)
        if cells(matrix, row, seed) > limit:
            with pytest.raises(JobInvalid) as caught:
                run(matrix, row, seed, max_tasks=limit)
            assert caught.value.kind is ErrorKind.REFUSED
        else:
            assert len(run(matrix, row, seed, max_tasks=limit)) <= limit

    @given(axes.filter(bool), st.data())
    def test_exclude_removes_what_agrees_and_nothing_else(self, axis: Any, data: st.DataObject) -> None:
        rule = {
            name: data.draw(st.sampled_from(axis[name]))
            for name in data.draw(st.sets(st.sampled_from(list(axis)), min_size=1))
        }
        everything = run(Matrix(product=axis))
        kept = [row for row in everything if any(row[name] != value for name, value in rule.items())]
        matrix = Matrix(product=axis, exclude=[rule])
        if kept:
            assert run(matrix) == kept
        else:
            with pytest.raises(JobInvalid, match="no combination"):
                run(matrix)

    @given(st.integers(1, 200), st.text(max_size=20))
    def test_drawn_seeds_are_distinct(self, count: int, key: str) -> None:
        drawn = draw_seeds(SeedDraw(random=count), key)
        assert drawn is not None
        assert len(set(drawn)) == count
        assert all(0 <= seed < 2**31 for seed in drawn)  # the most that many custom nodes take

    @given(st.text(alphabet="ab{}| ", max_size=40), st.text(max_size=5))
    def test_wildcards_end_and_repeat(self, text: str, key: str) -> None:
        assert choose(text, key) == choose(text, key)


class TestMatrix:
    def test_zip_moves_together_as_one_axis(self) -> None:
        matrix = Matrix(product={"a": [1, 2]}, zip={"x": [1, 2], "y": ["p", "q"]})
        assert run(matrix) == [
            {"a": 1, "x": 1, "y": "p"},
            {"a": 1, "x": 2, "y": "q"},
            {"a": 2, "x": 1, "y": "p"},
            {"a": 2, "x": 2, "y": "q"},
        ]

    def test_include_is_appended_and_meets_every_seed(self) -> None:
        matrix = Matrix(product={"a": [1]}, include=[{"a": 5, "b": 6}])
        assert run(matrix, None, [7, 8]) == [
            {"a": 1, "seed": 7},
            {"a": 1, "seed": 8},
            {"a": 5, "b": 6, "seed": 7},
            {"a": 5, "b": 6, "seed": 8},
        ]

    def test_include_alone(self) -> None:
        assert run(Matrix(include=[{"a": 1}, {"a": 2}])) == [{"a": 1}, {"a": 2}]

    def test_nothing_is_one_task(self) -> None:
        assert run(None) == run(Matrix()) == [{}]

    def test_true_is_not_one(self) -> None:
        """Python thinks so; a form with a check box does not."""
        assert run(Matrix(product={"a": [True, 1]}, exclude=[{"a": True}])) == [{"a": 1}]

    def test_exclude_of_an_unknown_axis_names_the_nearest(self) -> None:
        with pytest.raises(JobInvalid) as caught:
            run(Matrix(product={"sampler": [1]}, exclude=[{"smapler": 1}]))
        assert caught.value.mend == "Did you mean 'sampler'?"

    @pytest.mark.parametrize(
        ("name", "value", "mend"),
        [
            ("width", "64", "Write 64"),
            ("flip", 1, "Write true"),
            ("method", "Area", "Did you mean 'area'?"),
            ("width", 65, "Its values are: 64, 128"),
        ],
    )
    def test_exclude_of_a_value_that_no_task_has(self, name: str, value: Scalar, mend: str) -> None:
        """It would leave out nothing, and say so only by the bill."""
        axes: dict[str, list[Scalar]] = {"width": [64, 128], "method": ["area"], "flip": [True]}
        with pytest.raises(JobInvalid, match=f"is no value of '{name}'") as caught:
            run(Matrix(product=axes, exclude=[{name: value}]))
        assert caught.value.mend == mend

    def test_exclude_of_a_zipped_value(self) -> None:
        matrix = Matrix(zip={"a": [1, 2], "b": [3, 4]}, exclude=[{"a": 1.0}])
        assert run(matrix) == [{"a": 2, "b": 4}]

    def test_axes_beside_exclude(self) -> None:
        """The short form has no exclusions; the error says where the axes go then."""
        with pytest.raises(JobInvalid, match="put axes under `product`"):
            read_job(b'{"workflow": "x", "matrix": {"1.width": [64], "exclude": [{"1.width": 64}]}}', key="x")

    def test_axis_that_prompts_give_too(self) -> None:
        with pytest.raises(JobInvalid, match="both by the matrix and by the prompts"):
            run(Matrix(product={"prompt": ["x"]}), [{"prompt": "y"}])

    def test_seeds_given_twice(self) -> None:
        with pytest.raises(JobInvalid, match="seeds are given twice"):
            run(Matrix(product={"seed": [1]}), None, [1])


class TestLimits:
    @pytest.mark.parametrize(
        ("matrix", "seed"),
        [
            (Matrix(product={f"a{n}": list(range(100)) for n in range(3)}), None),
            (None, SeedRange(start=0, count=10**12)),
            (None, SeedDraw(random=10**12)),
            (Matrix(product={f"a{n}": list(range(100)) for n in range(40)}, exclude=[{"a0": 1}]), None),
        ],
    )
    def test_a_million_cells_are_refused_at_once(self, matrix: Matrix | None, seed: Any) -> None:
        """By arithmetic: nothing of that size is ever built."""
        began = time.process_time()
        with pytest.raises(JobInvalid, match="the limit is 10,000"):
            run(matrix, None, seed, max_tasks=10_000)
        assert time.process_time() - began < 0.5

    def test_exclude_may_bring_it_below_the_limit(self) -> None:
        matrix = Matrix(product={"a": list(range(10)), "b": [0, 1]}, exclude=[{"b": 1}])
        assert len(run(matrix, max_tasks=10)) == 10

    def test_seeds_end_where_the_sampler_does(self) -> None:
        with pytest.raises(JobInvalid, match="seeds end at"):
            run(None, None, SeedRange(start=MAX_SEED, count=2))


class TestSeedsAndWildcards:
    def test_another_job_draws_others(self) -> None:
        draw = SeedDraw(random=3)
        assert draw_seeds(draw, "one") != draw_seeds(draw, "two")

    def test_draws_never_change(self) -> None:
        """A plan made again years later, by another Python, draws the same."""
        assert draw_seeds(SeedDraw(random=2), "job") == [2134110010, 1834498962]

    def test_wildcards(self) -> None:
        assert choose("a {red} {x", "k") == "a {red} {x"
        assert choose("{a|b} {c|{d|e}}", "k") in {f"{x} {y}" for x in "ab" for y in "cde"}
        assert len({choose("{a|b|c|d}", str(key)) for key in range(100)}) == 4
