"""Recommending an edit: what is tried, what it is judged by, what is written, and going on after a stop."""

import json

import attrs
import numpy as np
import optuna
import pytest
import torch
from stopped_progress import stopping_at
from typer.testing import CliRunner

from unlearnkit import (
    ConfigurationError,
    Need,
    PluginManager,
    TrainingUnlearner,
    Unlearner,
    UnlearnerTraits,
    UnlearnKitError,
    hookimpl,
    option,
)
from unlearnkit.cli.app import app
from unlearnkit.data.splits import hold_out, matching_rows
from unlearnkit.evaluation import EvaluationInputs, loss_and_accuracy
from unlearnkit.evaluation.metrics import Recovery
from unlearnkit.evaluation.model_outputs import sampling_error
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.recommend import recommend
from unlearnkit.experiments.train import retrained_for
from unlearnkit.reporting import read_record
from unlearnkit.unlearning import EpochConfig

QUICK = ["recommend.trials=1", "training.epochs=6", "tuning.budget=1", "training.schedule='one-cycle'"]
RANDOM = "forget={indices=[0, 10, 20, 30, 40, 50, 60, 70, 80, 90]}"
CORRUPTED = "forget={corrupted={share=0.2, known=1.0}}"
ONE = "recommend.methods=['shrink-perturb']"


def config(path, *settings):
    return load_config(path, [*QUICK, "evaluation.splits=['retain-test']", *settings])


def without_seconds(found):
    return [attrs.evolve(a, seconds=0.0, search_seconds=0.0) for a in found.recommendation.attempts]


def test_the_command_writes_the_best_edit_and_the_table(digits_toml, tmp_path):
    settings = [part for s in (*QUICK, "evaluation.page=true") for part in ("--set", s)]
    result = CliRunner().invoke(app, ["recommend", str(digits_toml), "-q", *settings])
    assert result.exit_code == 0, result.output
    assert "Recommended:" in result.output
    folder = tmp_path / "out" / "recommended"
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "report.json", "report.html"}
    plain, record = json.loads((folder / "report.json").read_text(encoding="utf-8")), read_record(folder)
    labels = ["leave as it is", "capped-neg-grad", "reset-last", "shrink-perturb", "from scratch"]
    attempts = plain["recommendation"]["attempts"]
    assert [attempt["name"] for attempt in attempts] == labels
    assert all(label in result.output for label in labels[:3])
    assert "from scratch" in (folder / "report.html").read_text(encoding="utf-8")
    best = attempts[plain["recommendation"]["chosen"]]
    assert best["score"] == max(attempt["score"] for attempt in attempts if not attempt["problem"])
    assert attempts[0]["score"] < 0.2, "the original knows the class"
    assert record.recommendation.best.name == best["name"]
    assert plain["changed"] > 0
    # Half of six epochs; each step of `capped-neg-grad` takes two batches.
    assert [attempt["epochs"] for attempt in attempts] == [0.0, 2.0, 3.0, 3.0, 3.0]
    assert plain["after"]["retain-test"]["samples"] + plain["after"]["forget-test"]["samples"] == 225
    assert {"head-swap", "recovery", "layer-probe"} <= set(plain["metrics"])
    again = CliRunner().invoke(app, ["recommend", str(digits_toml), "-q", *settings])
    assert again.exit_code == 2
    assert "results already exist" in again.output


