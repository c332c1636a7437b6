"""Sketches: what a whole field says, in a small state that merges exactly.

================================  =========================  ==============================  ==========
sketch                            what it holds              what is off, at most            bytes/band
================================  =========================  ==============================  ==========
`ApproxQuantile(relative_error)`  counts per logarithmic     1 % of the value                284 KB
                                  bucket
`ApproxCardinality(p=14)`         maximum per register       1.04 / 2^(p/2) = 0.8 %, one     16 KB
                                                             standard error
`ApproxMode(k=16)`                hashed counters            counts too high by 0.3 % of n;  344 KB
                                                             nothing over 0.4 % is missed
`StreamingHistogram(bins=64)`     counts on a dyadic grid    edges, by 1/63 of a bin         33 KB
`Reservoir(k=100)`                the k smallest hashes      nothing: a uniform sample       2.5 KB
================================  =========================  ==============================  ==========

Every state consists of integers that are added, or of extremes, or of the smallest hashes; so
``merge`` is associative and commutative *to the bit*, and any split of the values, in any order,
ends in the same state as one pass.  No sketch depends on the order in which values arrive.

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
