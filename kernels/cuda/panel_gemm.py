"""``C = beta C + A B`` of factors that are stored in panels (panels.py), where FASTBP_CUDA asks for it.

Both factors are stored along the terms, so NN, NT and TN are the same product. An element is one chain of instructions
over its terms in their order; of the gradient of a weight as many as the parts that the terms are cut into, added up in
their order. wgmma.py and mma.py have the kernels, panel_tiles.py what they share.
"""

import threading
from itertools import product

import numpy as np

from . import driver, memory, mma, streams, wgmma
from .asked import asked
from .blocking import blocks_of, panel_plan, with_smaller
from .gemm import Epilogue, finish_of, have_vectors
from .panel_tiles import Factors, Shape
from .panels import FORMS, Panels, Stored, padded, panels_of, room, store

WAYS = wgmma, mma  # the first that is asked for, and that the GPU has instructions for


def chosen(precision, dtype):
    """The module of `WAYS` that products of this precision are made by; None where none is asked for."""
    if precision in FORMS and dtype == np.float32:
        for way in WAYS:
            if asked(way.NAME) and way.runs_on(driver.compute_capability()):
                return way
    return None


def tiles_of(way):
    """The tiles that plans have: those of two blocks where they are asked for, too."""
    return tuple(tile for tile in way.TILES if tile.blocks == 1 or asked("pairs"))


_rooms, _launching = {}, threading.Lock()  # stream, factor, size -> memory for its panels


def _room(factor, size):
    """Memory of at least so many elements, the same for all products of a stream; kept, for captured graphs have it."""
    key = streams.stream(), factor, 1 << max(size - 1, 0).bit_length()
    if key not in _rooms:
        _rooms[key] = memory.empty(key[2], np.int32)
    return _rooms[key]


def _stored(factor, precision, rows, terms, x, along, stream):
    """Store a factor of a product for it alone; ``along`` as in `panels.Stored`."""
    panels = Panels(_room(factor, room(precision, rows, terms)), 0, padded(rows))
    none = panels._replace(rows=0)
    size, stored = ((rows, terms), Stored(panels, none)) if along else ((terms, rows), Stored(none, panels))
    store(precision, *size, x, stored, stream)
    return panels


def plan_for(way, shape, cut, precision):
    """`gemm.plan_for` of products by one of `WAYS`."""
    form = FORMS[precision]
    return panel_plan(tiles_of(way), shape, cut, form.terms, len(form.products), driver.multiprocessors())


def gemm(
    trans, shape, a, b, c, stream, epilogue=Epilogue(), precision="bf16", plan=None, parts=None,  # noqa: B008
    factors=None, way=None,
):  # fmt: skip
    """`gemm.gemm` of a precision of `FORMS`, of stored ``factors``.

    Without them two launches store A and B first. All products of a stream have one place for these, as a product
    follows its factors there.

    Parameters
    ----------
    plan : blocking.PanelPlan, optional
    factors : Factors, optional
    way : module, optional
        Of `WAYS`, in place of the one that is `chosen`.
    """
    (m, n, k), way = shape, way or chosen(precision, c.data.dtype)
    if m == 0 or n == 0:
        return 1
    if factors is None:
        with _launching:
            a_stored = _stored("a", precision, m, k, a, trans != "TN", stream)
            b_stored = _stored("b", precision, n, k, b, trans == "NT", stream)
            factors = Factors(a_stored, b_stored)
            return gemm(trans, shape, a, b, c, stream, epilogue, precision, plan, parts, factors, way)
    if plan is None:
        plan = plan_for(way, shape, trans == "TN" and parts is not None, precision)
    if plan.parts > 1:
        c, epilogue = parts, Epilogue()
    _launch(way, shape, factors, c, stream, epilogue, precision, plan)
    return plan.parts


def _launch(way, shape, factors, c, stream, epilogue, precision, plan):
    """Launch the kernel of a product."""
    (m, n, k), tile, after = shape, plan.tile, finish_of(c, epilogue)
    vectors = have_vectors(c, after.saved, after.bias)
    made = factors.made or Stored(factors.a._replace(rows=0), factors.a._replace(rows=0))
    kernel = way.product_kernel(precision, epilogue.name, tile, vectors, factors.made is not None, plan.rest)
    of = Shape(m, n, panels_of(precision, k), plan.parts, plan.each, plan.rows if plan.rest else m)
    tiles = [count * plan.parts for count in blocks_of(plan, m, n)]
    grid = way.grid_of(kernel, tile, *tiles, driver.multiprocessors())
    kernel[grid, way.THREADS, stream](of, factors.a, factors.b, c, after, made)


def kernels(way, precision, epilogue):
    """The products of a way with an epilogue: by each tile, as it is or stored, and by two tiles."""
    for tile, vectors, stores in product(way.TILES, (True, False), (False, True)):
        yield way.product_kernel(precision, epilogue, tile, vectors, stores, None)
    for tile, rest in with_smaller(way.TILES):
        yield way.product_kernel(precision, epilogue, tile, True, False, rest)
