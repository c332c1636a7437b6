"""Patch-wise operators over fields too large for one machine.

Cut a field into super-tiles, run any operator patch by patch on a Dask cluster, and get one
seamless, georeferenced Zarr: the same bytes whatever the layout; run it again after any crash;
memory planned; no silent holes.

>>> import geopatch_dask as gp
>>> patcher = gp.Patcher(
...     gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), gp.Hann(), gp.OverlapAdd()
... )
"""

from geopatch_dask.aggregation import (
    Aggregation,
    All,
    Any,
    ByIndex,
    Count,
    HardVote,
    InvVarWeightedMean,
    Learned,
    Max,
    Mean,
    Median,
    Min,
    Mode,
    Output,
    OverlapAdd,
    Quantile,
    Range,
    SoftVote,
    Sum,
    Variance,
    WeightedSum,
)
from geopatch_dask.aggregation.moments import Covariance, Histogram, MeanStd, MinMax, Quantiles
from geopatch_dask.aggregation.sketches import (
    ApproxCardinality,
    ApproxMode,
    ApproxQuantile,
    Reservoir,
    StreamingHistogram,
)
from geopatch_dask.aggregation.statistic import Statistic
from geopatch_dask.aggregation.strict import set_strict
from geopatch_dask.clusters.core import Cluster, cluster
from geopatch_dask.errors import (
    AlignmentError,
    BoundaryError,
    FieldError,
    GeopatchError,
    MemoryPlanError,
    OperatorError,
    OptionError,
    PlanMismatch,
    RecordError,
    RunIncomplete,
    SuperTileFailed,
    TargetError,
    VerificationError,
)
from geopatch_dask.execute.api import (
    Plan,
    UncoveredWarning,
    open,  # noqa: A004
    plan,
    read_table,
    reconstruct,
)
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.check.diagnosis import Diagnosis
from geopatch_dask.execute.check.doctor import doctor
from geopatch_dask.execute.check.verification import Verification
from geopatch_dask.execute.check.verify import verify
from geopatch_dask.execute.runs.job import Job, attach
from geopatch_dask.execute.runs.retry import retry
from geopatch_dask.fields import ArrayField, Field, RasterField, XarrayField
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import GridDomain, RasterDomain
from geopatch_dask.patch.geometry import Rectangular
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.patch.sampler import (
    Explicit,
    JitteredStride,
    PoissonDisk,
    Random,
    RegularStride,
)
from geopatch_dask.patch.window import Boxcar, Custom, Gaussian, Hann, Tukey
from geopatch_dask.planning.nodes import Nodes
from geopatch_dask.planning.operator import Operator
from geopatch_dask.planning.summary import per_block, per_patch
from geopatch_dask.report.report import Report
from geopatch_dask.report.status import Status, status
from geopatch_dask.store.location import Location
from geopatch_dask.store.target import IncompleteWarning

__version__ = "0.1.0"

__all__ = [
    "Aggregation",
    "AlignmentError",
    "All",
    "Any",
    "ApproxCardinality",
    "ApproxMode",
    "ApproxQuantile",
    "ArrayField",
    "BoundaryError",
    "Box",
    "Boxcar",
    "ByIndex",
    "Cluster",
    "Count",
    "Covariance",
    "Custom",
    "Diagnosis",
    "Explicit",
    "Field",
    "FieldError",
    "Gaussian",
    "GeopatchError",
    "GridDomain",
    "Hann",
    "HardVote",
    "Histogram",
    "IncompleteWarning",
    "InvVarWeightedMean",
    "JitteredStride",
    "Job",
    "Learned",
    "Location",
    "Max",
    "Mean",
    "MeanStd",
    "Median",
    "MemoryPlanError",
    "Min",
    "MinMax",
    "Mode",
    "Nodes",
    "Operator",
    "OperatorError",
    "OptionError",
    "Output",
    "OverlapAdd",
    "Patch",
    "Patcher",
    "Plan",
    "PlanMismatch",
    "PoissonDisk",
    "Policy",
    "Quantile",
    "Quantiles",
    "Random",
    "Range",
    "RasterDomain",
    "RasterField",
    "RecordError",
    "Rectangular",
    "RegularStride",
    "Report",
    "Reservoir",
    "RunIncomplete",
    "SoftVote",
    "Statistic",
    "Status",
    "StreamingHistogram",
    "Sum",
    "SuperTileFailed",
    "TargetError",
    "Tukey",
    "UncoveredWarning",
    "Variance",
    "Verification",
    "VerificationError",
    "WeightedSum",
    "XarrayField",
    "attach",
    "cluster",
    "doctor",
    "open",
    "per_block",
    "per_patch",
    "plan",
    "read_table",
    "reconstruct",
    "retry",
    "set_strict",
    "status",
    "verify",
]
