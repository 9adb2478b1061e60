"""docs/experiments/cifar100-rocket.toml: every constant is the notebook's, and every stage runs on a small archive."""

from pathlib import Path

import pytest
import torch
from cifar_archive import part, write
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.models import ResNet18_Weights, resnet18

from unlearnkit import BatchedDiagonalFisher, CrossEntropy
from unlearnkit.data import cifar100, loader
from unlearnkit.data.cifar100 import FINE_NAMES, SUPERCLASSES
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import Experiment, make_unlearner
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import train_original
from unlearnkit.models import train
from unlearnkit.plugins.manager import default_manager

TOML = Path(__file__).parents[2] / "docs" / "experiments" / "cifar100-rocket.toml"
ROCKET, CASTLE, APPLE = 69, 17, 0


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    train = part([ROCKET, CASTLE, APPLE, CASTLE, APPLE, 41, 85, ROCKET] * 4)
    write(root, train=train, test=part([ROCKET, CASTLE, APPLE, 41], seed=1))
    return load_config(
        TOML,
        [
            f"output='{root}/out'",
            f"model.checkpoint='{root}/original.safetensors'",
            "model.options.pretrained=false",
            f"data.options={{root='{root}', verify=false, target='coarse', image_size=32, on_device=true}}",
            "data.workers=0",
            "importance.batch_size=8",
            "training={epochs=1, batch_size=8}",
        ],
    )


@pytest.fixture(scope="module")
def records(config):
    train_original(config)
    return {record.label: record for record in run(config)}


def test_all_five_edits_of_the_notebook(records):
    assert list(records) == ["prune", "mask-sums", "mask-means", "dampening-sums", "dampening-means"]
    assert all(record.report.size == 11_186_772 for record in records.values())


def test_the_forget_set_is_the_rockets_and_the_reference_all_others(records):
    forget, retain = records["mask-sums"].report.evidence
    assert (forget.role, forget.samples, forget.batches) == ("forget", 8, "1 × 8")
    assert (retain.role, retain.samples, retain.batches) == ("retain", 24, "3 × 8")
    assert records["prune"].forget["scenario"] == "sub-class"
    assert records["prune"].before["forget-test"].samples == 1
    assert records["prune"].before["retain-test"].samples == 3


def test_sums_have_count_one_and_means_one_term_per_batch(records):
    assert [e.count for e in records["mask-sums"].report.evidence] == [1, 1]
    assert [e.count for e in records["mask-means"].report.evidence] == [1, 3]


def test_the_notebooks_order_of_edited_fractions(records):
    fraction = {label: record.report.fraction for label, record in records.items()}
    assert fraction["prune"] > fraction["mask-means"] > fraction["mask-sums"]
    assert fraction["mask-means"] >= fraction["dampening-means"]
    assert fraction["mask-sums"] >= fraction["dampening-sums"]


# --- the notebook's constants, as the page cites them; the notebook itself is not here --------------------------------


