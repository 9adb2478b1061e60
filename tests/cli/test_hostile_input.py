"""Input that no user would write: one line, exit code 2, no traceback, and nothing is read or allocated without end."""

import json
import resource
import struct
import zlib
from itertools import islice

import pytest
import torch
from report_record import FULL
from typer.testing import CliRunner

from unlearnkit.cli.app import app

MIB = 1 << 20


@pytest.fixture
def refused(digits_toml, tmp_path, monkeypatch, record_property):
    """Calls a command that must refuse; returns its message, which is one line."""
    monkeypatch.chdir(tmp_path)

    def refused(*arguments):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        assert done.exit_code == 2, (done.output, done.exception)
        (said,) = done.output.splitlines()
        assert said.startswith("error: ")
        assert all(c.isprintable() for c in said)
        assert len(said) < 1000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 * MIB // 1024
        record_property("tried", ("hostile inputs", 1))
        return said

    return refused


def run(*settings):
    return ["run", "experiment.toml", "-q", *(word for setting in settings for word in ("--set", setting))]


def test_several_problems_are_one_line(refused, tmp_path):
    said = refused(*run("trainings={}", "seed='x'", "method.ssd.alpha=1"))
    assert "3 problems: (1) " in said
    assert "no method has the label 'sd'; did you mean 'ssd'?" in refused("run", "experiment.toml", "-m", "sd")


@pytest.mark.parametrize("number", [str(2**63), str(-(2**63) - 1), "9" * 5000, "1e3", "0x10", "٣", "1\0"])
def test_numbers_of_samples(refused, tmp_path, number):
    (tmp_path / "ids.txt").write_text(f"1\n{number}\n", encoding="utf-8")
    said = refused(*run("forget={indices_file='ids.txt'}"))
    assert "ids.txt: line 2: expected a whole number, saw" in said


@pytest.mark.parametrize(
    "settings",
    [
        ["forget={indices=[9223372036854775808]}"],
        ["seed=18446744073709551616"],
        ["training.seed=99999999999999999999"],
        ["method.ssd.options.alpha=1" + "0" * 400],
        ["data.options={x=[1, {y=9223372036854775808}]}"],
        ["training.epochs=" + "9" * 5000],
    ],
)
def test_numbers_of_settings(refused, settings):
    assert "expected a" in refused(*run(*settings))


@pytest.mark.parametrize("text", ["a\\u0000b", "a\\nb", "a\\u001b[2Jb"])
@pytest.mark.parametrize(
    "key", ["output", "model.checkpoint", "method.ssd.label", "data.options.root", "forget.indices_file"]
)
def test_control_characters_in_a_configuration(refused, key, text):
    said = refused(*run(f'{key}="{text}"'))
    assert "expected text without control characters" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "a\udcff.toml"],
        ["run", "experiment.toml", "--method", "\udcff"],
        ["report", "\udcff"],
        ["patch", "inspect", "\udcff"],
        ["run", "experiment.toml", "--set", "output=\udcff"],
        ["run", "a\nb.toml"],
        ["new-plugin", "a\udcff"],
    ],
)
def test_text_of_the_command_line_that_is_not_unicode(refused, arguments):
    assert "expected text without control characters" in refused(*arguments)


@pytest.mark.parametrize("text", ["[" * 100_000, "a = " + "[" * 100_000, "a = " + "9" * 5000, "\0", 'a = "\\ud800"'])
def test_configurations_that_are_no_toml(refused, tmp_path, text):
    (tmp_path / "bad.toml").write_text(text)
    assert "bad.toml is not TOML" in refused("run", "bad.toml")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/full"])
def test_devices_in_place_of_files(refused, tmp_path, device):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "report.json").symlink_to(device)
    refused("report", "results")
    refused("run", device)
    refused(*run(f"forget={{indices_file='{device}'}}"))
    refused(*run(f"model.checkpoint='{device}'"))
    refused("patch", "inspect", device)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(FULL.to_dict() | {"metrics": {"m": {"a": float("nan")}}}),
        json.dumps(FULL.to_dict() | {"seconds": {"a": float("inf")}}),
        "[" * 100_000,
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        "3",
        "null",
        '{"format": "unlearnkit-run-1"}',
        json.dumps(FULL.to_dict() | {"tensors": 3}),
        json.dumps(FULL.to_dict() | {"manifest": {"config": 3}}),
        json.dumps(FULL.to_dict() | {"tuning": {"chosen": []}}),
    ],
)
def test_records_of_wrong_types(refused, tmp_path, text):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "report.json").write_text(text)
    assert "report.json" in refused("report", "results")


ODD = [None, True, -1, 0, 1.5, 10**30, "x", "", [], {}, [1], [None], {"x": 1}, float("nan"), float("inf")]


def changed_records():
    """The record of a run with each of its values in turn replaced by each odd one."""
    text = json.dumps(FULL.to_dict())
    for place in places(json.loads(text)):
        for value in ODD:
            record = json.loads(text)
            at = record
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = value
            yield record


def places(value, path=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def show(folder, records, record_property):
    """Call ``report`` on records; return how many pages were made."""
    made = tried = 0
    for record in records:
        (folder / "report.json").write_text(json.dumps(record))
        done = CliRunner().invoke(app, ["report", str(folder)])
        assert done.exit_code in {0, 2}, (done.output, done.exception)
        assert done.exit_code == 0 or "report.json" in " ".join(done.output.split()), done.output
        made += done.exit_code == 0
        tried += 1
    record_property("tried", ("records of a run with a value of another type", tried))
    return made, tried


def test_some_records_with_a_value_of_another_type(tmp_path, record_property):
    made, tried = show(tmp_path, islice(changed_records(), 7, None, 397), record_property)
    assert 0 < made < tried


@pytest.mark.slow
def test_many_records_with_a_value_of_another_type(tmp_path, record_property):
    made, tried = show(tmp_path, islice(changed_records(), 0, None, 7), record_property)
    assert 0 < made < tried


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pickles(refused, tmp_path, keep, zipped):
    torch.save({"w": torch.ones(4, 4)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: int(keep * len(whole))])
    assert "w.pt is damaged or holds more than weights" in refused(
        *run("model.checkpoint='w.pt'", "model.allow_pickle=true")
    )


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_image_bombs(refused, tmp_path, side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "images" / part / name).mkdir(parents=True)
            (tmp_path / "images" / part / name / "bomb.png").write_bytes(bomb)
    settings = ["data={name='image-folder', options={root='images', in_memory=true}}", "forget={classes=['a']}"]
    assert "cannot read the image images/train/a/bomb.png" in refused(*run(*settings))
