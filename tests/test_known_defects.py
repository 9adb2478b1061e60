"""One test per defect found in published unlearning code; the docstring is what went wrong there."""

import json
import subprocess
import sys
import tomllib
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import sklearn
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner
from unlearnkit_methods.prune import Prune
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import (
    BatchedDiagonalFisher,
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    EvaluationInputs,
    Metric,
    MetricTraits,
    MismatchError,
    Pipeline,
    PluginManager,
    StoreError,
    UnlearningInputs,
    UnlearnKitWarning,
)
from unlearnkit.cli.app import app
from unlearnkit.data import digits
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.models import OptimizerConfig
from unlearnkit.models.checkpoint import load_checkpoint, save_checkpoint
from unlearnkit.models.parameters import digest
from unlearnkit.models.training import Training, train
from unlearnkit.plugins.manager import default_manager
from unlearnkit.unlearning import EpochConfig, distillation, fine_tune

ROOT = Path(__file__).parent.parent
CE = CrossEntropy()


def net(device=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3)).to(device)


def data(samples=96, device=None):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(samples, 4, generator=generator), torch.randint(0, 3, (samples,), generator=generator)
    return x.to(device), y.to(device)


def cut(batch, size, order=None):
    rows = torch.arange(len(batch[1])) if order is None else order
    return list(zip(*(t[rows].split(size) for t in batch), strict=True))


def selected(estimator, forget, full, alpha=1.2):
    """The weights that a threshold selects, as one flat mask."""
    model = net(torch.float64)
    f, r = (estimator.estimate(model, batches, objective=CE).mean() for batches in (forget, full))
    return torch.cat([(f[n] > alpha * r[n]).flatten() for n in f])


def doubles(batch):
    return batch[0].double(), batch[1]


def test_row_01_selection_depends_on_batch_size_and_order():
    """ "Diagonal Fisher" squares the batch-mean gradient: with the same data, reshuffling alone kept 46–53 % (Jaccard)
    of the selected weights; batch size 1 → 128 moved the selection from 0 to 18 %."""
    full = doubles(data())
    forget = tuple(t[:12] for t in full)
    cuts = [(size, torch.randperm(96, generator=torch.Generator().manual_seed(size))) for size in (1, 5, 32)]
    want = selected(DiagonalFisher(), cut(forget, 12), cut(full, 96))
    assert 0 < int(want.sum()) < want.numel()
    for size, order in cuts:
        assert torch.equal(selected(DiagonalFisher(), cut(forget, 3), cut(full, size, order)), want)
    # The batched importance does change, and its data order records it.
    assert not torch.equal(
        selected(BatchedDiagonalFisher(), cut(forget, 12), cut(full, 96)),
        selected(BatchedDiagonalFisher(), cut(forget, 1), cut(full, 1)),
    )


TRAINING = ("bad-teacher", "finetune", "jit", "neg-grad-plus", "retrain", "salun", "scrub")


def trained_by(name, model, *, options=None, **changed):
    """Run a method that trains, with everything that it may need."""
    method = PluginManager().unlearner(name)(**(options or {"epochs": 2}))
    batch = data(48)
    importance = DiagonalFisher().estimate(model, cut(batch, 16), objective=CE, role="forget")
    inputs = {"forget_data": cut(data(16), 8), "retain_data": cut(batch, 16), "model_factory": net, **changed}
    return method.unlearn(model, UnlearningInputs(forget=importance, **inputs))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_row_02_masked_and_frozen_weights_do_not_move(optimizer):
    """Masked weights move anyway, because weight decay and momentum act after the gradient was masked (4.8 % mean drift
    in 1,000 steps)."""
    model, loss = net(), lambda student, batch: CE.losses(student, batch).mean()
    model[3].bias.requires_grad_(requires_grad=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in model.named_parameters() if p.requires_grad}
    optimizer = OptimizerConfig(optimizer=optimizer, learning_rate=1e-2, momentum=0.9, weight_decay=0.1)
    passes = EpochConfig.epochs(cut(data(), 8), loss, count=83)  # of 12 steps each
    fine_tune(model, passes, optimizer=optimizer, inputs=UnlearningInputs(), masks=masks, training=True)
    for name, p in model.named_parameters():
        free = masks.get(name, torch.zeros_like(p, dtype=torch.bool))
        assert torch.equal(p[~free], before[name][~free]), name
        assert bool((p[free] != before[name][free]).all()), name