SIZE, MEAN, STD = 224, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
COARSE, FINE, EPOCHS, RATE, BATCH, DROPOUT = 20, 100, 5, 1e-3, 256, 0.5
ALPHA, LAMBDA, EPSILON, TAU = 10.0, 1.0, 1e-8, 0.0
TRAINING, ROCKETS = 50_000, 500


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The experiment as it is in the file, but for the place and the content of the archive and the download."""
    root = tmp_path_factory.mktemp("whole")
    write(root, train=part([ROCKET, CASTLE]), test=part([ROCKET]))
    settings = [
        f"data.options.root='{root}'",
        "data.options.download=false",
        "data.options.verify=false",
        "device='cpu'",
    ]
    return Experiment.load(load_config(TOML, settings))


@pytest.mark.parametrize("on_device", [True, False])
def test_the_notebooks_transform(whole, on_device):
    images = whole.bundle.train.images
    theirs = transforms.Compose([transforms.Resize(SIZE), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([theirs(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    x = cifar100(**{**whole.config.data.options, "on_device": on_device}).train[0][0]
    seen = x.finish(x.raw[None])[0] if on_device else x
    assert seen.shape == (3, SIZE, SIZE)
    level = 1 / 255 / min(STD)  # PIL rounds to whole levels as it resizes
    assert float((seen - expected[0]).abs().max()) <= 1.05 * level
    assert float((seen - expected[0]).abs().mean()) < level / 2


def test_the_notebooks_labels(whole):
    train_set = whole.bundle.train
    assert (train_set.kinds, train_set.target, train_set.num_classes) == (("fine", "coarse"), "coarse", COARSE)
    assert (len(FINE_NAMES), FINE_NAMES[ROCKET], FINE_NAMES.index("rocket")) == (FINE, "rocket", ROCKET)
    assert "rocket" in SUPERCLASSES["vehicles_2"]
    _, fine, coarse = train_set[0]
    assert (int(fine), int(coarse)) == (ROCKET, [*SUPERCLASSES].index("vehicles_2"))
    assert whole.splits()["forget-train"].labels["fine"].tolist() == [ROCKET]


def test_the_notebooks_network(whole, monkeypatch):
    asked = []
    monkeypatch.setattr("torchvision.models.resnet18", lambda weights: asked.append(weights) or resnet18())
    model = whole.fresh_model()
    assert asked == [ResNet18_Weights.IMAGENET1K_V1]
    assert [type(layer) for layer in model.head] == [nn.Dropout, nn.Linear]
    assert (model.head[0].p, model.head[1].in_features, model.head[1].out_features) == (DROPOUT, 512, COARSE)


def test_the_notebooks_training(whole, monkeypatch):
    config, made = whole.config.training, []
    assert (config.epochs, config.batch_size, config.learning_rate) == (EPOCHS, BATCH, RATE)

    class Recorded(torch.optim.Adam):
        def __init__(self, weights, **options):
            made.append(options)
            super().__init__(weights, **options)

    monkeypatch.setattr("unlearnkit.models.training.Adam", Recorded)
    x, y = torch.randn(2 * BATCH, 4), torch.arange(2 * BATCH) % 3
    shown = []
    data = torch.utils.data.TensorDataset(x, torch.zeros_like(y), y)  # image, fine label, coarse label
    model = nn.Linear(4, 3)
    loss = float(nn.functional.cross_entropy(model(x), y).detach())
    history = train(
        model, data, objective=whole.objective, training=config, progress=lambda b, *_: shown.append(len(b)) or b
    )
    assert made == [{"lr": RATE, "weight_decay": 0.0}]
    assert shown == [2 * EPOCHS]  # steps
    assert abs(history[0].loss - loss) < 0.1
    assert whole.objective == CrossEntropy(targets=2)


def test_the_notebooks_importances(whole):
    config = whole.config.importance
    estimator = whole.estimator(default_manager())
    assert type(estimator) is BatchedDiagonalFisher
    assert (estimator.weights, estimator.reduction) == ("equal", "mean")
    assert (config.batch_size, config.reference, config.shuffle) == (BATCH, "retain", False)
    assert [len(loader(range(n), batch_size=BATCH)) for n in (ROCKETS, TRAINING - ROCKETS)] == [2, 194]
    model = nn.Linear(4, 3)
    batches = [(torch.randn(n, 4), torch.zeros(n).long(), torch.randint(3, (n,))) for n in (8, 8, 3)]
    found, expected = estimator.estimate(model, batches, objective=whole.objective), torch.zeros(3, 4)
    for x, _, y in batches:
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), [model.weight])
        expected += gradient**2
    torch.testing.assert_close(found.totals["weight"], expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.mean()["weight"], expected / 3, rtol=1e-5, atol=1e-9)


def test_the_notebooks_five_edits(whole):
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(2000, generator=generator)
    forget, retain = (torch.rand(2000, generator=generator) ** 8 * size for size in (1e-6, 1e-7))
    forget[:100] = 0.0
    beta = torch.minimum(LAMBDA * retain / (forget + EPSILON), torch.ones(2000))
    zero = torch.zeros(2000)
    expected = {
        "prune": torch.where(forget > TAU, zero, theta),
        "mask": torch.where(forget > LAMBDA * retain, zero, theta),
        "dampening": torch.where(forget > ALPHA * retain, theta * beta, theta),
    }
    seen = []
    for method in whole.config.method:
        edited = make_unlearner(method, default_manager()).edit(theta, forget, retain)
        torch.testing.assert_close(edited, expected[method.label.split("-")[0]], rtol=1e-6, atol=0)
        assert 0 < int((edited != theta).sum()) < 2000
        seen.append((method.label, method.normalise))
    sums = [("prune", False), ("mask-sums", False), ("mask-means", True)]
    assert seen == [*sums, ("dampening-sums", False), ("dampening-means", True)]


def test_the_notebooks_evaluation(whole):
    assert whole.config.evaluation.splits == ("retain-test", "forget-test")
    assert whole.config.evaluation.metrics == ()


def test_the_page_names_the_constants():
    page = (TOML.parents[1] / "how-to" / "run-the-notebook.md").read_text(encoding="utf-8")
    for constant in (SIZE, *MEAN, *STD, COARSE, ROCKET, BATCH, EPSILON, ROCKETS):
        assert f"{constant:g}" in page.replace("1e-8", "1e-08"), constant
