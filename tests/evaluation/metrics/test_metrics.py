"""The built-in metrics: correct values, reasons for missing values, and unchanged models."""

import json

import attrs
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn

from unlearnkit import ConfigurationError, EvaluationInputs, Metric, PluginManager, StoreError
from unlearnkit.evaluation import NotApplicable, metrics
from unlearnkit.evaluation.metrics import language
from unlearnkit.evaluation.metrics.retrain_gap import activation_distance
from unlearnkit.evaluation.model_outputs import InapplicableError, outputs_of
from unlearnkit.evaluation.per_sample import jensen_shannon
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import make_metrics
from unlearnkit.experiments.run import run
from unlearnkit.models.objective import Objective, SquaredError
from unlearnkit.testing import check_metric

CLASSES = [getattr(metrics, name) for name in metrics.__all__]
OF_CLASSIFIERS = [cls for cls in CLASSES if cls.__module__ != language.__name__]  # the others: test_language.py
MANAGER = PluginManager()
SPLITS = ("retain-train", "forget-train", "retain-test", "forget-test")


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches(seed, n=120, classes=3):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 4, generator=generator), torch.randint(classes, (n,), generator=generator)
    return list(zip(x.split(50), y.split(50), strict=True))


def inputs(retrained=3, splits=SPLITS, **changes):
    usual = {
        "model": net(0),
        "splits": splits if isinstance(splits, dict) else {name: batches(i) for i, name in enumerate(splits)},
        "original": net(1),
        "retrained": [net(10 + i) for i in range(retrained)],
    }
    return EvaluationInputs(**{**usual, **changes})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.name)
def test_it_keeps_the_laws_of_metrics(cls):
    few = {"most": 10} if "most" in (field.name for field in attrs.fields(cls)) else {}
    check_metric(cls(**few), examples=2)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.name)
def test_every_trait_is_documented(cls):
    traits = cls.traits
    assert all((traits.unit, traits.source, traits.cost, traits.trust, cls.__doc__))
    assert cls in [entry.cls for entry in PluginManager().provided("metric")]


@pytest.mark.parametrize("cls", OF_CLASSIFIERS, ids=lambda c: c.name)
@pytest.mark.parametrize("splits", [(), ("retain-test",)], ids=["no data", "no forget data"])
def test_missing_inputs_give_reasons_instead_of_values(cls, splits):
    found = cls().examine(inputs(retrained=0, splits=splits, original=None))
    assert found
    for name, measurement in found.items():
        if splits and "retain-test" in name and measurement.value is not None:
            continue  # metrics that need only these samples
        assert measurement.value is None, name
        assert measurement.reason.startswith(("no retrained model", "there is no split")), measurement


@pytest.mark.parametrize("cls", OF_CLASSIFIERS, ids=lambda c: c.name)
def test_an_objective_without_classes(cls):
    class Size(Objective):
        def losses(self, model, batch):
            return model(batch[0]).square().sum(1)

    found = cls().examine(inputs(objective=Size()))
    named = {name: m.reason for name, m in found.items() if not (cls is metrics.Scores and "loss" in name)}
    assert all("is no classification" in reason for reason in named.values())


def test_the_gap_is_that_of_accuracies_by_scikit_learn():
    paper = inputs()
    found = metrics.GapToRetrain().evaluate(paper)

    def accuracy(model, split):
        x, y = (torch.cat(parts) for parts in zip(*paper.splits[split], strict=True))
        return accuracy_score(y.numpy(), model.eval()(x).argmax(1).numpy())

    for split in SPLITS:
        known = [accuracy(model, split) for model in paper.retrained]
        mine = accuracy(paper.model, split)
        assert found[f"{split} difference"] == pytest.approx(mine - np.mean(known))
        assert found[split] == pytest.approx((mine - np.mean(known)) / np.std(known, ddof=1))


