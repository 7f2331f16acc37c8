"""Tables of Markdown from the files of docs/results, each of which says when, where and of which commit it is.

A file is a report as ``fastbp compare --json`` writes it, of which only what is shown is needed, or a plain table:
``columns``, and ``rows`` of ``cells``. In both, ``date``, ``commit``, ``machine`` and ``how`` say where the figures are
from; a row with a ``commit`` and ``date`` of its own is of those.
"""

import functools
import json
import math

BETWEEN = "\u00a0±\u00a0"  # a mean and its error, which stay on a line


def made(folder) -> dict:
    """What is made of the files in a folder, by name: functions that give Markdown."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    plain = {name: functools.partial(plain_table, data) for name, data in found.items() if "columns" in data}
    return plain | {
        "steps": lambda: steps(found["steps"]),
        "steps-short": lambda: steps_short(found["steps"]),
        "steps-xeon": lambda: steps(found["steps-xeon"]),
        "steps-odd": lambda: steps_odd(found["steps-odd"]),
        "steps-odd-xeon": lambda: steps_odd(found["steps-odd-xeon"]),
        "steps-bf16": lambda: steps_rounded(found["steps-bf16"]),
        "tables": lambda: real_tables(found["tables"]),
        "ranks": lambda: ranks(found["distributed"]),
        "ranks-model": lambda: ranks_model(found["distributed"]),
        "ranks-least": lambda: ranks_least(found["distributed"]),
        "precision": lambda: precisions(found["precision"]),
        "steps-further": lambda: steps_further(found["steps-float64"], found["steps-avx2"]),
    }


# --------------------------------------------------------------------------------------- figures
def time(us) -> str:
    """Microseconds."""
    return f"{us:.1f}" if us < 100 else f"{us:,.0f}".replace(",", " ")


def ratio(value) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def aimed(peer) -> str:
    """A ratio, bold where it is short of what was aimed at."""
    text = ratio(peer["ratio"])
    return f"**{text}**" if peer["ratio"] < peer["target_ratio"] else text


def rounded(value) -> str:
    return f"{value:.1f} ×" if value < 9.95 else f"{value:.0f} ×"


# ---------------------------------------------------------------------------------------- tables
def table(columns, rows) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def source(*reports) -> str:
    """Where the figures are from: a paragraph."""
    return "\n".join(
        f"{began(report['how'])} ({report['date']}, commit {report['commit'][:7]}; {report['machine']['name']})."
        for report in reports
    )


def began(text) -> str:
    """As a sentence begins."""
    return text[0].upper() + text[1:]


def plain_table(data) -> str:
    columns, rows = data["columns"], [row["cells"] for row in data["rows"]]
    if any("commit" in row for row in data["rows"]):
        columns = [*columns, "date, commit"]
        origin = [data | row for row in data["rows"]]
        rows = [[*cells, f"{of['date']}, {of['commit'][:7]}"] for cells, of in zip(rows, origin, strict=True)]
        return f"{table(columns, rows)}\n\n{began(data['how'])} ({data['machine']['name']})."
    return f"{table(columns, rows)}\n\n{source(data)}"


def real_tables(report) -> str:
    """Scores of real tables, the best mean of each bold."""
    rows = []
    for name, found in report["tables"].items():
        means = {model: sum(scores) / len(scores) for model, scores in found["scores"].items()}
        cells = []
        for model, scores in found["scores"].items():
            spread = sum((score - means[model]) ** 2 for score in scores) / (len(scores) - 1)
            text = f"{means[model]:.3f}"
            text = f"**{text}**" if means[model] == max(means.values()) else text
            cells.append(f"{text}{BETWEEN}{(spread / len(scores)) ** 0.5:.3f}")
        rows.append([name, found["rows"], found["measure"], *cells])
    models = next(iter(report["tables"].values()))["scores"]
    (seeds,) = {len(scores) for found in report["tables"].values() for scores in found["scores"].values()}
    return f"{table(['table', 'rows', 'measure', *models], rows)}\n\n{seeds} seeds each. {source(report)}"


def precisions(report) -> str:
    """Scores and losses of each precision: means over seeds."""
    rows, models = [], list(next(iter(report["tasks"].values()))["scores"])
    for title, found in report["tasks"].items():
        cells = []
        for model in models:
            scores = found["scores"][model]
            mean = sum(scores) / len(scores)
            error = (sum((score - mean) ** 2 for score in scores) / (len(scores) - 1) / len(scores)) ** 0.5
            cells.append(f"{mean:.5f}{BETWEEN}{error:.5f}")
        rows.append([title, found["measure"], *cells])
        losses = [found["losses"].get(model) for model in models]
        rows.append(["", "last loss", *("" if loss is None else f"{sum(loss) / len(loss):.2e}" for loss in losses)])
    return f"{table(['data, network', '', *models], rows)}\n\n{source(report)}"


def steps(report) -> str:
    """Every column of a comparison of train steps, for docs/performance.md."""
    rows = []
    for step in report["steps"]:
        torch, jax = step["peers"]["torch"], step["peers"]["jax"]
        rows.append(
            (
                step["name"], step["title"], time(step["us"]), f"{step['fraction_of_limit']:.2f}",
                aimed(torch), f"{torch['target_ratio']:g}", aimed(jax), f"{jax['target_ratio']:g}",
                time(step["also_us"]["train_step"]),
            )
        )  # fmt: skip
    columns = ["id", "layers @ batch", "ours µs", "of limit", "PyTorch", "aim", "JAX", "aim", "`train_step` µs"]
    return f"{table(columns, rows)}\n\n{source(report)}"


def steps_short(report) -> str:
    """The same figures as README shows them."""
    rows = [
        (step["title"], time(step["us"]), *(rounded(step["peers"][peer]["ratio"]) for peer in ("torch", "jax")))
        for step in report["steps"]
    ]
    return f"{table(['layers @ batch', 'fastbp, µs', 'PyTorch', 'JAX'], rows)}\n\n{source(report)}"


def steps_odd(report) -> str:
    rows = [(step["title"], ratio(step["peers"]["jax"]["ratio"])) for step in report["steps"]]
    return f"{table(['layers @ batch', 'JAX'], rows)}\n\n{source(report)}"


def steps_rounded(report) -> str:
    """Steps of a lower precision beside those of float32, ours and others'."""
    peers = "ours, float32", "torch", "torch-medium", "torch-autocast", "jax"
    rows = [
        (step["name"], step["title"], time(step["us"]), *(ratio(step["peers"][peer]["ratio"]) for peer in peers))
        for step in report["steps"]
    ]
    columns = "id", "layers @ batch", "ours µs", "ours in float32", "PyTorch", '"medium"', "autocast", "JAX"
    return f"{table(columns, rows)}\n\n{source(report)}"


