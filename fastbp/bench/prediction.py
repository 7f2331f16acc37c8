"""``predict`` beside that of a peer, from Python."""

import itertools

import numpy as np

from . import peers
from .agreement import checked_rival
from .clocks import SampleClock
from .measure import Case
from .shapes import title_of
from .trainer import network, weights_of

PREDICT_MOST = {"I1": 2e-6}  # seconds aimed at


def predict_case(name, shape, names, protocol) -> Case:
    """``predict`` from Python: the median and the 99th percentile of single calls."""
    widths, activation, batch, targets = shape
    if activation != "relu":
        raise ValueError(f"{name}: predictions are compared with relu only")
    ours = network(widths, activation, protocol.dtype, protocol.device)
    x = np.random.default_rng(0).standard_normal((batch, widths[0]), dtype=protocol.dtype)
    expected, rivals = ours.predict(x), {}
    for peer in names:
        operation = peers.PREDICTORS[peer](weights_of(ours), x, protocol.threads)
        rivals[peer] = checked_rival(f"{name}: predict of {peer}", operation, expected, protocol, targets.get(peer))
        rivals[peer].clock = SampleClock(operation.call)
    return Case(
        name,
        title_of(shape),
        SampleClock(lambda: ours.predict(x)),
        rivals,
        flops=sum(2 * batch * a * b for a, b in itertools.pairwise(widths)),
        most=PREDICT_MOST.get(name),
        facts={"widths": widths, "activation": activation, "batch": batch},
    )


def predict_cases(shapes, names, protocol):
    """A prediction of each shape."""
    for name, shape in shapes.items():
        yield predict_case(name, shape, names, protocol)
