"""What the table says of each part, from what the part has printed."""

import json
import re

WIDTH = 220  # characters of a line of the table
COMPARISONS = ("steps", "gemm", "gemm by wgmma")
METRICS = {  # of ncu, and what they are called here
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM throughput",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM throughput",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "achieved occupancy",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "bank conflicts",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "of them in shared memory",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum": "passes of loads from it",
    "launch__registers_per_thread": "registers",
}


def lines_of(name, outcome, output, folder, here):
    """What the table says of a part; of one that was ended, what it had said until then.

    ``here`` tells whether the part is a function of these files, all of whose lines are for the table.
    """
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    report = folder / f"{name}.json"
    if name in COMPARISONS and report.exists():
        return _compared(name.split()[0], json.loads(report.read_text())) + ([] if outcome == "passed" else lines[-1:])
    if name == "profile":
        return _profiled(lines) or lines[-1:]
    if here and outcome in ("passed", "too long"):
        return lines
    if name == "smoke":
        return [line for line in lines if ": right, " in line or ": WRONG, " in line] or lines[-1:]
    return lines[-1:]


def _compared(what, report):
    found = []
    for result in report.get(what, ()):
        ours = f"{result['title']:<26}{result['us']:>10.1f} µs"
        if what == "gemm":
            ours = f"{result['name']} {ours}{result['flops'] / result['us'] / 1e6:>8.1f} TFLOP/s"
        if "events" in result["also_us"]:
            ours += f", by events {result['also_us']['events']:.1f}"
        for peer, figures in result["peers"].items():
            ours += f"   {peer} {figures['us']:.1f} µs, ratio {figures['ratio']:.2f}"
            ours += f" (aim {figures['target_ratio']:g})" if figures["target_ratio"] else ""
            if "events" in figures["also_ratio"]:
                ours += f", by events {figures['also_ratio']['events']:.2f}"
        found += [ours, *(f"without {peer}: {reason}" for peer, reason in result["left_out"].items())]
    return found


def _profiled(lines):
    """A line for each kernel that ncu has measured: its name, then the metrics."""
    found = []
    for line in lines:
        words = line.split()
        if words and words[0] in METRICS and found:
            unit = words[1] if len(words) == 3 else ""
            found[-1] += f"   {METRICS[words[0]]} {words[-1]} {unit}".rstrip()
        elif line.startswith(" ") and (name := re.search(r"gemm_(NN|NT|TN)_\w+?(?=B\d+v|\b)", words[0])):
            found.append(name[0])
    return found


def row(name, outcome, seconds, lines):
    """The lines of a part in the table."""
    first, *others = lines or [""]
    return "\n".join(
        [f"{name:<18}{outcome:<14}{seconds:>5.0f} s  {first[:WIDTH]}".rstrip()]
        + [f"{'':<41}{line[:WIDTH]}" for line in others]
    )
