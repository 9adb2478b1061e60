"""Models and data by name, and how both normalise images."""

import json

import pytest
from digits_as_cifar10 import write_images

from unlearnkit.experiments.check import check_config
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.factories import data_factory, model_factory, normalisation, normalisation_remark
from unlearnkit.experiments.train import train_original
from unlearnkit.utils.errors import ConfigurationError, UnlearnKitWarning

TOML = """
output = "{root}/out"
device = "cpu"
[model]
name = "torchvision:squeezenet1_1"
checkpoint = "{root}/model.safetensors"
[data]
name = "image-folder"
options = {{ root = "{root}/images", image_size = 32 }}
[forget]
classes = ["cat"]
[training]
epochs = 1
"""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("named")
    write_images(root / "images", train=2, test=1)
    (root / "c.toml").write_text(TOML.format(root=root))
    return root


def load(images, *overrides):
    return load_config(images / "c.toml", overrides)


def test_a_model_by_name_trains_and_is_loaded_again(images):
    config = load(images, "model.options.pretrained=false")
    record = train_original(config)
    experiment = Experiment.load(config)
    model, metadata = experiment.original_model()
    assert model.classifier[1].out_channels == 10
    assert metadata["unlearnkit.factory"] == "torchvision:squeezenet1_1"
    expected = {"mean": [*IMAGENET[0]], "std": [*IMAGENET[1]]}
    found = json.loads(json.dumps(record["manifest"]["normalisation"]))
    assert found == {"model": {"image_size": 224, **expected}, "data": {**expected, "image_size": 32}}


def test_the_same_normalisation_needs_no_warning(images):
    Experiment.load(load(images))  # warnings are errors here
    assert check_config(load(images))[0] == []


def test_another_normalisation_of_the_data_is_a_warning(images):
    config = load(images, "data.options.mean=[0.5, 0.5, 0.5]")
    words = r"weights of 'torchvision:.*' expect .* mean: \[0.485, 0.456, 0.406\] and \[0.5, 0.5, 0.5\]: set data"
    with pytest.warns(UnlearnKitWarning, match=words):
        Experiment.load(config)
    assert any("normalised otherwise" in remark for remark in check_config(config)[1])
    assert normalisation_remark(load(images, "data.options.std=[1, 1]")) != ""
    assert (
        normalisation_remark(load(images, "data.options.mean=[0.5, 0.5, 0.5]", "model.options.pretrained=false")) == ""
    )


def test_the_data_can_take_the_normalisation_of_the_model(images):
    config = load(images, "data.normalise='model'")
    path, options = data_factory(config)
    assert path == "unlearnkit.data:image_folder"
    assert (options["mean"], options["std"], options["image_size"]) == (*IMAGENET, 32), "image_size is set"
    Experiment.load(config)
    with pytest.raises(ConfigurationError, match=r"'model' replaces data.options.mean: remove one"):
        data_factory(load(images, "data.normalise='model'", "data.options.mean=[1, 1, 1]"))
    with pytest.raises(ConfigurationError, match=r"normalisation of 'unlearnkit.models:small_cnn' is not known"):
        data_factory(
            load(images, "data.normalise='model'", "model.name=''", "model.factory='unlearnkit.models:small_cnn'")
        )


def test_what_is_not_known_is_none(digits_toml):
    assert normalisation(load_config(digits_toml)) == {"model": None, "data": None}


def test_data_of_hugging_face_by_name(images):
    path, options = data_factory(load(images, "data.name='hf-datasets:uoft-cs/cifar10'", "data.options={image='img'}"))
    assert (path, options) == ("unlearnkit.data:hf_dataset", {"path": "uoft-cs/cifar10", "image": "img"})


@pytest.mark.parametrize("override", ["model.name=''", "model.factory='a:b'"])
def test_a_model_has_either_a_name_or_a_factory(images, override):
    with pytest.raises(ConfigurationError, match="model: expected either name or factory, saw"):
        model_factory(load(images, override).model)
    assert any(
        "model: expected either name or factory" in problem for problem in check_config(load(images, override))[0]
    )


def test_check_finds_an_unknown_name(images):
    problems, _ = check_config(load(images, "model.name='torchvision:resnt18'", "data.name='image-foldr'"))
    assert any("there is no classifier 'resnt18'; did you mean 'resnet18'" in problem for problem in problems) or (
        "data.name: no data set is called 'image-foldr'" in problems[0]
    )
