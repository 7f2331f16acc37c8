"""The drawings of docs/architecture.md, as SVG: who imports whom, and the program of the example.

Boxes of modules stand in layers, and every arrow points to a layer further down; an import that would point up is an
error here. What is imported through another module is left out, so that the arrows can be followed.
"""

import ast
import importlib.util
from html import escape
from itertools import pairwise
from pathlib import Path

import listings

import fastbp
from fastbp import backend
from fastbp.kernels import program

PACKAGE = Path(fastbp.__file__).parent
FONT, LETTER, LINE = 14, 7.9, 18  # sizes in pixels: of the font, the width of a letter, the height of a line
BOX, GAP, FLOOR = 26, 22, 46  # of a box beside its letters, between boxes, between layers
ABOVE, BELOW, EDGE = "#dbe9f6", "#fde3c8", "#4a5a6a"
OUTSIDE = {"fastbp", "fastbp.__main__", "fastbp.kernels"}  # the faces, and a line that loads the reference


# --------------------------------------------------------------------------------------- imports
def sources() -> dict[str, Path]:
    """Every module of the package by its name."""
    files = {*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").rglob("*.py")}
    names = {path: ["fastbp", *path.relative_to(PACKAGE).with_suffix("").parts] for path in files}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in sorted(names.items())}


