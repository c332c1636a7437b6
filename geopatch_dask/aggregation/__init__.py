"""How overlapping patches become one value per cell; see :mod:`geopatch_dask.aggregation.base`."""

from geopatch_dask.aggregation.base import Aggregation, Contribution, State, averaged
from geopatch_dask.aggregation.compound import Mean, OverlapAdd, Range, Variance
from geopatch_dask.aggregation.monoidal import All, Any_, Count, Max, Min, Sum, WeightedSum
from geopatch_dask.aggregation.output import Output

Any = Any_

__all__ = [
    "Aggregation",
    "All",
    "Any",
    "Contribution",
    "Count",
    "Max",
    "Mean",
    "Min",
    "Output",
    "OverlapAdd",
    "Range",
    "State",
    "Sum",
    "Variance",
    "WeightedSum",
    "averaged",
]
