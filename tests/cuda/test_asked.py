"""Kernels that have not run on a GPU yet are chosen by name, and by no other name."""

import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "fastbp[cuda]"')

from fastbp.kernels.cuda.asked import KERNELS, asked


@pytest.mark.parametrize(
    ("listed", "found"),
    [(None, ()), ("", ()), ("cluster", "c"), (" wgmma,cluster,", "cw"), ("panels", "p"), ("wgmma,pairs", "wt")],
)
def test_listed_names_are_asked_for(monkeypatch, listed, found):
    monkeypatch.delenv("FASTBP_CUDA", raising=False)
    if listed is not None:
        monkeypatch.setenv("FASTBP_CUDA", listed)
    assert [asked(name) for name in KERNELS] == [letter in found for letter in "cpwt"]


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("FASTBP_CUDA", "cluster,clutser")
    with pytest.raises(
        ValueError, match="FASTBP_CUDA may list, separated by commas, cluster, panels, wgmma, pairs; got clutser: "
    ):
        asked("cluster")
