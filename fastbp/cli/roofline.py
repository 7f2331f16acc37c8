"""``fastbp roofline``: where each kernel of a train step stands against the machine's limits."""

from ..bench import roofline, shapes
from . import machine, measuring

PRECISIONS = "ieee", "bf16", "bf16x3"  # of the CPU, whose limit is known


def add_options(parser):
    """The shape, the picture, and where."""
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="ieee", help="of products, and of their limit (%(default)s)"
    )
    parser.add_argument("--shape", default="S5", help="an id, or layers and batch: 784-256-10@128 (%(default)s)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="also a picture: .svg, .png or .pdf, or a page: .html (needs matplotlib)"
    )
    measuring.add_options(parser)


def run(options):
    """Measure a step, and show it as a table and a picture."""
    shape = shapes.parse_shapes(options.shape)
    if len(shape) != 1:
        raise ValueError(f"--shape {options.shape}: expected one shape, got {len(shape)}")
    if options.output:
        roofline.check_output(options.output)
    code = measuring.run_elsewhere(options, 1)
    if code is not None:
        return code
    measuring.settle(options, 1)
    for line in machine.multiplied(options.device, options.precision):
        print(line)
    print()
    found = roofline.measure_step(*shape.values(), options.dtype, options.device, options.precision)
    for line in roofline.lines(found):
        print(line)
    if options.output:
        roofline.write(found, options.output)
        print(f"\n{options.output}")
