"""A CUDA graph on a CPU: operations are written down as torch asks for them, and done again in the same memory."""

import torch
from device_sync import WAITS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from unlearnkit.importance.fisher.engine.graphs import Recorder


class Tape(TorchDispatchMode):
    """Writes down every operation, its arguments and the memory of its results; nothing of Python is in it."""

    def __init__(self):
        super().__init__()
        self.steps, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for t in _written(func, args, kwargs):
            storage = t.untyped_storage()
            if storage.data_ptr() not in self.made:
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        given = _memories((args, kwargs))
        result = func(*args, **kwargs)
        self.made |= _memories(result) - given
        self.steps.append((func, args, kwargs, result))
        return result

    def undo(self):
        """Take back what was done outside of the memory that the tape made: recording does nothing."""
        for storage, values in self.before.values():
            storage.copy_(values)

    def replay(self):
        """Do every step again: into the memory that its result had, which views share with what they were given."""
        with torch.no_grad():
            for func, args, kwargs, result in self.steps:
                given, again = _memories((args, kwargs)), func(*args, **kwargs)
                if func.overloadpacket.__name__.startswith(("empty", "new_empty")):
                    continue
                for old, new in zip(tree_iter(result), tree_iter(again), strict=True):
                    if isinstance(old, Tensor) and _memory(old) not in given:
                        old.copy_(new)


class TapeRecorder(Recorder):
    """Records on a tape, once."""

    def __init__(self):
        self.tape, self.warmed, self.replays = None, 0, 0

    def warm(self, work):
        self.warmed += 1
        return work()

    def record(self, work):
        assert self.tape is None, "one shape only"
        self.tape = Tape()
        with self.tape:
            work()
        self.tape.undo()

        def replay():
            self.replays += 1
            self.tape.replay()

        return replay


def _written(func, args, kwargs):
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (t for t in tree_iter(value) if isinstance(t, Tensor))


def _memories(value):
    return {_memory(t) for t in tree_iter(value) if isinstance(t, Tensor)}


def _memory(tensor):
    return tensor.untyped_storage().data_ptr()