def test_it_goes_on_after_a_stop_to_the_same_result(digits_toml, tmp_path):
    three = ["recommend.trials=3", "recommend.methods=['capped-neg-grad', 'shrink-perturb']"]
    whole = recommend(config(digits_toml, f"output='{tmp_path}/whole'", *three))
    seen, stopping = [], stopping_at("tuning shrink-perturb", 2)

    def counting(items, what, total):
        seen.append((what, total))
        return items

    parts = config(digits_toml, f"output='{tmp_path}/parts'", *three)
    with pytest.raises(KeyboardInterrupt):
        recommend(parts, progress=stopping)
    assert not (tmp_path / "parts" / "recommended").exists()
    others = config(digits_toml, f"output='{tmp_path}/parts'", *three, "data.options.seed=1")
    with pytest.raises(KeyboardInterrupt):
        recommend(others, progress=lambda items, what, total: stopping(counting(items, what, total), what, total))
    assert ("tuning capped-neg-grad", 3) in seen, "trials on other data are not those of this search"
    storage = f"sqlite:///{tmp_path / 'parts' / '.trials.sqlite'}"
    assert len(optuna.get_all_study_names(storage)) == 4
    found = recommend(parts, progress=counting)
    assert len(optuna.get_all_study_names(storage)) == 2, "of the other search, which was stopped"
    assert ("tuning capped-neg-grad", 0) in seen
    assert ("tuning shrink-perturb", 1) in seen
    assert without_seconds(found) == without_seconds(whole)
    assert found.record.report.model_after == whole.record.report.model_after


@pytest.mark.parametrize("classes", [range(10), [8], [1, 8]])
def test_random_samples_are_compared_with_unseen_ones_of_their_classes(digits_toml, classes):
    everything = Experiment.load(config(digits_toml)).bundle.train.targets.numpy()
    somebodys = f"forget={{indices={np.flatnonzero(np.isin(everything, classes))[:60].tolist()}}}"
    found = recommend(config(digits_toml, somebodys, "recommend.methods=['capped-neg-grad']"))
    experiment = Experiment.load(config(digits_toml, somebodys))
    test = experiment.bundle.test
    _, aside = hold_out(np.arange(len(test)), test.targets.numpy(), 0.5, 0)
    like = experiment.splits()["forget-train"].targets.numpy()
    aside = aside[matching_rows(test.targets.numpy()[aside], like, seed=0)]
    assert set(test.targets.numpy()[aside]) == set(classes)
    unseen = loss_and_accuracy(experiment.original_model()[0], experiment.evaluation_batches(test.subset(aside)))
    said = f"the original's on {len(aside)} samples of the same classes that it was not trained on"
    assert found.recommendation.source == said
    target = found.recommendation.target
    assert (target["forget"], target["forget-loss"]) == (unseen.accuracy, pytest.approx(unseen.loss))
    assert 0.5 < target["swap"] <= 1
    parts = {"retain-train": experiment.splits()["retain-train"], "forget-train": test.subset(aside)}
    splits = {name: experiment.importance_batches(data) for name, data in parts.items()}
    held_out = EvaluationInputs(model=experiment.original_model()[0], splits=splits)
    assert target["recovery"] == Recovery().evaluate(held_out)["retain epoch"]
    capped = next(a for a in found.recommendation.attempts if a.name == "capped-neg-grad")
    assert found.recommendation.attempts[0].recovery is not None
    assert found.recommendation.limit == 3
    assert capped.problem or capped.epochs == 2


def test_classes_are_compared_with_models_from_scratch(digits_toml):
    chosen = config(digits_toml, ONE)
    found, experiment = recommend(chosen), Experiment.load(chosen)
    forget = experiment.evaluation_batches(experiment.splits()["forget-train"])
    trained = loss_and_accuracy(retrained_for(experiment, 3), forget)
    target = found.recommendation.target
    assert target["forget-loss"] == pytest.approx(trained.loss)
    assert target["forget"] == trained.accuracy == 0
    assert found.recommendation.source == (
        "those of a model trained on the retain set for 3 epochs, the forget accuracy raised as far as the original is "
        "more accurate on retained samples"
    )
    *_, shrunk, scratch = found.recommendation.attempts
    assert target["swap"] == scratch.swap
    assert scratch.epochs == 3
    assert shrunk.epochs == 3


