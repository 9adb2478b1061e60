"""The main job: importances once, every method from the original model, atomic results."""

import json
import signal

import forked_process as forked
import pytest
import torch
from kill_during_work import run_methods
from safetensors.torch import load_file

from unlearnkit import Metric, PluginManager, hookimpl
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.experiments.tune import tune
from unlearnkit.models.checkpoint import save_checkpoint
from unlearnkit.models.zoo import small_cnn
from unlearnkit.reporting import read_record
from unlearnkit.utils.errors import (
    ConfigurationError,
    NonFiniteError,
    PluginWarning,
    StoreError,
    UnknownMethodError,
    UnlearnKitWarning,
)


def records(path, *overrides, **options):
    return list(run(load_config(path, overrides), **options))


def test_the_main_job(digits_toml, tmp_path, trained_checkpoint):
    prune, ssd = records(digits_toml)
    assert (prune.label, ssd.label) == ("prune", "ssd")
    original = load_file(trained_checkpoint)
    for record in (prune, ssd):
        edited = load_file(tmp_path / "out" / record.label / "model.safetensors")
        differ = sum(int((edited[t.name] != original[t.name]).sum()) for t in record.report.tensors)
        assert differ == record.report.changed > 0
        assert torch.equal(edited["features.1.running_mean"], original["features.1.running_mean"])
    assert prune.report.fraction > 0.9 > ssd.report.fraction
    assert ssd.before["forget-test"].accuracy > ssd.after["forget-test"].accuracy


def test_the_report_on_disk(digits_toml, tmp_path):
    records(digits_toml, "method=[{name='ssd', options={alpha=3}}]")
    report = json.loads((tmp_path / "out" / "ssd" / "report.json").read_text())
    assert report["format"] == "unlearnkit-run-1"
    assert report["options"] == {"alpha": 3.0, "lam": 1.0, "fraction": None, "epsilon": 0.0}
    assert report["forget"]["samples"] == 137
    assert sum(t["changed"] for t in report["tensors"]) == report["changed"]
    assert sum(t["changed"] for t in report["layers"]) == report["changed"]
    layers = ["features.0", "features.1", "features.4", "features.5", "head"]
    assert [layer["name"] for layer in report["layers"]] == layers
    assert all(t["fraction"] == t["changed"] / t["size"] for t in [*report["layers"], *report["tensors"]])
    assert report["peak_memory"]["host"] > 2**20
    assert report["peak_memory"]["cuda"] is None
    assert set(report["seconds"]) == {"forget importance", "full importance", "edit", "evaluation"}
    assert [e["role"] for e in report["evidence"]] == ["forget", "full"]
    assert set(report["before"]) == set(report["after"]) == {"retain-test", "forget-test", "forget-train"}
    assert report["after"]["retain-test"]["samples"] == 404
    assert report["manifest"]["config"]["seed"] == 0
    assert report["provider"].startswith("unlearnkit ")
    assert report["model_before"] != report["model_after"]


def test_bfloat16_importances_edit_and_are_recorded(digits_toml, tmp_path):
    only = "method=[{name='ssd', options={alpha=3}}]"
    (wide,) = records(digits_toml, only)
    (low,) = records(digits_toml, only, "importance.precision='bfloat16'", f"output='{tmp_path}/low'")
    report = json.loads((tmp_path / "low" / "ssd" / "report.json").read_text())
    assert {e["fingerprint"]["objective"][:9] for e in report["evidence"]} == {"Autocast("}
    assert low.before == wide.before, "what is measured of the model is not rounded"
    assert low.report.model_after != wide.report.model_after
    assert abs(low.report.fraction - wide.report.fraction) < 0.05