def steps_further(*reports) -> str:
    """Reports side by side, their rows joined by name."""
    names = sorted({step["name"] for report in reports for step in report["steps"]})
    rows = []
    for name in names:
        row = [name]
        for report in reports:
            step = next((step for step in report["steps"] if step["name"] == name), None)
            if step is None:
                row += [""] * 4
            else:
                ratios = (ratio(step["peers"][peer]["ratio"]) for peer in ("torch", "jax"))
                row += [time(step["us"]), f"{step['fraction_of_limit']:.2f}", *ratios]
        rows.append(row)
    heads = [f"{report['title']}: ours µs, of limit, PyTorch, JAX".split(", ") for report in reports]
    return f"{table(['id', *heads[0], *heads[1]], rows)}\n\n{source(*reports)}"


# ---------------------------------------------------------------------------------- several ranks
NETWORKS = {"25 Gb/s Ethernet": (3e9, 20e-6), "200 Gb/s InfiniBand": (24e9, 2e-6)}  # bytes a second, seconds a message
RANKS = 2, 16, 128, 1000


def ranks(report) -> str:
    """Steps and collectives that were measured on two ranks."""
    rows = [
        (
            name, "-".join(map(str, found["widths"])), number(found["parameters"]), time(found["alone_us"]),
            time(found["rank_us"]), time(found["collective_us"]),
        )
        for name, found in report["networks"].items()
    ]  # fmt: skip
    columns = ["id", "layers", "parameters", "one process µs", "each of two ranks µs"]
    ratios = report["one_rank"]
    one = (
        f"One rank of MPI takes {ratios[len(ratios) // 2]:.3f} of the time without a communicator on S4: the median of"
    )
    pairs = f"{one} {len(ratios)} pairs, half of them between {ratios[len(ratios) // 4]:.2f} and"
    pairs += f" {ratios[-1 - len(ratios) // 4]:.2f}."
    return f"{table([*columns, 'all-reduce µs'], rows)}\n\n{pairs}\n\n{source(report)}"


def alone_us(found) -> float:
    """The step of one process."""
    return found["alone_us"]


def own(found) -> float:
    """What a rank's step takes beside its collective, in µs."""
    return found["rank_us"] - found["collective_us"]


def collective(parameters, count, network) -> float:
    """Seconds of an all-reduce of float32 numbers by the model."""
    speed, latency = network
    return 2 * (count - 1) / count * 4 * parameters / speed + 2 * math.log2(count) * latency


def ranks_model(report) -> str:
    """Efficiency by the model."""
    rows = []
    for name, found in report["networks"].items():
        for title, network in NETWORKS.items():
            cells = []
            for count in RANKS:
                step = 1e-6 * own(found) + collective(found["parameters"], count, network)
                cells.append(f"{1e-4 * found['alone_us'] / step:.0f} %")
            rows.append((name, number(found["parameters"]), title, *cells))
    return table(["id", "parameters", "network", *(f"{count} ranks" for count in RANKS)], rows)


def ranks_least(report) -> str:
    """From how many parameters half of the ranks' work is kept, by steps whose times are a line between T and S4."""
    small, large = report["networks"]["T"], report["networks"]["S4"]
    span = large["parameters"] - small["parameters"]
    alone, rank = (1e-6 * (of(large) - of(small)) / span for of in (alone_us, own))  # seconds a parameter
    start = 1e-6 * (0.5 * own(small) - alone_us(small)) - (0.5 * rank - alone) * small["parameters"]
    rows = []
    for title, network in NETWORKS.items():
        cells = []
        for count in RANKS:
            fixed = collective(0, count, network)
            sent = collective(1, count, network) - fixed
            gain = alone - 0.5 * (rank + sent)
            least = (start + 0.5 * fixed) / gain if gain > 0 else math.inf
            cells.append("none" if least == math.inf else number(round(max(least, 0), -3)))
        rows.append((title, *cells))
    return table(["network", *(f"{count} ranks" for count in RANKS)], rows)


def number(value) -> str:
    return f"{value:,.0f}".replace(",", " ")
