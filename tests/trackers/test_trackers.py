"""The trackers record edits and results; the programs themselves are read back, offline."""

import copy
import re
import runpy
import time
import types

import attrs
import pytest
import torch
import unlearnkit_trackers
from report_record import FULL
from torch import nn
from unlearnkit_trackers.mlflow import MLflow
from unlearnkit_trackers.tensorboard import TensorBoard
from unlearnkit_trackers.tracker import Tracker, trackers_of
from unlearnkit_trackers.wandb import WeightsAndBiases

from unlearnkit import ConfigurationError, PluginManager, Run, unlearn
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.reporting import write_result
from unlearnkit.reporting.page import write_page


class Listed(Tracker):
    def __init__(self):
        super().__init__()
        self.runs = []

    def start(self, name, parameters):
        self.runs.append((name, dict(parameters), {}, [], []))

    def record(self, numbers, figures, page):
        _, _, seen, drawn, pages = self.runs[-1]
        assert not seen.keys() & {name for name, value in numbers.items() if seen.get(name) == value}, "recorded twice"
        seen.update(numbers)
        drawn += figures
        pages += [page.parent.name] if page else []


def small():
    torch.manual_seed(0)
    forget, retain = [(torch.randn(4, 3), torch.zeros(4).long())], [(torch.randn(4, 3), torch.ones(4).long())]
    return nn.Linear(3, 2), {"forget": forget, "retain": retain}


def test_an_edit_in_python_is_recorded_with_options_seconds_fraction_and_layers():
    tracker, manager = Listed(), PluginManager()
    manager.register(tracker)
    model, data = small()
    report = unlearn(model, "ssd", **data, alpha=1.5, plugins=manager)
    ((name, parameters, numbers, figures, pages),) = tracker.runs
    assert (name, figures, pages) == ("ssd", ["layers"], [])
    assert parameters["alpha"] == 1.5
    assert (parameters["estimator"], parameters["model"]) == ("diagonal-fisher", "Linear")
    assert numbers["fraction"] == report.fraction > 0
    assert {"seconds/edit", "seconds/forget importance", "seconds/retain importance"} <= numbers.keys()


def test_the_results_of_a_configuration_go_to_the_run_of_their_edit(digits_toml):
    tracker, manager = Listed(), PluginManager()
    manager.register(tracker)
    overrides = ["evaluation.metrics=['loss-and-accuracy']", "evaluation.page=true"]
    records = list(run(load_config(digits_toml, overrides), plugins=manager))
    assert [r[0] for r in tracker.runs] == ["prune", "ssd"]
    for record, (label, parameters, numbers, figures, pages) in zip(records, tracker.runs, strict=True):
        assert parameters.items() >= record.report.options.items()
        assert numbers["unlearned/forget-test/accuracy"] == record.after["forget-test"].accuracy
        assert numbers["original/forget-test/loss"] == record.before["forget-test"].loss
        key, value = next((k, v) for k, v in record.metrics["loss-and-accuracy"].items() if v is not None)
        assert numbers[f"metrics/loss-and-accuracy/{key}"] == value
        assert numbers["seconds/evaluation"] == record.report.seconds["evaluation"]
        assert (figures, pages) == (["layers", "accuracy"], [label])


@pytest.fixture
def results(tmp_path):
    """Make an edit as observers see it, and the folder of its results."""
    metrics = {"mia-loss": {"AUC": 0.55, "TPR at 1 % FPR": 0.25, "advantage": None}}
    record, folder = attrs.evolve(FULL, metrics=metrics), tmp_path / "results"
    write_result(folder, None, record, metadata={})
    write_page(folder, record)
    about = Run(method=record.report.method, options=dict(record.report.options), estimator="e", model="M")
    return about, record, folder


def follow(tracker, results):
    about, record, folder = results
    manager = PluginManager(entry_points=False)  # a warning about global state would be an error
    manager.register(tracker)
    manager.after_run(about, copy.copy(record.report))
    manager.after_write(folder)


def test_tensorboard(results, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow(TensorBoard(tmp_path / "runs"), results)
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert events.Scalars("fraction")[0].value == pytest.approx(results[1].report.fraction)
    after = results[1].after["retain-test"].accuracy
    assert [e.value for e in events.Scalars("unlearned/retain-test/accuracy")] == [pytest.approx(after)]
    assert set(events.Tags()["images"]) == {"layers", "accuracy"}
    assert b'"method": "' in events.Tensors("options/text_summary")[0].tensor_proto.string_val[0]
    assert (folder / "report.html").read_bytes() == (results[2] / "report.html").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy
def test_mlflow(results, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    follow(MLflow(), results)
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("unlearnkit").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["fraction"] == results[1].report.fraction
    assert found.data.metrics["unlearned/retain-test/accuracy"] == results[1].after["retain-test"].accuracy
    assert found.data.metrics["metrics/mia-loss/TPR at 1 _ FPR"] == 0.25
    assert found.data.params["method"] == results[1].report.method
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"report.html", "layers.png", "accuracy.png"}


def test_wandb(results, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for key, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(key, value)
    follow(WeightsAndBiases(), results)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (log,) = folder.glob("*.wandb")
    for _ in range(200):  # another process writes it
        written = log.read_bytes().replace(b"\n", b"")  # a log of protocol buffers, whose strings are plain
        if b"fraction" in written:
            break
        time.sleep(0.05)
    after = results[1].after["retain-test"].accuracy
    for key, value in {"unlearned/retain-test/accuracy": after, "fraction": results[1].report.fraction}.items():
        assert re.search(rb"%s.{1,9}%s" % (key.encode(), repr(value).encode()), written), key
    assert re.search(rb'method.{1,9}"ssd"', written)
    (page,) = folder.rglob("*.html")
    assert page.read_bytes() == (results[2] / "report.html").read_bytes()
    assert len([*folder.rglob("*.png")]) == 2


def test_names_of_trackers():
    with pytest.raises(ConfigurationError, match=r"UNLEARNKIT_TRACKERS: expected some of .*, saw 'tensorbord'"):
        trackers_of("tensorbord")


def test_a_tracker_that_is_not_installed_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setattr("unlearnkit_trackers.tracker.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"'wandb' is not installed: pip install 'unlearnkit\[wandb\]'"):
        trackers_of(" wandb,")


@pytest.mark.parametrize("asked", ["", "tensorboard"])
def test_a_tracker_is_active_only_when_asked_for(asked, monkeypatch):
    monkeypatch.setattr("unlearnkit_trackers.tracker.find_spec", bool)
    monkeypatch.setenv("UNLEARNKIT_TRACKERS", asked)
    module, manager = types.ModuleType("trackers"), PluginManager(entry_points=False)
    vars(module).update(runpy.run_path(unlearnkit_trackers.__file__))
    manager.register(module, name="trackers")
    assert manager.offers("trackers") == (("unlearnkit_after_run", "unlearnkit_after_write") if asked else ())
