"""`unlearn`, the short way: real models of each kind, names, options, data, and errors that say what to pass."""

import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import (
    BudgetError,
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    Pipeline,
    PluginManager,
    UnknownMethodError,
    unlearn,
)
from unlearnkit.data import digits
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.models import BinaryCrossEntropy, SquaredError, Training, digest, small_cnn, train

THREE = 3


@pytest.fixture(scope="module")
def images():
    """Digits as images and labels: a forget set of threes, and 300 others."""
    data = digits().train
    chosen = [i for i in range(len(data)) if int(data[i][1]) == THREE]
    others = [i for i in range(len(data)) if int(data[i][1]) != THREE][:300]
    return [tuple(map(torch.stack, zip(*(data[i] for i in rows), strict=True))) for rows in (chosen, others)]


class FieldsByName(nn.Module):
    """Takes and returns fields by name, as models of Hugging Face do."""

    def __init__(self):
        super().__init__()
        self.inner = small_cnn(width=4, seed=0)

    def forward(self, pixel_values, pixel_mask):
        return SimpleNamespace(logits=self.inner(pixel_values * pixel_mask))


class PerPixel(nn.Module):
    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 1))

    def forward(self, x):
        return {"out": self.layers(x)}  # as torchvision's models of segmentation do


def dicts(x, y):
    return {"label": y, "image": x}


def named(x, y):
    return {"pixel_values": x, "pixel_mask": torch.ones(len(x), 1, 1, 1), "labels": y}


def attributes(x, y):
    return x, torch.stack([y % 2 == 0, y > 4, y == THREE], 1).float()


def a_number(x, y):
    return x, y.float() / 9


def masks(x, _):
    return x, (x[:, 0] > x.mean()).long()