@pytest.mark.parametrize("name", TRAINING)
def test_row_03_a_method_that_trains_changes_the_model_and_no_teacher(name, monkeypatch):
    """A method is a no-op because its optimiser holds the teacher's parameters."""
    copies, optimised, copy_of, optimizer_for = [], [], distillation.copy_of, OptimizerConfig.optimizer_for

    def remember(model):
        copies.append(copy_of(model))
        return copies[-1]

    def held(optimizer, model):
        made = optimizer_for(optimizer, model)
        optimised.append((model, {id(p) for group in made.param_groups for p in group["params"]}))
        return made

    monkeypatch.setattr(distillation, "copy_of", remember)
    monkeypatch.setattr(OptimizerConfig, "optimizer_for", held)
    model = net()
    original = {key: value.clone() for key, value in model.state_dict().items()}
    report = trained_by(name, model)
    assert report.changed > 0
    assert any(not torch.equal(original[key], value) for key, value in model.state_dict().items())
    ((student, parameters),) = optimised
    assert parameters == {id(p) for p in student.parameters()}
    assert (student is model) == (name != "retrain")
    assert bool(copies) == (name in {"bad-teacher", "scrub"})
    for teacher in copies:
        assert not parameters & {id(p) for p in teacher.parameters()}
    if name in {"bad-teacher", "scrub"}:
        assert all(torch.equal(original[key], value) for key, value in copies[0].state_dict().items())


def test_row_07_retraining_does_not_depend_on_the_original_weights():
    """ "Retrain from scratch" resets the last layer only."""
    models = [net(), net()]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(-3).add_(1)
        models[1](data()[0])  # other statistics, too
    originals = [digest(model) for model in models]
    for model in models:
        report = trained_by("retrain", model)
        assert {t.name for t in report.tensors if t.changed} == {name for name, _ in model.named_parameters()}
    assert originals[0] != originals[1]
    assert digest(models[0]) == digest(models[1])
    with pytest.raises(MismatchError, match=r"saw the model's"):  # a factory that hands back a part of the model
        trained_by("retrain", models[0], model_factory=lambda: nn.Sequential(*models[0][:3], nn.Linear(16, 3)))


