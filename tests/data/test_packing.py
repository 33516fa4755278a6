from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.data.examples import Example
from openzaya.data.packing import best_fit_decreasing, make_batch, packing_report

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=60)


def example(length: int, start: int = 1) -> Example:
    ids = np.arange(start, start + length, dtype=np.int32)
    return Example(ids, np.arange(length) >= length // 2)


@given(lengths)
def test_every_example_is_packed_once_and_no_row_overflows(sizes: list[int]) -> None:
    rows = best_fit_decreasing(sizes, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert all(sum(sizes[index] for index in row) <= 50 for row in rows)


@given(lengths)
def test_best_fit_leaves_no_two_rows_that_would_fit_together(sizes: list[int]) -> None:
    fills = sorted(sum(sizes[index] for index in row) for row in best_fit_decreasing(sizes, 50))
    assert len(fills) < 2 or fills[0] + fills[1] > 50


@given(lengths)
def test_each_example_goes_into_the_fullest_row_with_room(sizes: list[int]) -> None:
    rows: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        fitting = [row for row in rows if sum(sizes[each] for each in row) + sizes[index] <= 50]
        # Of equally full rows the first made is taken, so that a packing never changes.
        fullest = max(fitting, key=lambda row: sum(sizes[each] for each in row), default=None)
        if fullest is None:
            rows.append([index])
        else:
            fullest.append(index)
    assert best_fit_decreasing(sizes, 50) == rows


def test_an_example_longer_than_a_row_is_refused_and_never_cut() -> None:
    with pytest.raises(ValueError, match="51 tokens does not fit a row of 50"):
        best_fit_decreasing([3, 51], 50)


def test_targets_are_the_next_token_and_never_cross_a_document() -> None:
    batch = make_batch([[example(4, 10), example(3, 20)], [example(5, 30)]])
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 20, 21, 22], [30, 31, 32, 33, 34, 0, 0]]
    assert batch.targets[0].tolist() == [11, 12, 13, 0, 21, 22, 0]
    assert batch.learned[0].tolist() == [False, True, True, False, True, True, False]
    assert batch.document_ids is not None
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, -1, -1]]


@given(st.lists(st.integers(2, 20), min_size=1, max_size=12))
def test_a_batch_learns_each_learned_token_of_its_examples_once(sizes: list[int]) -> None:
    examples = [example(size) for size in sizes]
    rows = [[examples[index] for index in row] for row in best_fit_decreasing(sizes, 20)]
    batch = make_batch(rows)
    # The first token of an example is never predicted; here it is never learned either.
    assert batch.learned_tokens == sum(int(one.learned[1:].sum()) for one in examples)


def test_rows_of_one_example_need_no_document_marks() -> None:
    assert make_batch([[example(4)], [example(2)]]).document_ids is None


def test_rows_are_padded_to_a_width_where_one_is_given() -> None:
    batch = make_batch([[example(3)]], 5)
    assert batch.input_ids.shape == (1, 5)
    assert batch.real.tolist() == [[True] * 3 + [False] * 2]


def test_padding_is_marked_whether_or_not_rows_are_packed() -> None:
    assert make_batch([[example(3)], [example(2)]]).real.tolist() == [[True] * 3, [True, True, False]]
    assert make_batch([[example(1), example(2)], [example(2)]]).real.tolist() == [[True] * 3, [True, True, False]]


@given(lengths)
def test_the_packing_report_counts_places_and_never_beats_the_fewest_rows(sizes: list[int]) -> None:
    rows = best_fit_decreasing(sizes, 50)
    report = packing_report(sizes, rows, 50)
    assert (report.examples, report.tokens, report.rows) == (len(sizes), sum(sizes), len(rows))
    assert report.fewest_rows <= report.rows <= report.examples
    assert report.efficiency == sum(sizes) / (50 * len(rows))


def test_the_packing_report_says_how_full_rows_are() -> None:
    sizes = [6, 5, 4, 3]
    report = packing_report(sizes, best_fit_decreasing(sizes, 10), 10)
    assert str(report) == "4 examples of 18 tokens in 2 rows of 10 (at least 2; one a row would be 4): 90.0% full"
    assert packing_report([], [], 10).efficiency == 1.0
