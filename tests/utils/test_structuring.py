"""Functions by import path, options by name, devices."""

import pytest
import torch

from unlearnkit.distributed.collectives import resolve_device
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.structuring import call, import_path


def test_import_path():
    assert import_path("os.path:join")("a", "b") == "a/b"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os.path.join", "expected an import path as 'package.module:name'"),
        (":join", "expected an import path"),
        ("nowhere_at_all:x", "cannot import nowhere_at_all"),
        ("unlearnkit.models:smal_cnn", "did you mean 'small_cnn'"),
        ("unlearnkit.models:nn", "no function 'nn'"),
    ],
)
def test_wrong_import_paths(path, message):
    with pytest.raises(ConfigurationError, match=message):
        import_path(path)


def takes(*, alpha, lam=1.0):
    return alpha, lam


def test_call():
    assert call(takes, {"alpha": 2}, where="here") == (2, 1.0)
    assert call(dict, {"anything": 2}, where="here") == {"anything": 2}


def test_call_names_the_nearest_option_and_the_missing_one():
    with pytest.raises(ConfigurationError, match="here: unknown option 'alhpa'; did you mean 'alpha'"):
        call(takes, {"alhpa": 2}, where="here")
    with pytest.raises(ConfigurationError, match=r"here: missing a required (keyword-only )?argument: 'alpha'"):
        call(takes, {}, where="here")


def test_type_error_inside_the_function_is_not_reported_as_a_wrong_option():
    def broken(*, x):
        raise TypeError(f"inside {x}")

    with pytest.raises(TypeError, match="inside 1"):
        call(broken, {"x": 1}, where="here")


def test_devices(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_missing_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigurationError, match="'cuda:1' is not there: saw 1 CUDA devices"):
        resolve_device("cuda:1")
    with pytest.raises(ConfigurationError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:N', saw 'gpu'"):
        resolve_device("gpu")


@pytest.mark.gpu
def test_auto_takes_cuda_where_there_is_one():
    assert resolve_device("auto").type == "cuda"