@pytest.mark.parametrize("forget", ["forget={classes=[3]}", CORRUPTED])
def test_the_score_counts_what_is_held_and_what_is_lost_of_the_training_set(digits_toml, forget):
    chosen = config(digits_toml, ONE, forget)
    found, experiment = recommend(chosen), Experiment.load(chosen)
    trained = retrained_for(experiment, 3)
    retain, lost_samples = (experiment.splits()[name] for name in ("retain-train", "forget-train"))
    models, batches = (experiment.original_model()[0], trained), experiment.evaluation_batches(retain)
    before, after = (loss_and_accuracy(m, batches, objective=experiment.objective).accuracy for m in models)
    assert before > after
    target, (original, *_, scratch) = found.recommendation.target, found.recommendation.attempts
    assert original.retain > scratch.retain
    assert target["forget"] == pytest.approx(scratch.forget * original.retain / scratch.retain)
    assert (target["swap"], target.get("recovery")) == (scratch.swap, scratch.recovery)
    assert (scratch.recovery is None) == (forget != CORRUPTED), "it says little of classes"
    tolerance = {"swap": found.recommendation.swap_error / 2}
    if forget == CORRUPTED:
        assert scratch.forget > 0
        tolerance["recovery"] = sampling_error(target["recovery"], len(lost_samples)) / 2
    for attempt, in_training in ((original, before), (scratch, after)):
        expected = 1 - abs(attempt.forget - target["forget"])
        expected *= (1 - (original.retain - attempt.retain)) * (1 - (before - in_training))
        for name, most in tolerance.items():
            expected *= 1 - max(0, abs(getattr(attempt, name) - target[name]) - most)
        assert attempt.score == pytest.approx(expected)


def test_retrained_models_do_not_influence_the_choice(digits_toml, trained_checkpoint):
    blind = recommend(config(digits_toml, ONE))
    shown = recommend(config(digits_toml, ONE, f"evaluation.retrained=['{trained_checkpoint}']"), overwrite=True)
    assert without_seconds(blind) == without_seconds(shown)
    assert len(shown.record.retrained) <= 1
    assert shown.record.metrics["head-swap"]["retrained 1 forget-test"] is not None


def test_where_nothing_is_better_nothing_is_edited(digits_toml, tmp_path):
    settings = [
        part for s in (*QUICK, ONE, "tuning.budget=0.02", "training.learning_rate=1.5e-3") for part in ("--set", s)
    ]
    result = CliRunner().invoke(app, ["recommend", str(digits_toml), "-q", *settings])
    assert result.exit_code == 3, result.output
    assert "Nothing was edited" in result.output
    folder = tmp_path / "out" / "recommended"
    assert [p.name for p in folder.iterdir()] == ["report.json"]
    record = read_record(folder)
    assert record.recommendation.best is None
    assert "Nothing was edited" in record.sentence()
    assert all("of retain accuracy" in a.problem for a in record.recommendation.attempts[1:])
    # It would have the largest score, but for what it loses.
    assert record.recommendation.attempts[-1].score > record.recommendation.attempts[0].score


@attrs.frozen(kw_only=True)
class Third(TrainingUnlearner):
    """Fine-tuning, with an option that is measured."""

    name = "third"
    needs = frozenset({Need.RETAIN_DATA})
    traits = attrs.evolve(TrainingUnlearner.traits, forgets={"full-class"})

    target: float | None = option(None, doc="unused", signal="forget-loss")

    def passes(self, model, inputs):
        del model
        return EpochConfig.epochs(inputs.retain_data, inputs.mean_loss, count=self.epochs)


def manager(*methods):
    class Methods:
        @hookimpl
        def unlearnkit_register_unlearners(self):
            return methods

    plugins = PluginManager()
    plugins.register(Methods(), name="methods")
    return plugins