def test_gap_with_one_retrained_model_has_no_standard_deviation():
    found = metrics.GapToRetrain().examine(inputs(retrained=1))
    assert found["forget-train"].value is None
    assert "at least 3 retrained models, saw 1" in found["forget-train"].reason
    assert found["forget-train difference"].value is not None


def test_tug_of_war_of_a_retrained_model_is_one():
    paper = inputs(retrained=1)
    twin = EvaluationInputs(model=paper.retrained[0], splits=paper.splits, retrained=paper.retrained)
    assert metrics.TugOfWar().evaluate(twin) == {"ToW": 1.0}
    assert 0 < metrics.TugOfWar().evaluate(paper)["ToW"] < 1


def test_distances_are_reported_beside_those_between_retrained_models():
    paper = inputs(retrained=2)
    p = {
        i: outputs_of(m, paper.splits["forget-test"]).probabilities
        for i, m in enumerate((paper.model, *paper.retrained))
    }
    found = metrics.ActivationDistance().evaluate(paper)
    assert found["forget-test"] == pytest.approx(
        (activation_distance(p[0], p[1]) + activation_distance(p[0], p[2])) / 2
    )
    assert found["retrained forget-test"] == pytest.approx(activation_distance(p[1], p[2]))
    js = metrics.JensenShannonToRetrained().evaluate(paper)
    assert js["retrained forget-test"] == pytest.approx(jensen_shannon(p[1], p[2]).mean())
    one = metrics.JensenShannonToRetrained().examine(inputs(retrained=1))
    assert one["forget-test"].value > 0
    assert "at least 2 retrained models" in one["retrained forget-test"].reason


def test_scores_are_those_of_scikit_learn_with_intervals_over_samples():
    from sklearn.metrics import log_loss

    paper = inputs()
    found = metrics.Scores().evaluate(paper)
    for split in SPLITS:
        x, y = (torch.cat(parts) for parts in zip(*paper.splits[split], strict=True))
        logits = paper.model.eval()(x).detach().double()
        assert found[f"{split} accuracy"] == pytest.approx(accuracy_score(y, logits.argmax(1)))
        assert found[f"{split} loss"] == pytest.approx(log_loss(y, logits.softmax(1), labels=range(3)))
        for name in ("accuracy", "loss"):
            value, low, high = (found[f"{split} {name}{end}"] for end in ("", " low", " high"))
            assert low < value < high
            assert {f"original {split} {name}", f"retrained {split} {name}"} <= found.keys()


