"""The plots as functions: they take and return axes, show the right numbers, and work without colour."""

import inspect
import re
from pathlib import Path

import attrs
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from report_record import CLASSES, FULL, HOSTILE, REPORT

from unlearnkit.evaluation.plot_data import BINS, Destination, Histogram, RocCurve
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.reporting import plots
from unlearnkit.reporting.page.parts import svg
from unlearnkit.reporting.plots import LOOKS, MOST, SAMPLES, destination_shares, layers_of
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.utils.plotting import plain

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "read-the-report.md"


@pytest.fixture
def axes():
    return Figure().subplots()


def drawn(axes):
    """Render the figure: text that matplotlib cannot parse or lay out fails here."""
    axes.figure.canvas.draw()
    return [text.get_text() for text in axes.get_yticklabels()]


def test_bars_of_accuracy(axes):
    assert plots.accuracy_bars(axes, FULL.before, FULL.after, FULL.retrained) is axes
    assert drawn(axes) == ["retain-test", "forget-test", "forget-train"]
    widths = np.array([bar.get_width() for bar in axes.patches]).reshape(3, 3)
    assert widths == pytest.approx(np.array([[0.96, 0.9, 1.0], [0.95, 0.73, 0.74], [0.95, 0.72, 0.72]]))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["original", "unlearned", "retrained"]
    assert "0.730" in [text.get_text() for text in axes.texts]


def test_without_retrained_models_and_without_accuracy(axes):
    plots.accuracy_bars(axes, {}, FULL.after)
    drawn(axes)
    assert [text.get_text() for text in axes.texts] == ["0.950", "0.730", "0.740"]


def test_the_frontier(axes):
    found = Tuning.from_dict(FULL.tuning)
    assert plots.tuning_frontier(axes, found) is axes
    drawn(axes)
    lines = {line.get_label(): line for line in axes.lines}
    known = {"target", "budget", "budget that reaches the target", "tried", "frontier", "original", "chosen"}
    assert set(lines) == known
    assert len(lines["tried"].get_xdata()) == 5  # not the one that could not be made
    assert (lines["chosen"].get_xdata()[0], lines["chosen"].get_ydata()[0]) == pytest.approx((0.9, 0.8))
    assert lines["target"].get_ydata()[0] == 0.7
    assert lines["budget"].get_xdata()[0] == pytest.approx(0.85)
    reaches = lines["budget that reaches the target"].get_xdata()[0]
    assert reaches == pytest.approx(found.original_retain - found.budget_to_reach)
    reached = attrs.evolve(found, tolerance=1.0)
    axes = plots.tuning_frontier(Figure().subplots(), reached)
    assert "budget that reaches the target" not in {line.get_label() for line in axes.lines}
    empty = Tuning(target=0, target_source="stated", budget=0.1, original_retain=1, original_forget=1)
    drawn(plots.tuning_frontier(Figure().subplots(), empty))


def test_edited_layers(axes):
    assert plots.edited_layers(axes, REPORT) is axes
    assert drawn(axes)[3] == "layers.3.weight"
    assert axes.patches[3].get_width() == pytest.approx(100 * 120 / 4000)
    drawn(plots.edited_layers(Figure().subplots(), Report(method="m")))


def test_layers_of_deep_models_are_grouped_and_every_weight_is_counted():
    tensors = tuple(
        TensorChange(name=f"{side}.block{i}.{what}", size=10, changed=i)
        for side in ("encoder", "decoder")
        for i in range(10)
        for what in ("weight", "bias")
    )
    found = layers_of(Report(method="m", tensors=tensors))
    assert [layer.name for layer in found][:2] == ["encoder.block0", "encoder.block1"]
    assert (len(found), sum(x.size for x in found), sum(x.changed for x in found)) == (20, 400, 180)
    wide = tuple(TensorChange(name=f"p{i}", size=100, changed=i) for i in range(50))
    assert [layer.name for layer in layers_of(Report(method="m", tensors=wide))] == [
        f"p{i}" for i in range(50 - MOST, 50)
    ]


