"""Loading what a configuration names: data, model, splits, checkpoint."""

import attrs
import pytest
import torch
from torch import nn

from unlearnkit.data import ByClass, ByIndex, BySubclass
from unlearnkit.experiments.config import ForgetConfig, load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import train_original
from unlearnkit.models import small_cnn
from unlearnkit.utils.errors import ConfigurationError, StoreError


def not_a_model(**_):
    return "no model"


def not_a_bundle():
    return []


def damaged_bundle():
    raise ConfigurationError("the author's own words")


def experiment(path, *overrides):
    return Experiment.load(load_config(path, overrides))


def test_splits_cover_the_data(digits_toml):
    splits = experiment(digits_toml).splits()
    sizes = {name: len(data) for name, data in splits.items()}
    assert sizes["full-train"] == sizes["retain-train"] + sizes["forget-train"] == 1347
    assert set(splits["forget-test"].targets.tolist()) == {3}
    assert 3 not in splits["retain-test"].targets.tolist()


def test_forgetting_by_index_has_no_test_part(digits_toml):
    splits = experiment(digits_toml, "forget={indices=[4, 2]}").splits()
    assert len(splits["forget-train"]) == 2
    assert "forget-test" not in splits


def test_forget_specs(tmp_path):
    assert ForgetConfig().spec() is None
    assert ForgetConfig(classes=(3,)).spec() == ByClass(classes=3)
    assert ForgetConfig(fine=("rocket",)).spec() == BySubclass(fine="rocket")
    (tmp_path / "ids.txt").write_text("4\n2\n")
    assert ForgetConfig(indices_file=str(tmp_path / "ids.txt")).spec() == ByIndex(indices=[4, 2])
    with pytest.raises(ConfigurationError, match=r"expected one of .* saw \['classes', 'fine'\]"):
        ForgetConfig(classes=(1,), fine=(2,)).spec()


def test_nothing_to_forget(digits_toml):
    with pytest.raises(ConfigurationError, match="expected what to forget, saw nothing"):
        experiment(digits_toml, "forget={}").splits()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("forget.classes=[10]", "expected a class between 0 and 9"),
        ("forget.classes=[0,1,2,3,4,5,6,7,8,9]", "saw all 1347 forgotten"),
        ("forget={indices=[1347]}", "expected indices between 0 and 1346"),
        ("data.name=digit", "no data set is called 'digit'; did you mean 'digits'"),
        ("data.factory=x:y", "expected either name or factory"),
        ("data.options.sed=1", "unknown option 'sed'; did you mean 'seed'"),
        ("data={factory='test_experiment:not_a_bundle'}", "cannot import|DataBundle"),
        ("device=gpu", "expected 'auto'"),
    ],
)
def test_invalid_factories_are_refused(digits_toml, override, message):
    with pytest.raises(ConfigurationError, match=message):
        experiment(digits_toml, override)


def test_an_error_names_the_factory_that_raised_it(digits_toml):
    factory = f"{__name__}:damaged_bundle"
    with pytest.raises(ConfigurationError, match="own words") as error:
        experiment(digits_toml, "data.name=''", f"data.factory='{factory}'", "data.options={}")
    assert error.value.__notes__ == [f"This was raised by data.factory {factory!r}."]


def test_a_fresh_model_depends_on_the_seed_alone(digits_toml):
    before = torch.get_rng_state()
    one, two = experiment(digits_toml).fresh_model(), experiment(digits_toml).fresh_model()
    other = experiment(digits_toml, "training.seed=1").fresh_model()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)
    assert one.head.out_features == 10


def test_the_factory_must_return_a_model(digits_toml):
    path = f"{__name__}:not_a_model"
    with pytest.raises(ConfigurationError, match=r"expected it to return a torch.nn.Module, saw str|cannot import"):
        experiment(digits_toml, f"model.factory='{path}'", "model.options={}").fresh_model()
    made = experiment(digits_toml, "model.factory='torch.nn:Linear'", "model.options={in_features=2, out_features=1}")
    assert isinstance(made.fresh_model(), nn.Linear)


def test_the_checkpoint_must_be_there_and_fit(digits_toml, tmp_path):
    with pytest.raises(ConfigurationError, match="saw none: name a file"):
        experiment(digits_toml, "model.checkpoint=''").original_model()
    with pytest.raises(StoreError, match="does not exist: make it with `unlearnkit train"):
        experiment(digits_toml, f"model.checkpoint='{tmp_path}/none.safetensors'").original_model()
    with pytest.raises(ValueError, match="does not fit SmallCNN"):
        experiment(digits_toml, "model.options.width=8").original_model()
    model, metadata = experiment(digits_toml).original_model()
    assert not model.training
    assert metadata["unlearnkit.factory"] == "unlearnkit.models:small_cnn"


def test_batches_repeat_and_shuffle_by_the_seed(digits_toml):
    plain = experiment(digits_toml, "importance.batch_size=100")
    data = plain.bundle.train
    first = [batch[1] for batch in plain.importance_batches(data)]
    assert torch.equal(torch.cat(first), data.targets)
    assert [len(b) for b in first] == [100] * 13 + [47]
    shuffled = experiment(digits_toml, "importance.shuffle=true", "seed=5").importance_batches(data)
    one, two = (torch.cat([batch[1] for batch in shuffled]) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, data.targets)
    assert attrs.evolve(plain.config, seed=5).seed == 5


made: list[bool] = []


def net(num_classes, pretrained=True, width=4):
    made.append(pretrained)
    return small_cnn(num_classes=num_classes, width=width)


@pytest.fixture
def pretrained_toml(digits_toml, monkeypatch):
    """A configuration whose factory would download weights."""
    monkeypatch.setattr(f"{__name__}.made", [])
    text = digits_toml.read_text()
    digits_toml.write_text(
        text.replace("unlearnkit.models:small_cnn", f"{__name__}:net").replace("{ width = 4 }", "{ pretrained = true }")
    )
    return digits_toml


def test_pretrained_weights_are_not_made_where_a_checkpoint_replaces_them(pretrained_toml, trained_checkpoint):
    config = load_config(pretrained_toml, [f"evaluation.retrained=['{trained_checkpoint}']"])
    assert len(list(run(config))) == 2
    assert made == [False, False]  # the original and the retrained model


def test_pretrained_weights_are_made_for_training(pretrained_toml, tmp_path):
    config = load_config(pretrained_toml, [f"model.checkpoint='{tmp_path}/new.safetensors'", "training.epochs=1"])
    train_original(config)
    assert made == [True]
