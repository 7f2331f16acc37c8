"""Makes what README.md and docs/ show of files and of code: ``python docs/make``, and ``--check`` changes nothing.

A block that begins with ``<!-- made: NAME -->`` and ends with ``<!-- end -->`` is rewritten. NAME is a table of
``docs/results`` (tables.py), or a listing of a program or a list of the sources (listings.py). The drawings of
docs/architecture.md are made too (drawings.py).
"""

import argparse
import difflib
import re
import sys
from pathlib import Path

import drawings
import listings
import tables

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- made: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_blocks(text: str, made: dict) -> str:
    """The text of a page, each of its blocks as ``made[name]()`` gives it."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{made[block['name']]().strip()}\n\n{block[3]}", text)


def files() -> dict[Path, str]:
    """Every file that is made, or has blocks, and what it must hold."""
    made = tables.made(ROOT / "docs" / "results") | listings.MADE
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    wanted = {page: with_blocks(page.read_text(encoding="utf-8"), made) for page in pages}
    shown = {block["name"] for page in pages for block in BLOCK.finditer(page.read_text(encoding="utf-8"))}
    if made.keys() - shown:
        raise SystemExit(f"no page shows {', '.join(sorted(made.keys() - shown))}")
    return wanted | {ROOT / "docs" / name: draw() for name, draw in drawings.MADE.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 and a difference where a file is stale")
    options = parser.parse_args()
    stale = 0
    for path, wanted in files().items():
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        if there == wanted:
            continue
        stale += 1
        name = path.relative_to(ROOT).as_posix()
        if options.check:
            lines = difflib.unified_diff(there.splitlines(), wanted.splitlines(), name, f"{name}, made", lineterm="")
            print(*list(lines)[:40], sep="\n")
        else:
            path.write_text(wanted, encoding="utf-8")
            print(name)
    return int(options.check and stale > 0)


sys.exit(main())
