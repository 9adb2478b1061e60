"""Models of other libraries by name."""

import sys
from importlib import import_module

import pytest
import torch
from torch import nn

from unlearnkit.data import DeviceTransform
from unlearnkit.models import digest, input_transform, load_checkpoint, load_model, save_checkpoint
from unlearnkit.models.sources import _replace_heads
from unlearnkit.utils.errors import ConfigurationError

IMAGENET = DeviceTransform()


@pytest.fixture
def hugging_face(tmp_path):
    """A folder with a tiny pretrained model of three classes, and its image processor."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    transformers.ResNetForImageClassification(config).half().save_pretrained(tmp_path)
    half = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 32, "width": 32}}
    transformers.ViTImageProcessor(**half).save_pretrained(tmp_path)
    return tmp_path


def test_torchvision_has_a_new_head_for_other_classes():
    model = load_model("torchvision:squeezenet1_1", num_classes=5, pretrained=False).eval()
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert load_model("torchvision:resnet18", pretrained=False).fc.out_features == 1000
    assert input_transform("torchvision:inception_v3").image_size == 299
    assert input_transform("torchvision:resnet18") == IMAGENET


def test_classifiers_of_torchvision_have_a_head_that_is_found():
    models = import_module("torchvision.models")
    for name in ("vit_b_32", "swin_t", "mobilenet_v3_small", "densenet121", "mnasnet0_5", "maxvit_t"):
        with torch.device("meta"):
            model = models.get_model(name, weights=None)
            _replace_heads(model, 1000, 7)
        layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert getattr(layers[-1], "out_features", None) == 7, name


def test_timm_by_its_own_ways(tmp_path):
    timm = pytest.importorskip("timm")
    model = load_model("timm:resnet10t", num_classes=4, pretrained=False, drop_rate=0.5)
    assert model.get_classifier().out_features == 4
    assert model.drop_rate == 0.5
    assert input_transform("timm:resnet18") == IMAGENET
    assert input_transform("timm:vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    saved = timm.create_model("resnet10t", num_classes=4)
    timm.models.save_for_hf(saved, tmp_path)
    model = load_model(f"timm:local-dir:{tmp_path}", num_classes=4)
    assert digest(model) == digest(saved)
    assert input_transform(f"timm:local-dir:{tmp_path}") == DeviceTransform(image_size=176)


def test_hugging_face_from_a_folder(hugging_face):
    name = f"hf:{hugging_face}"
    whole, other = load_model(name), load_model(name, num_classes=5)
    assert next(whole.parameters()).dtype == torch.float32, "the file is in float16"
    assert other(torch.rand(2, 3, 32, 32)).logits.shape == (2, 5)
    mine, theirs = (dict(m.named_parameters()) for m in (whole, other))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine if "classifier" not in key)
    random = load_model(name, num_classes=5, pretrained=False)
    assert not torch.equal(next(random.parameters()), next(whole.parameters()))
    assert input_transform(name) == DeviceTransform(mean=[0.5] * 3, std=[0.25] * 3, image_size=32)
    (hugging_face / "preprocessor_config.json").unlink()
    assert input_transform(name) is None


def test_hugging_face_files_fit_the_model(hugging_face, tmp_path):
    model, loaded = load_model(f"hf:{hugging_face}", pretrained=False).half(), load_model(f"hf:{hugging_face}")
    load_checkpoint(model, hugging_face / "model.safetensors")
    assert digest(model.float()) == digest(loaded)
    save_checkpoint(model, tmp_path / "again.safetensors")
    load_checkpoint(load_model(f"hf:{hugging_face}", pretrained=False), tmp_path / "again.safetensors")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet18", {}, r"expected one of timm:…, torchvision:…, hf:…, saw 'resnet18'"),
        ("timm:", {}, "expected one of timm:…"),
        ("torchvision:resnt18", {}, "there is no classifier 'resnt18'; did you mean 'resnet18'"),
        ("torchvision:fcn_resnet50", {}, "there is no classifier 'fcn_resnet50'"),
        ("torchvision:resnet18", {"depth": 3}, "unexpected keyword argument 'depth'"),
    ],
)
def test_what_cannot_be_made(name, options, words):
    with pytest.raises(ConfigurationError, match=words):
        load_model(name, pretrained=False, **options)


def test_what_timm_and_hugging_face_cannot_make(hugging_face, tmp_path):
    with pytest.raises(ConfigurationError, match="has no option 'depht'"):
        load_model(f"hf:{hugging_face}", depht=3)
    with pytest.raises(ConfigurationError, match=r"^model.name 'hf:.*nothing': "):
        input_transform(f"hf:{tmp_path}/nothing")
    pytest.importorskip("timm")
    with pytest.raises(ConfigurationError, match=r"there is no model 'resnt18'; did you mean 'resnet18'"):
        load_model("timm:resnt18")
    with pytest.raises(ConfigurationError, match=r"unexpected keyword argument 'depht'"):
        load_model("timm:resnet18", pretrained=False, depht=3)


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("timm:x", "timm", "timm"), ("hf:x", "transformers", "transformers")]
)
def test_without_the_package_the_error_names_the_extra(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    for ask in (load_model, input_transform):
        with pytest.raises(ConfigurationError, match=rf"pip install 'unlearnkit\[{extra}\]'"):
            ask(name)