def test_a_method_gets_in_by_what_it_declares(digits_toml):
    found = recommend(config(digits_toml), plugins=manager(Third))
    labels = [attempt.name for attempt in found.recommendation.attempts]
    assert labels[-2:] == ["third", "from scratch"]
    random = recommend(config(digits_toml, RANDOM), plugins=manager(Third), overwrite=True)
    assert "third" not in [attempt.name for attempt in random.recommendation.attempts]
    own = recommend(
        config(digits_toml, "method=[{name='third', label='mine', options={epochs=1}}]", "recommend.methods=['mine']"),
        plugins=manager(Third),
        overwrite=True,
    )
    mine = own.recommendation.attempts[1]
    assert (mine.name, mine.epochs) == ("mine", 1.0)
    assert set(mine.options) <= {"learning_rate"}


def test_an_unknown_signal_is_named(digits_toml):
    @attrs.frozen(kw_only=True)
    class Odd(TrainingUnlearner):
        """An option that nobody measures."""

        name = "odd"
        needs = frozenset({Need.RETAIN_DATA})
        goal: float | None = option(None, doc="unused", signal="weather")

        def passes(self, model, inputs):
            del model
            return EpochConfig.epochs(inputs.retain_data, inputs.mean_loss, count=self.epochs)

    with pytest.raises(ConfigurationError, match=r"odd\.goal: expected the signal 'forget-loss', saw 'weather'"):
        recommend(config(digits_toml, "recommend.methods=['odd']"), plugins=manager(Odd))


def test_methods_that_pass_over_both_sets_get_fewer_epochs(digits_toml):
    methods = ["scrub", "random-label"]
    found = recommend(config(digits_toml, f"recommend.methods={methods}", "training.epochs=4"))
    tried = {attempt.name: attempt for attempt in found.recommendation.attempts if attempt.name in methods}
    assert all("batches" not in attempt.problem for attempt in tried.values())
    assert all(0 < attempt.epochs <= found.recommendation.limit for attempt in tried.values())


def test_methods_that_read_the_forget_set_alone_keep_the_limit_where_it_is_larger(digits_toml):
    classes = "forget.classes=[0, 1, 2, 3, 4, 5, 6]"
    found = recommend(config(digits_toml, "recommend.methods=['undial']", classes, "training.epochs=8"))
    tried = {attempt.name: attempt for attempt in found.recommendation.attempts}
    assert "batches" not in tried["undial"].problem
    assert found.recommendation.limit == 4


def test_trials_are_used_again_when_another_method_is_left_out(digits_toml):
    """An error of one method costs the others nothing."""
    wrong = "method=[{name='rmu', label='wrong', tuned=true, options={layer='absent'}}]"
    both = config(digits_toml, "recommend.methods=['shrink-perturb', 'wrong']", wrong, "recommend.trials=2")
    with pytest.raises(UnlearnKitError, match="absent"):
        recommend(both)
    alone = config(digits_toml, "recommend.methods=['shrink-perturb']", "recommend.trials=2")
    edits = []

    def progress(items, what, total):
        edits.append((what, total))
        return items

    recommend(alone, progress=progress)
    assert ("tuning shrink-perturb", 0) in edits


def test_importances_count_within_the_limit(digits_toml):
    found = recommend(config(digits_toml, "recommend.methods=['salun']", "training.epochs=8"))
    tried = {attempt.name: attempt for attempt in found.recommendation.attempts}
    assert 1 < tried["salun"].epochs <= found.recommendation.limit == 4


def test_a_method_that_cannot_keep_the_limit_is_not_tried(digits_toml):
    found = recommend(config(digits_toml, "training.epochs=2"))
    tried = {attempt.name: attempt for attempt in found.recommendation.attempts}
    assert tried["capped-neg-grad"].trials == 0
    assert "needs more than the 1 epochs that an edit may take" in tried["capped-neg-grad"].problem
    assert not tried["reset-last"].problem
    assert [tried["capped-neg-grad"].values[key] for key in ("epochs", "seconds", "score")] == ["–"] * 3


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("recommend.methods=['shrink-pertub']", "no method is called 'shrink-pertub'; did you mean 'shrink-perturb'"),
        ("recommend.methods=['ssd-adaptive']", "'ssd-adaptive': expected an option to search"),
        ("recommend.cost=0.1", r"recommend\.cost: expected a share of 6 epochs that leaves one, saw 0.1"),
        ("recommend.costs=0.1", "did you mean 'cost'"),
        ("method=[{name='ssd', label='recommended'}]", "choose another label"),
    ],
)
def test_what_cannot_be_tried_is_refused(digits_toml, setting, said):
    with pytest.raises(ConfigurationError, match=said):
        recommend(config(digits_toml, setting))


