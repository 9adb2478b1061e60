"""Intercepts the torch functions that use a parameter, on this thread only, and taps the gradients of their results."""

import abc
import sys
import threading
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unlearnkit.data.batches import map_tensors
from unlearnkit.importance.fisher.engine.call_plan import Action, Step, UnprovenError, results
from unlearnkit.importance.fisher.engine.recurrent_cells import hindrance, written_out
from unlearnkit.importance.fisher.engine.regions import Region, region_of
from unlearnkit.importance.fisher.engine.rule import Call, Rule, rule_for
from unlearnkit.models.norm_gradients import fix_norm_gradient
from unlearnkit.models.objective import Objective, check_losses

_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
_IN_PLACE = frozenset(
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "and", "or", "xor", "mod", "matmul")
)


Gradients = tuple[Tensor | None, ...]
"""One for each floating result of a function, in order; None where no loss depends on it."""
Sink = Callable[[Gradients, tuple[Tensor, ...]], None]


@final
class Tap(torch.autograd.Function):
    """The identity; its backward hands the gradients and the saved tensors to a sink and passes the gradients on.

    It works on its arguments in place, so that what follows may do so too, and makes no copy. The saved tensors go
    through autograd's own hooks: checkpointing recomputes them, and an edit in place is detected.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, sink: Sink, count: int, *tensors: Tensor) -> Any:
        """Return the first ``count`` tensors themselves; see the class. The anchor makes them require gradients."""
        del anchor
        ctx.save_for_backward(*tensors[count:])
        ctx.sink = sink
        ctx.count = len(tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(*tensors[:count])
        return tensors[:count] if count > 1 else tensors[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Hand the gradients to the sink and return them."""
        if any(g is not None for g in grads):
            saved = ctx.saved_tensors  # checkpointing recomputes them here, and must be seen doing it
            with torch._C.DisableTorchFunction(), torch.no_grad():  # noqa: SLF001 - torch's own switch
                ctx.sink(grads, saved)
        return (None, None, None, *grads, *[None] * (ctx.count - len(grads)))


def _foreign(node: Any) -> bool:
    """Whether a node of a graph is of an autograd function that is neither torch's nor ours."""
    return not getattr(type(node), "_forward_cls", Tap).__module__.startswith("unlearnkit.")


def tap(y: Tensor, anchor: Tensor, sink: Sink, saved: tuple[Tensor, ...], *, fresh: bool = False) -> Tensor:
    """Put a tap on a tensor, without a copy where that is safe."""
    base, shape = y._base if fresh else None, y.shape  # noqa: SLF001 - torch has no public name for it
    if (
        base is not None
        and base.grad_fn is not None
        and base.numel() == y.numel()
        and base.is_contiguous()
        and y.is_contiguous()
    ):
        # A linear layer on (n, t, …) rows is a product of (n·t, …) rows, viewed: the tap sits under the view.
        # A view made anew, because torch goes back through ``y`` by a copy of its gradient.
        rows: Tensor = Tap.apply(anchor, lambda found, kept: sink((found[0].reshape(shape),), kept), 1, base, *saved)
        return rows.view(shape)
    own = y.clone() if y._is_view() else y  # noqa: SLF001
    tapped: Tensor = Tap.apply(anchor, sink, 1, own, *saved)
    return tapped


def tap_all(value: Any, anchor: Tensor, sink: Sink, saved: tuple[Tensor, ...]) -> Any:
    """Put one tap on all floating tensors of a result."""
    found = results(value)
    tapped = Tap.apply(anchor, sink, len(found), *(t.clone() for t in found), *saved)
    by = dict(zip(map(id, found), tapped if isinstance(tapped, tuple) else (tapped,), strict=True))
    return map_tensors(value, lambda t: by.get(id(t), t))


@final
@attrs.frozen(kw_only=True, eq=False)
class Seen:
    """A call that has a parameter, or a tensor made of parameters only, among its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    tracked: tuple[Tensor, ...]

    def run(self) -> Any:
        result = self.function(*self.args, **self.kwargs)
        fix_norm_gradient(self.function, result)
        return result

    def run_detached(self, rule: Rule) -> Any:
        """Call the function through its rule, with its tracked arguments detached."""
        cut = {id(t): t.detach() for t in self.tracked}
        args = [_replace(value, cut) for value in self.args]
        kwargs = {key: _replace(value, cut) for key, value in self.kwargs.items()}
        return rule.forward(self.function, *args, **kwargs)


class Guide(abc.ABC):
    """Decides what happens to each intercepted call, and receives the gradients of claimed calls."""

    data_rows: int = 0
    """Rows by which a tensor that came from an autograd function counts as data; 0 where a plan says what it is."""

    @abc.abstractmethod
    def step(self, seen: Seen) -> Step | None:
        """Decide about a call; None to run it as it is."""

    @abc.abstractmethod
    def sink(self, step: Step, call: Call, y: Any) -> Sink:
        """Return what receives the gradients of a claimed call's output ``y``."""

    def passed(self, function: Callable[..., Any], args: tuple[Any, ...], tensors: list[Tensor], result: Any) -> None:
        """Observe a call without parameters; by default nothing happens."""
        del function, args, tensors, result

    def returned(self, tensors: list[Tensor], result: Any) -> None:
        """Observe what a call with parameters returned; by default nothing happens."""
        del tensors, result