def imported(name, path, known, later) -> set[str]:
    """Modules of the package that one imports; ``later``: also within its functions. For type checkers: never."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found, nodes = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom) and node.level:
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                found.add(f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module)
        skipped = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not skipped and (later or not isinstance(node, ast.FunctionDef)):
            nodes += ast.iter_child_nodes(node)
    return found & known.keys() - {name}


def edges(place, later) -> set[tuple[str, str]]:
    """Imports between the boxes in which ``place`` puts modules; None for a module that is not drawn."""
    known = {name: path for name, path in sources().items() if name not in OUTSIDE}
    pairs = {
        (place(name), place(other))
        for name, path in known.items()
        if place(name)
        for other in imported(name, path, known, later)
    }
    return {(a, b) for a, b in pairs if b and a != b}


# --------------------------------------------------------------------------------------- layers
def levels(nodes, arrows) -> dict[str, int]:
    """The layer of each node, from 0 at the bottom: above everything that it has an arrow to."""
    level = {}

    def find(node, above=()):
        if node in above:
            raise SystemExit(f"these import each other in a circle: {' '.join([*above, node])}")
        if node not in level:
            below = [find(b, (*above, node)) for a, b in sorted(arrows) if a == node]
            level[node] = 1 + max(below, default=-1)
        return level[node]

    for node in sorted(nodes):
        find(node)
    return level


def without_detours(arrows) -> set[tuple[str, str]]:
    """The arrows less those that others together replace."""
    below = {}
    for a, b in arrows:
        below.setdefault(a, set()).add(b)

    def reaches(start, end):
        return any(node == end or reaches(node, end) for node in below.get(start, ()))

    return {(a, b) for a, b in arrows if not any(reaches(other, b) for other in below[a] - {b})}


def layered(labels, arrows, dashed=(), colour=lambda node: BELOW, higher=()) -> str:
    """Boxes with ``labels``, lists of lines, in layers; an arrow is a pair (from, to), and points down.

    Of a pair in ``higher`` the first box is in a higher layer, without an arrow.
    """
    labels = dict(sorted(labels.items()))
    level = levels(labels, {*arrows, *dashed, *higher})
    drawn = sorted(without_detours(arrows) | set(dashed))
    rows = [[node for node in sorted(labels) if level[node] == i] for i in range(max(level.values()) + 1)]
    size = {node: (BOX + LETTER * max(map(len, lines)), 12 + LINE * len(lines)) for node, lines in labels.items()}
    chains = []  # an arrow that passes layers goes by a narrow place in each of them
    for a, b in drawn:
        passed = [f"{a} {b} {i}" for i in range(level[a] - 1, level[b], -1)]
        for i, place in zip(range(level[a] - 1, level[b], -1), passed, strict=True):
            rows[i].append(place)
            size[place] = (10, 0)
        chains.append([a, *passed, b])
    near = {node: [] for row in rows for node in row}
    for chain in chains:
        for a, b in pairwise(chain):
            near[a].append(b)
            near[b].append(a)
    x = placed(rows, near, size)
    heights = [max(size[node][1] for node in row) for row in rows]
    bottom = [sum(heights[i + 1 :]) + FLOOR * (len(rows) - 1 - i) + heights[i] + 10 for i in range(len(rows))]
    row_of = {node: i for i, row in enumerate(rows) for node in row}
    left = min(x[node] - size[node][0] / 2 for node in x) - 10
    width = max(x[node] + size[node][0] / 2 for node in x) - left + 10
    parts = []
    for (a, b), chain in zip(drawn, chains, strict=True):
        points = []
        for node in chain:  # straight through a layer, between boxes; curves are between layers
            foot, high = bottom[row_of[node]], heights[row_of[node]]
            half = size[node][1] / 2
            heads = {a: [foot - high / 2 + half], b: [foot - high / 2 - half]}
            points += [(x[node] - left, y) for y in heads.get(node, [foot - high, foot])]
        assert all(one[1] < two[1] for one, two in pairwise(points)), f"{a} → {b} does not point down"
        parts.append(arrow(points, (a, b) in dashed))
    for node, lines in labels.items():
        middle = bottom[row_of[node]] - heights[row_of[node]] / 2
        parts.append(box(x[node] - left, middle, *size[node], lines, colour(node)))
    return svg(width, bottom[0] + 10, parts)


def placed(rows, near, size) -> dict[str, float]:
    """The middle of each node: near those it is joined to, in an order with few crossings."""
    x = {}
    for row in rows:
        side_by_side(row, x, size, dict.fromkeys(row, 0.0))
    for turn in range(60):
        for row in rows if turn % 2 else rows[::-1]:
            wanted = {n: sum(x[m] for m in near[n]) / len(near[n]) if near[n] else x[n] for n in row}
            if turn < 40:
                row.sort(key=lambda node: (wanted[node], node))
            side_by_side(row, x, size, wanted)
    return x


def side_by_side(row, x, size, wanted):
    """Put a row as near to what is wanted as its order and widths allow: the middle of two sweeps."""
    ahead, back, edge = {}, {}, float("-inf")
    for node in row:
        half = size[node][0] / 2
        ahead[node] = max(wanted[node], edge + half)
        edge = ahead[node] + half + GAP
    edge = float("inf")
    for node in reversed(row):
        half = size[node][0] / 2
        back[node] = min(wanted[node], edge - half)
        edge = back[node] - half - GAP
    middle = {node: (ahead[node] + back[node]) / 2 for node in row}
    edge = float("-inf")
    for node in row:
        half = size[node][0] / 2
        x[node] = max(middle[node], edge + half)
        edge = x[node] + half + GAP


# ------------------------------------------------------------------------------------------- SVG
def box(x, y, width, height, lines, fill) -> str:
    corner = f'x="{x - width / 2:.0f}" y="{y - height / 2:.0f}" width="{width:.0f}" height="{height:.0f}"'
    parts = [f'<rect {corner} rx="5" fill="{fill}" stroke="{EDGE}"/>']
    for i, line in enumerate(lines):
        at = y + (i - (len(lines) - 1) / 2) * LINE + FONT / 3
        weight = ' font-weight="bold"' if i == 0 and len(lines) > 1 else ""
        parts.append(f'<text x="{x:.0f}" y="{at:.0f}" text-anchor="middle"{weight}>{escape(line)}</text>')
    return "\n".join(parts)


def arrow(points, dashed=False, colour=EDGE) -> str:
    path = f"M{points[0][0]:.0f},{points[0][1]:.0f}"
    for (x1, y1), (x2, y2) in pairwise(points):
        half = (y1 + y2) / 2
        path += f" C{x1:.0f},{half:.0f} {x2:.0f},{half:.0f} {x2:.0f},{y2:.0f}"
    return drawn_path(path, colour, ' stroke-dasharray="5 4"' if dashed else "")


def drawn_path(path, colour, dash="") -> str:
    head = "light" if colour != EDGE else "head"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3"{dash} marker-end="url(#{head})"/>'


def aside(x, y1, y2, far, colour) -> str:
    """From the right side of a box to that of one below it."""
    path = f"M{x:.0f},{y1 + 5:.0f} C{x + far:.0f},{y1 + 5:.0f} {x + far:.0f},{y2:.0f} {x:.0f},{y2:.0f}"
    return drawn_path(path, colour)


def svg(width, height, parts) -> str:
    marks = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,1 L10,5 L0,9 z" fill="{colour}"/></marker>'
        for name, colour in (("head", EDGE), ("light", LIGHT))
    )
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif" '
        f'font-size="{FONT}">',
        f"<defs>{marks}</defs>",
        '<rect width="100%" height="100%" fill="white"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


LIGHT = "#a9b6c3"

# -------------------------------------------------------------------------------------- pictures
FORMULAS = "activations", "losses", "updates", "elementary", "primitives", "formulas"
PROGRAM = "program", "walk", "layout", "contract", "splitmix"


def room(name):
    """The box of a module in the picture of the house."""
    _, first, *rest = [*name.split("."), ""]
    if first != "kernels":
        return first if first in ("cli", "bench", "autograd", "sklearn", "tabular") else "core"
    if rest[0] in FORMULAS:
        return "kernels: formulas"
    return "kernels: program" if rest[0] in PROGRAM else f"kernels: {rest[0]}"


def house() -> str:
    """The rooms of both folders."""
    chosen = {("core", room(module)) for module in backend.MODULES.values()}  # by name, when a device is asked for
    arrows = edges(room, later=True) - chosen
    labels = {node: [node.replace("kernels: ", "kernels/")] for pair in arrows | chosen for node in pair}
    labels["core"] = ["fastbp/: the core", "layers, losses, optimizers,", "model, training, backend"]
    labels["cli"], labels["bench"] = ["fastbp/cli", "the commands"], ["fastbp/bench", "beside others"]
    labels["autograd"] = ["fastbp/autograd", "Variable, Function"]
    labels["sklearn"] = ["fastbp/sklearn", "scikit-learn's estimators"]
    labels["tabular"] = ["fastbp/tabular", "tables, and the predictor of a run"]
    labels["kernels: program"] = ["a network as a program", *halves(PROGRAM)]
    labels["kernels: formulas"] = ["formulas, written once", *halves(FORMULAS)]
    labels["kernels: reference"] = ["kernels/reference", "the contract, in NumPy"]
    labels["kernels: cpu"], labels["kernels: cuda"] = ["kernels/cpu", "Numba"], ["kernels/cuda", "numba-cuda"]
    rooms = {("tabular", node) for node in labels if node.startswith("kernels")}  # it imports nothing of theirs
    return layered(labels, arrows, chosen, lambda node: BELOW if node.startswith("kernels") else ABOVE, rooms)


def halves(names):
    half = (len(names) + 1) // 2
    return [", ".join(names[:half]), ", ".join(names[half:])]


def core() -> str:
    """The modules of the core, and what they import when they are loaded."""

    def place(name):
        """The module, or the folder that it is in."""
        return name.split(".")[1] if room(name) == "core" else None

    arrows, within = edges(place, later=False), edges(place, later=True)
    everywhere = {"checks"}  # which nearly every module imports
    arrows, within = ({(a, b) for a, b in pairs if b not in everywhere} for pairs in (arrows, within - arrows))
    labels = {node: [node] for pair in arrows | within for node in pair}
    return layered(labels, arrows, within, lambda node: ABOVE)


def cpu() -> str:
    """The modules of the CPU backend."""

    def place(name):
        if name == "fastbp.kernels.cpu":
            return "cpu: the contract"
        return name.removeprefix("fastbp.kernels.cpu.") if name.startswith("fastbp.kernels.cpu.") else None

    arrows = edges(place, later=False)
    return layered({node: [node] for pair in arrows for node in pair}, arrows)


def example() -> str:
    """The program of the example: a lane a layer, a line an instruction, a band a phase; arrows are what is read."""
    named = listings.example()
    phases = list(named.phases(named.program.training))
    instructions = dict(instruction for _, inside in phases for instruction in inside)
    touched = {i: named.touched(instruction) for i, instruction in instructions.items()}
    lanes = lanes_of(instructions, touched)
    names = [*dict.fromkeys(lanes[i] for i in sorted(instructions))]
    left, pitch, lane, top = 96, 48, 280, 40
    centre = {i: (left + lane * (names.index(lanes[i]) + 0.5), top + pitch * (i + 0.5)) for i in instructions}
    width, parts, begin = left + lane * len(names), [], 0
    for number, (phase, inside) in enumerate(phases):
        y, height = top + pitch * begin, pitch * len(inside)
        fill = "#f4f6f8" if number % 2 else "#ffffff"
        parts.append(f'<rect x="0" y="{y}" width="{width}" height="{height}" fill="{fill}"/>')
        parts.append(f'<text x="12" y="{y + height / 2 + 5:.0f}" font-style="italic">{phase}</text>')
        begin += len(inside)
    titles = titles_of(names)
    for number, name in enumerate(names):
        x = left + lane * (number + 0.5)
        parts.append(f'<text x="{x:.0f}" y="26" text-anchor="middle" font-weight="bold">{titles[name]}</text>')
    width_of_box = lane - 58
    writer, later, beside = {}, [], {}
    for i in sorted(instructions):
        reads, writes = touched[i]
        for source in sorted({writer[place] for place in reads if place in writer}):
            later.append((source, i))
        writer |= dict.fromkeys(writes, i)
    for a, b in sorted(later, key=lambda one: one[1] - one[0] == 1):  # the lighter ones first
        (x1, y1), (x2, y2) = centre[a], centre[b]
        colour = EDGE if b - a == 1 else LIGHT
        if lanes[a] == lanes[b] and b - a > 1:  # past what lies between, at the side
            beside[lanes[a]] = beside.get(lanes[a], 0) + 1
            parts.append(aside(x1 + width_of_box / 2, y1, y2, 18 + 9 * beside[lanes[a]], colour))
        else:
            shift = lane / 4 if x2 > x1 else -lane / 4 if x2 < x1 else 0
            parts.append(arrow([(x1 + shift, y1 + 14), (x2 - shift / 2, y2 - 15)], colour=colour))
    for i, instruction in instructions.items():
        words = f"{i}  {instruction.operation}"
        parts.append(box(*centre[i], width_of_box, 28, [words], BELOW))
    return svg(width, top + pitch * len(instructions) + 8, parts)


def lanes_of(instructions, touched):
    """The layer of every instruction: that of its parameters, else of a place in memory that a layer has."""
    lane, owner = {}, {}
    for i, (reads, writes) in sorted(touched.items()):
        numbers = {name.lstrip("∂").partition(".")[0] for name in [*reads, *writes] if "." in name}
        if instructions[i].operation.startswith("loss"):
            lane[i] = "loss"
        elif numbers:
            (lane[i],) = numbers
            if "backward" not in instructions[i].operation:
                own = [*writes, *(name for name in reads if name.startswith("reductions"))]
                owner |= dict.fromkeys(own, lane[i])
    for i, (reads, writes) in touched.items():
        if i not in lane:
            places = [*writes, *reads]
            places += [place.replace("gradients", "activations") for place in places]
            lane[i] = next(owner[place] for place in places if place in owner)
    return lane


def titles_of(names):
    """The layers of the lanes, as the example has them."""
    layers = eval(listings.EXAMPLE, {"fastbp": fastbp}).layers
    return {name: f"layer {name}: {type(layers[int(name)]).__name__}" if name.isdigit() else name for name in names}


MADE = {
    "architecture-house.svg": house,
    "architecture-core.svg": core,
    "architecture-cpu.svg": cpu,
    "architecture-program.svg": example,
}
assert program.PHASES == ("rows", "columns", "weights")
