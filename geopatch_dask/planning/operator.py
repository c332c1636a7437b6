"""Operators: what turns a patch of the field into a patch of the output.

An operator is any picklable callable from an array to an array.  :class:`Operator` adds what a
plain callable cannot say: that it is a *factory* (a model is built once per worker process and
never travels in the graph), that it wants *batches*, that it wants the whole
:class:`~geopatch_dask.patch.patch.Patch`, or what it makes of missing cells.

The bits of a result may depend on how an operator is called, so it is always called in the same
way: C-contiguous arrays, one fixed batch shape, the last batch padded.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, partial
from typing import Any, Literal

import cloudpickle
import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.rows import slot_of
from geopatch_dask.aggregation.several import map_arrays
from geopatch_dask.errors import OperatorError, OptionError
from geopatch_dask.patch.config import load_object
from geopatch_dask.patch.geometry import cells_of
from geopatch_dask.patch.grid import UNIT
from geopatch_dask.patch.patch import Patch
from geopatch_dask.planning.identity import code_identity
from geopatch_dask.planning.units import parse_bytes

__all__ = ["Operator"]

Array = npt.NDArray[Any]

#: An operator that pickles larger than this carries data that belongs in a factory.
LARGE_PICKLE = 1 << 20

_built: dict[str, Callable[..., Any]] = {}
_building = threading.Lock()


@dataclass(frozen=True)
class Operator:
    """A function of patches, and how to call it.

    Parameters
    ----------
    function : callable, or ``"module:name"``
        ``array -> array``.  Without ``batch`` the array has the shape of ``patch.data``,
        (*riding axes, *patch axes); with it, a batch axis comes first.  The result keeps the patch
        axes; axes before them are free but always the same.  For ``ByIndex`` it is rows instead.
    factory : bool
        ``function(**options)`` is called once per process and returns the callable.
    options : mapping
        Keyword arguments, for the factory or for every call.  Part of the operator's identity.
    batch : int or None
        Patches per call.  The last batch of a super-tile is padded with repeats.
    takes : {"array", "patch"}
        ``"patch"``: the function gets a Patch (anchor, coords, transform) and no batches.
    missing : {"pass", "mask"}
        ``"pass"``: NaN goes in as it is.  ``"mask"``: NaN is replaced by ``fill`` on the way in,
        and cells that were missing in any band are missing in the result too.
    fill : float
        See ``missing``.
    version : str or None
        Names this version of the operator.  By default its identity is its name and source; give a
        version when weights change behind the same source, or when the source is not to matter.
    context : bool
        Whether the function takes ``context=``, the result of a first pass; set by a plan that has
        one.
    memory : int or str, bytes
        What the operator takes beyond inputs and results, a model and its working memory, where
        the measurement at plan time cannot see it (allocations outside numpy during a call):
        ``2 << 30`` or ``"2 GiB"``.
    trial : bool
        Whether a plan tries the operator.  False for one that cannot run where plans are made
        (no GPU there): then say what a trial would have found, by ``memory`` here and
        ``Output(returns=)``.  Workers check it.
    """

    function: Callable[..., Any] | str
    factory: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    takes: Literal["array", "patch"] = "array"
    missing: Literal["pass", "mask"] = "pass"
    fill: float = 0.0
    version: str | None = None
    context: bool = False
    memory: int | str = 0
    trial: bool = True

    def __post_init__(self) -> None:
        if self.memory != 0:
            object.__setattr__(self, "memory", parse_bytes(self.memory))
        if not callable(self.function) and not isinstance(self.function, str):
            raise OptionError(f"an operator is a callable or 'module:name', got {self.function!r}")
        if self.takes not in ("array", "patch"):
            raise OptionError(f"takes {self.takes!r} is neither 'array' nor 'patch'")
        if self.missing not in ("pass", "mask"):
            raise OptionError(f"missing {self.missing!r} is neither 'pass' nor 'mask'")
        if self.batch is not None:
            cells_of((self.batch,), "batch")
            if self.takes == "patch":
                raise OptionError("an operator that takes patches gets them one by one; drop batch")

    @classmethod
    def of(cls, operator: Operator | Callable[..., Any] | str) -> Operator:
        """An operator as it is, a bare callable or name wrapped."""
        return operator if isinstance(operator, Operator) else cls(operator)

    @property
    def name(self) -> str:
        """A short name for reports."""
        if isinstance(self.function, str):
            return self.function
        found = getattr(self.function, "__qualname__", None)
        return str(found or type(self.function).__qualname__)

    def identity(self) -> dict[str, Any]:
        """What decides the operator's values, as JSON."""
        if self.version is not None:
            code: Any = self.version
        else:
            loaded = load_object(self.function) if isinstance(self.function, str) else self.function
            code = code_identity(loaded)
        return {
            "name": self.name,
            "code": code,
            "options": code_identity(dict(self.options)) if self.options else None,
            "batch": self.batch,
            "takes": self.takes,
            "missing": [self.missing, repr(self.fill)] if self.missing == "mask" else self.missing,
        }

    def check_picklable(self) -> int:
        """Bytes of the pickled operator.

        Raises
        ------
        OperatorError
            When it cannot be pickled, naming what is in the way and the remedy.
        """
        try:
            size = len(cloudpickle.dumps(self))
        except Exception as error:
            raise OperatorError(
                f"operator {self.name} cannot be sent to workers ({error}); keep open files, locks "
                "and models out of it: give a factory, Operator('module:make', factory=True)"
            ) from error
        if size > 64 * LARGE_PICKLE:
            raise OperatorError(
                f"operator {self.name} pickles to {size / 2**20:.0f} MiB; build what it carries on "
                "the workers: Operator('module:make', factory=True)"
            )
        return size

    def copied(self) -> Operator:
        """The operator as a worker gets it: what a call builds or opens in it stays in the copy."""
        copy: Operator = cloudpickle.loads(cloudpickle.dumps(self))
        return copy

    # ---- calling ---------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """What tells what it builds from what others build."""
        return repr(self.identity())

    def load(self) -> Callable[..., Any]:
        """The callable, built at most once per process where it is a factory."""
        if not self.factory:
            loaded = load_object(self.function) if isinstance(self.function, str) else self.function
            if not callable(loaded):
                raise OperatorError(f"operator {self.name} is not callable: {loaded!r}")
            return loaded
        key = self.key
        with _building:
            if key not in _built:
                make = (
                    load_object(self.function) if isinstance(self.function, str) else self.function
                )
                made = make(**self.options)
                if not callable(made):
                    raise OperatorError(
                        f"factory {self.name} returned {type(made).__name__}, not a callable"
                    )
                _built[key] = made
            return _built[key]

    @property
    def built(self) -> bool:
        """Whether this process holds what the factory built."""
        return self.factory and self.key in _built

    def forget(self) -> None:
        """Drop what a factory built in this process, so that the next call builds it anew."""
        if self.factory:
            with _building:
                _built.pop(self.key, None)

    def run(
        self,
        patches: Sequence[Patch],
        scale: Fraction | None = UNIT,
        context: Mapping[str, Any] | None = None,
        keyed: frozenset[str] = frozenset(),
    ) -> list[Any]:
        """Apply to some patches of one shape: at most ``batch`` of them.

        Parameters
        ----------
        patches : sequence of Patch
        scale : Fraction or None
            Cells of the result per cell of the patch, along every patch axis; None: the result may
            have any shape, and is masked where it has that of the patch.
        context : mapping or None
            For operators with ``context=True``, what pass 1 found.
        keyed : frozenset of str
            Entries of the result that are rows of a table, ``""`` for all of it: any shape goes.

        Returns
        -------
        list, one entry per patch
            What the operator returned for it: an array of shape (*leading, *patch), or a tuple or
            dict of such arrays.

        Raises
        ------
        OperatorError
            When a result has not the patch axes of the input.
        """
        call = self.load()
        options = {} if self.factory else dict(self.options)
        if self.context:
            options["context"] = context
        if self.takes == "patch":
            given = [patch.with_data(self._input(patch.data)) for patch in patches]
            results = [_bare(call(patch, **options)) for patch in given]
        elif self.batch is None:
            results = [call(self._input(p.data), **options) for p in patches]
        else:
            results = self._run_batch(call, options, patches, keyed)
        settle = self._masked if scale is None else partial(self._checked, scale=scale)
        return [
            map_arrays(partial(settle, patch=patch), result, keyed)
            for result, patch in zip(results, patches, strict=True)
        ]

    def _run_batch(
        self,
        call: Callable[..., Any],
        options: dict[str, Any],
        patches: Sequence[Patch],
        keyed: frozenset[str],
    ) -> list[Any]:
        size = self.batch or 1
        padded = [p.data for p in patches] + [patches[-1].data] * (size - len(patches))
        result = call(self._input(np.stack(padded)), **options)
        return [self._cut(result, slot, keyed) for slot in range(len(patches))]

    def _cut(self, result: Any, slot: int, keyed: frozenset[str]) -> Any:
        """What belongs to one patch of a batch."""
        if "" in keyed:
            return slot_of(result, slot, self.batch or 1, self.name)
        cut = map_arrays(partial(self._slot, slot=slot), result, keyed)
        for key in keyed.intersection(cut if isinstance(cut, Mapping) else ()):
            cut[key] = slot_of(result[key], slot, self.batch or 1, f"{self.name}, {key!r}")
        return cut

    def _slot(self, array: Array, slot: int) -> Array:
        if array.ndim < 1 or array.shape[0] != self.batch:
            raise OperatorError(
                f"operator {self.name} got a batch of {self.batch} and returned shape "
                f"{array.shape}; the batch axis must stay first"
            )
        return np.asarray(array[slot])

    def _input(self, data: Array) -> Array:
        if self.missing == "mask" and data.dtype.kind == "f":
            data = np.where(np.isnan(data), np.asarray(self.fill, data.dtype), data)
        return np.ascontiguousarray(data)

    def _checked(self, result: Array, patch: Patch, scale: Fraction) -> Array:
        ndim = patch.indices.ndim
        expected = tuple(math.ceil(n * scale) for n in patch.indices.shape)
        if result.ndim < ndim or result.shape[result.ndim - ndim :] != expected:
            why = f" at scale {scale}" if scale != 1 else ""
            raise OperatorError(
                f"operator {self.name} got a patch of shape {patch.data.shape} and returned "
                f"{result.shape}; its last {ndim} axes must be {expected}{why}"
                + ("" if scale != 1 else " (gp.Output(scale=...) if it refines or coarsens)")
            )
        if result.dtype.kind not in "iufb":
            raise OperatorError(
                f"operator {self.name} returned dtype {result.dtype}; return real numbers"
            )
        if scale != 1 and self.missing == "mask" and patch.data.dtype.kind == "f":
            raise OperatorError(
                "missing='mask' needs results on the grid of the field; at another scale let "
                "the operator return NaN where it has no answer"
            )
        return self._masked(result, patch)

    def _masked(self, result: Array, patch: Patch) -> Array:
        """NaN where the patch had one, if that was to be masked and the result has its cells."""
        shape = patch.indices.shape
        over = result.shape[max(result.ndim - len(shape), 0) :] == shape
        if self.missing == "mask" and patch.data.dtype.kind == "f" and over:
            gone = np.isnan(patch.data).reshape(-1, *shape).any(axis=0)
            # a dtype that has NaN, also where nothing is missing: it must always be the same
            result = result.astype(np.result_type(result.dtype, np.float32))
            result[..., gone] = np.nan
        return result


def _bare(result: Any) -> Any:
    return result.data if isinstance(result, Patch) else result
