"""Ways to damage a file: one function each, which changes the file in place."""

import json
import shutil
import struct
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-len(data) // 3] ^= 4
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def missing(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def symlink(path):
    """A symlink to the same bytes outside the folder."""
    moved = Path(tempfile.mkdtemp()) / path.name
    shutil.move(path, moved)
    path.symlink_to(moved)


def pickled(path):
    torch.save({"w": torch.ones(2)}, path)


def nested(path):
    path.write_text("[" * 100_000)


def no_text(path):
    path.write_bytes(b"\xff\xfe\x00\x01" * 8)


# --- safetensors ------------------------------------------------------------------------------------------------------


def huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def lying_header(path):
    """A header that gives the first tensor 10⁹ elements."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"] = [10**9]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def wrong_dtype(path):
    _rewritten(path, lambda tensors: {n: t.to(torch.float16) for n, t in tensors.items()})


def extra_tensor(path):
    _rewritten(path, lambda tensors: {**tensors, "factor/never.heard.of.it": torch.ones(2)})


def missing_tensor(path):
    _rewritten(path, lambda tensors: dict(list(tensors.items())[1:]))


def _rewritten(path, change):
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    save_file(change(tensors), path, metadata)


NAMED = {truncated, flipped, empty, missing, folder, pickled, huge_header, lying_header, wrong_dtype, extra_tensor}
NAMED |= {missing_tensor}
TENSORS = NAMED | {symlink}
TEXTS = {truncated, flipped, empty, missing, folder, symlink, pickled, nested, no_text}
