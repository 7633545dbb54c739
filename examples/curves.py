"""The picture of the runs: a panel for each optimizer, a colour for each learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from runs import GUESSING, LAST_STEPS, TITLES, Run, best, by_optimizer

COLUMNS = 3
INK, GREY = "#22262e", "#7b8391"
DASHED = (0, (4, 3))
CROSS: dict[str, Any] = {"marker": "x", "markersize": 9, "markeredgewidth": 2.5}
COOL_TO_HOT = LinearSegmentedColormap.from_list("rates", ["#1d9bd1", "#6d4be0", "#dd2f74", "#f7a11a"])
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c9ced6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eceff3",
    "legend.frameon": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
}
Colours = Mapping[float, str]


def draw(runs: Sequence[Run], path: Path) -> Path:
    """Draw the training losses of the runs into a PNG file. Returns its path."""
    groups = by_optimizer(runs)
    rates = sorted({run.lr for run in runs})
    colours = dict(zip(rates, map(to_hex, COOL_TO_HOT(np.linspace(0, 1, len(rates)))), strict=True))
    rows = len(groups) // COLUMNS + 1
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 0.8 + 3.4 * rows), layout="constrained")
        figure.suptitle("Training loss on handwritten digits, as the server recorded it", fontsize=15)
        panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (optimizer, group) in zip(panels, groups.items(), strict=False):
            _panel(axes, TITLES[optimizer], group, colours)
        for axes in panels[len(groups) :]:
            axes.axis("off")
        _legend(panels[len(groups)], colours, ended=any(run.skipped for run in runs))
        for axes in panels[::COLUMNS]:
            axes.set_ylabel("cross-entropy (nats)")
        panels[0].set_ylim(_limits(runs))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
    return path


def _panel(axes: Axes, title: str, runs: Sequence[Run], colours: Colours) -> None:
    axes.axhline(GUESSING, color=GREY, linewidth=1, linestyle=DASHED)
    for run in runs:
        colour, smooth = colours[run.lr], _smooth(run.losses)
        steps = np.arange(1, len(smooth) + 1)
        axes.plot(steps, run.losses, color=colour, alpha=0.16, linewidth=0.6)
        axes.plot(steps, smooth, color=colour, linewidth=2)
        if run.skipped:
            axes.plot(steps[-1:], smooth[-1:], color=colour, **CROSS)
    winner = best(runs)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=12)
    axes.set_title(f"best: lr {winner.lr:g}, loss {winner.final_loss:.2g}", loc="right", fontsize=10, color=GREY)
    axes.set(yscale="log", xlabel="step")
    axes.tick_params(labelbottom=True, labelleft=True)
    axes.tick_params(which="minor", left=False)


def _legend(axes: Axes, colours: Colours, *, ended: bool) -> None:
    hottest_first = sorted(colours.items(), reverse=True)
    rates = [Line2D([], [], color=colour, linewidth=3.5, label=f"{rate:g}") for rate, colour in hottest_first]
    marks = [
        Line2D([], [], color=INK, linewidth=2, label="mean of the last epoch"),
        Line2D([], [], color=INK, linewidth=0.8, alpha=0.35, label="each step"),
        Line2D([], [], color=GREY, linewidth=1, linestyle=DASHED, label="guessing: ln 10"),
    ]
    if ended:
        marks.append(Line2D([], [], color=INK, label="ended: gradient not finite", linestyle="", **CROSS))
    look: dict[str, Any] = {
        "loc": "upper left",
        "frameon": False,
        "alignment": "left",
        "title_fontproperties": {"weight": "bold"},
    }
    axes.add_artist(axes.legend(handles=rates, title="Learning rate", bbox_to_anchor=(0, 1), **look))
    axes.legend(handles=marks, title="Lines", bbox_to_anchor=(0, 0.5), **look)


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Mean of the last epoch's losses, or of as many as there have been."""
    total = np.concatenate([[0.0], losses.cumsum()])
    last = np.arange(1, len(losses) + 1)
    first = np.maximum(last - LAST_STEPS, 0)
    return np.asarray((total[last] - total[first]) / (last - first))


def _limits(runs: Sequence[Run]) -> tuple[float, float]:
    """Room for every smooth curve; single steps may reach below, down to a loss of 0."""
    smooth = np.concatenate([_smooth(run.losses) for run in runs])
    return 0.4 * float(np.nanmin(smooth)), 2.5 * float(np.nanmax(smooth))