def test_mislabelled_samples_are_compared_with_a_model_from_scratch(digits_toml):
    found = recommend(config(digits_toml, CORRUPTED, ONE))
    assert found.recommendation.target["forget"] < 0.5, "a model that never saw a wrong label does not predict it"
    assert torch.isfinite(torch.tensor([a.score for a in found.recommendation.attempts])).all()


def test_an_edit_that_only_hides_the_class_does_not_win(digits_toml):
    @attrs.frozen(kw_only=True)
    class Mute(Unlearner):
        """Set the bias of one class to a number far below the others: its features stay as they are."""

        name = "mute"
        needs = frozenset()
        traits = UnlearnerTraits(forgets={"full-class"})
        bias: float = option(-1e4, doc="of the class", search=(-1e4, -1e3))

        def apply(self, model, inputs):
            del inputs
            with torch.no_grad():
                model.head.bias[3] = self.bias

    settings = ["recommend.methods=['mute', 'shrink-perturb']", "training.epochs=12"]
    found = recommend(config(digits_toml, *settings), plugins=manager(Mute))
    attempts = {attempt.name: attempt for attempt in found.recommendation.attempts}
    mute, original = attempts["mute"], attempts["leave as it is"]
    assert (mute.forget, mute.swap, mute.epochs) == (0, original.swap, 0)
    assert (mute.score, mute.problem) == (0, "Only biases were edited.")
    assert found.recommendation.best.name in {"shrink-perturb", "from scratch"}
    # The features of nine digits tell the tenth apart too.
    assert "Head-swap cannot tell forgetting from hiding here" in found.recommendation.sentence()


def test_the_steps_of_a_sequence_share_the_limit_and_get_the_measured_target(digits_toml):
    steps = "[{name='shrink-perturb'}, {name='capped-neg-grad'}]"
    steps = f"method=[{{name='sequence', label='both', tuned=true, steps={steps}}}]"
    settings = ["recommend.methods=['both']", "recommend.trials=4", "training.epochs=12"]
    found = recommend(config(digits_toml, steps, *settings))
    both = found.recommendation.attempts[1]
    assert both.epochs == 5, "three of the first step, and one of the second, which takes two batches at a time"
    rates = {f"{step}.learning_rate" for step in ("shrink-perturb", "capped-neg-grad")}
    assert set(both.options) == {"shrink-perturb.shrink", "capped-neg-grad.c", *rates}
    rate = load_config(digits_toml).training.learning_rate
    assert all(rate <= both.options[name] <= 2 * rate for name in rates)
    named = recommend(config(digits_toml, steps, "recommend.trials=1", "training.epochs=12"), overwrite=True)
    assert "both" in [attempt.name for attempt in named.recommendation.attempts]
    if found.recommendation.best is both:
        target = found.recommendation.target["forget-loss"]
        assert found.record.report.steps[1].options["target"] == pytest.approx(target)


def test_a_wrong_option_is_an_error_before_anything_is_trained(digits_toml, tmp_path):
    steps = "{name='ssd'}, {name='finetune'}, {name='prune'}"
    wrong = f"method=[{{name='sequence', steps=[{steps}]}}]"
    with pytest.raises(ConfigurationError, match="no importances after the first step"):
        recommend(config(digits_toml, wrong, "recommend.methods=['sequence']"))
    assert not (tmp_path / "out" / ".retrained").exists()