KINDS = {
    "tuples": (lambda x, y: (x, y), partial(small_cnn, width=4, seed=0), None, ""),
    "dicts": (
        dicts,
        partial(small_cnn, width=4, seed=0),
        CrossEntropy(inputs="image", targets="label"),
        r"CrossEntropy\(inputs='image', targets='label'\)",
    ),
    "hugging face": (
        named,
        FieldsByName,
        CrossEntropy(inputs=("pixel_values", "pixel_mask"), targets="labels"),
        r"CrossEntropy\(inputs='pixel_values', targets='labels'\)",
    ),
    "several labels": (
        attributes,
        partial(small_cnn, num_classes=3, width=4, seed=0),
        BinaryCrossEntropy(),
        "BinaryCrossEntropy",
    ),
    "regression": (a_number, partial(small_cnn, num_classes=1, width=4, seed=0), SquaredError(), "SquaredError"),
    "segmentation": (masks, partial(PerPixel, 2), CrossEntropy(output="out"), r"CrossEntropy\(output='out'\)"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["ssd", "finetune"])
def test_models_and_batches_of_each_kind_are_trained_and_edited(kind, method, images):
    batch, make, objective, advice = KINDS[kind]
    forget, retain = ([batch(*(t[i : i + 64] for t in part)) for i in range(0, len(part[0]), 64)] for part in images)
    model = make()
    history = train(model, [*retain, *forget], objective=objective, training=Training(epochs=3, learning_rate=1e-2))
    assert history[-1].loss < history[0].loss
    options = {"ssd": {"fraction": 0.05, "lam": 0.0}, "finetune": {"epochs": 1, "learning_rate": 0.01}}[method]
    losses = [loss_and_accuracy(model, part, objective=objective).loss for part in (forget, retain)]
    if advice:
        before = digest(model)
        with pytest.raises(ConfigurationError, match=advice):
            unlearn(model, method, forget=forget, retain=retain, **options)
        assert digest(model) == before
    report = unlearn(model, method, forget=forget, retain=retain, objective=objective, **options)
    assert report.method == method
    assert report.changed > 0
    if method == "ssd":
        assert report.fraction <= 0.05
        rise = [loss_and_accuracy(model, p, objective=objective).loss - was for p, was in zip((forget, retain), losses)]  # noqa: B905
        assert rise[0] > rise[1]


def net():
    torch.manual_seed(0)
    return nn.Linear(3, 3)


X, Y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
FORGET, RETAIN, FULL = [(X[:4], Y[:4])], [(X[4:], Y[4:])], [(X, Y)]


def test_it_equals_the_pipeline_and_a_name_equals_an_object():
    models = [net() for _ in range(3)]
    method = SelectiveSynapticDampening(fraction=0.3)
    reports = [
        unlearn(models[0], forget=FORGET, retain=RETAIN, method="ssd", fraction=0.3),
        unlearn(models[1], method, forget=FORGET, retain=RETAIN, estimator=DiagonalFisher()),
        Pipeline(method, reference_role="retain").run(models[2], forget=FORGET, reference=RETAIN),
    ]
    assert len({report.model_after for report in reports}) == 1
    assert reports[0].changed > 0
    assert {report.provider for report in reports} == {reports[0].provider}


@pytest.mark.parametrize(
    ("given", "roles"),
    [
        ({"retain": RETAIN}, ["forget", "retain"]),
        ({"full": FULL}, ["forget", "full"]),
        ({"full": FULL, "retain": RETAIN}, ["forget", "full"]),
    ],
)
def test_the_reference_is_the_full_set_where_it_is_given(given, roles):
    report = unlearn(net(), "ssd", forget=FORGET, fraction=0.3, **given)
    assert [e.role for e in report.evidence] == roles


def test_methods_that_train_take_the_same_data():
    model, other = net(), net()
    report = unlearn(model, "neg-grad-plus", forget=FORGET, retain=RETAIN, epochs=1)
    method = PluginManager().unlearner("neg-grad-plus")(epochs=1)
    want = Pipeline(method).run(other, forget=FORGET, retain_data=RETAIN)
    assert report.model_after == want.model_after != report.model_before


def test_importances_that_are_known_are_taken():
    model = net()
    known = DiagonalFisher().estimate(model, FORGET, objective=CrossEntropy())
    report = unlearn(model, "ssd", forget=known, retain=RETAIN, fraction=0.3)
    assert list(report.seconds) == ["retain importance", "edit"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"method": "sdd"}, UnknownMethodError, "no unlearner is called 'sdd'; did you mean 'ssd'"),
        ({"method": "ssd", "estimator": "diagonal-fischer"}, UnknownMethodError, "did you mean 'diagonal-fisher'"),
        ({"method": "ssd", "fractoin": 0.1}, ConfigurationError, "'fractoin' of method 'ssd'; did you mean 'fraction'"),
        ({"method": "ssd", "retian": RETAIN}, ConfigurationError, "'retian' of method 'ssd'; did you mean 'retain'"),
        ({"method": "ssd", "fraction": -1.0}, ConfigurationError, r"fraction: expected a number .*, saw -1.0"),
        ({"method": "ssd", "fraction": 0.1, "alpha": 3.0}, ConfigurationError, "'fraction' is used in place of 'al"),
        ({"method": FineTune(), "epochs": 3}, ConfigurationError, "options of a method .* by name, saw epochs"),
        ({"method": FineTune}, ConfigurationError, "pass an object, not its class"),
        ({"method": "ssd", "retain": None}, ConfigurationError, "'ssd' compares with other data.*retain= or full="),
        ({"method": "finetune", "retain": None, "full": FULL}, ConfigurationError, "on the retain set: pass retain="),
        ({"method": "salun", "forget": "known"}, ConfigurationError, "trains on the forget set.*saw an importance"),
        ({"method": "retrain"}, ConfigurationError, "expected model_factory"),
        ({"method": "retrain", "model_factory": nn.Linear(3, 3)}, ConfigurationError, "a function .* saw a Linear"),
        ({"method": "ssd", "forget": FORGET[0]}, ConfigurationError, r"saw a tensor: pass a list of batches"),
        ({"method": "ssd", "fraction": 0.9, "max_fraction": 0.1}, BudgetError, "at most 0.1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_the_model_is_left_as_it_was(arguments, error, said):
    model = net()
    before = digest(model)
    given = {"forget": FORGET, "retain": RETAIN, **arguments}
    if given["forget"] == "known":
        given["forget"] = DiagonalFisher().estimate(model, FORGET, objective=CrossEntropy())
    with pytest.raises(error, match=said):
        unlearn(model, **given)
    assert digest(model) == before


def test_an_object_needs_no_plugin():
    nothing = PluginManager(entry_points=False)
    assert unlearn(net(), FineTune(epochs=1), forget=FORGET, retain=RETAIN, plugins=nothing).provider == ""
    with pytest.raises(UnknownMethodError, match="no unlearner is called 'ssd'; there are none"):
        unlearn(net(), "ssd", forget=FORGET, retain=RETAIN, plugins=nothing)


def test_a_generator_is_refused_where_it_is_read_twice():
    with pytest.raises(ConfigurationError, match="not an iterator that is used up"):
        unlearn(net(), "salun", forget=(batch for batch in FORGET), retain=RETAIN)


def test_a_pipeline_takes_its_method_by_position_and_nothing_else():
    assert Pipeline(FineTune()).unlearner == FineTune()
    with pytest.raises(TypeError, match="positional"):
        Pipeline(FineTune(), DiagonalFisher())
    with pytest.raises(ConfigurationError, match=r"saw 'ssd': unlearn\(\) takes the name of a method"):
        Pipeline("ssd")


def test_stages_are_logged_under_unlearnkit(caplog):
    with caplog.at_level(logging.INFO, logger="unlearnkit"):
        report = unlearn(net(), "ssd", forget=FORGET, retain=RETAIN, fraction=0.3)
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in said[:2]] == [
        "importance of the forget set",
        "importance of the retain set",
    ]
    assert said[2:] == [report.sentence()]
    assert {record.name.partition(".")[0] for record in caplog.records} == {"unlearnkit"}


def test_a_state_dict_is_no_model():
    with pytest.raises(ConfigurationError, match=r"expected a model, a torch\.nn\.Module, saw a OrderedDict"):
        unlearn(net().state_dict(), "ssd", forget=FORGET, retain=RETAIN)
