"""Draw what load.py measured: tokens a second over the number of clients, a line for each server.

    python benchmarks/plot.py FILE docs/performance.svg

FILE is what `load.py --json FILE` wrote; of what was measured twice, the later counts. The same figures give the same
bytes. Needs matplotlib (the extra `bench`).
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

Lines = dict[str, dict[int, float]]


def read(lines: Iterable[str], task: str) -> Lines:
    """Return the tokens a second of each server, by the number of clients; servers in the order they came."""
    speeds: Lines = {}
    for line in lines:
        record = json.loads(line)
        if record["task"] == task:
            speeds.setdefault(record["server"], {})[record["clients"]] = record["tokens_per_second"]
    return speeds


def draw(speeds: Lines, file: Path) -> None:
    """Write the drawing; the end of the file's name says how."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Names of parts of an SVG are made from this instead of from chance, and text stays text.
    mpl.rcParams.update({"svg.hashsalt": "osaurus", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for server, by_clients in speeds.items():
        clients = sorted(by_clients)
        axes.plot(clients, [by_clients[count] for count in clients], marker="o", label=server)
    axes.set_xticks(sorted({count for by_clients in speeds.values() for count in by_clients}))
    axes.set_xlabel("clients")
    axes.set_ylabel("tokens per second, all clients together")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("drawing", type=Path)
    parser.add_argument("--task", default="story")
    options = parser.parse_args(sys.argv[1:])
    with options.measured.open(encoding="utf-8") as lines:
        speeds = read(lines, options.task)
    if not speeds:
        raise SystemExit(f"{options.measured} has nothing of the task {options.task}")
    draw(speeds, options.drawing)


if __name__ == "__main__":
    main()
