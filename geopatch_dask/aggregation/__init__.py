"""How overlapping patches become one value per cell; see :mod:`geopatch_dask.aggregation.base`."""

from geopatch_dask.aggregation.base import (
    LAYERS,
    Aggregation,
    Contribution,
    Part,
    State,
    averaged,
)
from geopatch_dask.aggregation.compound import Mean, OverlapAdd, Range, Variance
from geopatch_dask.aggregation.keyed import ByIndex
from geopatch_dask.aggregation.layers import Learned, Median, Mode, Quantile
from geopatch_dask.aggregation.monoidal import All, Any_, Count, Max, Min, Sum, WeightedSum
from geopatch_dask.aggregation.output import Output
from geopatch_dask.aggregation.posterior import InvVarWeightedMean
from geopatch_dask.aggregation.several import Several
from geopatch_dask.aggregation.votes import HardVote, SoftVote

Any = Any_

__all__ = [
    "LAYERS",
    "Aggregation",
    "All",
    "Any",
    "ByIndex",
    "Contribution",
    "Count",
    "HardVote",
    "InvVarWeightedMean",
    "Learned",
    "Max",
    "Mean",
    "Median",
    "Min",
    "Mode",
    "Output",
    "OverlapAdd",
    "Part",
    "Quantile",
    "Range",
    "Several",
    "SoftVote",
    "State",
    "Sum",
    "Variance",
    "WeightedSum",
    "averaged",
]
