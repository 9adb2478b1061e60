"""The search by trials: the best edit within the budget, undone trials, ranges, and going on after a stop."""

import attrs
import optuna
import pytest
import torch
from torch import nn

from unlearnkit import ConfigurationError, Need, TrainingUnlearner, UnlearningInputs, option
from unlearnkit.data import Paired
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.evaluation.tuning import TrialTuner, Validation
from unlearnkit.models.parameters import digest
from unlearnkit.plugins.manager import default_manager
from unlearnkit.unlearning import EpochConfig, Unlearner

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
FORGET, RETAIN = X[:, 1] > 0.8, X[:, 1] <= 0.8


def batches(rows):
    return list(zip(X[rows].split(30), Y[rows].split(30), strict=True))


@attrs.frozen(kw_only=True)
class Ascent(TrainingUnlearner):
    """Lower the loss of the retain set and raise that of the forget set."""

    name = "ascent"
    needs = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})
    weight: float = option(1.0, at_least=0.0, doc="of the forget loss", search=(0.01, 10.0))
    learning_rate: float = option(1e-6, above=0.0, doc="step size", search=(1e-6, 1.0))

    def passes(self, model, inputs):
        del model

        def loss(student, pair):
            retain, forget = (inputs.mean_loss(student, batch) for batch in pair)
            return retain - self.weight * forget

        both = Paired(retain=inputs.retain_data, forget=inputs.forget_data)
        return EpochConfig.epochs(both, loss, count=self.epochs)


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    adam = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        adam.step()
    adam.zero_grad()
    return net.eval()


INPUTS = UnlearningInputs(forget_data=batches(FORGET), retain_data=batches(RETAIN), seed=1)
VALIDATION = Validation(retain=batches(RETAIN), forget=batches(FORGET))


def searched(model, **options):
    target = options.pop("target", 0.5)
    tuner = TrialTuner(**{"unlearner": Ascent(epochs=2), "fixed": {"epochs"}, "trials": 12, "budget": 0.3, **options})
    return tuner.tune(model, INPUTS, validation=VALIDATION, target=target)


def test_it_makes_the_best_edit_within_the_budget(model):
    before = digest(model)
    found = searched(model)
    assert len(found.candidates) == 12
    first = found.candidates[0]  # the method's own options, which do nothing
    assert first.options == {"weight": 1.0, "learning_rate": 1e-6}
    assert (first.forget, first.retain) == (found.original_forget, found.original_retain)
    feasible = [c for c in found.candidates if c.feasible]
    assert found.chosen == max(feasible, key=lambda c: c.order)
    assert found.chosen.distance < first.distance
    assert digest(model) != before
    assert found.report.options["learning_rate"] == found.chosen.options["learning_rate"]
    assert loss_and_accuracy(model, VALIDATION.forget).accuracy == pytest.approx(found.chosen.forget)
    assert all(c.options["learning_rate"] <= 1.0 and "epochs" not in c.options for c in found.candidates)


def test_where_nothing_is_better_the_model_is_as_it_was(model):
    before = digest(model)
    found = searched(model, target=1.0, trials=4)
    assert (found.chosen, found.report, digest(model)) == (None, None, before)
    assert "none is better than leaving the model as it is" in found.sentence()


def test_a_search_goes_on_after_a_stop(model, tmp_path):
    storage = {"storage": f"sqlite:///{tmp_path / 'trials.sqlite'}", "study": "one"}

    def stopped(batches, description, total):
        del description, total
        for number, batch in enumerate(batches):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    tuner = TrialTuner(unlearner=Ascent(), fixed={"epochs"}, trials=6, budget=0.3, **storage)
    before = digest(model)
    with pytest.raises(KeyboardInterrupt):
        tuner.tune(model, INPUTS, validation=VALIDATION, target=0.5, progress=stopped)
    assert digest(model) == before
    asked = []

    def counted(batches, description, total):
        asked.append((description, total))
        return batches

    found = tuner.tune(model, INPUTS, validation=VALIDATION, target=0.5, progress=counted)
    assert asked == [("tuning ascent", 3)]
    assert len(found.candidates) == 6


def test_trials_worse_than_the_median_are_stopped_after_a_pass(model):
    found = searched(model, trials=25, unlearner=Ascent(epochs=3), target=0.9)
    stopped = [c for c in found.candidates if "below the median" in c.problem]
    assert stopped
    assert not any(c.feasible for c in stopped)
    assert all(c.retain > 0 for c in stopped), "what was measured after the pass"


def test_what_cannot_be_searched_is_refused(model):
    @attrs.frozen(kw_only=True)
    class Fixed(Unlearner):
        name = "fixed"
        needs = frozenset()

        def apply(self, model, inputs):
            del model, inputs

    with pytest.raises(ConfigurationError, match=r"'fixed': expected an option to search.*option\(…, search="):
        TrialTuner(unlearner=Fixed()).tune(model, INPUTS, validation=VALIDATION, target=0.5)
    with pytest.raises(ConfigurationError, match="a target accuracy from 0 to 1, saw 2"):
        searched(model, target=2)


