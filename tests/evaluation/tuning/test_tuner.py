"""Tuning."""

import copy
import json
import math
import warnings

import attrs
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset
from unlearnkit_methods.binary_mask import BinaryMask
from unlearnkit_methods.prune import Prune
from unlearnkit_methods.ssd import SelectiveSynapticDampening
from unlearnkit_methods.ssd_adaptive import AdaptiveSynapticDampening
from unlearnkit_methods.ssd_soft import SoftSynapticDampening

from unlearnkit import (
    ConfigurationError,
    ElementwiseUnlearner,
    Importance,
    NonFiniteError,
    UnlearnerTraits,
    UnlearningInputs,
    UnlearnKitWarning,
    option,
)
from unlearnkit.data import Split, loader
from unlearnkit.data.splits import validation_split
from unlearnkit.evaluation.tuning import Tuner, Tuning, Validation
from unlearnkit.evaluation.tuning.result import Candidate, Setting
from unlearnkit.evaluation.tuning.tuner import OperatingCurve, scores_of
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import count_changed, digest
from unlearnkit.models.training import batch_norm_layers, reestimate_batch_norm

SSD = SelectiveSynapticDampening
WEIGHTS = 6 * 24 + 24 + 2 * 24 + 24 * 3 + 3  # of net()
METHODS = [SSD(), BinaryMask(), Prune(), AdaptiveSynapticDampening()]


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)).eval()


def batches(seed, label=None, n=60):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator) if label is None else torch.full((n,), label)
    x = torch.randn(n, 6, generator=generator) + 3 * torch.nn.functional.one_hot(y, 6)
    return list(zip(x.split(20), y.split(20), strict=True))


@pytest.fixture(scope="module")
def trained():
    """A model trained on classes 0 and 1 (retain) and 2 (forget), and its importances."""
    from unlearnkit import CrossEntropy, DiagonalFisher

    model = net().train()
    data = batches(1) + batches(2, label=2, n=40)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    model.eval()
    forget = DiagonalFisher().estimate(model, batches(2, label=2, n=40), objective=CrossEntropy(), role="forget")
    full = DiagonalFisher().estimate(model, data, objective=CrossEntropy(), role="full")
    return model, forget, full


@pytest.fixture
def law_case(trained):
    import copy

    model, forget, full = trained
    return {
        "model": copy.deepcopy(model),
        "forget": forget,
        "reference": full,
        "validation": Validation(retain=batches(3), forget=batches(4, label=2)),
        "target": 0.0,
        "retain_data": batches(1),
    }


def quick(method=None, **options):
    usual = {"fractions": (0.01, 0.1, 0.5), "strengths": (0.0, 1.0), "rounds": 1}
    return Tuner(unlearner=method or SSD(), **{**usual, **options})


# --- operating points -------------------------------------------------------------------------------------------------


def flat_ratios(trained):
    model, forget, full = trained
    f, r = forget.mean(), full.mean()
    names = [name for name, _ in model.named_parameters()]
    return torch.cat([(f[n] / r[n]).flatten() for n in names]), torch.cat([p.flatten() for p in model.parameters()])