def test_a_histogram_has_the_shares(axes):
    some = [
        Histogram.of([0.1, 0.1, 0.9], model="unlearned", samples="forgotten"),
        Histogram.of([1.0], model="original", samples="unseen"),
    ]
    assert plots.confidence_histogram(axes, some) is axes
    drawn(axes)
    (stairs,) = axes.patches
    values = stairs.get_data().values
    assert values.sum() == pytest.approx(1)
    assert values[int(0.1 * BINS)] == pytest.approx(2 / 3)
    drawn(plots.confidence_histogram(Figure().subplots(), [], model="retrained"))


def test_a_curve_is_scikit_learns(axes):
    draw = np.random.default_rng(0)
    members, others = draw.normal(1, size=300), draw.normal(size=200)
    curve = RocCurve.of(members, others, attack="loss", model="unlearned")
    assert len(curve.fpr) <= 50
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    wins = (members[:, None] > others).mean() + 0.5 * (members[:, None] == others).mean()
    assert curve.auc == pytest.approx(wins)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(wins, abs=0.01)
    assert (
        plots.roc_curves(axes, [curve, RocCurve.of(others, others, attack="RMIA", model="original")], attack="loss")
        is axes
    )
    drawn(axes)
    assert len(axes.lines) == 2  # guessing, and the one curve of this attack
    assert axes.get_legend().get_texts()[1].get_text() == f"unlearned {wins:.3f}"


def test_several_retrained_models_have_one_entry_in_the_legend(axes):
    plots.roc_curves(axes, FULL.views.curves, attack="loss")
    drawn(axes)
    assert len(axes.lines) == 1 + 1 + 1 + 3
    assert len(axes.get_legend().get_texts()) == 4


def test_destinations_add_up(axes):
    many = [Destination(model=m, counts=tuple(range(k, 20 + k))) for k, m in enumerate(("original", "unlearned"))]
    names, shares = destination_shares(many, [str(i) for i in range(20)], most=5)
    assert names == ["19", "18", "17", "16", "15", "others"]
    assert all(sum(values) == pytest.approx(1) for values in shares.values())
    assert plots.destinations(axes, FULL.views.destinations, CLASSES) is axes
    assert "deer" in drawn(axes)
    assert len(axes.patches) == 3 * 4  # the labels themselves are not drawn


def test_times(axes):
    assert plots.timings(axes, REPORT.seconds) is axes
    assert drawn(axes) == ["forget importance", "full importance", "edit", "evaluation"]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 4.0, 0.01, 1.25]
    drawn(plots.timings(Figure().subplots(), {}))


@pytest.mark.parametrize("looks", [LOOKS, SAMPLES])
def test_everything_can_be_distinguished_without_colour(looks):
    assert len({look.line for look in looks.values()}) == len(looks)
    assert len({look.marker for look in looks.values()}) == len(looks)
    assert len({look.hatch for look in looks.values()}) == len(looks)


@pytest.mark.parametrize("paper", ["#ffffff", "#15181d"])
def test_colours_contrast_with_light_and_dark_backgrounds(paper):
    """WCAG requires 3 to 1 for graphics."""

    def luminance(colour):
        c = np.array(to_rgb(colour))
        return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    for look in (*LOOKS.values(), *SAMPLES.values()):
        low, high = sorted([luminance(look.colour), luminance(paper)])
        assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize("label", [HOSTILE, "$", "$$", r"\$x$", "$\\undefined{$", "a\nb", ""])
def test_labels_are_not_parsed_as_mathtext(label):
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing")
        assert drawn(plots.timings(Figure().subplots(), {label: 1.0})) == [plain(label)]


def test_page_does_not_change_matplotlib_settings():
    from unlearnkit.reporting.page.sections import times

    with mpl.rc_context({"axes.facecolor": "#123456", "font.size": 30}):
        before = {key: mpl.rcParams[key] for key in ("axes.facecolor", "font.size", "svg.hashsalt", "svg.fonttype")}
        inside = svg(times(FULL).pictures[0])
        assert {key: mpl.rcParams[key] for key in before} == before
    assert inside == svg(times(FULL).pictures[0])  # the writer's style is not the page's
    assert "#123456" not in inside


def test_the_page_in_the_docs_lists_every_picture_with_its_first_line():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert rows == {name: inspect.getdoc(getattr(plots, name)).partition("\n")[0] for name in plots.__all__}
