"""Draws assets/logo.png: prefixes that share a trunk, and the name. Needs matplotlib (the `plot` extra)."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection

TARGET = Path(__file__).parents[1] / "assets" / "logo.png"
TRUNK, LEAF = np.array([0x3F, 0x6F, 0x86]) / 255, np.array([0x2E, 0xC4, 0xA6]) / 255
WORD = "#3f6f86"  # reads on white and on a dark page
PIXELS, DPI = (1200, 400), 200
# Where an edge begins and ends: x is the position in the text, so shared prefixes are drawn once.
EDGES = [
    ((0.0, 0.0), (1.0, 0.0)),
    ((1.0, 0.0), (2.0, 0.62)),
    ((1.0, 0.0), (2.0, -0.62)),
    ((2.0, 0.62), (3.0, 1.0)),
    ((2.0, 0.62), (3.0, 0.3)),
    ((2.0, -0.62), (3.0, -0.3)),
    ((2.0, -0.62), (3.0, -1.0)),
]


def color(x: float) -> np.ndarray:
    return TRUNK + (LEAF - TRUNK) * min(max(x / 3, 0), 1)


def main() -> None:
    figure = plt.figure(figsize=(PIXELS[0] / DPI, PIXELS[1] / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.6, 11.4), ylim=(-2, 2))
    axes.axis("off")
    for (x0, y0), (x1, y1) in EDGES:
        t = np.linspace(0, 1, 60)
        x, y = x0 + (x1 - x0) * t, y0 + (y1 - y0) * (3 * t**2 - 2 * t**3)  # leaves and arrives level
        points = np.stack([x, y], 1)
        axes.add_collection(
            LineCollection(
                np.stack([points[:-1], points[1:]], 1), colors=[color(v) for v in x], linewidths=6.5, capstyle="round"
            )
        )
    for x, y in {point for edge in EDGES for point in edge}:
        axes.scatter([x], [y], s=150, color=[color(x)], zorder=3)
    axes.text(3.9, -0.14, "sglang", fontsize=62, fontweight="bold", color=WORD, va="center", family="DejaVu Sans")
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, dpi=DPI, transparent=True, metadata={"Software": None})


if __name__ == "__main__":
    main()
