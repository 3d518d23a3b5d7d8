from __future__ import annotations

import pytest

from temper.builder.data.spread import spread


@pytest.mark.parametrize(
    ("total", "wanted", "expected"),
    [
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 4, [0, 2, 5, 7]),
        (3, 3, [0, 1, 2]),
        (3, 9, [0, 1, 2]),
        (7, 1, [0]),
        (0, 4, []),
        (4, 0, []),
    ],
)
def test_rows_are_spread_evenly(total: int, wanted: int, expected: list[int]) -> None:
    assert spread(total, wanted).tolist() == expected
