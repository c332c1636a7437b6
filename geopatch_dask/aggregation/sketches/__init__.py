"""Sketches: what a whole field says, in a small state that merges exactly.

==================  ==============================  ==================================  ==========
sketch              what it holds                   what is off, at most                bytes/band
==================  ==============================  ==================================  ==========
ApproxQuantile      counts per logarithmic bucket   the value, by 1 %                   284 KB
ApproxCardinality   a maximum per register          0.8 % is one standard error         16 KB
ApproxMode          hashed counters                 counts, too high by 0.3 % of all;   344 KB
                                                    no share above 0.4 % is missed
StreamingHistogram  counts on a dyadic grid         inner edges, by 1/63 of a bin       33 KB
Reservoir           the k smallest hashes           nothing: a uniform sample           2.5 KB
==================  ==============================  ==================================  ==========

Every state consists of integers that are added, or of extremes, or of the smallest hashes; so
``merge`` is associative and commutative *to the bit*, and any split of the values, in any order,
ends in the same state as one pass.  It leaves both of its arguments as they are.  (Bytes and errors
in the table are those of the default options.)

The five agree on what a value is (:mod:`geopatch_dask.aggregation.sketches.values`): NaN is
missing and ignored, infinities are values, -0.0 is +0.0, and a number is the same number whatever
its dtype.
"""

from geopatch_dask.aggregation.sketches.cardinality import ApproxCardinality
from geopatch_dask.aggregation.sketches.histogram import StreamingHistogram
from geopatch_dask.aggregation.sketches.mode import ApproxMode
from geopatch_dask.aggregation.sketches.quantile import ApproxQuantile
from geopatch_dask.aggregation.sketches.reservoir import Reservoir

__all__ = [
    "ApproxCardinality",
    "ApproxMode",
    "ApproxQuantile",
    "Reservoir",
    "StreamingHistogram",
]