@final
class Interceptor(TorchFunctionMode):
    """A thread-local torch function mode."""

    def __init__(self, named: Mapping[str, Tensor], guide: Guide) -> None:
        super().__init__()
        self._guide = guide
        self._labels = {id(p): name for name, p in named.items()}
        self._recomputing = False
        self.unseen = False
        """Whether a parameter was used without gradients, as in a checkpoint that runs its segment again later."""
        self.anchor = torch.zeros((), device=next(iter(named.values())).device, requires_grad=True)
        self.derived: dict[str, tuple[Tensor, frozenset[str]]] = {}
        self.regions: dict[str, Region] = {}
        """Which of `derived` are a part of one parameter."""
        self._named = named

    def label(self, tensor: Tensor | None) -> str | None:
        return None if tensor is None else self._labels.get(id(tensor))

    def forward(self, model: nn.Module, objective: Objective, batch: Any) -> Tensor:
        """Run the forward pass, and return one loss per sample."""
        with self:
            losses = objective.losses(model, batch)
        return check_losses(losses, batch, objective=objective)

    def backward(self, loss: Tensor, *, keep: bool = False) -> None:
        """Run the backward pass: every tap's sink gets its gradient, and no parameter does.

        The mode stays on, so that segments recomputed by checkpointing are tapped again.
        """
        self._recomputing = True
        with self:
            inside(torch.autograd.backward)(loss, retain_graph=keep, inputs=[self.anchor])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors(args) + _tensors(kwargs.values()) if kwargs else _tensors(args)
        tracked = tuple([t for t in tensors if id(t) in self._labels or (t.requires_grad and self._adopts(t))])
        if not tracked:
            result = func(*args, **kwargs)
            fix_norm_gradient(func, result)
            if not self._recomputing:
                self._guide.passed(func, (*args, *kwargs.values()), tensors, result)
            return result
        if not torch.is_grad_enabled():
            self.unseen = True
            return func(*args, **kwargs)
        names = tuple([self._labels[id(t)] for t in tracked])
        seen = Seen(function=func, args=args, kwargs=kwargs, tensors=tuple(tensors), names=names, tracked=tracked)
        if self._recomputing:
            return self._again(seen)
        result = self._first(seen)
        self._guide.returned(tensors, result)
        return result

    def _first(self, seen: Seen) -> Any:
        step = self._guide.step(seen)
        if step is None:
            result = seen.run()
            if any(t.requires_grad for t in _tensors([result])):
                raise UnprovenError(
                    f"{Step(action=Action.DERIVE, function=seen.function, names=seen.names).describe()}"
                    ": a call that the first batch did not make"
                )
            return result
        if step.action is Action.ENTER:
            reason = hindrance(seen.function, seen.args)
            if reason is not None:
                raise UnprovenError(f"{step.describe()}: {reason}")
            with self:
                return entered(seen.function)(*seen.args, **seen.kwargs)
        return self._derive(seen) if step.action is Action.DERIVE else self._claim(seen, step)

    def _derive(self, seen: Seen) -> Any:
        result = seen.run()
        bases = frozenset[str]().union(*(self.derived[n][1] if n in self.derived else {n} for n in seen.names))
        edited = seen.args[0] if edits(seen.function, seen.args, seen.kwargs) and seen.args else None
        for tensor in _tensors([result, edited]):
            if tensor.requires_grad and (id(tensor) not in self._labels or tensor is edited):
                self._derived_of(tensor, bases)
                base = self._named.get(next(iter(bases))) if len(bases) == 1 and tensor is not edited else None
                region = region_of(seen.function, seen.args, seen.kwargs, tensor, base) if base is not None else None
                if region is not None:
                    self.regions[self._labels[id(tensor)]] = region
        return result

    def _adopts(self, tensor: Tensor) -> bool:
        """Label what an autograd function, which nobody sees called, has made of parameters alone."""
        if not _foreign(tensor.grad_fn):
            return False
        if tensor.dim() and tensor.shape[0] == self._guide.data_rows:  # of data without gradients as well
            return False
        names, waiting = set[str](), list[Any]([tensor.grad_fn])
        while waiting:
            node = waiting.pop()
            label = self._labels.get(id(node.variable)) if hasattr(node, "variable") else ""
            if label is None or (hasattr(type(node), "_forward_cls") and not _foreign(node)):
                return False
            names |= {label} - {""}
            waiting += [following for following, _ in node.next_functions if following is not None]
        return self._derived_of(tensor, frozenset(names))

    def _derived_of(self, tensor: Tensor, bases: frozenset[str]) -> bool:
        label = f"{' and '.join(sorted(bases))} (derived, {len(self.derived)})"
        self._labels[id(tensor)] = label
        self.derived[label] = (tensor, bases)
        return True

    def _claim(self, seen: Seen, step: Step) -> Any:
        assert step.rule is not None, "a claim has a rule"
        call = step.rule.bind(*seen.args, **seen.kwargs)
        if call is None:
            raise UnprovenError(f"{step.describe()}: a call that its rule does not cover")
        if in_place(seen.function):
            call = call.holding(t.detach().clone() for t in call.saved)
        y = seen.run_detached(step.rule)
        sink = self._guide.sink(step, call, y)
        if not isinstance(y, Tensor):
            return tap_all(y, self.anchor, sink, call.saved)
        if not step.rule.functions and not y._is_view():  # noqa: SLF001 - torch has no public name for it
            y = y.clone()  # any function at all may have kept its result, which a tap edits
        return tap(y, self.anchor, sink, call.saved, fresh=step.rule.fresh)

    def _again(self, seen: Seen) -> Any:
        """Repeat a call while checkpointing recomputes a segment: the same tensors must be saved again."""
        rule = rule_for(seen.function)
        call = rule.bind(*seen.args, **seen.kwargs) if rule else None
        if rule is not None and call is not None:
            return tap(seen.run_detached(rule), self.anchor, _ignore, call.saved, fresh=rule.fresh)
        if enterable(seen.function):
            with self:
                return entered(seen.function)(*seen.args, **seen.kwargs)
        return seen.run()


