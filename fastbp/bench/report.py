"""What a comparison prints: a heading, a row a case, and what a reader has to know besides."""

from .training_steps import BATCHES

MICROSECONDS = {"µs": 1, "s": 1e6}  # in a unit
EXPLAINED = {
    "floor": "floor: the products at the limit of multiply-adds, and its share of ours",
    "p99": "p99: what one call in a hundred exceeds, and the ratio of it",
    "aim": "aim: the time aimed at",
    "train_step": "train_step: one call from Python a step",
    "events": "events: a step of many launched together, by events on the GPU's stream, and the ratio of it",
    "fused": "fused: with bias and ReLU, its derivative, or the bias gradient",
    "contract": "contract: the same through the function that checks nothing but makes addresses",
}


def columns(comparison, names) -> list[tuple]:
    """(heading, width, function of a result) of every column."""
    unit = MICROSECONDS[comparison.scale]
    digits = ".3f" if comparison.scale == "s" else None

    def time(value):
        return _figure(value and value / unit, digits)

    def peer(name, key):
        return lambda result: result["peers"].get(name, {}).get(key)

    def cells(of, form):
        return lambda result: form(of(result))

    chosen = [
        ("", -6, lambda result: "" if "@" in result["name"] else result["name"]),
        (comparison.title, -30, lambda result: result["title"]),
        (f"ours {comparison.scale}", 9, lambda result: time(result["us"])),
    ]
    for column in comparison.columns:
        if column == "floor":
            chosen += [
                ("floor", 9, lambda result: time(result["floor_us"])),
                ("of it", 7, lambda result: _figure(result["fraction_of_limit"], ".0%")),
            ]
        elif column == "p99":
            chosen.append(("p99", 9, lambda result: time(result["p99_us"])))
        elif column == "aim":
            chosen.append(("aim", 8, lambda result: _figure(result["most_us"] and result["most_us"] / unit, "≤ g")))
    for name in names:
        chosen += [
            (f"{name} {comparison.scale}", max(12, len(name) + 5), cells(peer(name, "us"), time)),
            ("ratio", 7, cells(peer(name, "ratio"), lambda value: _figure(value, ".2f"))),
            ("aim", 8, cells(peer(name, "target_ratio"), lambda value: _figure(value, "≥ g"))),
        ]
        if "p99" in comparison.columns:
            chosen.append(("p99", 7, cells(peer(name, "p99_ratio"), lambda value: _figure(value, ".2f"))))
    for column in comparison.columns:
        if column not in ("floor", "p99", "aim"):
            chosen.append((column, 12, lambda result, column=column: time(result["also_us"].get(column))))
        if column == "events":
            for name in names:
                of_peer = peer(name, "also_ratio")
                chosen.append(
                    (name, len(name) + 3, lambda result, of=of_peer: _figure((of(result) or {}).get("events"), ".2f"))
                )
    return [*chosen, ("  rounds", -8, _rounds)]


def heading(comparison, names) -> str:
    """The line above the rows."""
    return _line((title, width) for title, width, _ in columns(comparison, names))


def row(comparison, names, result) -> str:
    """One case."""
    return _line((cell(result), width) for _, width, cell in columns(comparison, names))


def remarks(comparison, results) -> list[str]:
    """What a reader of the rows has to know besides."""
    lines = [
        f"{comparison.scale} {comparison.unit}, medians",
        "ratio: peer / ours, median over rounds; dropped: disturbed rounds",
        *(EXPLAINED[column] for column in comparison.columns),
    ]
    for name in dict.fromkeys(name for result in results for name in result["peers"]):
        found = [result["peers"][name] for result in results if name in result["peers"]]
        line = (
            f"{name} {found[0]['version']}".rstrip() + ": " + " / ".join(dict.fromkeys(peer["how"] for peer in found))
        )
        if "difference" in found[0]:
            line += f"; differs from ours by at most {max(peer['difference'] for peer in found):.0e}"
        lines.append(line)
    loads = [result["load"] for result in results if result["load"] is not None]
    if loads:
        lines.append(f"load of the machine, this process included: {min(loads):.1f} to {max(loads):.1f}")
    for result in results:
        notes = [result["note"]] if result.get("note") else []
        if "ours_warmup_seconds" in result:
            warmups = {"ours": result["ours_warmup_seconds"]}
            warmups |= {n: peer["warmup_seconds"] for n, peer in result["peers"].items() if "warmup_seconds" in peer}
            times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in warmups.items())
            notes.append(f"first epoch, compilation included: {times}")
        if result.get("batches", BATCHES) < BATCHES:
            notes.append(f"{result['batches']} batches an epoch instead of {BATCHES}, to keep it near 2 s")
        notes += [f"without {name}: {reason}" for name, reason in result["left_out"].items()]
        if not result["rounds_used"]:
            notes.append("no undisturbed round: the figures are of disturbed ones")
        if notes:
            lines.append(f"{result['name']}: " + "; ".join(notes))
    return lines


def _rounds(result):
    dropped = f" ({result['rounds_dropped']} dropped)" if result["rounds_dropped"] else ""
    return f"  {result['rounds_used']}{dropped}"


def _line(cells):
    return " " + "".join(f"{text:<{-width}}" if width < 0 else f"{text:>{width}}" for text, width in cells).rstrip()


def _figure(value, form=None):
    if value is None:
        return "-"
    if form and form[0] in "≤≥":
        return form.replace("g", f"{value:.3g}")
    return f"{value:{form or ('.1f' if value < 1000 else ',.0f')}}".replace(",", " ")
