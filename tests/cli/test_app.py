"""The command line: output, errors in one message, exit codes."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from typer.testing import CliRunner

from unlearnkit import __version__
from unlearnkit.cli import console, options
from unlearnkit.cli.app import app

ROOT = Path(__file__).parents[2]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_run_prints_a_table_and_where_the_results_are(digits_toml, tmp_path):
    result = call("run", digits_toml, "--quiet")
    assert result.exit_code == 0
    assert "retain-test" in result.output
    assert "prune changed" in result.output
    assert (tmp_path / "out" / "ssd" / "report.json").exists()


def test_dry_run_prints_what_would_be_edited(digits_toml, tmp_path):
    result = call("run", digits_toml, "--dry-run", "--method", "ssd", "-q")
    assert result.exit_code == 0
    assert "head.weight" in result.output
    assert "nothing was written" in result.output
    assert "prune" not in result.output
    assert not (tmp_path / "out").exists()


def test_settings_reach_the_method(digits_toml):
    result = call("run", digits_toml, "-q", "--dry-run", "-m", "ssd", "--set", "method.ssd.options.alpha=9.8")
    assert "ssd changed" in result.output
    assert call("run", digits_toml, "-q", "-m", "sdd").exit_code == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.ssd.options.alpha=-1", "expected a number > 0, saw -1"),
        ("importence.batch_size=1", "did you mean 'importance'?"),
        ("forget.classes=[11]", "expected a class between 0 and 9"),
        ("model.checkpoint=none.safetensors", "does not exist"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(digits_toml, setting, message):
    result = call("run", digits_toml, "-q", "--set", setting)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_traceback_on_request(digits_toml):
    result = call("run", digits_toml, "-q", "--traceback", "--set", "device=gpu")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "ConfigurationError"


def test_a_remark_is_shown_as_a_warning(digits_toml):
    result = call("run", digits_toml, "-q", "-m", "ssd", "--set", "method.ssd.options.alpha=10")
    assert result.exit_code == 0
    assert "warning: ssd: α = 10 can select nothing: F_f/F_D is at most 1/p = 9.83212" in result.output
    assert "ssd changed nothing: 0 of" in result.output


def test_train(digits_toml, tmp_path):
    settings = ("--set", f"model.checkpoint={tmp_path}/new.safetensors", "--set", "training.epochs=2")
    result = call("train", digits_toml, "-q", *settings)
    assert result.exit_code == 0
    assert "epoch 2: loss" in result.output
    assert "test: loss" in result.output
    again = call("train", digits_toml, "-q", *settings)
    assert again.exit_code == 2
    assert "already exists" in again.output


def test_methods_and_plugins_are_listed():
    methods = call("methods").output
    assert all(word in methods for word in ("binary-mask", "prune", "ssd", "diagonal-fisher", "tug-of-war"))
    plugins = call("plugins").output
    assert "unlearnkit_methods.ssd" in plugins
    assert "usable" in plugins


def test_one_method_in_full_and_as_json():
    shown = call("methods", "ssd").output
    assert all(word in shown for word in ("alpha (α) = 10.0", f"unlearnkit {__version__}", "[[method]]", "F_f, F_r"))
    [found] = json.loads(call("methods", "ssd", "--json").output)
    assert found["name"] == "ssd"
    assert {one["name"] for one in json.loads(call("methods", "--json").output)} > {"ssd", "diagonal-fisher", "zrf"}


def test_an_unknown_method_is_an_error_that_suggests_one():
    result = call("methods", "sdd")
    assert result.exit_code == 2
    assert "did you mean 'ssd'?" in result.output


@pytest.mark.parametrize("data", ["digits", "cifar100", "image-folder", "own"])
def test_init_writes_a_configuration_that_check_understands(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    result = call("init", data)
    assert result.exit_code == 0, result.output
    assert "next: unlearnkit check experiment.toml" in result.output
    result = call("check", "experiment.toml")
    assert result.exit_code == (2 if data == "own" else 0), result.output
    assert ("cannot import my_project" in result.output) == (data == "own")
    assert "Traceback" not in result.output
    again = call("init", data)
    assert again.exit_code == 2
    assert "already exists" in again.output


def test_check_names_every_mistake_at_once_and_does_nothing(digits_toml, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    settings = ["model.options={widht=3}", "evaluation.metrics=['nothing']", "method.ssd.options.alpha=-1"]
    settings += ["method.prune.grid={tua=[1]}", "evaluation.splits=['forgettest']", "tuning.method='sdd'"]
    settings += ["recommend.methods=['shrinkperturb']", "comparison.metrics=['tug']", "deletion.method='sd'"]
    result = call("check", digits_toml, *(part for one in settings for part in ("--set", one)))
    assert result.exit_code == 2
    for said in ("unknown option 'widht'; did you mean 'width'", "'nothing'", "expected a number > 0, saw -1"):
        assert said in result.output
    for said in ("'tua'; did you mean 'tau'", "'forgettest'; did you mean 'forget-test'", "comparison.metrics: "):
        assert said in result.output
    for said in ("tuning.method: ", "deletion.method: ", "'shrinkperturb'; did you mean 'shrink-perturb'"):
        assert said in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_check_looks_at_what_a_search_would_need(digits_toml):
    settings = ["tuning.method=ssd", "tuning.operating=alfa", "method.prune.tuned=true", "tuning.fractions=[2]"]
    result = call("check", digits_toml, *(part for one in settings for part in ("--set", one)))
    assert result.exit_code == 2
    for said in (
        "tuning.method: Tuner.operating: expected a monotone option of ssd",
        "method.prune: Tuner.operating: ",
    ):
        assert said in result.output
    settings = settings[:1] + settings[2:]
    result = call("check", digits_toml, *(part for one in settings for part in ("--set", one)))
    assert "Tuner.fractions: expected shares above 0 and up to 1, saw (2.0,)" in result.output


def test_check_takes_options_of_metrics_that_only_a_comparison_measures(digits_toml):
    settings = ["comparison.metrics=['linear-probe']", "evaluation.options.linear-probe.most=100"]
    result = call("check", digits_toml, *(part for one in settings for part in ("--set", one)))
    assert result.exit_code == 0, result.output


def test_check_says_what_is_not_there_yet(digits_toml):
    settings = ["model.checkpoint=later.safetensors", "method=[]", "evaluation.retrained=['none.safetensors']"]
    result = call("check", digits_toml, *(part for one in settings for part in ("--set", one)))
    assert result.exit_code == 0
    assert "later.safetensors does not exist yet: `unlearnkit train` makes it" in result.output
    assert "there is no [[method]]" in result.output
    assert "evaluation.retrained: none.safetensors does not exist" in result.output


def test_the_schema_fits_the_configurations_of_the_docs():
    schema = json.loads(call("check", "--schema").output)
    assert schema["properties"]["tuning"]["properties"]["budget"]["maximum"] == 1
    assert schema["properties"]["importance"]["properties"]["reference"]["enum"] == ["full", "retain"]
    validate = jsonschema.Draft202012Validator(schema).validate
    for path in sorted((ROOT / "docs" / "experiments").glob("*.toml")):
        validate(tomllib.loads(path.read_text(encoding="utf-8")))
    with pytest.raises(jsonschema.ValidationError, match="importence"):
        validate({"output": "out", "model": {"factory": "a:b"}, "data": {}, "importence": {}})


@pytest.mark.parametrize(("command", "option"), [("train", "--seed"), ("train", "--output"), ("compare", "--seed")])
def test_options_without_effect_are_refused(digits_toml, command, option):
    refused = call(command, digits_toml, option, 3)
    assert refused.exit_code == 2
    assert "No such option" in refused.output


def test_device_output_and_seed_are_options_too(digits_toml, tmp_path):
    other = tmp_path / "other"
    result = call("run", digits_toml, "-q", "-m", "ssd", "--output", other, "--device", "cpu", "--seed", 7)
    assert result.exit_code == 0, result.output
    assert f"{other}/ssd/report.json" in result.output.splitlines()
    config = json.loads((other / "ssd" / "report.json").read_text())["manifest"]["config"]
    assert (config["seed"], config["device"]) == (7, "cpu")


def test_labels_and_names_are_completed(digits_toml):
    context = SimpleNamespace(params={"config": str(digits_toml)})
    assert options.labels(context, "s") == ["ssd"]
    assert options.labels(SimpleNamespace(params={"config": "none.toml"}), "") == []
    assert "binary-mask" in options.installed_names("bin")


@pytest.mark.parametrize("width", [40, 60, 100])
def test_nothing_is_cut_off_on_a_narrow_screen(digits_toml, monkeypatch, width):
    monkeypatch.setattr(console.out, "width", width)
    shown = call("run", digits_toml, "-q", "-m", "ssd").output
    assert "…" not in shown
    assert all(split in shown for split in ("retain-test", "forget-test", "forget-train"))
    table = shown.partition("ssd changed")[0]
    assert max(map(len, table.splitlines())) <= width


def test_nothing_but_results_where_no_terminal_is(digits_toml):
    command = [sys.executable, "-m", "unlearnkit", "run", digits_toml, "--method", "prune"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m unlearnkit methods | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0"
    assert "rror" not in done.stderr


def test_the_version():
    assert call("--version").output.strip() == f"unlearnkit {__version__}"


def test_help_names_every_command():
    text = call("--help").output
    assert all(command in text for command in ("run", "train", "demo", "methods", "plugins"))


@pytest.mark.parametrize("module", [["-m", "unlearnkit"], ["-c", "from unlearnkit.__main__ import main; main()"]])
def test_the_module_is_the_command(module):
    result = subprocess.run([sys.executable, *module, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"unlearnkit {__version__}"


@pytest.mark.parametrize("command", ["train", "ledger", "forget", "rollback", "purge"])
def test_commands_for_one_process_refuse_torchrun(digits_toml, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = call(command, digits_toml, "-q")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert f"`unlearnkit {command}` works in one process: expected no torchrun, saw 2 processes" in said


def test_an_output_with_an_emoji(digits_toml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["run", str(digits_toml), "-q", "-m", "prune", "--output", "out😀"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out😀" / "prune" / "report.json").exists()
