"""Words of clusters, and Dask's settings while they are open: checked without starting anything."""

from __future__ import annotations

from typing import Any

import dask
import pytest
from cluster_state import NAMES, children, told, tracker
from hypothesis import given
from hypothesis import strategies as st

import geopatch_dask as gp
from geopatch_dask.clusters import core, settings
from geopatch_dask.clusters.options import dashboard_address

# ---- words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"kind": "slrum"}, "did you mean 'slurm'? There are local, slurm, pbs, kubernetes"),
        ({"workers": 0}, "workers must be at least 1; got 0"),
        ({"memory": "much"}, "'much' is no number of bytes"),
        ({"workers": 2, "adapt": (0, 2)}, "give workers, or adapt=(fewest, most), not both"),
        ({"adapt": (3, 2)}, "0 <= fewest <= most"),
        ({"adapt": 3}, "adapt must be two whole numbers"),
        ({"adapt": (0, 1.5)}, "adapt must be two whole numbers"),
        ({"adapt": (1, 2, 3)}, "adapt must be two whole numbers"),
        ({"dashbord": 8787}, "no option 'dashbord'; did you mean 'dashboard'?"),
        ({"dashboard": "public"}, "dashboard 'public' is no port"),
        ({"gpus": 0}, "gpus must be a whole number from 1, or true"),
        ({"tls": "nowhere"}, "nowhere has no ca.pem, cert.pem, key.pem"),
        ({"kind": "tcp://127.0.0.1:9", "workers": 2}, "workers is for a cluster that is started"),
        ({"kind": "tcp://127.0.0.1:9", "gpus": 2}, "gpus is for a cluster that is started"),
        ({"kind": "tcp://127.0.0.1:9", "tls": "x"}, "write tls://127.0.0.1:9"),
        ({"kind": "tls://127.0.0.1:9"}, "needs certificates: give tls="),
    ],
)
def test_bad_words_start_nothing(words: dict[str, Any], says: str) -> None:
    before = children() - tracker()
    with pytest.raises(gp.OptionError) as caught:
        gp.cluster(**words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert children() - tracker() == before


@pytest.mark.parametrize("kind", core.KINDS)
def test_an_unknown_word_is_told_without_its_value(kind: str) -> None:
    with pytest.raises(gp.OptionError) as caught:
        gp.cluster(kind, tokn="hunter2")
    assert f"a cluster of kind '{kind}' has no option 'tokn'" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", core.KINDS)
def test_every_kind_has_a_line_of_help_for_each_of_its_words(kind: str) -> None:
    words = core.words_of(kind)
    assert words
    assert not {"workers", "memory", "adapt", "tls", "folders", "kind"} & set(words)
    for word, text in words.items():
        assert word.isidentifier()
        assert 3 < len(text) < 100
        assert core.all_words()[word].rpartition("; ")[2] in core.KINDS


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (8787, "127.0.0.1:8787"),
        (":8787", "127.0.0.1:8787"),
        ("8787", "127.0.0.1:8787"),
        ("0.0.0.0:0", "0.0.0.0:0"),
        ("login-1:8787", "login-1:8787"),
        ("[::1]:8787", "[::1]:8787"),
        (True, "127.0.0.1:0"),
        (False, None),
    ],
)
def test_dashboards_are_on_loopback_unless_a_host_is_named(given: Any, found: Any) -> None:
    assert dashboard_address(given) == found


@pytest.mark.parametrize("bad", ["", ":", "host", "host:", "70000", "a b:1", "1.5", -1])
def test_what_is_no_dashboard(bad: Any) -> None:
    with pytest.raises(gp.OptionError, match="dashboard"):
        dashboard_address(bad)


# ---- settings of Dask ----------------------------------------------------------------------


@given(
    kinds=st.lists(st.sampled_from([*core.KINDS, "tcp://a:1"]), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_settings_are_those_of_the_latest_open_cluster_in_whatever_order_they_close(
    kinds: list[str], order: Any
) -> None:
    before = told()
    entered = []
    for kind in kinds:
        holder = settings.held(kind)
        holder.__enter__()
        entered.append((kind, holder))
    while entered:
        latest = entered[-1][0]
        if latest in ("local", "slurm", "pbs"):
            assert told()[0] == 0
        if latest == "local":
            assert told()[1] == "10 minutes"
            assert told()[2]["MALLOC_TRIM_THRESHOLD_"] == 32 << 20
            assert told()[2]["OMP_NUM_THREADS"] == before[2]["OMP_NUM_THREADS"]
        if latest == "slurm":
            assert told()[1] == "60 s"
        _, holder = entered.pop(order.randrange(len(entered)))
        holder.__exit__(None, None, None)
    assert told() == before


def test_the_environment_of_others_says_the_same() -> None:
    found = dask.config.collect_env(settings.environment())
    assert dask.config.get(NAMES[0], config=found) == 0
    spawn = dask.config.get("distributed.nanny.pre-spawn-environ", config=found)
    assert spawn["MALLOC_TRIM_THRESHOLD_"] == 32 << 20
    with settings.held("local"):
        assert {k: told()[2][k] for k in spawn} == spawn
