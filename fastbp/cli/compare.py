"""``fastbp compare``: this library timed beside others."""

import json
import pathlib
import time

from .. import backend
from ..bench import comparisons, measure, peers, process, report, shapes, training_steps
from . import machine, measuring
from .options import positive


def add_options(parser):
    """What is compared with whom, how long, and where."""
    parser.add_argument(
        "--what", default="steps", help=f"all, or some of {', '.join(comparisons.COMPARISONS)} (%(default)s)"
    )
    parser.add_argument(
        "--shapes",
        help="of steps, predict, width, busy and many: ids, all, odd, or layers and batch: 784-256-10@128 "
        "(default: a few of each; S1 to S4)",
    )
    parser.add_argument(
        "--peers", help=f"some of {', '.join(peers.PEERS)} (default: the fastest of those that can do it)"
    )
    parser.add_argument(
        "--precision",
        choices=("ieee", *comparisons.ROUNDED_STEPS),
        default="ieee",
        help="of our products, of steps on the CPU, beside float32 and what peers have (%(default)s: the dtype's)",
    )
    parser.add_argument("--rounds", type=positive, default=7, help="undisturbed rounds for each row (%(default)s)")
    parser.add_argument("--threads", type=positive, default=1, help="cores that this process is kept to (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="three short rounds: a first look, not a result")
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    measuring.add_options(parser)


def run(options):
    """Measure case after case, each a row as soon as it is known."""
    names = comparisons.parse_what(options.what, options.threads, options.device, options.precision)
    known = comparisons.comparisons(options.device, options.precision)
    asked = shapes.parse_shapes(options.shapes) if options.shapes else None
    if asked and not any(known[name].shapes for name in names):
        raise ValueError(f"--shapes {options.shapes}, but {', '.join(names)} has none")
    found, missing = (None, []) if options.peers is None else peers.find_peers(options.peers)
    code = measuring.run_elsewhere(options, options.threads)
    if code is not None:
        return code
    rounds, seconds = (3, 0.02) if options.quick else (options.rounds, 0.1)
    protocol = measure.Protocol(
        rounds, seconds, options.dtype, options.device, options.threads, precision=options.precision
    )
    cores = measuring.settle(options, options.threads)
    for line in machine.multiplied(options.device, options.precision):
        print(line)
    for name in missing:
        print(f"without {name}: it is not installed")
    results = {}
    for name in names:
        comparison = known[name]
        chosen = comparison.chosen(found)
        one_thread = [training_steps.ONE_THREAD] if comparison.beside_one_thread(options.threads) else []
        columns = chosen + one_thread + [training_steps.FLOAT32] * (options.precision != "ieee")
        print(f"\n{report.heading(comparison, columns)}", flush=True)
        results[name] = []
        for case in comparison.cases(asked or comparison.shapes, chosen, protocol):
            results[name].append(protocol.measure(case))
            print(report.row(comparison, columns, results[name][-1]), flush=True)
            if options.json:  # after each row: what is killed later leaves what it has measured
                _write_report(options, cores, protocol, results)
        print()
        for line in report.remarks(comparison, results[name]):
            print(line)


def _write_report(options, cores, protocol, results):
    written = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": machine.commit(),
        "version": machine.version(),
    }
    written |= {"precision": options.precision, "cores": cores, "isa": options.isa, "limit_gflops": protocol.best_limit}
    written |= {"machine": backend.load(options.device).config(), "load": process.load()}
    pathlib.Path(options.json).write_text(json.dumps(written | results, indent=1) + "\n")