def test_row_14_every_method_says_in_words_what_it_did(digits_toml):
    """Breadth without truth: nine of eleven methods changed no prediction at their defaults, and nothing said so."""
    unchanged = {"ssd": {"alpha": 1e9}, "prune": {"tau": 1e9}, "binary-mask": {"lam": 1e9}}
    for name, options in unchanged.items():
        plain = json.dumps(options).replace(":", "=").replace('"', "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnlearnKitWarning)
            (record,) = run(load_config(digits_toml, [f"method=[{{name='{name}', options={plain}}}]"]), overwrite=True)
        assert record.report.sentence().startswith(f"{name} changed nothing: 0 of ")
        assert record.before == record.after
    for name in TRAINING:
        report = trained_by(name, net())
        assert report.sentence().startswith(f"{name} changed {report.changed} of {report.size} weights (")


def test_row_03_a_no_op_is_said_in_words():
    """A method is a no-op because its optimiser holds the teacher's parameters."""
    forget, full = cut(data(8), 4), cut(data(), 32)
    model = net()
    before = digest(model)
    pipeline = Pipeline(unlearner=SelectiveSynapticDampening(alpha=1e6), plugins=PluginManager(entry_points=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnlearnKitWarning)
        idle = pipeline.run(model, forget=forget, reference=full)
    assert (idle.changed, digest(model)) == (0, before)
    assert idle.sentence().startswith("ssd changed nothing: 0 of ")
    busy = Pipeline(unlearner=Prune(), plugins=PluginManager(entry_points=False)).run(model, forget=forget)
    assert busy.changed > 0
    assert busy.sentence().startswith(f"prune changed {busy.changed} of ")
    assert digest(model) == busy.model_after != busy.model_before == before


def test_row_08_the_installed_scikit_learn_is_used():
    """Breaks on current scikit-learn."""
    assert tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 5)
    bundle = digits()
    assert len(bundle.train) + len(bundle.test) == 1797
    image, label = bundle.train[0]
    assert (image.shape, image.dtype) == ((1, 8, 8), torch.float32)
    assert 0 <= int(label) <= 9
    assert 0 <= float(image.min()) < float(image.max()) <= 1


@pytest.fixture
def striped(monkeypatch):
    """A third-party plugin is installed, and this process has not loaded plugins yet."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "fixtures" / "striped")
    default_manager.cache_clear()
    yield
    default_manager.cache_clear()
    sys.modules.pop("fake_striped", None)


def test_row_09_an_installed_plugin_is_usable_everywhere(striped, digits_toml, tmp_path):
    """Entry-point plugins are registered after the command line has fixed its choices, so they can never be used."""
    assert PluginManager().unlearner("striped")(factor=0.25).factor == 0.25
    (record,) = run(load_config(digits_toml, ["method=[{name='striped', options={factor=0.25}}]"]))
    assert record.report.changed > 0
    assert record.report.options == {"factor": 0.25}
    assert record.report.provider == "fake-striped 1.0"
    assert json.loads((tmp_path / "out/striped/report.json").read_text(encoding="utf-8"))["method"] == "striped"
    listed = CliRunner().invoke(app, ["methods"])
    assert listed.exit_code == 0
    assert "striped" in listed.output
    setting = "method=[{name='striped', options={factor=0.75}}]"
    edited = CliRunner().invoke(app, ["run", str(digits_toml), "-q", "--dry-run", "--set", setting])
    assert edited.exit_code == 0, edited.output
    assert "striped changed" in edited.output
    wrong = CliRunner().invoke(app, ["run", str(digits_toml), "-q", "--dry-run", "--set", setting.replace("0.75", "7")])
    assert wrong.exit_code == 2
    assert "expected a number" in wrong.output


@pytest.mark.slow
def test_row_10_the_wheel_holds_every_module(tmp_path):
    """The published wheel lacks modules it imports, or its methods. (.ci/run also runs the main job from it.)"""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        points = next(archive.read(n).decode() for n in held if n.endswith("entry_points.txt"))
    for base, folder in ((ROOT, "unlearnkit"), (ROOT / "plugins", ".")):
        modules = {p.relative_to(base).as_posix() for p in (base / folder).rglob("*.py")}
        assert modules <= held, modules - held
    assert "unlearnkit/py.typed" in held
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert all(f"{name} = " in points for name in project["entry-points"]["unlearnkit"])


def test_row_17_a_failing_metric_is_never_a_number():
    """A failing metric is swallowed and printed as 0.5, −1 or nothing."""

    class Share(Metric):
        name = "share"
        traits = MetricTraits(low=0.0, high=1.0)

        def __init__(self, measure):
            self.measure_ = measure

        def measure(self, inputs):
            return self.measure_(inputs)

    inputs = EvaluationInputs(model=net(), splits={})
    with pytest.raises(KeyError, match="forget-test"):
        Share(lambda e: {"a": float(len(e.splits["forget-test"]))}).evaluate(inputs)
    for number in (-1.0, float("nan")):
        with pytest.raises(MismatchError, match=r"metric 'share' .*expected None or a number from 0 to 1"):
            Share(lambda _, n=number: {"a": n}).evaluate(inputs)
    assert Share(lambda _: {"a": None}).evaluate(inputs) == {"a": None}


def test_row_18_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    """Saliency mask made from an untrained model; checkpoints loaded with ``strict=False``."""
    path, model = tmp_path / "model.safetensors", net()
    save_checkpoint(nn.Sequential(nn.Linear(4, 16), nn.ReLU()), path)
    before = digest(model)
    with pytest.raises(
        MismatchError, match=r"(?s)does not fit Sequential.*2.weight: expected, but missing in the file"
    ):
        load_checkpoint(model, path)
    save_checkpoint(nn.Sequential(*net(), nn.Linear(3, 3)), path)
    with pytest.raises(MismatchError, match=r"4.weight: in the file, but not in the model"):
        load_checkpoint(model, path)
    with pytest.raises(StoreError):
        load_checkpoint(model, tmp_path / "missing.safetensors")
    assert digest(model) == before
    # And an importance of other weights, an untrained model's, say, is not taken for this one's.
    untrained = DiagonalFisher().estimate(net(), cut(data(), 32), objective=CE)
    nn.init.normal_(model[0].weight)
    with pytest.raises(MismatchError, match=r"the model was edited or trained since; estimate again"):
        Pipeline(unlearner=Prune()).run(model, forget=untrained)


def _whole_job(model, batches):
    forget, full = batches[:1], batches
    for estimator in (DiagonalFisher(), BatchedDiagonalFisher()):
        found = estimator.estimate(model, full, objective=CE)
        assert {t.device for t in found.totals.values()} == {model[0].weight.device}
    Pipeline(unlearner=SelectiveSynapticDampening(alpha=1.5)).run(model, forget=forget, reference=full)
    Pipeline(unlearner=Prune(tau=1e-3)).run(model, forget=forget)
    return loss_and_accuracy(model, full)


def test_row_19_nothing_is_made_on_a_device_of_its_own():
    """The device is hard-coded. (Here: the default device is meta, so tensors created on it fail.)"""
    model, batches = net(), cut(data(), 32)
    want = _whole_job(net(), batches)
    with torch.device("meta"):
        assert _whole_job(model, batches) == want
    assert all(p.device.type == "cpu" for p in model.parameters())


@pytest.mark.gpu
def test_row_19_the_whole_job_runs_where_the_model_is():
    """The device is hard-coded."""
    want = _whole_job(net(), cut(data(), 32))
    model = net("cuda")
    found = _whole_job(model, cut(data(), 32))  # the batches are on the CPU
    assert all(p.device.type == "cuda" for p in model.parameters())
    assert found.loss == pytest.approx(want.loss, rel=1e-3)


def test_row_20_every_average_is_weighted_by_samples():
    """Per-batch accuracies averaged without weights."""
    logits = torch.tensor([[9.0, 0.0]] * 3 + [[0.0, 9.0]])
    labels = torch.zeros(4, dtype=torch.long)  # three right, one wrong
    found = loss_and_accuracy(nn.Identity(), [(logits[:3], labels[:3]), (logits[3:], labels[3:])])
    assert found.accuracy == 0.75  # unweighted: (1 + 0) / 2
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    model, batch = net().double(), doubles(data(10))
    means = [
        BatchedDiagonalFisher().estimate(model, batches, objective=CE).count
        for batches in (cut(batch, 4), cut(batch, 10))
    ]
    assert means == [10, 10]  # a last, smaller batch counts its samples
    linear, samples = nn.Linear(4, 3), data(9)  # batches of 4, 4 and 1, and steps too small to matter
    want = nn.functional.cross_entropy(linear(samples[0]), samples[1]).item()
    training = Training(epochs=1, batch_size=4, learning_rate=1e-12)
    (epoch,) = train(linear, torch.utils.data.TensorDataset(*samples), training=training)
    assert epoch.loss == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("importence.batch_size=3", "did you mean 'importance'"),
        ("importance.batch_sise=3", "did you mean 'batch_size'"),
        ("training.epoch=3", "did you mean 'epochs'"),
        ("importance.options.memory_budge=3", "did you mean 'memory_budget'"),
        ("method.ssd.options.aplha=3", "did you mean 'alpha'"),
        ("method.ssd.option.alpha=3", "did you mean 'options'"),
        ("model.options.widht=3", "did you mean 'width'"),
    ],
)
def test_row_21_unknown_keys_are_errors_that_name_the_nearest(digits_toml, line, said):
    """Unknown keys in a configuration are silently ignored."""
    with pytest.raises(ConfigurationError, match=said):
        list(run(load_config(digits_toml, [line]), dry_run=True))


def test_row_22_the_same_manifest_gives_the_same_bits(digits_toml, tmp_path):
    """Results change with worker count, world size or library version and nobody can tell."""
    out = tmp_path / "out" / "ssd"
    reports, weights = [], []
    for _ in range(2):
        list(run(load_config(digits_toml, ["method=[{name='ssd', options={alpha=3}}]"]), overwrite=True))
        reports.append(json.loads((out / "report.json").read_text(encoding="utf-8")))
        weights.append(load_file(out / "model.safetensors"))
    one, two = ({k: v for k, v in r["manifest"].items() if k != "finished"} for r in reports)
    assert one == two
    assert one["config"]["seed"] == 0
    assert len(one["data_digest"]) == len(reports[0]["forget"]["digest"]) == 32
    assert one["versions"]["torch"] == version("torch")
    assert {"device", "threads", "platform"} <= set(one)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert reports[0]["model_after"] == reports[1]["model_after"] != reports[0]["model_before"]