def test_the_class_mean_divergence_by_a_slow_oracle():
    paper = inputs()
    p, q = (outputs_of(paper.model, paper.splits[s]) for s in ("forget-train", "forget-test"))
    expected = 0.0
    for label in range(3):
        mine = [row for row, y in zip(p.probabilities, p.labels, strict=True) if y == label]
        theirs = [row for row, y in zip(q.probabilities, q.labels, strict=True) if y == label]
        means = ([sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in (mine, theirs))
        expected += len(mine) / len(p.labels) * jensen_shannon(*([m] for m in means))[0]
    found = metrics.ClassMeanDivergence().evaluate(paper)
    assert found["forget-train"] == pytest.approx(expected, abs=1e-12)
    same = dict(paper.splits) | {"forget-test": paper.splits["forget-train"]}
    assert metrics.ClassMeanDivergence().evaluate(inputs(splits=same))["forget-train"] == pytest.approx(0, abs=1e-15)


def test_the_class_mean_divergence_without_test_samples_of_the_same_kind():
    random = inputs(splits=("retain-train", "forget-train", "retain-test"))
    assert metrics.ClassMeanDivergence().evaluate(random)["forget-train"] > 0
    x = torch.randn(40, 4)
    splits = {"retain-test": [(x, torch.arange(40) % 2)], "forget-train": [(x, torch.full((40,), 2))]}
    found = metrics.ClassMeanDivergence().examine(inputs(splits=splits))
    assert found["forget-train"].reason == "there are no unseen samples of the classes [2]"


def test_quantisation_is_the_accuracy_of_the_rounded_copy():
    from unlearnkit.evaluation import loss_and_accuracy
    from unlearnkit.evaluation.metrics.residual_knowledge import round_trip

    paper = inputs()
    found = metrics.Quantised().evaluate(paper)
    for name, bits in (("INT8", 8), ("INT4", 4)):
        for split in ("forget-train", "retain-test"):
            rounded = loss_and_accuracy(round_trip(paper.model, bits=bits), paper.splits[split])
            assert found[f"{name} {split}"] == rounded.accuracy
    assert found["float forget-train"] == loss_and_accuracy(paper.model, paper.splits["forget-train"]).accuracy


def test_linear_probe_ignores_an_edit_of_the_last_layer():
    import copy

    x = torch.randn(150, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    kept = y != 2
    splits = {
        "retain-train": [(x[kept], y[kept])],
        "forget-train": [(x[~kept], y[~kept])],
        "retain-test": [(x[kept] * 0.9, y[kept])],
        "forget-test": [(x[~kept] * 0.9, y[~kept])],
    }
    edited = copy.deepcopy(net(0))
    with torch.no_grad():
        edited[3].weight[2] = 0.0
        edited[3].bias[2] = -100.0
    found = metrics.LinearProbe().evaluate(inputs(model=edited, original=net(0), splits=splits))
    assert metrics.Scores().evaluate(inputs(model=edited, splits=splits))["forget-test accuracy"] == 0
    assert found["forget-test"] == found["original forget-test"] > 0.5
    alone = {**splits, "retain-train": splits["forget-train"]}
    assert "one class only" in metrics.LinearProbe().examine(inputs(splits=alone))["forget-test"].reason


def test_destinations_are_reported_beside_those_of_retrained_models():
    from unlearnkit.evaluation import destinations

    paper = inputs(retrained=2)
    z = [outputs_of(m, paper.splits["forget-train"]).logits for m in (paper.model, *paper.retrained)]
    found = metrics.WhereTheyGo().evaluate(paper)
    assert found["distance"] == pytest.approx(destinations(z[0], z[1:]).distance)
    assert found["retrained distance"] == pytest.approx(destinations(z[1], [z[2]]).distance)
    assert found["retrained agreement"] == pytest.approx((z[1].argmax(1) == z[2].argmax(1)).mean())
    one = metrics.WhereTheyGo().examine(inputs(retrained=1))
    assert one["distance"].value is not None
    assert "at least 2 retrained models" in one["retrained distance"].reason


def test_zrf_of_the_untrained_model_is_one_and_does_not_depend_on_the_weights():
    paper, metric = inputs(), metrics.ZeroRetrainForgetting(seed=3)
    from unlearnkit.evaluation.metrics.proxies import _untrained

    fresh = [_untrained(net(seed), 3) for seed in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in fresh), strict=True))
    found = metric.evaluate(EvaluationInputs(model=fresh[0], splits=paper.splits, original=net(5)))
    assert found["forget-train"] == 1.0
    assert found["original forget-train"] < 1.0


