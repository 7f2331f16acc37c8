"""Kernels that have not run on a GPU yet are chosen only where the environment variable FASTBP_CUDA lists them."""

import os
from functools import cache

KERNELS = ("cluster", "panels", "wgmma", "pairs")


def asked(name: str) -> bool:
    """Whether FASTBP_CUDA lists a name of `KERNELS`, as ``FASTBP_CUDA=cluster,wgmma`` does."""
    return name in all_asked()


def all_asked() -> frozenset[str]:
    """The names of `KERNELS` that FASTBP_CUDA lists.

    Raises
    ------
    ValueError
        It lists a name that is none of these.
    """
    return _names(os.environ.get("FASTBP_CUDA", ""))


@cache
def _names(text):
    names = frozenset(name.strip() for name in text.split(",")) - {""}
    if unknown := sorted(names.difference(KERNELS)):
        raise ValueError(
            f"FASTBP_CUDA may list, separated by commas, {', '.join(KERNELS)}; got {', '.join(unknown)}: leave it out, "
            "or unset FASTBP_CUDA"
        )
    return names
