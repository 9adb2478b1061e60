"""Draws the rules of the elementwise methods: ``python -m tests.docs.rule_pictures`` writes docs/pictures/*.svg."""

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from tests.benchmarks.methods import shipped
from unlearnkit import ElementwiseUnlearner

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
RATIOS = torch.logspace(-1, 3, 401, dtype=torch.float64)
mpl.rcParams.update({"svg.hashsalt": "unlearnkit", "svg.fonttype": "none"})


def rules():
    """Name to the elementwise methods at their defaults, but for those that choose a threshold by the data."""
    classes = (e.cls for e in shipped("unlearner") if issubclass(e.cls, ElementwiseUnlearner))
    return {cls.name: cls() for cls in classes if cls.name != "ssd-adaptive"}


def curve(method):
    """θ'/θ at each ratio F_f/F_r, for F_r = 1."""
    one = torch.ones_like(RATIOS)
    return method.rule(one, RATIOS, one)


def draw(methods, path):
    figure = Figure(figsize=(5.2, 2.4), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, method) in enumerate(methods.items()):
        axes.plot(RATIOS, curve(method) + 0.006 * place, label=name, linewidth=1.8)  # apart where they agree
    axes.set(xscale="log", ylim=(-0.05, 1.1), xlabel="F_f / F_r", ylabel="θ' / θ")
    axes.grid(alpha=0.3)
    if len(methods) > 1:
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    found = rules()
    draw(found, PICTURES / "rules.svg")
    for name, method in found.items():
        draw({name: method}, PICTURES / f"{name}.svg")
