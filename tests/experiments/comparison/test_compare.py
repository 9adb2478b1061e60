"""A comparison runs each trial once, resumes after any interruption, and reports failures."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import forked_process as forked
import pytest
from kill_during_work import compare_until_a_trial
from matplotlib.figure import Figure
from rank_tasks import compared
from run_on_ranks import run_on_ranks

from unlearnkit import Metric, PluginManager, hookimpl
from unlearnkit.evaluation.metrics.retrain_gap import tug_of_war
from unlearnkit.experiments import Comparison, compare
from unlearnkit.experiments.comparison.tables import is_volatile
from unlearnkit.experiments.config import load_config
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnlearnKitError
from unlearnkit.utils.files import locked_folder


def table(folder):
    """The table without the columns that differ between equal runs."""
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if not is_volatile(k)} for row in csv.DictReader(file)]


def names(events, kind):
    return [event.name for event in events if event.kind == kind]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, small_text):
    """The table of the small comparison in one process, without a stop; and its folder."""
    root = tmp_path_factory.mktemp("uninterrupted")
    (root / "small.toml").write_text(small_text.format(root=root))
    comparison = compare(load_config(root / "small.toml"))
    return comparison, table(root / "out")


def test_every_trial_is_a_row(uninterrupted):
    comparison, rows = uninterrupted
    assert [(r["training_seed"], r["variant"]) for r in rows] == [
        (seed, variant) for seed in "01" for variant in ("ssd alpha=2", "ssd alpha=1e+09", "binary-mask", "diverges")
    ]
    assert [r["status"] for r in rows] == ["done", "done", "done", "failed"] * 2
    assert comparison.pending == comparison.failed
    assert len(comparison.failed) == 2


def test_the_numbers_of_a_row_fit_together(uninterrupted):
    _, rows = uninterrupted
    for row in rows:
        if row["status"] == "done":
            assert float(row["fraction"]) == int(row["changed"]) / int(row["weights"])
            assert json.loads(row["option:lam"]) >= 0
            assert 0 <= float(row["tug-of-war:ToW"]) <= 1
            assert all(float(row[f"accuracy:{s}"]) <= 1 for s in ("retain-train", "forget-train", "retain-test"))
    assert [r["findings"] for r in rows if r["variant"] == "ssd alpha=1e+09"] == ["nothing changed"] * 2
    assert "ssd changed nothing: 0 of" in rows[1]["remarks"]
    assert {r["tuned"] for r in rows if r["method"] == "binary-mask"} == {"True"}
    assert "edits tried; chosen: lam = " in rows[2]["remarks"]


def test_a_notebook_shows_a_row_for_each_variant_and_a_point_in_the_plot(uninterrupted, monkeypatch):
    comparison, rows = uninterrupted
    shown = comparison._repr_html_()
    assert shown.startswith("<p>8 of 8 trials have ended; spread over ")
    assert shown.count("<tr>") == 2 + len({row["variant"] for row in rows})  # the header, the original
    assert len(repr(comparison)) < 300
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows, **_: rows))
    assert comparison.to_frame() == [*comparison.rows()]
    axes = comparison.plot(Figure().subplots())
    said = [text.get_text() for text in axes.texts]
    assert said == ["original", "ssd alpha=2", "ssd alpha=1e+09", "binary-mask"]  # none for what failed
    mean = [sum(float(r["accuracy:retain-test"]) for r in rows if r["variant"] == said[1]) / 2]
    assert axes.lines[1].get_xdata() == pytest.approx(mean)


def test_tug_of_war_is_that_of_the_kept_models(uninterrupted):
    from unlearnkit.evaluation import loss_and_accuracy
    from unlearnkit.experiments.experiment import Experiment
    from unlearnkit.experiments.train import retrained_models

    comparison, rows = uninterrupted
    experiment = Experiment.load(comparison.trials[0].config)
    splits = ("forget-train", "retain-train", "retain-test")
    models = retrained_models(experiment)
    known = {
        s: sum(loss_and_accuracy(m, experiment.evaluation_batches(experiment.splits()[s])).accuracy for m in models)
        / len(models)
        for s in splits
    }
    expected = tug_of_war({s: float(rows[0][f"accuracy:{s}"]) for s in splits}, known)
    assert float(rows[0]["tug-of-war:ToW"]) == pytest.approx(expected, abs=1e-12)


def test_failed_trial_reports_its_error_and_the_others_continue(uninterrupted):
    comparison, rows = uninterrupted
    assert rows[3]["error"].startswith("NonFiniteError: expected a finite loss, saw NaN or infinity")
    assert rows[3]["accuracy:forget-train"] == rows[3]["fraction"] == ""
    page = (comparison.folder / "summary.md").read_text(encoding="utf-8")
    assert "- diverges, classes=3, training seed 0, unlearning seed 0: NonFiniteError" in page
    assert "| diverges | 2 |" in page
    assert "2 × failed" in page
    assert "2 × nothing changed" in page


def test_written_files(uninterrupted):
    comparison, _ = uninterrupted
    files = {p.name for p in comparison.folder.iterdir()}
    assert files == {
        "trials",
        "trials.csv",
        "summary.csv",
        "summary.md",
        "summary.html",
        "comparison.json",
        ".retrained",
    }
    assert len(list((comparison.folder / ".retrained").glob("*.safetensors"))) == 2 + 2
    record = json.loads((comparison.folder / "comparison.json").read_text(encoding="utf-8"))
    assert (record["trials"], record["ended"]) == (8, 8)
    assert record["config"]["comparison"]["training_seeds"] == [0, 1]


def test_tables_of_others_are_not_overwritten(small):
    comparison = Comparison.plan(small("method=[{name='prune'}]", "comparison.training_seeds=[0]"))
    comparison.folder.mkdir()
    (comparison.folder / "summary.csv").write_text("mine")
    with pytest.raises(StoreError, match=r"earlier comparison or none, saw summary.csv without its comparison.json"):
        comparison.run()
    assert [p.name for p in comparison.folder.iterdir()] == ["summary.csv"]
    assert (comparison.folder / "summary.csv").read_text() == "mine"


def test_two_comparisons_into_one_output_exclude_each_other(small):
    comparison = Comparison.plan(small("method=[{name='prune'}]", "comparison.training_seeds=[0]"))
    with locked_folder(comparison.folder), pytest.raises(StoreError, match="another process is writing to"):
        comparison.run()
    comparison.run()
    assert comparison.pending == ()


def test_finished_comparison_runs_nothing(small, monkeypatch):
    only = ["method=[{name='ssd', grid={alpha=[2, 3]}}]", "comparison.training_seeds=[0]"]
    first = compare(small(*only))
    before = {p: p.stat().st_mtime_ns for p in (first.folder / "trials").iterdir()}
    events = []
    assert compare(small(*only), watch=events.append).pending == ()
    assert events == []
    assert {p: p.stat().st_mtime_ns for p in (first.folder / "trials").iterdir()} == before
    wider = [*only[1:], "method=[{name='ssd', grid={alpha=[2, 3, 4]}}]"]
    compare(small(*wider), watch=events.append)
    assert names(events, "done") == ["ssd alpha=4 · classes=3 · training seed 0 · unlearning seed 0"]


def test_a_changed_configuration_does_not_find_the_old_rows(small):
    one = ["method=[{name='ssd', options={alpha=2}}]", "comparison.training_seeds=[0]"]
    first = table(compare(small(*one)).folder)
    changed = compare(small(*one, "training.epochs=1"))
    second = table(changed.folder)
    assert len(first) == len(second) == 1
    assert first[0]["key"] != second[0]["key"]
    assert first[0]["loss:retain-train"] != second[0]["loss:retain-train"]
    assert len(list((changed.folder / "trials").iterdir())) == 2


def test_failed_trials_are_tried_again(small):
    bad = ["method=[{name='finetune', options={epochs=1, learning_rate=1e30}}]", "comparison.training_seeds=[0]"]
    events = []
    for _ in range(2):
        compare(small(*bad), watch=events.append)
    assert len(names(events, "failed")) == 2


def test_a_damaged_or_foreign_file_is_refused(small):
    one = ["method=[{name='ssd', options={alpha=2}}]", "comparison.training_seeds=[0]"]
    (path,) = (compare(small(*one)).folder / "trials").iterdir()
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:100])
    with pytest.raises(StoreError, match=r"is damaged: .*delete it"):
        compare(small(*one))
    path.write_text(text.replace(path.stem, "another"))
    with pytest.raises(StoreError, match="is not the result of 'ssd · classes=3"):
        compare(small(*one))
    raw = json.loads(text)
    del raw["result"]
    for damaged, said in (("[" * 100_000, "is damaged"), (json.dumps(raw), "expected a table, saw None")):
        path.write_text(damaged)
        with pytest.raises(UnlearnKitError, match=said):
            compare(small(*one))


def test_ctrl_c_leaves_what_is_done_on_disk(small, uninterrupted):
    def interrupt(event):
        if event.kind == "started" and event.name.startswith("binary-mask"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(small(), watch=interrupt)
    comparison = Comparison.plan(small())
    assert len(comparison.pending) == 6
    assert table(comparison.folder) == [
        {k: v for k, v in row.items() if k in table(comparison.folder)[0]} for row in uninterrupted[1][:2]
    ]


def test_an_original_that_cannot_be_trained_fails_its_trials_once(small, monkeypatch):
    calls = []

    def broken(*_, **__):
        calls.append(1)
        raise RuntimeError("no such layer")

    monkeypatch.setattr("unlearnkit.experiments.comparison.worker.cached_original", broken)
    comparison = compare(small())
    assert {r["error"] for r in comparison.rows()} == {"RuntimeError: no such layer"}
    assert len(calls) == 2  # one for each training seed
    assert len(comparison.failed) == 8


class Stubborn(Metric):
    """Refuses."""

    name = "stubborn"

    def measure(self, inputs):
        raise ValueError(f"not today, {type(inputs.model).__name__}")


class Offer:
    @hookimpl
    def unlearnkit_register_metrics(self):
        return [Stubborn]


def test_registered_plugins_and_a_metric_that_fails(small):
    plugins = PluginManager()
    plugins.register(Offer(), name="mine")
    config = small("comparison.metrics=['stubborn']", "method=[{name='ssd'}]", "comparison.training_seeds=[0]")
    (row,) = compare(config, plugins=plugins).rows()
    assert row["status"] == "failed"
    assert row["error"].startswith("ValueError: not today, SmallCNN\nraised by metric 'stubborn'")
    with pytest.raises(ConfigurationError, match="other processes see installed plugins only"):
        compare(config, plugins=plugins, jobs=2)


def test_no_candidate_within_the_budget_is_a_row(small):
    settings = ["method=[{name='binary-mask', tuned=true}]", "tuning.budget=0.0", "tuning.fractions=[0.9]"]
    rows = compare(small(*settings, "comparison.training_seeds=[0]")).rows()
    assert [(r["status"], r["findings"], r["fraction"]) for r in rows] == [("done", "no candidate", 0.0)]
    assert rows[0]["tug-of-war:ToW"] == rows[0]["tug-of-war:original ToW"]


def test_several_processes_give_the_same_table(small, uninterrupted):
    events = []
    comparison = compare(small(), jobs=2, watch=events.append)
    assert table(comparison.folder) == uninterrupted[1]
    assert os.getpid() not in {event.process for event in events}
    assert len(names(events, "started")) == 4 + 8


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_of_torchrun_give_the_same_table_and_do_each_trial_once(small_toml, uninterrupted, tmp_path, size):
    came = run_on_ranks(tmp_path / "jobs", compared, small_toml, size=size)
    assert table(tmp_path / "out") == uninterrupted[1]
    assert sorted(name for done, _ in came for name in done) == sorted(t.name for t in uninterrupted[0].trials)
    assert all(share == len(done) > 0 for done, share in came)


def test_killed_comparison_resumes(small, small_toml, uninterrupted):
    assert forked.run(compare_until_a_trial, str(small_toml), 4) == -signal.SIGKILL
    comparison = Comparison.plan(small())
    kept = {p.name: p.stat().st_mtime_ns for p in (comparison.folder / "trials").iterdir()}
    assert len(kept) == 3
    assert not (comparison.folder / "trials.csv").exists()
    events = []
    compare(small(), watch=events.append)
    assert names(events, "started") == [trial.name for trial in comparison.trials[3:]]
    after = {p.name: p.stat().st_mtime_ns for p in (comparison.folder / "trials").iterdir()}
    assert {name: after[name] for name in kept} == kept
    assert table(comparison.folder) == uninterrupted[1]


@pytest.mark.slow  # five processes start
def test_dead_worker_is_a_failed_row_and_the_others_continue(small, tmp_path, monkeypatch):
    # A metric kills its process where nothing was edited, as the system does when memory runs out.
    (tmp_path / "dies.py").write_text(
        "import os\n"
        "import attrs\n"
        "from unlearnkit import Metric, hookimpl\n\n\n"
        "@attrs.frozen\n"
        "class Dies(Metric):\n"
        "    '''Dies.'''\n"
        "    name = 'dies'\n\n"
        "    def measure(self, inputs):\n"
        "        if all((p == q).all() for p, q in zip(inputs.model.parameters(), inputs.original.parameters())):\n"
        "            os._exit(9)\n"
        "        return {'alive': 1.0}\n\n\n"
        "@hookimpl\n"
        "def unlearnkit_register_metrics():\n"
        "    return [Dies]\n"
    )
    meta = tmp_path / "dies-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: dies\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[unlearnkit]\ndies = dies\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    from unlearnkit.plugins.manager import default_manager

    default_manager.cache_clear()
    try:
        config = small("comparison.metrics=['dies']", "method=[{name='ssd', grid={alpha=[2, 1e9, 3]}}]")
        rows = compare(config, jobs=2).rows()
    finally:
        default_manager.cache_clear()
        sys.modules.pop("dies", None)
    assert [r["status"] for r in rows] == ["done", "failed", "done"] * 2
    assert {r["error"].split(",")[0] for r in rows if r["error"]} == {"the process died in this trial"}
    assert [r["dies:alive"] for r in rows] == [1.0, None, 1.0] * 2


@pytest.mark.slow
def test_workers_exit_when_their_parent_is_killed(small_toml, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys\n"
        "from unlearnkit.experiments import compare\n"
        "from unlearnkit.experiments.config import load_config\n\n"
        "def watch(event):\n"
        "    print(event.process, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n\n"
        "if __name__ == '__main__':\n"
        "    compare(load_config(sys.argv[1]), jobs=2, watch=watch)\n"
    )
    ended = subprocess.run(
        [sys.executable, script, small_toml], check=False, timeout=300, stdout=subprocess.PIPE, text=True
    )
    assert ended.returncode == -signal.SIGKILL
    worker = int(ended.stdout.split()[0])
    for _ in range(200):
        if not _runs(worker):
            return
        time.sleep(0.1)
    pytest.fail(f"worker {worker} outlives its parent")


def _runs(process):
    try:
        os.kill(process, 0)
        with pathlib.Path(f"/proc/{process}/stat").open(encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
