"""What the features hold: against independent arithmetic, and between the original and retrained models."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.convnext import LayerNorm2d

from unlearnkit import EvaluationInputs
from unlearnkit.data.loaders import reshuffled
from unlearnkit.distributed import Shared
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metric import Measurement, Metric, MetricTraits, feature_measures
from unlearnkit.evaluation.metrics.features import layers_called, linear_cka, pooled_outputs
from unlearnkit.evaluation.metrics.residual_knowledge import margin
from unlearnkit.evaluation.model_outputs import Outputs, outputs_of, sampling_error
from unlearnkit.models.objective import Autocast, CrossEntropy
from unlearnkit.models.parameters import digest
from unlearnkit.utils.errors import ConfigurationError, MismatchError

FEATURES = "unlearnkit.evaluation.metrics.features"


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def data(seed, classes):
    random = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes).repeat(20)
    x = torch.eye(3, 4)[y] * 2 + torch.randn(len(y), 4, generator=random)
    return list(zip(x.split(16), y.split(16), strict=True))


SPLITS = {
    "forget-train": data(0, [2]),
    "retain-train": data(1, [0, 1]),
    "forget-test": data(2, [2]),
    "retain-test": data(3, [0, 1]),
}


def inputs(**more):
    return EvaluationInputs(
        **{"model": net(0), "original": net(1), "retrained": [net(2), net(3)], "splits": SPLITS, **more}
    )


def joined(*names):
    return (torch.cat([b[i] for n in names for b in SPLITS[n]]) for i in (0, 1))


def fresh_head_accuracy(model, learnt, judged):
    (x, y), (u, v) = joined(*learnt), joined(judged)
    with torch.no_grad():
        f, g = (model[:2](t).double().numpy() for t in (x, u))
    scaler = StandardScaler().fit(f)
    head = LogisticRegression(max_iter=5000, random_state=0).fit(scaler.transform(f), y.numpy())
    return (head.predict(scaler.transform(g)) == v.numpy()).mean()


def test_head_swap_fits_a_fresh_head():
    found, models = metrics.HeadSwap().evaluate(inputs()), {"": net(0), "original ": net(1), "retrained 2 ": net(3)}
    for prefix, model in models.items():
        both = fresh_head_accuracy(model, ("forget-train", "retain-train"), "forget-test")
        assert found[f"{prefix}forget-test"] == pytest.approx(both, abs=1e-9), prefix
        assert found[f"{prefix}forget-train"] == fresh_head_accuracy(model, ("retain-train",), "forget-train") == 0
    assert found["retrained forget-test"] == pytest.approx(
        (found["retrained 1 forget-test"] + found["retrained 2 forget-test"]) / 2
    )
    assert found["error forget-test"] == sampling_error(found["forget-test"], 20)


def test_no_edit_of_the_head_or_of_batch_norm_statistics_changes_head_swap():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    found = metrics.HeadSwap().evaluate(inputs(model=model))["forget-test"]
    hidden = copy.deepcopy(model)
    hidden[3].bias.data[2] = -1e4
    hidden[1].running_var *= 1e8
    hidden[1].running_mean += 100
    assert metrics.HeadSwap().evaluate(inputs(model=hidden))["forget-test"] >= found - 0.11


def test_sampling_error_is_half_an_agresti_coull_interval():
    assert sampling_error(0.5, 100) == pytest.approx(1.96 * (0.25 / 103.8416) ** 0.5)
    assert 0 < sampling_error(0.0, 100) < 0.03


def hsic(k, m):
    """HSIC₁ as Song et al. 2012 write it (equation 5), with matrices."""
    n, ones = len(k), np.ones(len(k))
    k, m = (v - np.diag(np.diag(v)) for v in (k, m))
    sums = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + sums - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def test_linear_cka():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(50, 4)), random.normal(size=(50, 7))
    k, m = x @ x.T, y @ y.T
    assert linear_cka(x, y) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))
    assert linear_cka(x[:4], y[:4]) == pytest.approx(linear_cka(np.pad(x[:4], ((0, 0), (0, 9))), y[:4]))
    rotation = np.linalg.qr(random.normal(size=(4, 4)))[0]
    assert linear_cka(x, 3 * x @ rotation + 1e6) == pytest.approx(1.0)
    assert linear_cka(x, np.zeros((50, 2))) == 0
    with pytest.raises(MismatchError, match="the same 4 or more samples, saw 50 and 49"):
        linear_cka(x, y[:-1])


def test_the_similarity_of_few_samples_is_that_of_many_and_in_its_interval(monkeypatch):
    random = np.random.default_rng(0)
    z, a, b = (random.normal(size=size) for size in ((5000, 16), (16, 16), (16, 16)))
    one, other = (np.maximum(z @ weight, 0) for weight in (a, a + b))
    x, y = (v - v.mean(axis=0) for v in (one, other))
    true = np.square(x.T @ y).sum() / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    found, models = [], (net(0), net(1))
    for seed in range(40):
        rows = random.choice(5000, 30, replace=False)
        features = {model: v[rows] for model, v in zip(models, (one, other), strict=True)}
        monkeypatch.setattr(f"{FEATURES}.features_of", lambda model, *_, known=features, **__: (known[model], None))
        given = EvaluationInputs(model=models[0], original=models[1], splits=SPLITS)
        found.append(metrics.FeatureSimilarity(seed=seed, draws=40).evaluate(given))
    values = [values["to original"] for values in found]
    assert np.mean(values) == pytest.approx(true, abs=3 * np.std(values) / 40**0.5)
    assert sum(f["to original low"] <= true <= f["to original high"] for f in found) >= 36
    assert all(f["to original low"] < f["to original"] < f["to original high"] for f in found)


@pytest.mark.parametrize(
    ("samples", "why"), [(1, "at least 5 forgotten samples are needed, saw 1"), (8, "the same for")]
)
def test_there_is_no_similarity_of_few_samples_or_of_constant_features(samples, why):
    constant = net(1)
    with torch.no_grad():
        constant[0].weight.zero_()
    few = [tuple(t[:samples] for t in joined("forget-train"))]
    given = inputs(model=net(1) if samples < 5 else constant, splits={**SPLITS, "forget-train": few})
    found = metrics.FeatureSimilarity().examine(given)["to original"]
    assert found.value is None
    assert why in found.reason


def test_feature_similarity_has_intervals_and_anchors():
    found = metrics.FeatureSimilarity().evaluate(inputs(model=net(1)))
    assert found["to original"] == pytest.approx(1.0)
    assert found["to retrained"] == found["original to retrained"] < 1
    assert found["to retrained low"] < found["to retrained"] < found["to retrained high"]
    with torch.no_grad():
        x, _ = joined("forget-train")
        one, *others = (model[:2](x).double().numpy() for model in (net(1), net(2), net(3)))
    assert found["to retrained"] == pytest.approx(np.mean([linear_cka(one, other) for other in others]))
    assert found["among retrained"] == pytest.approx(linear_cka(*others))


def test_layer_probe_tells_classes_apart_that_lie_apart():
    found = metrics.LayerProbe(depths=2).evaluate(inputs())
    assert found.keys() >= {"depth 1 of 2", "depth 2 of 2", "original depth 1 of 2", "retrained depth 2 of 2"}
    assert found["depth 1 of 2"] > 0.8
    random = {**SPLITS, "forget-test": data(4, [0, 1]), "forget-train": data(5, [0, 1])}
    assert metrics.LayerProbe(depths=1).evaluate(inputs(splits=random))["depth 1 of 1"] == pytest.approx(0.5, abs=0.25)


def test_layers_in_the_order_of_their_calls_and_means_over_positions():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.conv, self.unused = nn.Linear(2, 3), nn.Conv2d(1, 2, 1), nn.Linear(1, 1)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)))

    model, batches = Model(), [(torch.randn(5, 1, 3, 3), torch.zeros(5, dtype=torch.long))]
    assert layers_called(model, batches) == ["conv", "head"]
    expected = model.conv(batches[0][0]).mean((2, 3)).detach().double().numpy()
    assert pooled_outputs(model, batches, "conv") == pytest.approx(expected)


def after_an_epoch(model, batches):
    """A copy after an epoch of Adam; the step size rises from 0.002 to 0.05 in 30 % of the steps, and falls to 0."""
    student = copy.deepcopy(model)
    adam, steps = torch.optim.Adam(student.parameters()), len(batches)
    for step, (x, y) in enumerate(batches):
        rate = np.interp(step, [0, max(1, 0.3 * steps), steps], [0.002, 0.05, 0.0])
        adam.param_groups[0]["lr"] = float(rate)
        adam.zero_grad()
        nn.functional.cross_entropy(student(x), y).backward()
        adam.step()
    return student


def test_recovery_trains_copies():
    original = net(1)
    before = digest(original)
    found = metrics.Recovery(learning_rate=0.05, steps=3).evaluate(inputs(original=original))
    assert digest(original) == before
    after = outputs_of(after_an_epoch(original, SPLITS["retain-train"]), SPLITS["forget-train"])
    assert found["original retain epoch"] == after.accuracy
    assert found["original retain epoch margin"] == pytest.approx(margin(after), rel=1e-5)
    assert found["few samples margin"] > found["retain epoch margin"]
    alone = metrics.Recovery().examine(inputs(splits={**SPLITS, "forget-train": SPLITS["forget-train"][:1]}))
    assert "one batch" in alone["few samples"].reason


def test_recovery_trains_in_no_order_of_classes_and_says_what_cannot_be_trained():
    x, y = (torch.cat([batch[i] for batch in SPLITS["retain-train"]]) for i in (0, 1))
    rows = torch.argsort(y, stable=True)
    ordered = list(zip(x[rows].split(4), y[rows].split(4), strict=True))
    metric = metrics.Recovery(learning_rate=0.05)
    found = metric.evaluate(inputs(splits={**SPLITS, "retain-train": ordered}))["original retain epoch margin"]
    shuffled = after_an_epoch(net(1), reshuffled(ordered, seed=0, labels=CrossEntropy().labels))
    assert found == pytest.approx(margin(outputs_of(shuffled, SPLITS["forget-train"])), rel=1e-5)
    frozen = metric.examine(inputs(retrained=[net(2).requires_grad_(False)]))
    assert "all its weights are frozen" in frozen["retrained retain epoch"].reason
    assert frozen["retain epoch"].value is not None


def test_recovery_counts_batches_whose_number_is_unknown():
    class Unsized:
        def __iter__(self):
            return iter(SPLITS["retain-train"])

    unsized = metrics.Recovery().evaluate(inputs(splits={**SPLITS, "retain-train": Unsized()}))
    assert unsized == metrics.Recovery().evaluate(inputs())


def test_margin():
    outputs = Outputs(logits=[[2.0, 1.0, 0.0], [0.0, 0.5, 3.0]], labels=np.array([0, 1]))
    assert margin(outputs) == pytest.approx((1.0 - 2.5) / 2)


def test_the_verdict_reads_what_a_metric_names():
    class Mine(Metric):
        name = "mine"
        traits = MetricTraits(holds=("kept",))

        def measure(self, inputs):
            del inputs
            return {"kept": 0.5, "original kept": 0.9, "retrained 1 kept": 0.4, "error kept": 0.1, "other": 1.0}

    (found,) = feature_measures({"mine": Mine()}, {"mine": Mine().examine(inputs())})
    assert (found.name, found.value, found.original, found.retrained, found.error) == (
        "mine kept",
        0.5,
        0.9,
        (0.4,),
        0.1,
    )


def test_a_bound_is_a_number_with_a_reason():
    class Bound(Metric):
        name = "bound"

        def measure(self, inputs):
            del inputs
            return {"steps": Measurement(value=100.0, reason="at least")}

    assert Bound().examine(inputs())["steps"] == Measurement(value=100.0, reason="at least")


def test_recovery_shuffles_samples_that_are_sorted_by_class():
    x, y = joined("retain-train")
    order = y.argsort(stable=True)
    loader = DataLoader(TensorDataset(x[order], y[order]), batch_size=8)
    splits = {**SPLITS, "retain-train": Shared(items=loader)}
    found = metrics.Recovery(learning_rate=0.05, seed=3).evaluate(inputs(splits=splits))["original retain epoch margin"]

    def after(batches):
        return margin(outputs_of(after_an_epoch(net(1), batches), SPLITS["forget-train"]))

    shuffled = DataLoader(loader.dataset, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))
    assert found == pytest.approx(after(shuffled), rel=1e-5)
    assert abs(found - after(loader)) > 0.01


def test_channels_of_prelu_and_of_the_norm_of_convnext():
    torch.manual_seed(0)
    x = torch.randn(6, 8, 10, 12)
    batches = [(x, torch.zeros(6, dtype=torch.int64))]
    for layer in (nn.PReLU(8), LayerNorm2d(8)):
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(960, 3)).eval()
        with torch.no_grad():
            expected = layer(x).mean((2, 3))
        assert pooled_outputs(model, batches, "0") == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("metric", [metrics.JensenShannonToRetrained(), metrics.FeatureSimilarity()])
def test_a_split_in_another_order_each_time_is_refused(metric):
    x, y = (torch.cat([batch[i] for batch in SPLITS["forget-train"]]) for i in (0, 1))
    y = y.clone()
    y[::2] = 0
    generator = torch.Generator().manual_seed(0)
    shuffled = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=generator)
    with pytest.raises(MismatchError, match="the split 'forget-train' gave its samples in another order than before"):
        metric.examine(inputs(splits={**SPLITS, "forget-train": shuffled}))


def test_a_split_that_can_be_read_once_is_refused():
    with pytest.raises(ConfigurationError, match=r"'forget-train': expected batches that can be read for each model"):
        inputs(splits={**SPLITS, "forget-train": iter(SPLITS["forget-train"])})


def test_few_samples_are_not_judged_by_themselves():
    """A loader that shuffles: the first batch of one pass and the others of another one would overlap."""
    x, y = (torch.cat([batch[i] for batch in SPLITS["forget-train"]]) for i in (0, 1))
    seen = []

    class Recorded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net(0)

        def forward(self, x):
            if len(x) == 4:
                seen.append((torch.is_grad_enabled(), x.detach().clone()))
            return self.inner(x)

    shuffled = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    metrics.Recovery(steps=2).examine(
        inputs(model=Recorded(), original=None, retrained=[], splits={**SPLITS, "forget-train": shuffled})
    )
    learnt = {tuple(row.tolist()) for learning, rows in seen if learning for row in rows}
    last = [rows for learning, rows in seen if not learning][-4:]  # 20 samples, 4 of them learnt
    assert len(learnt) == 4
    assert learnt.isdisjoint(tuple(row.tolist()) for rows in last for row in rows)


def test_what_cannot_be_measured_has_a_reason():
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    ones = {name: [(x[:1], y[:1]) for x, y in batches] for name, batches in SPLITS.items()}
    swap = metrics.HeadSwap().examine(inputs(model=norm, splits=ones))
    assert "statistics of BatchNorm cannot be estimated again" in swap["forget-test"].reason
    few = metrics.Recovery().examine(inputs(model=norm, splits={**SPLITS, "forget-train": ones["forget-train"]}))
    assert few["few samples"].reason == "BatchNorm cannot be trained on a batch of one forgotten sample"
    half = metrics.Recovery().examine(inputs(model=net(0).half(), original=None, retrained=[], splits=halved()))
    assert half["retain epoch"].reason == "a float16 model cannot be trained by Adam: measure a copy in float32"
    unlabelled = {**SPLITS, "forget-train": [(x, torch.full_like(y, -100)) for x, y in SPLITS["forget-train"]]}
    found = metrics.JensenShannonToRetrained().examine(inputs(splits=unlabelled))
    assert "have no class" in found["forget-train"].reason


def halved():
    return {name: [(x.half(), y) for x, y in batches] for name, batches in SPLITS.items()}


def test_metrics_of_classes_under_autocast():
    plain, cast = (
        metrics.HeadSwap().examine(inputs(objective=objective)) for objective in (CrossEntropy(), Autocast())
    )
    assert plain == cast