@pytest.mark.parametrize("wanted", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_selected_fraction_is_reached(trained, method, wanted):
    model, forget, full = trained
    curve = OperatingCurve.of(method, model, forget=forget, reference=full)
    value = curve.value_for(wanted)
    # One weight is 0.3 %: no value may reach the share exactly.
    assert curve.fraction(value) == pytest.approx(wanted, abs=1.5 / WEIGHTS)


def test_the_value_is_a_quantile_of_the_ratios(trained):
    model, forget, full = trained
    curve = OperatingCurve.of(SSD(), model, forget=forget, reference=full)
    ratios, theta = flat_ratios(trained)
    assert (curve.option, curve.strength) == ("alpha", "lam")
    for wanted in (0.02, 0.2):
        alpha = curve.value_for(wanted)
        assert float(((ratios > alpha) & (theta != 0)).float().mean()) == pytest.approx(curve.fraction(alpha))
        assert alpha == pytest.approx(float(torch.nanquantile(ratios, 1 - wanted)), rel=0.1)


def test_the_fraction_does_not_depend_on_scale_or_strength(trained):
    model, forget, full = trained
    curves = [
        OperatingCurve.of(SSD(lam=lam), model, forget=scaled(forget, k), reference=scaled(full, 4 * k))
        for lam, k in ((1.0, 1.0), (0.1, 1.0), (1.0, 2.0**20))
    ]
    for value in (0.1, 0.25, 1.0):
        assert len({curve.fraction(value) for curve in curves}) == 1


def scaled(importance, factor):
    return attrs.evolve(importance, totals={name: t * factor for name, t in importance.totals.items()})


def test_the_fraction_falls_as_the_option_rises(trained):
    model, forget, full = trained
    curve = OperatingCurve.of(SSD(), model, forget=forget, reference=full)
    found = [curve.fraction(v) for v in np.geomspace(1e-6, 1e6, 25)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.8
    assert found[-1] == 0


def test_options_can_be_named(trained):
    model, forget, full = trained
    call = {"forget": forget, "reference": full}
    curve = OperatingCurve.of(AdaptiveSynapticDampening(), model, option="lam", strength="alpha", **call)
    assert (curve.option, curve.strength) == ("lam", "alpha")
    assert OperatingCurve.of(SSD(), model, strength="", **call).strength == ""


@attrs.frozen(kw_only=True)
class Keep(ElementwiseUnlearner):
    name = "keep"
    traits = UnlearnerTraits(monotone={"alpha", "keep"})
    alpha: float = option(1.0, above=0, doc="selection")
    keep: float = option(0.5, above=0, at_most=1, doc="share of a selected weight that is kept")

    def rule(self, theta, forget, reference):
        return torch.where(forget > self.alpha * reference, self.keep * theta, theta)


@pytest.mark.parametrize("operating", ["alpha", "keep"])
def test_values_of_the_strength_stay_within_its_bounds(law_case, operating):
    found = quick(Keep(), operating=operating).tune(**law_case)
    for candidate in found.candidates:
        assert candidate.options["alpha"] > 0
        assert 0 < candidate.options["keep"] <= 1


def test_unreachable_fraction_gives_the_largest_possible():
    model = nn.Linear(2, 2, bias=False)
    forget = Importance(totals={"weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}, count=1)
    curve = OperatingCurve.of(Prune(), model, forget=forget, reference=None)
    assert curve.fraction(curve.value_for(0.9)) == 0.25


# --- BatchNorm --------------------------------------------------------------------------------------------------------


def test_batch_norm_agrees_with_torch():
    mine, theirs = net(), net()
    data = batches(5)
    reestimate_batch_norm(mine, data)
    update_bn([x for x, _ in data], theirs)
    assert torch.equal(mine[1].running_mean, theirs[1].running_mean)
    assert torch.equal(mine[1].running_var, theirs[1].running_var)
    assert int(mine[1].num_batches_tracked) == 3


def test_reestimating_batch_norm_changes_only_its_statistics():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    model[3].eval()
    weights = [p.clone() for p in model.parameters()]
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    reestimate_batch_norm(model, batches(5))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert [m.training for m in model.modules()] == modes
    assert model[1].momentum == 0.1
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in model.parameters())


def test_batches_of_one_class_each_give_the_statistics_of_all_classes():
    """A loader reads an image folder class by class; the variance between classes counts, too."""
    torch.manual_seed(0)
    y = torch.arange(3).repeat_interleave(200)
    x = 5.0 * y[:, None] + torch.randn(600, 6)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    for data in (loader(TensorDataset(x, y), batch_size=100), list(zip(x.split(100), y.split(100), strict=True))):
        reestimate_batch_norm(model, data)
        assert torch.allclose(model[0].running_var, x.var(0), rtol=0.1)


def test_a_frozen_batch_norm_keeps_its_statistics():
    model = net()
    model[1].requires_grad_(requires_grad=False)
    before = {name: b.clone() for name, b in model.named_buffers()}
    reestimate_batch_norm(model, batches(5))
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_a_last_batch_of_one_sample_is_left_out():
    one, two = net(), net()
    reestimate_batch_norm(one, batches(5))
    with pytest.warns(UnlearnKitWarning, match="batches of one sample were left out"):
        reestimate_batch_norm(two, [*batches(5), (torch.zeros(1, 6), torch.zeros(1, dtype=torch.long))])
    assert torch.equal(one[1].running_var, two[1].running_var)


def test_batch_norm_without_data_or_without_layers():
    with pytest.raises(ConfigurationError, match="expected at least one batch"):
        reestimate_batch_norm(net(), [])
    reestimate_batch_norm(nn.Linear(6, 3), [])
    assert not batch_norm_layers(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)))


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_it_finds_an_edit_within_the_budget(law_case, method):
    before = digest(law_case["model"])
    found = quick(method, budget=0.5).tune(**law_case)
    assert found.original_forget > 0.9
    assert found.chosen.damage <= 0.5
    assert found.chosen.score == max(c.score for c in found.candidates if c.feasible)
    assert found.report.model_after == digest(law_case["model"]) != before
    assert found.report.method == method.name


def test_the_chosen_edit_is_the_one_that_was_measured(law_case):
    found = quick().tune(**law_case)
    assert found.chosen.forget < 0.2
    assert found.chosen.damage <= 0.02
    model, chosen = law_case["model"], found.chosen

    def accuracy(data):
        return float(np.mean([(model(x).argmax(1) == y).float().mean().item() for x, y in data]))

    assert accuracy(law_case["validation"].retain) == pytest.approx(chosen.retain)
    assert accuracy(law_case["validation"].forget) == pytest.approx(chosen.forget)
    assert found.report.fraction == chosen.changed
    assert found.report.options["alpha"] == chosen.options["alpha"]
    assert bool(found.report.buffers_changed) == chosen.setting.reestimate


def test_every_candidate_is_the_edit_of_its_options_alone(law_case, trained):
    """Each candidate starts from the original model."""
    found = quick(rounds=0, reestimate=(True, False)).tune(**law_case)
    original, forget, full = trained
    assert [c.setting.reestimate for c in found.candidates] == [True] * 6 + [False] * 6
    import copy

    for candidate in found.candidates:
        model = copy.deepcopy(original)
        SSD(**candidate.options).unlearn(model, UnlearningInputs(forget=forget, reference=full))
        changed = sum(count_changed(a, b) for a, b in zip(original.parameters(), model.parameters(), strict=True))
        assert candidate.changed == changed / WEIGHTS
        if candidate.setting.reestimate:
            reestimate_batch_norm(model, law_case["retain_data"])
        x, y = (torch.cat(parts) for parts in zip(*law_case["validation"].retain, strict=True))
        assert candidate.retain == pytest.approx(float((model(x).argmax(1) == y).float().mean()))


def test_without_a_candidate_within_the_budget_nothing_is_edited(law_case):
    model = law_case["model"]
    model.train()
    model[0].weight.grad = torch.ones(24, 6)
    before, rng = digest(model), torch.get_rng_state()
    found = quick(fractions=(0.9,), strengths=(0.0,), rounds=0, budget=0.0, reestimate=(False,)).tune(**law_case)
    assert (found.chosen, found.report) == (None, None)
    assert digest(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    assert model[0].weight.grad.unique().tolist() == [1.0]
    assert "none keeps the loss of retain accuracy within 0: nothing was edited" in found.sentence()
    assert len(found.frontier) >= 1


def candidate(distance, damage, budget=0.02):
    return Candidate(
        setting=Setting(fraction=0.1, strength=None, reestimate=False),
        options={"alpha": 1.0},
        distance=distance,
        damage=damage,
        score=(1 - distance) * (1 - damage),
        feasible=damage <= budget,
    )


def result(*candidates, chosen=None):
    return Tuning(
        target=0.5,
        target_source="stated",
        budget=0.02,
        original_retain=0.9,
        original_forget=0.8,
        tolerance=0.06,
        candidates=candidates,
        chosen=None if chosen is None else candidates[chosen],
    )


def test_it_says_that_the_aim_is_not_reached_and_which_budget_would():
    found = result(candidate(0.2, 0.01), candidate(0.05, 0.08), candidate(0.0, 0.2), chosen=0)
    assert (found.aim_reached, found.distance_left, found.budget_to_reach) == (False, 0.2, 0.08)
    assert found.sentence().endswith(
        " The aim is not reached: 0.200 is left; a budget of 0.08 would reach it (now 0.02)."
    )
    third = result(candidate(0.2, 0.01), candidate(0.0, 1 / 30), chosen=0)
    assert third.sentence().endswith("a budget of 0.034 would reach it (now 0.02).")  # rounded up: 0.033 would not
    traded = result(candidate(0.2, 0.01), candidate(0.0, 0.019), chosen=0)
    assert traded.sentence().endswith("0.200 is left; an edit that was tried reaches it, but loses more than it gains.")
    never = result(candidate(0.2, 0.01), candidate(0.1, 0.08), chosen=0)
    assert never.budget_to_reach is None
    assert never.sentence().endswith("0.200 is left, and no edit that was tried reaches it.")
    reached = result(candidate(0.06, 0.01), chosen=0)
    assert reached.aim_reached
    assert "aim is not" not in reached.sentence()
    assert {"aim_reached": True, "distance_left": 0.06, "budget_to_reach": 0.01}.items() <= reached.to_dict().items()
    assert Tuning.from_dict(never.to_dict()) == never


def test_a_candidate_must_be_better_than_the_original():
    worse, better = candidate(0.31, 0.0), candidate(0.2, 0.01)
    assert [result().better_than_nothing(c) for c in (worse, better)] == [False, True]
    found = result(worse)
    assert (found.distance_left, found.budget_to_reach) == (pytest.approx(0.3), None)
    assert "1 edits tried, and none is better than leaving the model as it is: nothing was edited." in found.sentence()


def test_where_the_original_has_the_target_nothing_is_edited(law_case):
    before = digest(law_case["model"])
    aim = scores_of(law_case["model"], law_case["validation"], None)["forget"]
    found = quick(fractions=(0.3,), strengths=(0.0,), rounds=0, budget=1.0).tune(**{**law_case, "target": aim})
    assert (found.chosen, digest(law_case["model"])) == (None, before)
    assert any(c.feasible for c in found.candidates)


def test_an_exception_in_the_middle_rolls_back(law_case):
    before = digest(law_case["model"])
    calls = []

    class Breaks:
        def __iter__(self):
            calls.append(1)
            if len(calls) > 3:
                raise OSError("the disk is gone")
            return iter(batches(4, label=2))

    law_case["validation"] = Validation(retain=batches(3), forget=Breaks())
    with pytest.raises(OSError, match="the disk is gone"):
        quick().tune(**law_case)
    assert digest(law_case["model"]) == before


def test_the_same_input_gives_the_same_result(law_case, trained):
    import copy

    first = quick().tune(**law_case)
    second = quick().tune(**{**law_case, "model": copy.deepcopy(trained[0])})
    assert first.candidates == second.candidates
    assert first.chosen == second.chosen
    assert first.report.model_after == second.report.model_after


def test_a_higher_target_forgets_less(law_case, trained):
    import copy

    found = {
        target: quick(budget=0.2, rounds=2).tune(**{**law_case, "model": copy.deepcopy(trained[0]), "target": target})
        for target in (0.0, 1.0)
    }
    assert found[0.0].chosen.forget < 0.5 < found[1.0].chosen.forget


def test_frontier_is_the_pareto_front():
    def made(distance, damage, problem=""):
        setting = Setting(fraction=0.1, strength=None, reestimate=False)
        return Candidate(setting=setting, options={}, distance=distance, damage=damage, problem=problem)

    from unlearnkit.evaluation.tuning import Tuning

    a, b, c, d = made(0.5, 0.0), made(0.1, 0.1), made(0.3, 0.2), made(0.0, 0.0, problem="not finite")
    usual = {"target": 0.0, "target_source": "stated", "budget": 0.1, "original_retain": 1.0, "original_forget": 1.0}
    assert Tuning(candidates=(a, b, c, d), **usual).frontier == (a, b)
    assert a.beats(made(0.5, 0.1))
    assert not a.beats(a)


def test_later_rounds_refine_the_search(law_case):
    seen = []

    def progress(items, what, total):
        seen.append((what, total))
        return items

    found = quick(rounds=2, promising=1).tune(**law_case, progress=progress)
    assert [what for what, _ in seen] == [f"tuning, round {i} of 3" for i in (1, 2, 3)]
    assert [total for _, total in seen] == [12, 4, 4]
    assert len(found.candidates) == 20
    assert len({c.setting for c in found.candidates}) == 20
    closer = [c.setting.fraction for c in found.candidates[12:]]
    assert not set(closer) & {0.01, 0.1, 0.5}


def test_without_batch_norm_or_retain_data_it_is_not_reestimated(law_case):
    law_case["retain_data"] = None
    found = quick(rounds=0).tune(**law_case)
    assert {c.setting.reestimate for c in found.candidates} == {False}
    assert len(found.candidates) == 6


def test_an_edit_past_the_largest_fraction_is_a_candidate_with_a_problem(law_case):
    found = quick(rounds=0).tune(**law_case, max_fraction=0.05)
    problems = [c for c in found.candidates if c.problem]
    assert problems
    assert all("expected at most 0.05 of the weights to change" in c.problem and not c.feasible for c in problems)
    assert all(c.changed <= 0.05 for c in found.candidates if not c.problem)


@pytest.mark.parametrize("cls", [SSD, BinaryMask])
def test_a_fraction_among_the_options_does_not_overrule_what_is_tried(law_case, cls):
    model, again = law_case["model"], copy.deepcopy(law_case["model"])
    once = {"rounds": 0, "reestimate": (False,)}
    found = quick(cls(fraction=0.3), **once).tune(**law_case)
    other = quick(cls(), **once).tune(**{**law_case, "model": again})
    assert attrs.evolve(found, report=None, seconds=0.0) == attrs.evolve(other, report=None, seconds=0.0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_remarks_appear_once(law_case):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = quick(rounds=0, reestimate=(False,)).tune(**law_case)
    remarks = [w for w in caught if issubclass(w.category, UnlearnKitWarning)]
    assert len(remarks) == len(found.report.remarks) <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unlearner": SSD}, "expected an object of an elementwise method"),
        ({"unlearner": SoftSynapticDampening()}, "'ssd-soft' declares no monotone option"),
        ({"operating": "epsilon"}, r"Tuner.operating: expected a monotone option of ssd, .*saw 'epsilon'"),
        ({"strength": "epsilon"}, r"Tuner.strength: expected a monotone option of ssd, .*saw 'epsilon'"),
        ({"fractions": ()}, "expected shares above 0"),
        ({"fractions": (0.0,)}, "expected shares above 0"),
        ({"strengths": (-1.0,)}, "expected numbers ≥ 0"),
        ({"reestimate": ()}, "at least one of true and false"),
        ({"budget": 2.0}, "≤ 1"),
    ],
)
def test_options_that_cannot_be_searched(options, said):
    with pytest.raises(ConfigurationError, match=said):
        Tuner(**{"unlearner": SSD(), **options})


def test_targets_and_objectives_that_do_not_fit(law_case):
    with pytest.raises(ConfigurationError, match="target accuracy from 0 to 1"):
        quick().tune(**{**law_case, "target": 2.0})

    class Size(Objective):
        def losses(self, model, batch):
            return model(batch[0]).square().sum(1)

    with pytest.raises(ConfigurationError, match="is no classification"):
        quick().tune(**law_case, objective=Size())


def test_a_damaged_model_is_an_error(law_case):
    with torch.no_grad():
        law_case["model"][0].weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        quick().tune(**law_case)


def test_plain_values(law_case):
    found = quick().tune(**law_case)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["candidates"][plain["chosen"]]["score"] == found.chosen.score
    assert len(plain["frontier"]) == len(found.frontier)
    assert plain["sentence"] == found.sentence()
    assert "edits tried; chosen: alpha = " in found.sentence()


# --- the validation split ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["full-class", "random"])
def test_validation_split(scenario):
    labels = torch.arange(100) % 5
    mask = labels.numpy() == 3 if scenario == "full-class" else np.arange(100) < 10
    split = Split(forget=np.flatnonzero(mask), retain=np.flatnonzero(~mask), scenario=scenario)
    one, two = (validation_split(split, labels, fraction=0.2, seed=1) for _ in range(2))
    parts = (one.forget, one.retain, one.forget_validation, one.retain_validation)
    assert sorted(np.concatenate(parts)) == list(range(100))
    assert set(one.forget) | set(one.forget_validation) == set(split.forget)
    assert np.array_equal(one.retain_validation, two.retain_validation)
    assert not np.array_equal(
        one.retain_validation, validation_split(split, labels, fraction=0.2, seed=2).retain_validation
    )
    shares = np.bincount(labels.numpy()[one.retain_validation])
    assert shares.max() - shares[shares > 0].min() <= 1  # class by class
    assert np.array_equal(one.full, np.sort(np.concatenate([one.forget, one.retain])))


def test_validation_split_that_cannot_be_stratified():
    split = Split(forget=[0, 1], retain=[2, 3, 4], scenario="random")
    parts = validation_split(split, torch.tensor([0, 1, 2, 3, 4]), fraction=0.2, seed=0)
    assert (len(parts.forget_validation), len(parts.retain_validation)) == (1, 1)
    with pytest.raises(ConfigurationError, match="the forget set: expected at least 2 samples"):
        validation_split(Split(forget=[0], retain=[1, 2], scenario="random"), torch.zeros(3), fraction=0.5, seed=0)
