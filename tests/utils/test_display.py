"""What notebooks show: HTML that escapes what anybody typed, short reprs, data frames, and plots."""

import html.parser
import sys
from types import SimpleNamespace

import attrs
import matplotlib as mpl
import pytest
import torch
from report_record import FULL, HOSTILE, REPORT

from unlearnkit import Importance, Report
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.unlearning import TensorChange
from unlearnkit.utils import display

IMPORTANCE = Importance(
    totals={
        f"{HOSTILE}.weight": torch.tensor([6.0, 1.0]),
        f"{HOSTILE}.bias": torch.ones(1),
        "last": torch.full((2,), 4.0),
    },
    count=3,
    samples=3,
    role="forget",
)
TUNING = Tuning.from_dict(FULL.tuning)
LONG = attrs.evolve(REPORT, tensors=REPORT.tensors * 500)
VALUES = [REPORT, FULL, FULL.judgement(), TUNING, IMPORTANCE]


class Reader(html.parser.HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open, "an element is not closed"

    def handle_starttag(self, tag, attributes):
        assert not attributes, "style would clash with a dark page"
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)


def name_of(value):
    return type(value).__name__


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_html_is_well_formed_and_what_was_typed_is_escaped(value):
    read = Reader(value._repr_html_())
    assert set(read.tags) <= {"p", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "table" in read.tags
    assert len(value._repr_html_()) < 20_000


@pytest.mark.parametrize("value", [*VALUES, LONG, FULL.views, FULL.views.curves[0]], ids=name_of)
def test_every_repr_is_short(value):
    assert len(repr(value)) < (800 if name_of(value) == "Judgement" else 300)
    assert "\n" not in repr(value)


def test_a_report_shows_its_sentence_its_remarks_and_a_bar_for_each_layer():
    tensors = [
        TensorChange(name=f"{layer}.weight", size=100, changed=n) for layer, n in (("a", 50), ("b", 25), ("c", 0))
    ]
    report = Report(method="m", tensors=tuple(tensors), remarks=("Mind the gap.",))
    words = Reader(report._repr_html_()).words
    assert words[:2] == ["m changed 75 of 300 weights (25 %).", "Mind the gap."]
    assert words[4:] == ["a", "50 %", "█" * 20, "b", "25 %", "█" * 10, "c", "0 %"]
    nothing = Report(method="m", tensors=(TensorChange(name="w", size=4, changed=0),), remarks=("Because.",))
    assert Reader(nothing._repr_html_()).words == ["m changed nothing: 0 of 4 weights. Because."]


def test_a_record_shows_the_verdict_and_the_scores():
    words = Reader(FULL._repr_html_()).words
    assert words[0] == FULL.judgement().sentence
    at = words.index("forget-train")
    assert words[at + 1 : at + 4] == ["1.000", "0.740", "0.720"]
    assert REPORT.sentence() in words


def test_an_importance_shows_the_share_of_each_layer():
    assert IMPORTANCE.layers() == {HOSTILE: 0.5, "last": 0.5}
    words = Reader(IMPORTANCE._repr_html_()).words
    assert words[0] == repr(IMPORTANCE)
    assert words[-2:] == ["50 %", "█" * 20]
    assert Importance(totals={"w": torch.zeros(2)}, count=1).layers() == {"w": 0.0}


def test_a_search_shows_its_frontier_and_the_chosen_edit():
    words = Reader(TUNING._repr_html_()).words
    assert words[0] == TUNING.sentence()
    assert words.count("chosen") == 1


def test_deep_models_are_shown_by_block_and_wide_ones_by_their_largest_shares():
    deep = {f"block{i}.layer{j}": (10, j) for i in range(3) for j in range(20)}
    assert display.fewer(deep) == {f"block{i}": (200, 190) for i in range(3)}
    wide = {f"layer{i}": (100, i) for i in range(50)}
    assert [*display.fewer(wide)] == [f"layer{i}" for i in range(26, 50)]
    assert display.fewer({}) == {}


class Frame:
    """Stands in for a data frame of pandas: takes rows, and columns where rows are tuples."""

    def __init__(self, rows, columns=None):
        self.rows = [dict(zip(columns, row, strict=True)) if columns else row for row in rows]


ROWS = {
    "Report": (len(REPORT.tensors), {"tensor", "weights", "changed", "fraction"}),
    "RunRecord": (len(FULL.after), {"split", "original accuracy", "retrained loss"}),
    "Tuning": (len(TUNING.candidates), {"alpha", "retain", "forget", "chosen", "problem"}),
    "Importance": (3, {"tensor", "weights", "total", "share"}),
}


@pytest.mark.parametrize("value", [v for v in VALUES if name_of(v) in ROWS], ids=name_of)
@pytest.mark.parametrize("real", [True, False])
def test_frames_have_a_row_for_each_part(value, real, monkeypatch):
    if real:
        pytest.importorskip("pandas")
        found = value.to_frame().to_dict("records")
    else:
        monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
        found = value.to_frame().rows
    count, columns = ROWS[name_of(value)]
    assert len(found) == count
    assert columns <= found[0].keys()


def test_numbers_of_frames():
    frame = SimpleNamespace(DataFrame=Frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pandas", frame)
        shares = {row["tensor"]: (row["total"], row["share"]) for row in IMPORTANCE.to_frame().rows}
        assert [row["chosen"] for row in TUNING.to_frame().rows].count(True) == 1
    assert shares == {f"{HOSTILE}.weight": (7.0, 7 / 16), f"{HOSTILE}.bias": (1.0, 1 / 16), "last": (8.0, 0.5)}


def test_without_pandas_the_error_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ImportError, match=r"to_frame\(\) needs pandas, which is not installed: pip install 'unlearnkit.notebook"
    ):
        REPORT.to_frame()


@pytest.mark.filterwarnings("ignore:Glyph")  # the names of layers and splits are in no font
@pytest.mark.parametrize("value", [REPORT, FULL, TUNING, IMPORTANCE], ids=name_of)
def test_values_draw_themselves_on_new_axes_and_on_given_ones(value):
    with mpl.rc_context({"backend": "agg"}):
        from matplotlib import pyplot as plt

        axes = value.plot()
        axes.figure.canvas.draw()
        assert axes.patches or axes.lines
        given = plt.figure().subplots()
        assert value.plot(given) is given
        plt.close("all")
