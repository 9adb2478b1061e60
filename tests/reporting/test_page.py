"""The page: self-contained, reproducible, and with a reason for each missing plot."""

import json
import re
from html.parser import HTMLParser

import attrs
import pytest
from report_record import BARE, CLASSES, FULL, HOSTILE, RECORDS
from torch import nn
from typer.testing import CliRunner

from unlearnkit import StoreError
from unlearnkit.cli.app import app
from unlearnkit.evaluation.metric import FeatureMeasure
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.reporting import RunRecord, read_record, write_result
from unlearnkit.reporting.page import render_page, write_page


class Page(HTMLParser):
    """Parses a page: elements with attributes, ids, and visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.text, self._open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.elements.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "svg"} & set(self._open):
            self.text.append(data)

    def all(self, tag):
        return [given for name, given in self.elements if name == tag]


@pytest.fixture(scope="module")
def pages():
    return {name: render_page(record) for name, record in RECORDS.items()}


@pytest.mark.parametrize("name", RECORDS)
def test_page_is_self_contained(pages, name):
    page = Page(pages[name])
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    links = [
        value for _, given in page.elements for key, value in given.items() if key in {"src", "href", "xlink:href"}
    ]
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert not re.search(r"@import|url\((?!#)", pages[name])
    assert len(pages[name]) < 1_000_000


@pytest.mark.parametrize("name", RECORDS)
def test_ids_are_used_once_and_links_lead_to_them(pages, name):
    page = Page(pages[name])
    assert len(page.ids) == len(set(page.ids))
    inside = {given["href"][1:] for _, given in page.elements if given.get("href", "").startswith("#")}
    inside |= set(re.findall(r"url\(#([^)]+)\)", pages[name]))
    labels = {label for _, given in page.elements for label in given.get("aria-labelledby", "").split()}
    assert (inside | labels) - set(page.ids) == set()


@pytest.mark.parametrize("name", RECORDS)
def test_every_picture_has_a_text_alternative(pages, name):
    page = Page(pages[name])
    pictures = page.all("svg")
    assert len(page.all("figure")) == len(pictures) == len(page.all("figcaption"))
    for given in pictures:
        assert given["role"] == "img"
        assert len(given["aria-labelledby"].split()) == 2
    assert len(re.findall(r"<title id=[^>]+>[^<]+</title><desc id=[^>]+>[^<]{20,}</desc>", pages[name])) == len(
        pictures
    )
    assert len(re.findall(r"<figure>.*?<details>.*?<table>.*?</figure>", pages[name], re.DOTALL)) == len(pictures)
    assert all(given.get("scope") in {"col", "row"} for given in page.all("th"))


def test_the_same_record_gives_the_same_bytes(pages):
    assert render_page(FULL) == pages["full"]
    assert "matplotlib.org" not in pages["full"]
    assert not re.search(r"<dc:date>|<metadata", pages["full"])


def test_names_are_escaped(pages):
    """Class names and method labels are user input: they must not become markup or mathtext."""
    for name in ("full", "alone"):
        assert "<script" not in pages[name]
        assert "&lt;script&gt;" in pages[name]
        assert HOSTILE in " ".join("".join(Page(pages[name]).text).split())
    assert "frac{1}{2}$" in pages["full"]


def test_every_section_is_linked_from_the_top(pages):
    titles = [
        "What was forgotten",
        "Accuracy before and after",
        "Is it like retraining?",
        "The search for the edit",
        "Which layers were edited",
        "Forgotten against unseen samples",
        "Can an attacker tell?",
        "Where forgotten samples go",
        "Further metrics",
        "Time and memory",
        "Options and provenance",
    ]
    for text in pages.values():
        shown = re.findall(r"<h2 [^>]+>([^<]+)</h2>", text)
        missing = re.findall(r"<li><strong>([^<]+)</strong>: [^<]{10,}</li>", text)
        assert ("Not on this page" in shown) == bool(missing)
        assert [title for title in titles if title not in missing] + ["Not on this page"] * bool(missing) == shown
        links = re.findall(r'<a href="#[^"]+">([^<]+)</a>', text)
        assert links == [title for title in shown if title != "Not on this page"]


def test_the_verdicts_two_halves_come_first(pages):
    judged = FULL.judgement()
    assert judged.says
    assert judged.holds
    said = visible(pages["full"])
    assert said.index("What the outputs say") < said.index("What the features hold") < said.index("What was forgotten")


def visible(text):
    return " ".join("".join(Page(text).text).split())


def test_what_the_full_page_says(pages):
    said = visible(pages["full"])
    assert FULL.judgement().sentence in said
    for words in (
        "100 of 1000 training samples (10 %)",
        "a false-positive rate of 1 % needs at least 100 non-members, saw 46",
        "alpha = 20.000",
        "diagonal-fisher, CrossEntropy()",
        "unlearnkit 0.1.0",
        "layers.1.running_mean",
        "F_f/F_D is large everywhere.",
        "2026-01-01T00:00:00+00:00",
        "a weight became NaN",
        CLASSES[2],
    ):
        assert words in said, words
    assert len(re.findall("<svg", pages["full"])) == 11


def test_page_marks_estimated_importances(pages):
    assert "exact" in visible(pages["full"]).partition("Importances that were used")[2]
    sketch = attrs.evolve(FULL.report.evidence[0], relative_error=0.25)
    record = attrs.evolve(FULL, report=attrs.evolve(FULL.report, evidence=(sketch,)))
    said = visible(render_page(record)).partition("Options and provenance")[2]
    assert record.report.uncertainty()[0] in said
    assert "up to 25 %" in said.partition("Importances that were used")[2]


def test_single_retrained_models_are_in_the_table_of_the_features_alone():
    values = {"V": 0.5, "retrained 1 V": 0.41, "error V": 0.03, "retrained 1 other": 0.77}
    feature = FeatureMeasure(name="head-swap V", value=0.5, retrained=(0.41,), error=0.03)
    said = visible(render_page(attrs.evolve(FULL, metrics={"head-swap": values}, features=(feature,))))
    held, table = said.partition("Every metric")[::2]
    assert "0.410" in held.partition("What the features hold")[2]
    assert "0.410" not in table.partition("Options and provenance")[0]
    assert "head-swap: error V" in table
    assert "0.770" in table  # nowhere else


def test_missing_plots_are_explained(pages):
    said = visible(pages["bare"])
    for words in (
        "No edit was made: 40 edits tried, and none keeps the budget.",
        "The record does not say what was forgotten.",
        "Nothing was measured.",
        "No retrained model at hand",
        "The options were set; unlearnkit tune searches",
        "This was not measured: evaluation.page was false, no edit was made, or an older version wrote the record.",
        "No further metrics: ",
        "No stage was timed.",
    ):
        assert words in said, words
    assert "<svg" not in pages["bare"]
    alone = visible(pages["alone"])
    assert "The retrained model is missing: no retrained model at hand." in alone
    assert "it is unknown whether this is like retraining" in alone


def test_missing_plot_data_have_a_reason():
    reasons = {
        "histograms": "classes [3] were forgotten completely",
        "loss attack, unlearned": "too few",
        "destinations": "x",
    }
    views = attrs.evolve(FULL.views, histograms=(), curves=(), destinations=(), reasons=reasons)
    said = visible(render_page(attrs.evolve(FULL, views=views)))
    assert "There is nothing to show: classes [3] were forgotten completely." in said
    assert "loss attack, unlearned: too few." in said
    assert "There is nothing to show: x." in said


def test_a_loss_without_accuracy_is_a_table():
    plain = {s: attrs.evolve(score, accuracy=None) for s, score in FULL.after.items()}
    said = visible(render_page(attrs.evolve(BARE, report=FULL.report, after=plain, before=plain)))
    assert "No classification: there is only a loss." in said


@pytest.mark.parametrize("name", RECORDS)
def test_the_record_can_be_read_again(pages, name):
    record = RECORDS[name]
    plain = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    again = RunRecord.from_dict(plain)
    assert again.judgement() == record.judgement()
    assert json.loads(json.dumps(again.to_dict())) == plain
    assert again.views == record.views
    assert render_page(RunRecord.from_dict({**plain, "a later version": 1})) == pages[name]


def test_a_search_can_be_read_again():
    found = Tuning.from_dict(FULL.tuning)
    assert found.chosen is found.candidates[2]
    assert found.to_dict() == FULL.tuning
    assert Tuning.from_dict({**FULL.tuning, "chosen": None}).chosen is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the record of a run from .*report.json"),
        ("{", "cannot read the record"),
        ("[]", "expected the format 'unlearnkit-run-1', saw None"),
        ('{"format": "unlearnkit-run-1", "method": "m"}', "label: expected, but missing"),
        ('{"format": "unlearnkit-run-1", "label": "x", "method": 3}', "report.method: expected a string, saw 3"),
    ],
)
def test_invalid_records_are_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        read_record(tmp_path)


def test_results_are_written_before_the_page(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no picture")

    monkeypatch.setattr("unlearnkit.reporting.page.write_page", broken)
    with pytest.raises(RuntimeError, match="no picture"):
        write_result(tmp_path / "m", nn.Linear(2, 2), BARE, metadata={}, page=True)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["model.safetensors", "report.json"]


def test_the_command_writes_the_same_page_again(tmp_path):
    for name in ("full", "bare"):
        write_result(tmp_path / name, None, RECORDS[name], metadata={}, page=True)
    first = (tmp_path / "full" / "report.html").read_bytes()
    (tmp_path / "full" / "report.html").unlink()
    said = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert said.exit_code == 0
    assert (tmp_path / "full" / "report.html").read_bytes() == first
    assert "No edit was made: 40 edits tried" in " ".join(said.output.split())
    one = CliRunner().invoke(app, ["report", str(tmp_path / "bare")])
    assert (one.exit_code, one.output.count("report.html")) == (0, 1)
    none = CliRunner().invoke(app, ["report", str(tmp_path / "nothing")])
    assert none.exit_code == 2
    assert "expected report.json, or folders with it, saw neither" in " ".join(none.output.split())


def test_a_page_of_one_folder_is_replaced_atomically(tmp_path, monkeypatch):
    write_page(tmp_path, BARE)
    before = (tmp_path / "report.html").read_text()
    monkeypatch.setattr("unlearnkit.reporting.page.svg", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page(tmp_path, FULL)
    assert (tmp_path / "report.html").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_run_writes_the_page_and_its_data(digits_toml, tmp_path):
    switched = ["evaluation.page=true", f"evaluation.retrained=['{load_config(digits_toml).model.checkpoint}']"]
    prune, ssd = run(load_config(digits_toml, switched))
    for record in (prune, ssd):
        folder = tmp_path / "out" / record.label
        assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "report.html", "report.json"]
        assert (folder / "report.html").read_text(encoding="utf-8") == render_page(read_record(folder))
        # The original is used as a retrained model, so its scores must be the original's.
        by_model = {d.model: d.counts for d in record.views.destinations}
        assert by_model["retrained"] == by_model["original"] != by_model["unlearned"]
        assert by_model["label"] == tuple(137 * (i == 3) for i in range(10))
        assert record.retrained == (record.before,)
        shares = {(h.model, h.samples): sum(h.counts) for h in record.views.histograms}
        assert shares["unlearned", "forgotten"] == 137
        assert shares["unlearned", "unseen"] == 46
    right = next(d.counts[3] for d in ssd.views.destinations if d.model == "unlearned") / 137
    assert right == pytest.approx(ssd.after["forget-train"].accuracy)
    assert "The model is destroyed" in (tmp_path / "out" / "prune" / "report.html").read_text(encoding="utf-8")


def test_no_plot_data_without_the_page(digits_toml, tmp_path):
    (record,) = run(load_config(digits_toml, ["method=[{name='prune'}]", "evaluation.page=false"]))
    assert record.views is None
    assert sorted(p.name for p in (tmp_path / "out" / "prune").iterdir()) == ["model.safetensors", "report.json"]
