"""Axes as plain JSON: what goes in comes back, equal, and nothing is ever unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import strategies
from hypothesis import given
from strategies import Job, examples, jobs

import geopatch_dask as gp
from geopatch_dask.patch.config import from_config, load_object, object_name
from geopatch_dask.patch.window import Window


@dataclass(frozen=True)
class Ramp(Window):
    """A user's own window: heavier to the right."""

    slope: float = 1.0

    def profile(self, n: int) -> Any:
        return 1.0 + self.slope * np.arange(n)


@given(jobs())
@examples(100)
def test_patchers_survive_json(job: Job) -> None:
    text = json.dumps(job.patcher.get_config(), allow_nan=False)
    again = gp.Patcher.from_config(json.loads(text))
    if not isinstance(job.patcher.window, gp.Custom):  # a function comes back as its name
        assert again == job.patcher
    assert json.dumps(again.get_config()) == text
    assert list(again.anchors(job.field)) == list(job.patcher.anchors(job.field))


@pytest.mark.parametrize(
    "axis",
    [
        gp.Rectangular((4, 5), "pad", float("nan")),
        gp.Rectangular(7, "reflect"),
        gp.Rectangular({"lat": 3}),
        gp.RegularStride({"lat": 3, "lon": 4}),
        gp.JitteredStride((4, 4), 0.25, 9),
        gp.Random(10, 3),
        gp.PoissonDisk(3.5, 10, 2),
        gp.Explicit([(0, -2), (5, 5)]),
        gp.Boxcar(),
        gp.Hann("symmetric"),
        gp.Tukey(0.1),
        gp.Gaussian(0.2),
        gp.Custom("strategies:pyramid"),
        gp.Custom(strategies.pyramid),
        *strategies.AGGREGATIONS,
        gp.Output("ndvi", "int16", -9999, missing=float("nan"), attrs={"units": "1"}),
        Ramp(2.0),
    ],
    ids=lambda axis: type(axis).__name__,
)
def test_every_axis_survives_json(axis: Any) -> None:
    text = json.dumps(axis.get_config(), allow_nan=False)
    again = from_config(json.loads(text))
    assert type(again) is type(axis)
    assert json.dumps(again.get_config()) == text
    assert repr(again) == repr(axis) or isinstance(axis, gp.Custom)
    with pytest.raises(AttributeError):
        again.boundary = "pad"  # frozen


def test_classes_of_ones_own_are_named_by_their_module() -> None:
    config = Ramp(3.0).get_config()
    assert config == {"class": f"{__name__}:Ramp", "slope": 3.0}
    assert Window.from_config(config) == Ramp(3.0)
    assert gp.Hann().get_config() == {"class": "Hann", "form": "midpoint"}


def test_what_json_cannot_say_is_refused_with_the_remedy() -> None:
    closure = 3
    for function in (lambda shape: np.ones(shape), lambda shape: np.full(shape, closure)):
        with pytest.raises(gp.OptionError, match="define it at the top level of a module"):
            gp.Custom(function).get_config()


def test_names_lead_back_to_the_very_object() -> None:
    """A bound method would come back as a function without its instance."""
    assert load_object(object_name(strategies.pyramid)) is strategies.pyramid
    assert load_object(object_name(Ramp)) is Ramp
    with pytest.raises(gp.OptionError, match="no importable name"):
        object_name(Ramp(2.0).profile)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class": "Hanning"}, "unknown class 'Hanning'.*known: .*Hann"),
        ({}, "unknown class None"),
        ({"class": "no_such_module:Hann"}, "cannot import 'no_such_module'"),
        ({"class": "json:JSONDecoder"}, "not a configurable class"),
        ({"class": "json:Decoder"}, "module 'json' has no 'Decoder'"),
        ({"class": "Hann", "shape": 3}, "Hann: .*unexpected keyword argument 'shape'"),
        ({"class": "Tukey", "alpha": 7}, "alpha must lie in"),
        ({"class": "RegularStride", "step": 0}, "at least 1"),
    ],
)
def test_bad_configurations(config: dict[str, Any], message: str) -> None:
    with pytest.raises(gp.OptionError, match=message):
        from_config(config)


def test_bad_patchers() -> None:
    good = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4))).get_config()
    with pytest.raises(gp.OptionError, match="a patcher has no 'stride'"):
        gp.Patcher.from_config({**good, "stride": {}})
    with pytest.raises(gp.OptionError, match="a patcher needs a sampler"):
        gp.Patcher.from_config({"geometry": good["geometry"]})
    with pytest.raises(gp.OptionError, match="'Hann' is not a Sampler"):
        gp.Patcher.from_config({**good, "sampler": {"class": "Hann"}})
    shortest = {name: good[name] for name in ("geometry", "sampler")}
    assert gp.Patcher.from_config(shortest).aggregation == gp.OverlapAdd()
