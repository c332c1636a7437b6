"""What a plan says about itself: every number in the text is one that can be checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_fields import Endless
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.patch.boxes import hull
from geopatch_dask.planning.units import bytes_text, parse_bytes, seconds_text


def double(x: Any) -> Any:
    return x * 2


def plan_of(field: gp.Field, target: Any = None, **options: Any) -> gp.Plan:
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((12, 12)), gp.Hann())
    return gp.plan(field, patcher, double, target or MemoryStore(), **options)


def test_numbers_agree_with_brute_force(tmp_path: Path) -> None:
    field = gp.ArrayField(np.zeros((3, 100, 130), "float32"))
    plan = plan_of(field, tmp_path / "o.zarr", outer=(40, 60), chunks=(20, 20), slots=2)
    numbers = plan.explain().numbers
    run = read = 0
    for tile in plan.layout:
        anchors = plan.grid.anchors.at(plan.grid.touching(tile.box)).tolist()
        run += len(anchors)
        read += hull(plan.grid.source(a) for a in anchors).cells
    n = plan.patcher.n_anchors(field)
    assert numbers["patches"] == n == 8 * 11
    assert numbers["patches_run"] == run
    assert numbers["R"] == run / n
    assert numbers["supertiles"] == 3 * 3
    assert numbers["bytes_read"] == read * 3 * 4
    assert numbers["read_amplification"] == read / (100 * 130)
    assert numbers["bytes_written"] == 3 * 100 * 130 * 4
    assert numbers["objects"] == 3 * 5 * 7
    assert numbers["memory"] == plan.memory.to_json()
    assert numbers["memory"]["total"] == plan.memory.total > numbers["memory"]["reserved"]
    assert numbers["operator_seconds"] == plan.seconds_per_patch * run / 2
    report = plan.run("sync")
    assert report.summary.numbers["patches"] == run
    assert report.summary.numbers["bytes_read"] == numbers["bytes_read"]
    stored = [p for p in (tmp_path / "o.zarr" / "data" / "c").rglob("*") if p.is_file()]
    assert len(stored) <= numbers["objects"]


def test_the_text_has_them() -> None:
    field = gp.ArrayField(np.zeros((3, 100, 130), "float32"))
    plan = plan_of(field, outer=(40, 60), chunks=(20, 20), memory_limit="2 GiB")
    text = str(plan.explain())
    lines = dict(line.split("  ", 1) for line in text.splitlines())
    cost = plan.cost
    assert "band 3 x y 100 x x 130 float32" in lines["field"]
    assert "88 of 16 x 16, RegularStride 12 x 12, window Hann, OverlapAdd" in lines["patches"]
    assert "9 of 40 x 60, chunks 20 x 20, unsharded" in lines["super-tiles"]
    assert f"{cost.amplification:.3f}  {cost.patches_run:,} patches run for 88" in lines["R"]
    assert f"{cost.cells_read / 13_000:.3f} of the field" in lines["reads"]
    assert "at most 105 objects, and 9 records" in lines["writes"]
    assert "per worker slot, " in lines["memory"]
    assert "of 2.0 GiB" in lines["memory"]
    assert plan.fingerprint[:16] in lines["fingerprint"]
    assert all(len(name) < 20 for name in lines)


def test_choices_are_told_with_what_they_beat() -> None:
    plan = plan_of(Endless(8192, 8192), memory_limit="500 MiB", slots=2)
    text = str(plan.explain())
    assert plan.rejected
    for other in plan.rejected:
        assert f"{' x '.join(map(str, other['tile']))}: R {other['R']:.3f}" in text
        assert other["reason"] in text


def test_many_objects_are_worth_a_word() -> None:
    plan = plan_of(Endless(200_000, 200_000), memory_limit="4 GiB")
    assert "shards= of a few thousand cells would" in str(plan.explain())
    assert "cannot read shards" in str(plan.explain())
    sharded = plan_of(Endless(200_000, 200_000), shards=(2048, 2048), memory_limit="8 GiB")
    assert "advice" not in str(sharded.explain())


def test_nothing_is_read_or_written(tmp_path: Path) -> None:
    class Closed(Endless):
        closed = False

        def read(self, box: gp.Box) -> Any:
            assert not self.closed
            return super().read(box)

    field = Closed(400, 400)
    plan = plan_of(field, tmp_path / "o.zarr")
    field.closed = True
    str(plan.explain())
    plan.explain().draw(tmp_path / "plan.png")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.png"]


@pytest.mark.parametrize("shape", [(300,), (200, 300), (5, 60, 60)])
@pytest.mark.parametrize(
    "sampler", [gp.RegularStride, lambda step: gp.Random(20), lambda step: gp.JitteredStride(step)]
)
def test_drawings_are_pictures(shape: tuple[int, ...], sampler: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    size = (16,) * len(shape) if len(shape) < 3 else (3, 16, 16)
    patcher = gp.Patcher(gp.Rectangular(size, "pad"), sampler(tuple(p - 2 for p in size)))
    tile = tuple(-(-n // 3) for n in shape)
    plan = gp.plan(Endless(*shape), patcher, double, MemoryStore(), outer=tile, chunks=tile)
    picture = imread(plan.explain().draw(tmp_path / "plan.png"))
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.02  # not one colour


# ---- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4 GiB", 4 << 30), ("4GB", 4 * 10**9), ("512mib", 512 << 20), ("7", 7), (7.9, 7), ("1e", 0)],
)
def test_bytes_are_read_as_people_write_them(text: Any, expected: int) -> None:
    if expected:
        assert parse_bytes(text) == expected
    else:
        with pytest.raises(gp.OptionError, match="is no number of bytes"):
            parse_bytes(text)


def test_bytes_and_seconds_are_written_as_people_read_them() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1024, 5 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 TiB",
    ]
    assert [seconds_text(s) for s in (0.04, 59.9, 61, 3600, 86_400)] == [
        "0.0 s",
        "59.9 s",
        "1 min 01 s",
        "1 h 00 min",
        "24 h 00 min",
    ]
    assert math.isclose(parse_bytes(bytes_text(123456789)), 123456789, rel_tol=0.01)


def test_memory_of_an_operator_may_be_text(tmp_path: Path) -> None:
    patcher = gp.Patcher(gp.Rectangular(8), gp.RegularStride(8), gp.Boxcar(), gp.Max())
    made = [
        gp.plan(
            *(np.zeros((16, 16)), patcher, gp.Operator(np.positive, memory=memory), tmp_path / "o"),
            slots=1,
            memory_limit="4 GiB",
        )
        for memory in ("1 GiB", 1 << 30)
    ]
    assert made[0].memory == made[1].memory
    assert made[0].memory.operator > 0.99 * (1 << 30)  # what the batch holds is beside it
