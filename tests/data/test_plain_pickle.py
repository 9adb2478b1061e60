"""Pickles that may hold plain values and numpy arrays only."""

import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

from unlearnkit.data.cifar100 import load_plain_pickle
from unlearnkit.utils.errors import StoreError

VALUES = {"text": "é", "bytes": b"\xff", "none": b"", "numbers": [1, 2.5, True, None], "nested": {"a": (1, 2)}}


class Harmful:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_arrays_in_every_protocol(tmp_path, protocol):
    path = tmp_path / "values"
    arrays = {"u1": np.arange(6, dtype=np.uint8).reshape(2, 3), "f8": np.array([0.5])}
    path.write_bytes(pickle.dumps(VALUES | arrays, protocol=protocol))
    seen = load_plain_pickle(path)
    for key, array in arrays.items():
        assert seen[key].dtype == array.dtype
        np.testing.assert_array_equal(seen[key], array)
    if protocol != 0:  # the text protocol can write bytes only as text
        assert {key: seen[key] for key in VALUES} == VALUES


def test_text_of_python_2_is_read_as_latin1(tmp_path):
    (tmp_path / "old").write_bytes(b"\x80\x02}U\x04dataU\x02\xff\x00s.")
    assert load_plain_pickle(tmp_path / "old") == {"data": "\xff\x00"}


def test_arrays_as_numpy_1_wrote_them(tmp_path):
    new = pickle.dumps(np.arange(3, dtype=np.int64), protocol=2)
    path = tmp_path / "old"
    path.write_bytes(new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_plain_pickle(path).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (Harmful(os.system, "true"), "system"),
        (Harmful(eval, "1"), "eval"),
        (Harmful(bytearray, 10), "bytearray"),
        (Harmful(getattr, "a", "upper"), "getattr"),
        (Harmful(__import__, "os"), "__import__"),
    ],
)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_anything_else_is_refused_and_not_run(tmp_path, harm, name, protocol):
    path = tmp_path / "harm"
    path.write_bytes(pickle.dumps({"data": harm}, protocol=protocol))
    with pytest.raises(StoreError, match="refused a pickle that asks for") as caught:
        load_plain_pickle(path)
    assert name in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_codec_but_latin1(tmp_path):
    path = tmp_path / "codec"
    path.write_bytes(b"c_codecs\nencode\n(V1\nVzlib_codec\ntR.")
    with pytest.raises(StoreError, match="expected bytes encoded as latin1"):
        load_plain_pickle(path)


def test_calls_that_allocate_memory_are_refused(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(pickle.dumps(Harmful(bytes, 10**15), protocol=2))
    with pytest.raises(StoreError, match="is damaged"):
        load_plain_pickle(path)


def array_of(dtype, content=bytes(8)):
    """A pickle that makes an array by numpy's constructor or by its own two calls."""
    number = f"cnumpy\ndtype\n(V{dtype}\nI00\nI01\ntR".encode()
    raw = b"B" + struct.pack("<I", len(content)) + content
    return [
        b"\x80\x03cnumpy\nndarray\n((I1\nt" + number + raw + b"tR.",
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n(I1\nt"
        + number
        + b"I00\n"
        + raw
        + b"tb.",
    ]


@pytest.mark.parametrize("dtype", ["O8", "V8", "S8", "U2", "M8", "f8,i4", "O"])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, dtype):
    """An array of objects made of raw bytes would be pointers of the file's choice."""
    path = tmp_path / "array"
    for content in array_of(dtype):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"expected numbers in the arrays|is damaged"):
            load_plain_pickle(path)


def test_altered_dtypes_and_constructors_are_refused(tmp_path):
    path = tmp_path / "array"
    constructor, own = array_of("f8")
    path.write_bytes(own)
    assert load_plain_pickle(path).tolist() == [0.0]
    altered = b"(I3\nV|\nN(VO8\ntNI8\nI1\nI0\ntb"
    for content in (
        constructor,
        own.replace(b"tRI00", b"tR" + altered + b"I00"),
        own.replace(b"(I1\n(I1", b"(I1\n(I9"),
    ):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"expected numbers in the arrays|is damaged"):
            load_plain_pickle(path)


@pytest.mark.slow
def test_ten_thousand_mutations_under_a_memory_limit(tmp_path, record_property):
    """Each is read or refused; none takes more than a gigabyte or another kind of error."""
    program = f"""
import pickle, random, resource
from pathlib import Path
import numpy as np
from unlearnkit.data.cifar100 import load_plain_pickle
from unlearnkit.utils.errors import StoreError
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30),) * 2)
made, path = random.Random(0), Path({str(tmp_path / "mutant")!r})
values = {{"data": np.arange(60, dtype=np.uint8).reshape(20, 3), "fine_labels": list(range(20)), "names": ["a", "b"]}}
seeds, refused = [pickle.dumps(values, protocol=p) for p in range(6)], 0
for _ in range(10_000):
    content = bytearray(made.choice(seeds))
    for _ in range(made.randint(1, 4)):
        place, kind = made.randrange(len(content)), made.randrange(3)
        if kind == 0:
            content[place] = made.randrange(256)
        elif kind == 1:
            del content[place : place + made.randint(1, 9)]
        else:
            content[place:place] = made.randbytes(made.randint(1, 9))
        content = content or bytearray(b".")
    path.write_bytes(content)
    try:
        load_plain_pickle(path)
    except StoreError as error:
        assert len(str(error).splitlines()) == 1, str(error)
        refused += 1
print(refused)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 5_000 < int(done.stdout) <= 10_000
    record_property("tried", ("mutated pickles of CIFAR-100", 10_000))


@pytest.mark.parametrize("cut", [0, 1, 5, 30, -1])
def test_a_truncated_file(tmp_path, cut):
    path = tmp_path / "cut"
    path.write_bytes(pickle.dumps({"data": np.arange(10)})[:cut])
    with pytest.raises(StoreError, match="is damaged or not a pickle"):
        load_plain_pickle(path)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev", "pipe"])
def test_anything_but_a_file_is_not_read(tmp_path, device):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "data").symlink_to(tmp_path / device)
    with pytest.raises(StoreError, match="data: expected a file, saw a folder, a pipe or a device"):
        load_plain_pickle(tmp_path / "data")


def test_a_missing_file(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read .*absent"):
        load_plain_pickle(tmp_path / "absent")