@final
class ProcessWide:
    """A context for all threads of the process: the first thread to come enters it, and the last to go leaves it."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make, self._lock, self._inside, self._held = make, threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._held.enter_context(self._make())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._held.close()


def parameters_in_graph(losses: Tensor) -> tuple[list[Tensor], bool]:
    """Find the leaves that the losses depend on other than through taps, and whether the graph has custom functions."""
    leaves, custom, seen = list[Tensor](), False, set[Any]()
    waiting: list[Any] = [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        custom |= _foreign(node)
        waiting += [following for following, _ in node.next_functions]
    return leaves, custom


def _eager() -> AbstractContextManager[object]:
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


EAGER = ProcessWide(_eager)
"""Makes `torch.compile` step aside; compiled functions of other threads are slower and give the same results."""


def in_place(function: Callable[..., Any]) -> bool:
    """Say whether a function edits its first argument, by torch's naming."""
    name = getattr(function, "__name__", "")
    return name in _IN_PLACE or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def edits(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Say whether a call edits its first argument, by its name or an option."""
    if in_place(function) or kwargs.get("inplace"):
        return True
    code = getattr(function, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    return "inplace" in names and args[names.index("inplace") :][:1] == (True,)


def enterable(function: Callable[..., Any]) -> bool:
    """Whether the calls inside a function can be intercepted: it is Python, or has a replacement."""
    return isinstance(function, types.FunctionType) or written_out(function) is not None


def entered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose inner calls can be intercepted."""
    return written_out(function) or inside(function)


def inside(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a Python function of torch so that it skips its own mode check; its inner calls are still intercepted.

    torch's functions hand themselves to the active mode before anything else; run under a mode they would come back
    for ever. The copy finds "no mode" there; what it calls is seen as usual.
    """
    assert isinstance(function, types.FunctionType), "a function written in Python"
    around = {**function.__globals__, **dict.fromkeys(_CHECKS, _nothing)}
    copy = types.FunctionType(function.__code__, around, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _ignore(gradients: Gradients, saved: tuple[Tensor, ...]) -> None:
    del gradients, saved


def _nothing(*_: Any) -> bool:
    return False


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found = []  # not a generator, nor the plainer ways: this runs for every function that a model calls
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(value)
    return found


def _replace(value: Any, by: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return by.get(id(value), value)
    if type(value) in {tuple, list}:
        return type(value)(_replace(item, by) for item in value)
    return value
