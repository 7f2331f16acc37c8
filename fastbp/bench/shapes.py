"""The networks that are timed: layer widths, activation, batch, and the ratios aimed at."""

import itertools

# id: widths, activation, batch, and the least ratio to each peer that this library aims at in float32.
SHAPES = {
    "S1": ((4, 32, 32, 2), "relu", 32, {"torch": 65, "jax": 2.8}),
    "S2": ((64, 128, 10), "relu", 64, {"torch": 11, "jax": 1.6}),
    "S3": ((784, 128, 10), "relu", 64, {"torch": 2.7, "jax": 1.35}),
    "S4": ((784, 256, 128, 10), "relu", 128, {"torch": 1.62, "jax": 1.22}),
    "S5": ((784, 512, 512, 10), "relu", 256, {"torch": 1.28, "jax": 1.17}),
    "S6": ((1024, 1024, 1024, 1024, 10), "relu", 256, {"torch": 1.23, "jax": 1.18}),
    "S7": ((2048, 2048, 2048, 1000), "relu", 512, {"torch": 1.14, "jax": 1.12}),
    "S8": ((4096, 4096, 4096), "relu", 32, {"torch": 2.4, "jax": 2.6}),
    "S9": ((4, 32, 16, 4), "tanh", 10_000, {"torch": 8, "jax": 3.3}),
}
# Sizes near those that are multiples of no vector: the same ratios must hold.
ODD_SHAPES = {
    "O1": ((5, 33, 31, 3), "relu", 31, SHAPES["S1"][3]),
    "O2": ((65, 127, 11), "relu", 63, SHAPES["S2"][3]),
    "O3": ((783, 129, 9), "relu", 65, SHAPES["S3"][3]),
    "O4": ((513, 257, 129, 11), "relu", 77, SHAPES["S4"][3]),
    "O6": ((1023, 1025, 1021, 11), "relu", 255, SHAPES["S6"][3]),
    "O9": ((5, 33, 17, 3), "tanh", 9_999, SHAPES["S9"][3]),
}
PREDICTIONS = {
    "I1": ((16, 64, 64, 4), "relu", 1, {"torch": 10, "onnxruntime": 2}),
    "I32": ((16, 64, 64, 4), "relu", 32, {}),
    "I4096": ((784, 256, 128, 10), "relu", 4096, {}),
}
GPU_SHAPES = {
    "G1": ((32, 64, 64, 1), "relu", 256, {"torch": 6, "torch-graph": 1.5}),
    "G2": ((784, 256, 128, 10), "relu", 1024, {"torch": 3}),
    "G3": ((4096, 4096, 4096, 4096), "relu", 1024, {"torch": 1}),
}
WIDTHS = {f"w{w}": ((10, w, w, 10), "relu", 128, {}) for w in (16, 17, 24, 32, 33, 48, 64, 65, 80, 96, 97, 112, 128)}
GROUPS = {"all": SHAPES, "odd": ODD_SHAPES}


def parse_shapes(text: str) -> dict[str, tuple]:
    """Shapes by id, as layers and batch (``513-257-129-11@77``), or ``all``, or ``odd``; several with commas."""
    known = SHAPES | ODD_SHAPES | PREDICTIONS | GPU_SHAPES
    shapes = {}
    for name in text.split(","):
        if name in GROUPS:
            shapes |= GROUPS[name]
            continue
        if name in known:
            shapes[name] = known[name]
            continue
        try:
            widths, batch = name.split("@")
            widths, batch = tuple(int(width) for width in widths.split("-")), int(batch)
            if len(widths) < 2 or min(*widths, batch) < 1:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"unknown shape {name!r}: expected {', '.join(known)}, all, odd, "
                f"or layers and batch as in 784-256-10@128"
            ) from None
        shapes[name] = widths, "relu", batch, {}
    return shapes


def title_of(shape) -> str:
    """Layers and batch."""
    widths, activation, batch, _ = shape
    return "-".join(map(str, widths)) + ("" if activation == "relu" else f" {activation}") + f" @ {batch}"


def step_flops(widths, batch) -> int:
    """Floating-point operations in the products of one step; the first layer needs no input gradient."""
    return sum(2 * a * b * batch * (3 if i else 2) for i, (a, b) in enumerate(itertools.pairwise(widths)))
