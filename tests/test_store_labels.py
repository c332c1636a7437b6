"""Labels of axes: what goes in comes out of xr.open_zarr, to the bit, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.storage import MemoryStore

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.domain import Coordinate, GridDomain
from geopatch_dask.store import labels
from geopatch_dask.store.target import finish
from geopatch_dask.store.template import ArraySpec, create

LABELS = {
    "ns": np.array(["2001-01-01", "2001-01-01T00:00:00.000000001", "1969-12-31"], "datetime64[ns]"),
    "months": np.arange("2001-01", "2003-01", dtype="datetime64[M]").astype("datetime64[ns]"),
    "six-hourly": np.arange("1979-01-01", "1979-02-01", 6, dtype="datetime64[h]").astype(
        "datetime64[ns]"
    ),
    "no-time": np.array(["2001-01-01", "NaT"], "datetime64[ns]"),
    "durations": np.array([0, 86_400_000_000_000, 1], "timedelta64[ns]"),
    "text": np.array(["red", "näh", "", "a much longer label"]),
    "objects": np.array(["red", "nir"], object),
    "int8": np.array([3, -1, 0], "int8"),
    "uint64": np.array([2**64 - 1, 0], "uint64"),
    "float32": np.array([0.1, np.nan, -0.0, np.inf], "float32"),
    "descending": np.linspace(90, -90, 241),
    "bool": np.array([False, True]),
    "one-zero": np.array([0.0]),
}


class TestLabels:
    def round_trip(self, values, attrs=None):
        store = MemoryStore()
        n = len(values)
        domain = GridDomain(("k", "y"), (n, 2), {"k": Coordinate(values, attrs or {})})
        create(store, [ArraySpec("data", "float32", ("k", "y"), (n, 2), (1, 2))], domain)
        finish(store)
        return xr.open_zarr(store)["k"]

    @pytest.mark.parametrize("kind", LABELS)
    def test_bit_for_bit(self, kind):
        values = LABELS[kind]
        back = self.round_trip(values, {"long_name": "key"})
        assert back.attrs["long_name"] == "key"
        if values.dtype.kind in "UO":
            assert list(map(str, back.values)) == list(map(str, values))
            assert back.sel(k=values[0]).item() == values[0]
        else:
            assert back.dtype == values.dtype
            assert back.values.tobytes() == values.tobytes()

    @settings(max_examples=40, deadline=None)
    @given(
        hnp.arrays(
            st.sampled_from(["f8", "f4", "i8", "u2"]).map(np.dtype), st.integers(1, 40), unique=True
        )
    )
    def test_numbers_bit_for_bit(self, values):
        assert self.round_trip(values).values.tobytes() == values.tobytes()

    @settings(max_examples=40, deadline=None)
    @given(hnp.arrays("i8", st.integers(1, 20), elements=st.integers(-(2**62), 2**62), unique=True))
    def test_dates_bit_for_bit(self, values):
        dates = values.view("datetime64[ns]")
        assert self.round_trip(dates).values.tobytes() == dates.tobytes()

    def test_dates_too_far_away_are_refused(self):
        for years in (["0001-01-01", "2001-01-01"], ["2001-01-01", "9999-01-01"]):
            with pytest.raises(OptionError, match="label the axis with numbers"):
                self.round_trip(np.array(years, "datetime64[s]"))

    def test_attributes_that_would_change_the_values_are_dropped(self):
        attrs = {"_FillValue": np.nan, "scale_factor": 2.0, "valid_range": np.array([0.0, np.inf])}
        back = self.round_trip(np.array([1.0, 2.0]), attrs)
        assert list(back.values) == [1.0, 2.0]
        assert back.attrs == {"valid_range": [0.0, "inf"]}
        times = self.round_trip(LABELS["ns"], {"units": "days since 1900-01-01", "axis": "T"})
        assert times.values.tobytes() == LABELS["ns"].tobytes()
        assert times.attrs["axis"] == "T"

    def test_other_calendars(self):
        cftime = pytest.importorskip("cftime", reason="dates of other calendars need cftime")
        values = np.array([cftime.DatetimeNoLeap(2001, 2, 28), cftime.DatetimeNoLeap(2001, 3, 1)])
        assert list(self.round_trip(values).values) == list(values)

    @pytest.mark.parametrize("values", [np.array([b"a"]), np.array([{"a": 1}]), np.array([None])])
    def test_refused(self, values):
        with pytest.raises(OptionError, match="which Zarr version 3 has no type for"):
            self.round_trip(values)

    def test_digest_tells_labels_apart(self):
        seen = {labels.digest(Coordinate(v)) for v in LABELS.values()}
        seen |= {labels.digest(Coordinate(np.array(["a", "b"]), {"n": i})) for i in range(2)}
        assert len(seen) == len(LABELS) + 2
