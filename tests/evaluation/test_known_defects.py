"""One test per defect of published unlearning metrics; the docstring is what went wrong there."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from unlearnkit import CrossEntropy, EvaluationInputs, Metric, MismatchError
from unlearnkit.evaluation import LossAndAccuracy, gap_to_retrain, jensen_shannon, ulira
from unlearnkit.evaluation import metrics as shipped
from unlearnkit.evaluation.membership.attacks import attack_success, population_attack
from unlearnkit.evaluation.metrics.proxies import zero_retrain_forgetting
from unlearnkit.evaluation.metrics.retrain_gap import tug_of_war
from unlearnkit.evaluation.model_outputs import Outputs
from unlearnkit.evaluation.per_sample import margins, softmax_of
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import retrained_models, train_original
from unlearnkit.models import CausalLanguageModel
from unlearnkit.models.parameters import digest
from unlearnkit.reporting.verdict import findings
from unlearnkit.unlearning.report import Report, TensorChange

LOGITS = np.random.default_rng(0).normal(size=(60, 5))
LABELS = np.random.default_rng(1).integers(0, 5, 60)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2))


def inputs(**changes):
    def batch(seed):
        generator = torch.Generator().manual_seed(seed)
        return [(torch.randn(30, 3, generator=generator), torch.randint(2, (30,), generator=generator))]

    splits = {name: batch(i) for i, name in enumerate(("retain-train", "forget-train", "retain-test", "forget-test"))}
    return EvaluationInputs(
        **{"model": net(), "splits": splits, "original": net(1), "retrained": [net(2), net(3)], **changes}
    )


def test_row_04_jensen_shannon_is_a_divergence():
    """Jensen-Shannon divergence and ZRF: arguments swapped, averaged over batch × classes, NaN on disjoint one-hot
    outputs (0.003 instead of 0.63 nat at 1,000 classes)."""
    p, q = softmax_of(LOGITS), softmax_of(LOGITS[::-1])
    js = jensen_shannon(p, q)
    assert ((js >= 0) & (js <= math.log(2))).all()
    assert np.array_equal(js, jensen_shannon(q, p))
    assert (js > 0).all()
    assert (jensen_shannon(p, p) == 0).all()
    eye = np.eye(1000)[:2]
    assert jensen_shannon(eye[:1], eye[1:])[0] == math.log(2)  # disjoint one-hot outputs
    padded = [np.pad(x, ((0, 0), (0, 995))) for x in (p, q)]
    assert jensen_shannon(*padded) == pytest.approx(js, abs=1e-15)
    assert zero_retrain_forgetting(*padded) == pytest.approx(zero_retrain_forgetting(p, q))
    # The mean over samples does not depend on how many there are.
    assert jensen_shannon(np.tile(p, (3, 1)), np.tile(q, (3, 1))).mean() == pytest.approx(js.mean())


def test_row_05_a_score_does_not_depend_on_batch_mates():
    """ "Modified entropy", which is not offered here, indexes all rows by all labels."""
    known = Outputs(logits=LOGITS, labels=LABELS)
    unseen = Outputs(logits=LOGITS / 2, labels=LABELS)
    for kind in ("entropy", "loss", "confidence"):
        attack = population_attack(kind, members=known, nonmembers=unseen)
        scores = attack(known)
        for i in (0, 31):
            one = Outputs(logits=LOGITS[i : i + 1], labels=LABELS[i : i + 1])
            assert attack(one)[0] == pytest.approx(scores[i], abs=1e-12)


@pytest.mark.parametrize("name", shipped.__all__)
def test_row_06_a_metric_leaves_the_models_as_they_are(name):
    """A metric (relearn time) trains the very model that the next metric measures."""
    paper = inputs()
    models = [paper.model, paper.original, *paper.retrained]
    paper.model[0].weight.grad = torch.ones(6, 3)

    def state():
        return [(digest(m), [x.training for x in m.modules()]) for m in models], torch.get_rng_state().tolist()

    before, first = state(), getattr(shipped, name)().examine(paper)
    assert state() == before
    assert paper.model[0].weight.grad.unique().tolist() == [1.0]
    assert getattr(shipped, name)().examine(paper) == first


def test_row_06_a_metric_that_trains_is_refused_and_undone():
    """A metric (relearn time) trains the very model that the next metric measures."""

    class Relearn(Metric):
        name = "relearn"

        def measure(self, inputs):
            model = inputs.model.train()
            x, y = inputs.splits["forget-train"][0]
            with torch.enable_grad():
                nn.functional.cross_entropy(model(x), y).backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
            return {"steps": 1}

    paper = inputs()
    before = digest(paper.model)
    with pytest.raises(MismatchError, match=r"metric 'relearn' .*changed a model that it measured"):
        Relearn().examine(paper)
    assert digest(paper.model) == before


def test_row_07_a_retrained_reference_does_not_depend_on_the_original(digits_toml, tmp_path):
    """ "Retrain from scratch" resets the last layer only."""
    found = []
    for seed in (0, 1):  # two originals of the same kind, each with a folder of its own
        checkpoint = tmp_path / f"{seed}.safetensors"
        settings = [f"model.checkpoint='{checkpoint}'", f"evaluation.retrained_folder='{tmp_path / str(seed)}'"]
        config = load_config(digits_toml, [*settings, "training.epochs=1", f"training.seed={seed}"])
        train_original(config)
        experiment = Experiment.load(config)
        found.append((experiment.original_model()[0], *retrained_models(experiment, [100])))
    (one, first), (other, second) = found
    assert digest(one) != digest(other)
    assert digest(first) == digest(second)
    assert all(
        not torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), one.state_dict().values(), strict=True)
        if a.is_floating_point()
    )  # every layer, not only the last


def test_row_14_a_destroyed_model_and_a_no_op_are_results_in_words():
    """Breadth without truth: nine of eleven methods changed no prediction at their defaults, and nothing said so."""
    report = Report(method="ssd", tensors=(TensorChange(name="w", size=4, changed=1),))

    def scores(retain, forget):
        pairs = (("retain-test", retain), ("forget-train", forget))
        return {name: LossAndAccuracy(loss=1 - value, accuracy=value, samples=100) for name, value in pairs}

    def verdict(*args):
        return list(findings(*args).values())

    before = scores(0.96, 0.95)
    assert "has no effect" in " ".join(verdict(report, before, before))
    assert "nothing was forgotten" in " ".join(verdict(report, before, scores(0.95, 0.97)))
    assert "destroyed" in " ".join(verdict(report, before, scores(0.11, 0.0)))
    assert "0 of 4 weights" in Report(method="ssd", tensors=(TensorChange(name="w", size=4, changed=0),)).sentence()


def test_row_13_forgetting_more_than_retraining_is_a_gap():
    """Forget accuracy 0 presented as success where a retrained model keeps 72 %."""
    retrained = [0.70, 0.72, 0.74]
    none, half, right = (gap_to_retrain(a, retrained).sds for a in (0.0, 0.36, 0.72))
    assert none < half < right == pytest.approx(0)
    assert gap_to_retrain(1.0, retrained).sds > 0
    known = {"forget": 0.72, "retain": 0.95}
    assert tug_of_war({"forget": 0.0, "retain": 0.95}, known) < tug_of_war({"forget": 0.7, "retain": 0.9}, known)


def test_row_15_an_attack_on_a_model_and_its_own_copy_scores_a_half():
    """Membership attack uses retain data as its non-members."""
    model = net()
    twin = copy.deepcopy(model)
    # Forgotten and unseen samples are the same: whoever finds a difference compares with something else.
    splits = dict(inputs().splits)
    splits["forget-test"] = splits["forget-train"]
    paper = inputs(model=model, original=twin, splits=splits)
    for cls in (shipped.EntropyAttack, shipped.LossAttack, shipped.ConfidenceAttack, shipped.RelativeMembership):
        found = cls().evaluate(paper)
        assert found["AUC"] == found["original AUC"] == pytest.approx(0.5), cls.name
    phi = margins(LOGITS, LABELS).reshape(6, 10)
    assert ulira(phi, phi).auc == 0.5
    assert attack_success(phi[0], phi[0]).auc == pytest.approx(0.5)
    # Retain data never replace unseen data: without unseen samples there is no value.
    del splits["forget-test"], splits["retain-test"]
    found = shipped.LossAttack().examine(inputs(splits=splits))
    assert all(m.value is None and "no split 'retain-test'" in m.reason for m in found.values())


def test_row_16_likelihood_ratios_are_of_logit_scaled_confidences():
    """Likelihood-ratio attack fits Gaussians to 0/1 correctness."""
    p = softmax_of(LOGITS)[np.arange(60), LABELS]
    assert margins(LOGITS, LABELS) == pytest.approx(np.log(p / (1 - p)))
    assert len(np.unique(margins(LOGITS, LABELS))) == 60  # not two values
    random = np.random.default_rng(3)
    retrained = random.normal(2.0, 1.0, size=(10, 40))
    # Every label is predicted right by every model: correctness tells nothing, confidence does.
    remembers = random.normal(6.0, 1.0, size=(10, 40)).clip(0.1)
    assert ulira(remembers, retrained.clip(0.1)).auc > 0.9
    assert ulira(retrained, retrained).auc == 0.5


@pytest.mark.parametrize("name", shipped.__all__)
def test_row_20_a_metric_does_not_depend_on_how_data_are_cut_into_batches(name):
    """Per-batch accuracies averaged without weights."""
    if name in {"HeadSwap", "Recovery"}:
        pytest.skip("its training steps, or the statistics of BatchNorm, are of batches")
    whole = inputs()
    cut = {split: list(zip(x.split(7), y.split(7), strict=True)) for split, [(x, y)] in whole.splits.items()}
    options = {"margin": 1.0} if name == "RelearnTime" else {}  # its steps are batches: there must be none
    one, other = (getattr(shipped, name)(**options).evaluate(paper) for paper in (whole, inputs(splits=cut)))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert other[key] == (None if value is None else pytest.approx(value, abs=1e-5)), key


def test_row_22_the_same_seeds_give_the_same_numbers_and_each_seed_has_its_own_part(digits_toml):
    """Results change with worker count, world size or library version and nobody can tell."""
    names = "evaluation.metrics=['mia-loss', 'loss-and-accuracy', 'zrf']"
    usual = [names, "method=[{name='ssd', options={alpha=3}}]", "evaluation.splits=['retain-test', 'forget-train']"]

    def found(*settings):
        (record,) = run(load_config(digits_toml, [*usual, *settings]), overwrite=True)
        return record

    one, again, measured = found(), found(), found("evaluation.seed=7")
    assert one.metrics == again.metrics
    assert one.report.model_after == again.report.model_after == measured.report.model_after
    assert one.after == measured.after
    assert one.metrics["zrf"] != measured.metrics["zrf"]  # its untrained model is drawn from the evaluation's seed
    shuffled = found("seed=7", "importance.shuffle=true", "training.seed=9")
    assert shuffled.report.model_before == one.report.model_before
    assert shuffled.before == one.before


@pytest.mark.parametrize("name", shipped.__all__)
def test_row_17_no_number_stands_for_a_failure(name):
    """A failing metric is swallowed and printed as 0.5, −1 or nothing."""
    cls = getattr(shipped, name)
    for value in cls().examine(inputs(splits={}, retrained=())).values():
        assert value.value is None
        assert value.reason

    def fails(_):
        raise OSError("the disk is gone")

    class Disk:
        def __iter__(self):
            return fails(self)

    names = [*inputs().splits, "forget-train paraphrased", "forget-train wrong"]
    objective = CausalLanguageModel() if cls.__module__.endswith(".language") else CrossEntropy()
    with pytest.raises(OSError, match="the disk is gone"):
        cls().examine(inputs(splits=dict.fromkeys(names, Disk()), objective=objective))