def test_every_range_of_a_shipped_method_lies_within_its_bounds():
    ranges = 0
    for entry in default_manager().provided("unlearner"):
        for known in entry.options:
            if known.search is not None:
                low, high = known.search
                assert low < high
                assert all(low >= bound if sign in "≥>" else high <= bound for sign, bound in known.bounds)
                ranges += 1
    assert ranges > 5


def test_an_edit_may_go_through_so_many_batches_only(model):
    """A step takes one of each set."""
    found = searched(model, fixed=set(), most_steps=6 * len(batches(RETAIN)), trials=8)
    for candidate in found.candidates:
        if candidate.options["epochs"] > 3:
            assert "at most 24 batches" in candidate.problem or "below the median" in candidate.problem
        elif not candidate.problem:
            assert candidate.steps == 2 * candidate.options["epochs"] * len(batches(RETAIN))
    assert any("batches" in candidate.problem for candidate in found.candidates)


def test_the_first_trials_are_spread_over_the_ranges(model):
    found = searched(model, fixed={"epochs", "learning_rate"}, trials=5)
    weights = [candidate.options["weight"] for candidate in found.candidates]
    # 0.01 to 10 by the logarithm, at 1/2, 1/4, 3/4 and 1/8.
    assert weights == pytest.approx([1.0, *(0.01 * 1000**share for share in (1 / 2, 1 / 4, 3 / 4, 1 / 8))])
    found = searched(model, fixed={"weight", "learning_rate"}, ranges={"epochs": (1, 16)}, trials=4)
    assert [candidate.options["epochs"] for candidate in found.candidates] == [2, 4, 2, 8]  # 17 to the same powers


def test_a_range_can_be_replaced_or_added(model):
    ranges = {"weight": (1.0, 3.0), "learning_rate": (1e-6, 2e-6)}
    tried = [candidate.options for candidate in searched(model, ranges=ranges, trials=6).candidates]
    assert all(low <= options[name] <= high for options in tried for name, (low, high) in ranges.items())
    tuner = TrialTuner(unlearner=Ascent(), fixed={"epochs"}, ranges={"momentum": (0.0, 0.9)})
    assert "momentum" in [known.name for known in tuner.searched()]
    with pytest.raises(ConfigurationError, match=r"ranges: 'ascent' has no option 'wieght'; did you mean 'weight'"):
        TrialTuner(unlearner=Ascent(), ranges={"wieght": (0, 1)}).searched()


def test_options_are_tried_once(model):
    """A whole number from a small range comes up again and again."""
    edits = []

    @attrs.frozen(kw_only=True)
    class Few(Unlearner):
        """One of two edits."""

        name = "few"
        needs = frozenset()
        which: int = option(1, doc="1 or 2", search=(1, 2))

        def apply(self, model, inputs):
            del inputs
            edits.append(self.which)
            with torch.no_grad():
                next(model.parameters()).mul_(1 - 0.01 * self.which)

    tuner = TrialTuner(unlearner=Few(), trials=6, budget=1.0)
    found = tuner.tune(model, UnlearningInputs(), validation=VALIDATION, target=0.5)
    assert len(found.candidates) == 6
    assert set(edits) == {1, 2}
    assert len(edits) <= 3, "the best is made again"


def test_a_further_aim_lowers_the_score(model):
    tuner = TrialTuner(unlearner=Ascent(epochs=2), fixed={"epochs"}, trials=4, budget=0.3)
    aims = {"validation": VALIDATION, "target": 0.5}
    seen = []

    def gap(edited):
        seen.append(digest(edited))
        return 0.25 if seen[-1] == seen[0] else 0.75

    found = tuner.tune(model, INPUTS, gap=gap, **aims)
    assert found.original_gap == 0.25
    for candidate in found.candidates:
        expected = (1 - candidate.distance) * (1 - max(candidate.damage, 0)) * (1 - candidate.gap)
        assert candidate.score == pytest.approx(expected)
    assert {candidate.gap for candidate in found.candidates} == {0.75}
    assert found.chosen is None, "the original is nearer to the further aim"


def test_a_search_that_was_stopped_tries_what_it_would_have_tried(model, tmp_path):
    whole = searched(model, trials=6, target=1.0)
    storage = {"storage": f"sqlite:///{tmp_path / 'trials.sqlite'}", "study": "one"}
    searched(model, trials=2, target=1.0, **storage)
    assert searched(model, trials=6, target=1.0, **storage).candidates == whole.candidates


@pytest.mark.parametrize("waiting", [False, True])
def test_a_search_that_was_killed_tries_what_it_would_have_tried(model, tmp_path, waiting):
    """A kill leaves a trial that runs, or one that waits."""
    whole = searched(model, trials=13, target=1.0)
    storage = {"storage": f"sqlite:///{tmp_path / 'trials.sqlite'}", "study": "one"}
    searched(model, trials=2, target=1.0, **storage)
    study = optuna.load_study(study_name="one", storage=storage["storage"])
    if waiting:
        study.enqueue_trial(dict(whole.candidates[2].options))
    else:
        study.ask()
    assert searched(model, trials=13, target=1.0, **storage).candidates == whole.candidates
    assert searched(model, trials=5, target=1.0, **storage).candidates == whole.candidates[:5]