class EveryKind(nn.Module):
    """Modules with parameters, with buffers alone, and with parameters of other names for their reset."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.attend = nn.MultiheadAttention(4, 1, batch_first=True, add_bias_kv=True)
        self.recur = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(x)[:, None]
        return self.head(self.recur(self.attend(x, x, x)[0])[0][:, 0])


def test_zrf_resets_every_module():
    from unlearnkit.evaluation.metrics.proxies import _untrained

    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(EveryKind())
        models[-1](torch.randn(20, 4) + seed)  # moves the running statistics
        with torch.no_grad():
            for p in models[-1].parameters():
                p.add_(1.0)
    fresh = [_untrained(model, 3) for model in models]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in fresh), strict=True))
    assert fresh[0].norm.running_mean.tolist() == [0.0] * 4
    assert fresh[0].attend.out_proj.bias.tolist() == [0.0] * 4, "as MultiheadAttention itself sets it"
    found = metrics.ZeroRetrainForgetting().examine(inputs(model=EveryKind(), original=None, retrained=0))
    assert found["forget-train"].value is not None


def test_zrf_refuses_a_reset_that_leaves_a_parameter_as_it_was():
    class Half(nn.Linear):
        def reset_parameters(self):
            nn.init.zeros_(self.bias)

    model = nn.Sequential(nn.Linear(4, 4), Half(4, 3))
    with torch.no_grad():
        model[1].weight.fill_(1.0)
    found = metrics.ZeroRetrainForgetting().examine(inputs(model=model, original=None, retrained=0))
    assert "1 has no reset_parameters() that sets weight" in found["forget-train"].reason


def test_zrf_needs_layers_that_can_be_reset():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 3))

        def forward(self, x):
            return x @ self.w

    found = metrics.ZeroRetrainForgetting().examine(inputs(model=Own(), original=None, retrained=0))
    assert "Own has no reset_parameters()" in found["forget-train"].reason


@pytest.mark.parametrize("cls", [metrics.EntropyAttack, metrics.LossAttack, metrics.ConfidenceAttack])
def test_an_attack_on_samples_and_their_copies_scores_a_half(cls):
    same = batches(5)
    paper = inputs(splits=dict.fromkeys(SPLITS, same))
    found = cls().evaluate(paper)
    for who in ("", "original ", "retrained "):
        assert found[f"{who}AUC"] == pytest.approx(0.5)
        assert found[f"{who}TPR at 1 % FPR"] is not None


def test_attacks_on_a_class_forgotten_completely_without_unseen_samples_of_it():
    x = torch.randn(40, 4)
    others, alone = torch.arange(40) % 2, torch.full((40,), 2)
    splits = {"retain-train": [(x, others)], "retain-test": [(x, others)], "forget-train": [(x, alone)]}
    for cls in (metrics.EntropyAttack, metrics.LossAttack, metrics.ConfidenceAttack, metrics.RelativeMembership):
        for name, m in cls().examine(inputs(splits=splits)).items():
            assert m.value is None, (cls.name, name)
            assert "classes [2] were forgotten completely" in m.reason
    none = torch.zeros_like(alone)
    lacking = {"retain-train": [(x, none)], "retain-test": [(x, none)]}
    lacking |= {"forget-train": [(x, 1 + others)], "forget-test": [(x, alone)]}
    for name, m in metrics.LossAttack().examine(inputs(splits=lacking)).items():
        assert m.value is None, name
        assert "classes [1] were forgotten completely" in m.reason


def test_the_loss_of_each_sample_needs_no_classes():
    x, y = torch.randn(12, 4), torch.randn(12, 3)
    splits = {"retain-test": [(x[:8], y[:8]), (x[8:], y[8:])]}
    given = inputs(splits=splits, objective=SquaredError())
    found = metrics.Scores().examine(given)
    with torch.no_grad():
        expected = 0.5 * (given.model.eval()(x) - y).square().sum(1)
    assert found["retain-test loss"].value == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found["retain-test loss low"].value < expected.mean() < found["retain-test loss high"].value
    assert "no classification" in found["retain-test accuracy"].reason


def test_random_samples_are_compared_with_half_of_the_unseen_ones():
    paper = inputs(splits=("retain-train", "forget-train", "retain-test"))
    found = metrics.LossAttack().examine(paper)
    assert 0.3 < found["AUC"].value < 0.7
    # 53 of 60: as many as there are with each class as often as in the forget set
    assert "at least 100 non-members, saw 53" in found["TPR at 1 % FPR"].reason


def test_rmia_detects_memorised_samples():
    paper = inputs(retrained=3)
    member = net(0).train()
    x, y = (torch.cat(parts) for parts in zip(*paper.splits["forget-train"], strict=True))
    optimiser = torch.optim.Adam(member.parameters(), lr=0.02)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.cross_entropy(member(x), y).backward()
        optimiser.step()
    found = metrics.RelativeMembership().evaluate(
        EvaluationInputs(model=member, splits=paper.splits, retrained=paper.retrained)
    )
    assert found["AUC"] > 0.7
    assert 0.3 < found["retrained AUC"] < 0.7


def test_labels_must_be_single_classes():
    with pytest.raises(InapplicableError, match="the split is empty"):
        outputs_of(nn.Identity(), [])
    with pytest.raises(InapplicableError, match="one label per sample"):
        outputs_of(nn.Identity(), [(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long))])


def test_report_has_a_reason_for_each_null(digits_toml, tmp_path):
    names = [cls.name for cls in CLASSES]
    config = load_config(digits_toml, [f"evaluation.metrics={names}", "method=[{name='ssd', options={alpha=3}}]"])
    (record,) = run(config)
    report = json.loads((tmp_path / "out" / "ssd" / "report.json").read_text(encoding="utf-8"))
    assert report["metrics"]["tug-of-war"] == {"ToW": None, "original ToW": None}
    assert report["not_applicable"]["tug-of-war"]["ToW"] == "no retrained model at hand"
    assert report["metrics"]["mia-loss"]["AUC"] == record.metrics["mia-loss"]["AUC"]
    assert 0 <= report["metrics"]["mia-loss"]["AUC"] <= 1
    for name, found in report["metrics"].items():
        nulls = {key for key, value in found.items() if value is None}
        assert nulls == set(report["not_applicable"][name])
        assert all(report["not_applicable"][name].values())


def test_metrics_get_the_configured_retrained_models(digits_toml, trained_checkpoint):
    settings = ["evaluation.metrics=['tug-of-war']", f"evaluation.retrained=['{trained_checkpoint}']"]
    (record,) = run(load_config(digits_toml, [*settings, "method=[{name='ssd', options={alpha=3}}]"]))
    assert record.metrics["tug-of-war"]["original ToW"] == 1.0


def test_metrics_take_options_and_a_seed_of_their_own(digits_toml):
    settings = [
        "evaluation.metrics=['rmia', 'mia-loss', 'tug-of-war']",
        "evaluation.seed=5",
        "seed=3",
        "training.seed=0",
    ]
    made = make_metrics(load_config(digits_toml, [*settings, "evaluation.options.rmia.gamma=3"]), MANAGER)
    assert (made["rmia"].gamma, made["rmia"].seed, made["mia-loss"].seed) == (3.0, 5, 5)
    own = load_config(digits_toml, [*settings, "evaluation.options.rmia.seed=9"])
    assert make_metrics(own, MANAGER)["rmia"].seed == 9


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("rmai.gamma=3", r"expected metrics of evaluation\.metrics, saw 'rmai'; did you mean 'rmia'\?"),
        ("rmia.gama=3", r"evaluation\.options\.rmia: unknown option 'gama'; did you mean 'gamma'\?"),
        ("rmia.gamma=0", "gamma"),
    ],
)
def test_options_of_metrics_are_checked_before_the_work(digits_toml, option, said):
    settings = ["evaluation.metrics=['rmia']", f"evaluation.options.{option}"]
    with pytest.raises(ConfigurationError, match=said):
        list(run(load_config(digits_toml, settings)))


def test_missing_retrained_checkpoint_is_an_error(digits_toml):
    with pytest.raises(StoreError, match=r"evaluation\.retrained: nowhere\.safetensors does not exist"):
        list(run(load_config(digits_toml, ["evaluation.retrained=['nowhere.safetensors']"])))


def test_a_reason_may_be_returned_by_any_metric():
    class Mute(Metric):
        name = "mute"

        def measure(self, inputs):
            del inputs
            return {"a": NotApplicable("there is no sound"), "b": None, "c": 1}

    found = Mute().examine(inputs())
    assert (found["a"].value, found["a"].reason) == (None, "there is no sound")
    assert (found["b"].value, found["b"].reason) == (None, "the metric gives no reason")
    assert (found["c"].value, found["c"].reason) == (1.0, "")
    assert Mute().evaluate(inputs()) == {"a": None, "b": None, "c": 1.0}
