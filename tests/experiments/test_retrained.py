"""Retrained references: trained once, cached under a hash of their recipe, refused when they do not match it."""

import multiprocessing
import time
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import (
    RECIPE,
    Recipe,
    initial_digest,
    load_or_retrain,
    read_or_train,
    retrained_folder,
    retrained_models,
)
from unlearnkit.experiments.tune import tune
from unlearnkit.models.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from unlearnkit.models.parameters import digest
from unlearnkit.models.training import Training, train
from unlearnkit.models.zoo import small_cnn
from unlearnkit.utils.errors import ConfigurationError, MismatchError, StoreError

TINY = ("training.epochs=1", "evaluation.retrained_seeds=[7, 8]")


def recipe(**changes):
    usual = {"factory": "m:f", "initial": "i", "data": "d", "forget": "f", "training": Training(epochs=1)}
    return Recipe(**{**usual, **changes})


def data(n=24):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    return torch.utils.data.TensorDataset(x, torch.arange(n) % 10)


@pytest.fixture
def experiment(digits_toml):
    return Experiment.load(load_config(digits_toml, TINY))


def test_a_reference_is_trained_on_the_retain_set_from_fresh_weights(experiment):
    first, second = retrained_models(experiment)
    assert not first.training
    expected = experiment.fresh_model(seed=7)
    train(expected, experiment.splits()["retain-train"], training=Training(epochs=1, learning_rate=1e-2, seed=7))
    assert digest(first) == digest(expected) != digest(second)


def test_a_factory_that_returns_the_trained_weights_is_refused(experiment, digits_toml, tmp_path):
    save_checkpoint(experiment.fresh_model(), tmp_path / "same.safetensors")
    changed = load_config(digits_toml, [*TINY, f"model.checkpoint='{tmp_path / 'same.safetensors'}'"])
    with pytest.raises(ConfigurationError, match=r"expected a model that was not trained on the data, saw the weights"):
        retrained_models(Experiment.load(changed))


def test_retrained_model_is_trained_once(experiment, monkeypatch):
    before = [digest(model) for model in retrained_models(experiment)]
    monkeypatch.setattr("unlearnkit.experiments.train.train", None)  # to train again would be an error
    assert [digest(model) for model in retrained_models(experiment)] == before
    assert [digest(model) for model in retrained_models(experiment, [8])] == before[1:]
    assert len(list((retrained_folder(experiment.config)).glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    "override",
    [
        "model.options.width=5",
        "model.factory='unlearnkit.experiments.demo:small_cnn'",
        "data.options.seed=1",
        "forget.classes=[4]",
        "training.epochs=2",
        "training.weight_decay=0.1",
    ],
)
def test_file_name_depends_on_the_recipe(digits_toml, override, monkeypatch):
    def trained(*overrides):
        seen = []
        name = "unlearnkit.experiments.train.read_or_train"
        monkeypatch.setattr(name, lambda folder, recipe, *_, **__: seen.append(recipe.file(folder)))
        retrained_models(Experiment.load(load_config(digits_toml, [*TINY, *overrides])))
        return seen

    usual, again, other = trained(), trained("seed=5"), trained(override)
    assert usual == again
    assert len({*usual, *other}) == 4


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(Recipe)])
def test_every_field_of_a_recipe_is_in_the_key(field):
    other = {"options": {"a": 1}, "training": Training(epochs=1, seed=1), "versions": {"torch": "0"}}
    assert recipe().file(Path()) == recipe().file(Path())
    assert recipe().file(Path()) != recipe(**{field: other.get(field, "other")}).file(Path())


def test_key_depends_on_the_code_of_the_factory():
    assert initial_digest(nn.Sequential(nn.ReLU())) != initial_digest(nn.Sequential(nn.GELU()))
    assert initial_digest(small_cnn(seed=0)) != initial_digest(small_cnn(seed=1))


def test_file_metadata_holds_the_recipe(tmp_path):
    folder = tmp_path / "deep" / "down"
    read_or_train(folder, recipe(), small_cnn(seed=0), data())
    assert read_checkpoint(recipe().file(folder))[1] == {RECIPE: recipe().text()}


