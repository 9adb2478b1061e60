"""Tuning from a configuration, and the command."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stopped_progress import stopping_at
from typer.testing import CliRunner

from unlearnkit import ConfigurationError, PluginManager, StoreError, UnlearnKitWarning, hookimpl
from unlearnkit.cli.app import app
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.experiments import job
from unlearnkit.experiments.config import MethodConfig, StepConfig, TuningConfig, load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.job import Job
from unlearnkit.experiments.run import run
from unlearnkit.experiments.search import checked_unlearner, hold_out_unseen, trials_of
from unlearnkit.experiments.tune import tune
from unlearnkit.plugins.manager import default_manager
from unlearnkit.utils.progress import silent

QUICK = [
    "tuning.method=ssd",
    "tuning.fractions=[0.01, 0.1]",
    "tuning.strengths=[0.0]",
    "tuning.rounds=1",
    "tuning.budget=0.2",
]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def config(path, *settings):
    return load_config(path, [*QUICK, *settings])


def settings(*more):
    return [part for s in (*QUICK, *more) for part in ("--set", s)]


def test_the_command_writes_the_edited_model_and_the_frontier(digits_toml, tmp_path, trained_checkpoint):
    result = call("tune", digits_toml, "-q", *settings())
    assert result.exit_code == 0, result.output
    assert "the frontier of" in result.output
    assert "edits tried; chosen: alpha = " in result.output
    folder = tmp_path / "out" / "ssd-tuned"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    tuning = report["tuning"]
    chosen = tuning["candidates"][tuning["chosen"]]
    assert report["options"]["alpha"] == chosen["options"]["alpha"]
    assert tuning["samples"] == {
        "forget importance": 110,
        "retain importance": 968,
        "forget validation": 27,
        "retain validation": 242,
        "unseen": 0,
    }
    assert set(report["seconds"]) == {"forget importance", "full importance", "tuning", "edit", "evaluation"}
    assert report["seconds"]["tuning"] > report["seconds"]["edit"]
    assert sum(report["seconds"][stage] for stage in ("tuning", "edit")) == pytest.approx(tuning["seconds"])
    assert [e["samples"] for e in report["evidence"]] == [110, 1078]
    assert report["after"]["forget-test"]["accuracy"] < report["before"]["forget-test"]["accuracy"]
    before, after = load_file(trained_checkpoint), load_file(folder / "model.safetensors")
    changed = sum(int((before[t["name"]] != after[t["name"]]).sum()) for t in report["tensors"])
    assert changed == report["changed"] > 0
    again = call("tune", digits_toml, "-q", *settings())
    assert again.exit_code == 2
    assert "results already exist" in again.output
    assert call("tune", digits_toml, "-q", "--overwrite", *settings()).exit_code == 0


def test_without_a_candidate_within_the_budget(digits_toml, tmp_path):
    result = call("tune", digits_toml, "-q", *settings("tuning.fractions=[0.9]", "tuning.budget=0", "tuning.rounds=0"))
    assert result.exit_code == 3
    assert "nothing was edited" in " ".join(result.output.split())
    folder = tmp_path / "out" / "ssd-tuned"
    assert [p.name for p in folder.iterdir()] == ["report.json"]
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["tuning"]["chosen"] is None
    assert len(report["tuning"]["candidates"]) == 2
    assert report["changed"] == 0
    assert "nothing was edited" in report["sentence"]


def test_the_same_configuration_gives_the_same_model(digits_toml):
    one, two = (tune(config(digits_toml), overwrite=True) for _ in range(2))
    assert one.record.report.model_after == two.record.report.model_after
    assert one.tuning.candidates == two.tuning.candidates
    other = tune(config(digits_toml, "seed=1"), overwrite=True)
    assert other.tuning.candidates != one.tuning.candidates


def test_test_set_does_not_influence_the_choice(digits_toml, monkeypatch):
    first = tune(config(digits_toml, "evaluation.splits=['retain-train']"))
    load = Experiment.load.__func__

    def blank(cls, chosen):
        experiment = load(cls, chosen)
        experiment.bundle.test.images[experiment.bundle.test.rows] = torch.rand(1, 8, 8)
        return experiment

    monkeypatch.setattr(Experiment, "load", classmethod(blank))
    second = tune(config(digits_toml, "evaluation.splits=['retain-train']"), overwrite=True)
    assert first.tuning.candidates == second.tuning.candidates


def test_the_target_of_a_retrained_model(digits_toml, trained_checkpoint):
    with pytest.raises(ConfigurationError, match=r"retrained models, saw none: .*retrained_seeds"):
        tune(config(digits_toml, "tuning.target=retrained"))
    # The original is used as the retrained model, so no edit is better than none.
    found = tune(config(digits_toml, "tuning.target=retrained", f"evaluation.retrained=['{trained_checkpoint}']"))
    assert found.tuning.target == found.tuning.original_forget
    assert found.tuning.target_source == "the mean of 1 retrained models on the same samples"
    assert (found.tuning.chosen, found.tuning.aim_reached, found.tuning.distance_left) == (None, True, 0)


def test_only_results_are_overwritten(digits_toml, tmp_path):
    folder = tmp_path / "out" / "ssd-tuned"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"expected the results of an earlier run.*saw 'notes.txt' in it"):
        tune(config(digits_toml), overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_unseen_samples_where_a_class_has_one_test_image(digits_toml):
    experiment = Experiment.load(config(digits_toml, "tuning.target=unseen", "data.options.test_fraction=0.01"))
    counts = experiment.bundle.test.targets.bincount()
    assert counts.min() == 1, "no split can have some of each class on both sides"
    started = Job.start(experiment.config, default_manager(), again=False, progress=silent)
    left, unseen = hold_out_unseen(started)
    assert len(left.experiment.bundle.test) + len(unseen) <= len(experiment.bundle.test)


def test_the_target_of_unseen_samples_takes_them_out_of_the_test_set(digits_toml):
    random = ["forget={indices=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}", "evaluation.splits=['retain-test']"]
    found = tune(config(digits_toml, "tuning.target=unseen", *random))
    labels = Experiment.load(config(digits_toml)).bundle.train.targets.numpy()[:10]
    often = np.bincount(labels).max()
    assert 10 < found.record.tuning["samples"]["unseen"] <= 10 * 24 / often, "of each digit as often as forgotten"
    assert 0.8 < found.tuning.target < 1
    whole = tune(config(digits_toml, "tuning.target=unseen", "tuning.unseen_fraction=0.2"), overwrite=True)
    assert whole.record.tuning["samples"]["unseen"] == 9  # only the forgotten digit
    assert whole.record.after["retain-test"].samples + whole.record.after["forget-test"].samples == 360


def test_corrupted_samples_have_no_unseen_ones_to_compare_with(digits_toml):
    wrong = config(digits_toml, "tuning.target=unseen", "forget={corrupted={share=0.2}}")
    with pytest.raises(
        ConfigurationError, match="corrupted samples have other labels than unseen ones: expected 'retr"
    ):
        tune(wrong)


def test_random_samples_are_not_tuned_to_zero_without_a_warning(digits_toml):
    random = config(digits_toml, "forget={indices=[0, 1, 2, 3]}", "tuning.rounds=0", "tuning.fractions=[0.1]")
    with pytest.warns(UnlearnKitWarning, match=r"aims at a forget accuracy of 0, but .* set tuning.target = 'unseen'"):
        tune(random)


def test_sums_and_the_retain_set_as_reference(digits_toml):
    found = tune(
        config(
            digits_toml, "importance.reference=retain", "method=[{name='ssd', normalise=false}]", "tuning.reestimate=no"
        )
    )
    assert [(e.role, e.count) for e in found.record.report.evidence] == [("forget", 1), ("retain", 1)]
    assert {c.setting.reestimate for c in found.tuning.candidates} == {False}


def test_a_method_without_reference(digits_toml):
    found = tune(config(digits_toml, "tuning.method=prune", "tuning.budget=1"))
    assert found.record.report.method == "prune"
    assert len(found.record.report.evidence) == 1


def test_observers_are_called(digits_toml):
    heard = []

    class Watch:
        @hookimpl
        def unlearnkit_before_run(self, run):
            heard.append(run.method)

        @hookimpl
        def unlearnkit_after_run(self, report):
            heard.append(report.changed)

    plugins = PluginManager()
    plugins.register(Watch(), name="watch")
    found = tune(config(digits_toml), plugins=plugins)
    assert heard == ["ssd", found.record.report.changed]
    assert found.record.report.provider


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("tuning.method=''", r"the configuration has \['prune', 'ssd'\]"),
        ("tuning.method=sdd", "did you mean 'ssd'"),
        ("tuning.budgett=1", "did you mean 'budget'"),
        ("tuning.target=none", "expected one of 'stated', 'retrained', 'unseen'"),
        ("tuning.operating=epsilon", "expected a monotone option"),
        ("method=[{name='fisher-noise', label='ssd', options={sigma=0.1}}]", "expected an option to search"),
    ],
)
def test_methods_that_cannot_be_tuned(digits_toml, setting, said):
    with pytest.raises(ConfigurationError, match=said):
        tune(config(digits_toml, setting))


def test_existing_results_are_not_replaced(digits_toml, tmp_path):
    (tmp_path / "out" / "ssd-tuned").mkdir(parents=True)
    with pytest.raises(StoreError, match="results already exist"):
        tune(config(digits_toml))


TRIALS = ["tuning.trials=2", "tuning.budget=0.5"]


def test_run_tunes_any_method_as_tune_does_and_measures_each_importance_once(digits_toml, tmp_path, monkeypatch):
    measured, estimate = [], job.estimate_together

    def counted(*args, role, **options):
        measured.append(role.value)
        return estimate(*args, role=role, **options)

    monkeypatch.setattr(job, "estimate_together", counted)
    methods = "{name='ssd', tuned=true}, {name='salun', tuned=true, options={epochs=1}}, {name='prune'}"
    records = {r.label: r for r in run(config(digits_toml, *TRIALS, f"method=[{methods}]"))}
    assert sorted(measured) == ["forget", "forget", "full"], "once for both searches, once for fixed options"
    assert records["prune"].tuning is None
    for label in ("ssd", "salun"):
        record, here = records[label], f"output='{tmp_path / label}'"
        alone = tune(config(digits_toml, *TRIALS, f"method=[{methods}]", f"tuning.method={label}", here))
        assert record.report.model_after == alone.record.report.model_after
        assert Tuning.from_dict(record.tuning).candidates == alone.tuning.candidates
        assert {"aim_reached", "distance_left", "budget_to_reach"} <= record.tuning.keys()
        assert record.after == alone.record.after
    assert [c.options.keys() for c in Tuning.from_dict(records["salun"].tuning).candidates] == [
        {"share", "alpha", "learning_rate"}
    ] * 2


def test_two_labels_share_one_search(digits_toml, tmp_path):
    same = ", ".join(f"{{name='finetune', label='{label}', tuned=true, options={{epochs=1}}}}" for label in "ab")
    one, other = run(config(digits_toml, *TRIALS, f"method=[{same}]"))
    assert Tuning.from_dict(one.tuning).candidates == Tuning.from_dict(other.tuning).candidates
    assert not (tmp_path / "out" / ".trials.sqlite").exists()


def test_several_processes_make_the_database_of_trials_at_once(digits_toml, tmp_path):
    configuration = config(digits_toml, f"output='{tmp_path / 'many'}'")
    with ThreadPoolExecutor(8) as pool:
        urls = {*pool.map(lambda _: trials_of(configuration), range(8))}
    assert len(urls) == 1


def test_a_stopped_search_is_kept_until_its_own_end(digits_toml, tmp_path):
    method = ["method=[{name='finetune', options={epochs=1}}, {name='ssd'}]", *TRIALS]
    trials = tmp_path / "out" / ".trials.sqlite"
    with pytest.raises(KeyboardInterrupt):
        tune(config(digits_toml, *method, "tuning.method=finetune"), progress=stopping_at("tuning finetune", 1))
    for other in ("ssd", "finetune"):
        assert trials.exists()
        tune(config(digits_toml, *method, f"tuning.method={other}"))
    assert not trials.exists()


@pytest.mark.parametrize("name", ["what?", "a%20b", "é#"])
def test_trials_are_in_the_output_folder_whatever_its_name(digits_toml, tmp_path, name):
    folder = tmp_path / name
    method = ["method=[{name='finetune', options={epochs=1}}]", "tuning.method=finetune", *TRIALS]
    chosen = config(digits_toml, f"output='{folder}'", *method)
    with pytest.raises(KeyboardInterrupt):
        tune(chosen, progress=stopping_at("tuning finetune", 1))
    assert (folder / ".trials.sqlite").exists()
    tune(chosen)
    assert not (folder / ".trials.sqlite").exists()
    assert name in {path.name for path in tmp_path.iterdir()}
    assert name[:1] not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["ssd", "ssd-adaptive"])
def test_a_strength_that_is_set_stays(digits_toml, name):
    found = tune(config(digits_toml, f"method=[{{name='{name}', options={{lam=0.5}}}}]", f"tuning.method={name}"))
    assert {options.get("lam", 0.5) for options in (c.options for c in found.tuning.candidates)} == {0.5}
    assert found.record.report.options["lam"] == 0.5


def test_an_option_that_a_fixed_one_replaces_is_not_searched(digits_toml):
    with pytest.raises(ConfigurationError, match="expected an option to search"):
        tune(config(digits_toml, "method=[{name='fisher-topk', options={k=50}}]", "tuning.method=fisher-topk"))


def test_run_says_which_searches_edited_nothing(digits_toml, tmp_path):
    nothing = "method=[{name='finetune', tuned=true, options={epochs=1}}, {name='prune'}]"
    stop = ["tuning.forget_accuracy=1.0", "tuning.trials=1"]
    result = call("run", digits_toml, "-q", *settings(nothing, *stop))
    assert result.exit_code == 3, result.output
    assert "none is better than leaving the model as it is: nothing was edited" in " ".join(result.output.split())
    assert [p.name for p in (tmp_path / "out" / "finetune").iterdir()] == ["report.json"]
    assert (tmp_path / "out" / "prune" / "model.safetensors").exists()
    report = json.loads((tmp_path / "out" / "finetune" / "report.json").read_text(encoding="utf-8"))
    tuning = report["tuning"]
    left = 1 - tuning["original_forget"]
    assert (tuning["chosen"], tuning["distance_left"], tuning["aim_reached"]) == (None, left, left <= 0.1)


def test_with_unseen_samples_all_methods_of_a_run_share_what_is_left_of_the_test_set(digits_toml):
    unseen = ["tuning.target=unseen", "tuning.fractions=[0.1]", "tuning.rounds=0", "tuning.budget=1"]
    tuned, fixed = run(config(digits_toml, *unseen, "method=[{name='ssd', tuned=true}, {name='prune'}]"))
    assert tuned.tuning["samples"]["unseen"] > 0
    whole = Experiment.load(config(digits_toml)).split.test
    assert fixed.before["retain-test"].samples < len(whole.retain), "of the fixed one too"


def test_a_dry_run_of_a_search_is_refused(digits_toml):
    with pytest.raises(ConfigurationError, match="'ssd': expected fixed options for a dry run, saw tuned"):
        list(run(config(digits_toml, "method.ssd.tuned=true"), dry_run=True))


def test_every_shipped_method_can_be_tuned():
    plugins = PluginManager()
    names = [e.name for e in plugins.provided("unlearner") if e.plugin.origin.startswith("unlearnkit ")]
    assert len(names) > 20
    for name in names:
        steps = [StepConfig(name="finetune")] if name == "sequence" else []
        method = MethodConfig(name=name, tuned=True, steps=steps)
        assert checked_unlearner(method, plugins, TuningConfig()).name == name