def test_the_same_manifest_gives_the_same_bits(digits_toml, tmp_path):
    records(digits_toml)
    records(digits_toml, f"output='{tmp_path}/again'")
    for label in ("prune", "ssd"):
        one, two = (load_file(tmp_path / out / label / "model.safetensors") for out in ("out", "again"))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_dry_run_writes_nothing(digits_toml, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    prune, ssd = records(digits_toml, dry_run=True)
    assert prune.report.changed > ssd.report.changed > 0
    assert prune.after == {}
    assert sorted(tmp_path.rglob("*")) == before


def test_results_are_not_replaced_unasked(digits_toml, tmp_path):
    records(digits_toml)
    first = (tmp_path / "out" / "ssd" / "report.json").read_text()
    with pytest.raises(StoreError, match=r"results already exist: .*prune.*ssd"):
        records(digits_toml)
    assert (tmp_path / "out" / "ssd" / "report.json").read_text() == first
    records(digits_toml, overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["prune", "ssd"]


def test_only_results_are_overwritten(digits_toml, tmp_path):
    ssd = "method=[{name='ssd', options={alpha=3}}]"
    folder = tmp_path / "out" / "ssd"
    folder.mkdir(parents=True)
    for put in ("notes.txt", "report.json"):
        (folder / put).write_text("{}")
        with pytest.raises(StoreError, match=r"out/ssd: expected the results of an earlier run.*saw .*move it away"):
            records(digits_toml, ssd, overwrite=True)
        assert (folder / put).read_text() == "{}"
        (folder / put).unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(StoreError, match=r"saw 'model.safetensors' in it"):
        records(digits_toml, ssd, overwrite=True)
    (folder / "model.safetensors").rmdir()
    folder.rmdir()
    folder.write_text("a file")
    with pytest.raises(StoreError, match=r"saw a file"):
        records(digits_toml, ssd, overwrite=True)
    assert folder.read_text() == "a file"
    folder.unlink()
    records(digits_toml, ssd, f"output='{tmp_path}/elsewhere'")
    folder.symlink_to(tmp_path / "elsewhere" / "ssd")
    with pytest.raises(StoreError, match=r"saw a link"):
        records(digits_toml, ssd, overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "report.json"]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["ssd"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_results_are_not_written_into_a_ledger(digits_toml, tmp_path, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ledger.json").write_text("{}")
    with pytest.raises(StoreError, match=r"output: expected a folder for results, saw the ledger .*out: choose"):
        records(digits_toml, overwrite=overwrite)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ledger.json"]


def test_a_file_that_comes_during_the_run_is_not_overwritten(digits_toml, tmp_path):
    records(digits_toml)
    running = run(load_config(digits_toml), overwrite=True)
    next(running)
    (tmp_path / "out" / "ssd" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"saw 'notes.txt' in it"):
        next(running)
    assert (tmp_path / "out" / "ssd" / "notes.txt").read_text() == "mine"


def test_two_runs_into_one_output_exclude_each_other(digits_toml, tmp_path):
    first = run(load_config(digits_toml))
    next(first)
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"another process is writing to .*out: wait until it has ended"):
            records(digits_toml, overwrite=overwrite)
    with pytest.raises(StoreError, match="another process"):
        tune(load_config(digits_toml, ["tuning.method='ssd'"]), overwrite=True)
    assert len(records(digits_toml, f"output='{tmp_path}/other'")) == 2
    assert len(records(digits_toml, dry_run=True)) == 2
    assert [record.label for record in first] == ["ssd"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["prune", "ssd"]


def test_stopped_run_keeps_what_it_has_written(digits_toml, tmp_path):
    prune, ssd = records(digits_toml, f"output='{tmp_path}/whole'")
    stopped = run(load_config(digits_toml))
    next(stopped)
    stopped.close()
    written = (tmp_path / "out" / "prune" / "report.json").read_bytes()
    with pytest.warns(UnlearnKitWarning, match=r"out/prune is kept: the run that was stopped wrote it"):
        kept, new = records(digits_toml)
    assert (tmp_path / "out" / "prune" / "report.json").read_bytes() == written
    assert (kept.label, new.label) == ("prune", "ssd")
    assert (kept.after, kept.report.model_after) == (prune.after, prune.report.model_after)
    assert (new.after, new.report.model_after) == (ssd.after, ssd.report.model_after)


def test_a_search_that_edited_nothing_is_kept_by_the_next_run(digits_toml, tmp_path):
    settings = ["method=[{name='ssd', tuned=true}, {name='prune'}]", "tuning.forget_accuracy=1.0", "tuning.budget=0.0"]
    settings += ["tuning.rounds=0", "tuning.fractions=[0.1]"]
    stopped = run(load_config(digits_toml, settings))
    assert next(stopped).nothing_edited
    stopped.close()
    with pytest.warns(UnlearnKitWarning, match=r"out/ssd is kept: the run that was stopped wrote it"):
        records(digits_toml, *settings)
    assert (tmp_path / "out" / "prune" / "model.safetensors").exists()


@pytest.mark.parametrize("other", ["method.prune.options.tau=1", "seed=1", "forget.classes=[4]"])
def test_results_of_another_configuration_are_not_kept(digits_toml, other):
    stopped = run(load_config(digits_toml, [other]))
    next(stopped)
    stopped.close()
    with pytest.raises(StoreError, match=r"results already exist: .*prune: choose another output"):
        records(digits_toml)


def test_results_of_another_model_are_not_kept(digits_toml, tmp_path, trained_checkpoint):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(trained_checkpoint.read_bytes())
    stopped = run(load_config(digits_toml, [f"model.checkpoint='{mine}'"]))
    next(stopped)
    stopped.close()
    save_checkpoint(small_cnn(width=4, seed=0), mine)
    with pytest.raises(StoreError, match=r"out/prune: expected a result of the same original model, to go on"):
        records(digits_toml, f"model.checkpoint='{mine}'")


@pytest.mark.filterwarnings("ignore:ssd")
def test_an_infinite_option_is_recorded_and_recognised(digits_toml, tmp_path):
    settings = ["method.ssd.options.alpha=inf"]
    stopped = run(load_config(digits_toml, settings))
    next(stopped)
    stopped.close()
    with pytest.warns(UnlearnKitWarning, match="is kept"):
        _, ssd = records(digits_toml, *settings)
    assert ssd.report.changed == 0
    written = json.loads((tmp_path / "out" / "ssd" / "report.json").read_text())
    assert written["manifest"]["config"]["method"][1]["options"] == {"alpha": "inf"}


def test_the_page_that_a_killed_run_did_not_write(digits_toml, tmp_path):
    prune, _ = records(digits_toml, "evaluation.page=true")
    (tmp_path / "out" / "prune" / "report.html").unlink()
    with pytest.warns(UnlearnKitWarning, match="is kept"):
        again, _ = records(digits_toml, "evaluation.page=true")
    assert again.report.model_after == prune.report.model_after
    assert (tmp_path / "out" / "prune" / "report.html").exists()


def killed(config, settings, folder, *arguments):
    return forked.run(run_methods, str(config), settings, str(folder), *arguments)


def walk_kills(config, root, moments, record_property):
    """Kill a run at each of some file-system events, counted from 1; repeat it, and compare with a whole one."""
    settings = ["training.epochs=1", "evaluation.retrained_seeds=[1]"]
    count = root / "count"
    assert killed(config, [*settings, f"output='{root}/whole'"], root / "whole", None, str(count)) == 0
    chosen = moments(int(count.read_text()))
    for kill_at in chosen:
        out = root / f"killed-{kill_at}"
        assert killed(config, [*settings, f"output='{out}'"], out, kill_at) == -signal.SIGKILL
        assert killed(config, [*settings, f"output='{out}'"], out, None) in {0, 1 if (out / "ssd").exists() else 0}
        for label in ("prune", "ssd"):
            one, two = (load_file(folder / label / "model.safetensors") for folder in (root / "whole", out))
            assert all(torch.equal(one[name], two[name]) for name in one), kill_at
        assert {p.name for p in out.iterdir()} - {".lock"} == {".retrained", "prune", "ssd"}, kill_at
    record_property("tried", ("kills of `run`, one at each of its file operations", len(chosen)))


def test_killed_run_goes_on(digits_toml, tmp_path, record_property):
    walk_kills(digits_toml, tmp_path, lambda events: range(2, events, events // 4), record_property)


@pytest.mark.slow
def test_run_killed_at_every_file_operation_goes_on(digits_toml, tmp_path, record_property):
    walk_kills(digits_toml, tmp_path, lambda events: range(1, events + 1), record_property)


def test_a_repeated_request_is_refused(digits_toml, tmp_path):
    records(digits_toml)
    edited = f"model.checkpoint='{tmp_path}/out/ssd/model.safetensors'"
    out = f"output='{tmp_path}/second'"
    with pytest.raises(ConfigurationError, match=r"digest [0-9a-f]{32}\) was applied to .* already"):
        records(digits_toml, edited, out)
    assert not (tmp_path / "second").exists()
    other = records(digits_toml, edited, out, "forget.classes=[4]")
    assert len(other) == 2
    assert len(records(digits_toml, edited, f"output='{tmp_path}/third'", again=True)) == 2


def test_everything_is_checked_before_the_first_result(digits_toml, tmp_path):
    for override, error, message in (
        ("method=[]", ConfigurationError, r"expected at least one \[\[method\]\]"),
        ("method=[{name='prune'}, {name='sdd'}]", UnknownMethodError, "did you mean 'ssd'"),
        ("method.ssd.options.alpha=-1", ConfigurationError, "expected a number > 0, saw -1"),
        ("method.ssd.options.alpa=1", ConfigurationError, "unknown option 'alpa'; did you mean 'alpha'"),
        ("evaluation.splits=['retain-tset']", ConfigurationError, "there is no 'retain-tset'; did you mean"),
        ("evaluation.metrics=['nothing']", UnknownMethodError, "no metric is called 'nothing'"),
        ("importance.estimator=fisher", UnknownMethodError, "no estimator is called 'fisher'"),
        ("importance.options.chunks=1", ConfigurationError, "unknown option 'chunks'; did you mean 'chunk'"),
    ):
        with pytest.raises(error, match=message):
            records(digits_toml, override)
        assert not (tmp_path / "out").exists()


def test_a_budget_rolls_back_and_leaves_no_folder(digits_toml, tmp_path):
    with pytest.raises(Exception, match=r"expected at most 0.5 of the weights to change"):
        records(digits_toml, "method.prune.max_fraction=0.5")
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_leaves_no_folder(digits_toml, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unlearnkit.reporting.write.save_checkpoint", full_disk)
    with pytest.raises(StoreError, match=r"No space left on device.*nothing was left half-written"):
        records(digits_toml)
    assert not (tmp_path / "out").exists()


def test_the_retain_set_as_reference_and_sums_instead_of_means(digits_toml):
    (ssd,) = records(
        digits_toml, "importance.reference=retain", "method=[{name='ssd', normalise=false, options={alpha=1}}]"
    )
    forget, retain = ssd.report.evidence
    assert (retain.role, retain.samples) == ("retain", 1210)
    assert forget.count == retain.count == 1


class CountWeights(Metric):
    """Counts weights."""

    name = "weights"

    def measure(self, inputs):
        return {"weights": float(sum(p.numel() for p in inputs.model.parameters())), "absent": None}


class Offer:
    @hookimpl
    def unlearnkit_register_metrics(self):
        return [CountWeights]


def test_metrics_from_plugins(digits_toml, tmp_path):
    plugins = PluginManager()
    plugins.register(Offer(), name="mine")
    prune, _ = records(digits_toml, "evaluation.metrics=['weights']", plugins=plugins)
    assert prune.metrics["weights"]["absent"] is None
    report = json.loads((tmp_path / "out" / "prune" / "report.json").read_text())
    assert report["metrics"]["weights"]["weights"] == prune.report.size


def test_progress_covers_every_long_stage(digits_toml):
    seen = []

    def progress(items, what, total):
        seen.append((what, total))
        return items

    records(digits_toml, progress=progress)
    assert ("importance: forget", 3) in seen
    assert ("importance: full", 22) in seen
    assert ("evaluating", 2) in seen


def test_stopped_run_resumes_from_its_last_checkpoint(digits_toml, tmp_path):
    def settings(name):
        return (
            f"output='{tmp_path}/{name}'",
            f"importance.checkpoint='{tmp_path}/{name}-passes'",
            "importance.every=4",
        )

    shown = []

    def stopping(items, what, total):
        shown.append(what)
        if len(shown) == 4:  # the forget set was one segment; this is the third of the full set
            raise KeyboardInterrupt
        return items

    def watching(items, what, total):
        shown.append(what)
        return items

    *_, whole = records(digits_toml, *settings("whole"), progress=watching)
    full = shown.count("importance: full")
    shown.clear()
    with pytest.raises(KeyboardInterrupt):
        records(digits_toml, *settings("cut"), progress=stopping)
    assert shown == ["importance: forget", *["importance: full"] * 3]
    assert not (tmp_path / "cut").exists()
    shown.clear()
    assert not records(digits_toml, *settings("cut"), dry_run=True, progress=watching)[0].after
    assert sorted(path.name for path in (tmp_path / "cut-passes").iterdir()) == ["run-forget", "run-full"]
    shown.clear()
    *_, again = records(digits_toml, *settings("cut"), progress=watching)
    assert shown.count("importance: forget") == 0
    assert shown.count("importance: full") == full - 2
    assert again.report.model_after == whole.report.model_after
    assert not list((tmp_path / "cut-passes").iterdir())


class WriteObserver:
    def __init__(self):
        self.seen = []

    @hookimpl
    def unlearnkit_after_write(self, folder):
        self.seen.append((read_record(folder).label, {path.name for path in folder.iterdir()}))
        raise ZeroDivisionError("not watching")


@pytest.mark.parametrize("page", ["true", "false"])
def test_an_observer_sees_each_complete_folder_and_cannot_stop_the_run(digits_toml, page):
    observer, manager = WriteObserver(), PluginManager()
    manager.register(observer)
    with pytest.warns(PluginWarning, match="unlearnkit_after_write: ZeroDivisionError: not watching"):
        records(digits_toml, f"evaluation.page={page}", plugins=manager)
    files = {"model.safetensors", "report.json"} | ({"report.html"} if page == "true" else set())
    assert observer.seen == [("prune", files), ("ssd", files)]


def test_a_dry_run_writes_nothing_to_observe(digits_toml):
    observer, manager = WriteObserver(), PluginManager()
    manager.register(observer)
    records(digits_toml, plugins=manager, dry_run=True)
    assert observer.seen == []


def test_without_a_page_the_record_still_knows_the_retrained_models(digits_toml):
    one = [
        "method=[{name='ssd', options={alpha=5}}]",
        "training.epochs=1",
        "evaluation.retrained_seeds=[1]",
        "evaluation.page=false",
    ]
    (record,) = records(digits_toml, *one)
    assert [sorted(scores) for scores in record.retrained] == [sorted(record.after)]
    assert record.judgement().kind == "few references"
    assert record.views is None


def test_an_edited_model_without_finite_losses_is_named(digits_toml, tmp_path):
    noise = ["method=[{name='fisher-noise', options={sigma=1e30}}]", "importance.reference='retain'"]
    with pytest.raises(NonFiniteError, match=r"method 'fisher-noise': the edited model has no finite losses"):
        records(digits_toml, *noise)
    assert not (tmp_path / "out" / "fisher-noise").exists()