def test_a_file_of_another_recipe_is_refused(tmp_path):
    read_or_train(tmp_path, recipe(), small_cnn(seed=0), data())
    recipe().file(tmp_path).rename(recipe(data="other").file(tmp_path))
    with pytest.raises(StoreError, match="is not the retrained model that its name stands for"):
        read_or_train(tmp_path, recipe(data="other"), small_cnn(seed=0), data())
    save_checkpoint(small_cnn(seed=0), recipe().file(tmp_path))  # other weights, without metadata
    with pytest.raises(StoreError, match="saw None: delete the file"):
        read_or_train(tmp_path, recipe(), small_cnn(seed=0), data())


def test_a_file_that_does_not_fit_or_is_damaged_is_refused(tmp_path):
    read_or_train(tmp_path, recipe(), small_cnn(seed=0), data())
    with pytest.raises(MismatchError, match="does not fit SmallCNN"):
        read_or_train(tmp_path, recipe(), small_cnn(width=3, seed=0), data())
    recipe().file(tmp_path).write_bytes(recipe().file(tmp_path).read_bytes()[:100])
    with pytest.raises(StoreError, match="damaged"):
        read_or_train(tmp_path, recipe(), small_cnn(seed=0), data())


def test_interrupted_training_leaves_no_file(tmp_path):
    def broken(items, *_):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_or_train(tmp_path, recipe(), small_cnn(seed=0), data(100), progress=broken)
    assert not list(tmp_path.glob("*.safetensors"))
    assert digest(read_or_train(tmp_path, recipe(), small_cnn(seed=0), data()))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot make the folder of retrained models"):
        read_or_train(tmp_path / "file" / "x", recipe(), small_cnn(seed=0), data())


def _ask(folder, told):
    torch.set_num_threads(1)

    def slow(items, *_):
        told.put("training")
        time.sleep(0.5)
        return items

    told.put(digest(read_or_train(folder, recipe(), small_cnn(seed=0), data(), progress=slow)))


def test_two_processes_that_ask_at_once_train_once(tmp_path):
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    processes = [context.Process(target=_ask, args=(tmp_path, told)) for _ in range(2)]
    for process in processes:
        process.start()
    said = [told.get(timeout=60) for _ in range(3)]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert said.count("training") == 1
    assert len(set(said)) == 2


def test_run_trains_retrained_models_and_caches_them_in_the_output(digits_toml, tmp_path):
    settings = [*TINY, "evaluation.metrics=['tug-of-war']", "method=[{name='ssd', options={alpha=3}}]"]
    (record,) = run(load_config(digits_toml, settings))
    assert record.metrics["tug-of-war"]["ToW"] is not None
    assert len(list((tmp_path / "out" / ".retrained").glob("*.safetensors"))) == 2
    assert record.report.seconds["retrained models"] > 0
    shared = [*settings, f"output='{tmp_path}/second'", f"evaluation.retrained_folder='{tmp_path}/shared'"]
    (again,) = run(load_config(digits_toml, shared))
    assert again.metrics == record.metrics
    assert len(list((tmp_path / "shared").glob("*.safetensors"))) == 2
    assert not (tmp_path / "second" / ".retrained").exists()


def test_dry_run_trains_no_retrained_model(digits_toml, tmp_path):
    list(run(load_config(digits_toml, TINY), dry_run=True))
    assert not (tmp_path / "out").exists()


def test_tune_trains_retrained_models(digits_toml, tmp_path):
    settings = [*TINY, "tuning.method='ssd'", "tuning.target='retrained'", "tuning.rounds=0", "tuning.budget=1.0"]
    tuned = tune(load_config(digits_toml, settings))
    assert tuned.tuning.target_source == "the mean of 2 retrained models on the same samples"


def test_named_checkpoints_and_seeds_go_together(digits_toml, trained_checkpoint):
    config = load_config(digits_toml, ["training.epochs=1", f"evaluation.retrained=['{trained_checkpoint}']"])
    config = attrs.evolve(config, evaluation=attrs.evolve(config.evaluation, retrained_seeds=(7,)))
    found = load_or_retrain(Experiment.load(config))
    named = Experiment.load(config).fresh_model()
    load_checkpoint(named, trained_checkpoint)
    assert digest(found[0]) == digest(named)
    assert len(found) == 2


@pytest.mark.parametrize("seeds", ["[1, 1]", "[-1]"])
def test_invalid_seeds_are_refused(digits_toml, seeds):
    with pytest.raises(ConfigurationError, match=r"retrained_seeds: expected different whole numbers ≥ 0, saw"):
        load_config(digits_toml, [f"evaluation.retrained_seeds={seeds}"])
