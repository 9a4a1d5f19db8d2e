"""What another processor does to the same arithmetic: relative noise of its rounding,
and how far a table moves by it."""

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype

ROUNDING, MOVED = 1e-6, 1e-4  # relative ; of a column's largest absolute value
# share of a curve's rows: two neurons that change places swap the values of the other half of the documents
SWAPPED = 5e-3


def rounded(values, seed):
    """The values with relative noise, as float64 of their shape."""
    return values * (1 + ROUNDING * np.random.default_rng(seed).normal(size=np.shape(values)))


def assert_same(found, expected):
    """Two tables tell the same: words, counts and members equal, numbers to MOVED of a column's largest,
    but for near ties."""
    assert list(found.columns) == list(expected.columns) and len(found) == len(expected)
    for name in expected.columns:
        if is_float_dtype(expected[name]):
            largest = np.nanmax(np.abs(expected[name])) if expected[name].notna().any() else 0
            same = np.isclose(found[name], expected[name], rtol=0, atol=MOVED * largest, equal_nan=True)
            assert np.mean(~same) <= SWAPPED, name
        else:
            pd.testing.assert_series_equal(found[name], expected[name])
