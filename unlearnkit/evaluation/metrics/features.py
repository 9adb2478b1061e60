"""What the features of a model still hold of the forgotten samples: the outputs alone can hide it."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache, partial
from itertools import combinations
from math import sqrt
from typing import Any, ClassVar, final

import attrs
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import (
    NORMAL_QUANTILE,
    InapplicableError,
    ModelOutputs,
    Values,
    answers,
    classification_of,
    map_rows,
    mean,
    sampling_error,
    some_rows,
)
from unlearnkit.evaluation.per_sample import Floats, Ints, floats
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import copy_of
from unlearnkit.models.training import batch_norm_layers, reestimate_batch_norm
from unlearnkit.utils.errors import ConfigurationError, MismatchError, nearest
from unlearnkit.utils.options import option

_FEWEST = 5  # samples for a similarity with an interval
_CHANNELS_SECOND = (_ConvNd, _NormBase, nn.GroupNorm, nn.PReLU)  # other layers have channels last


@final
@attrs.frozen(kw_only=True)
class LinearProbe(Metric):
    """Accuracy of a logistic regression on penultimate features: is the forgotten class still there, behind the head?

    The probe learns the classes of the training data, forgotten and retained, from their features, and is judged on
    unseen samples. An edit of the last layer alone does not change it.
    """

    name: ClassVar[str] = "linear-probe"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Alain and Bengio 2016",
        cost="one pass of each model over four splits, and one fit for each model",
        trust="features of other classes help with an unknown one: only the difference to a retrained model counts",
    )

    layer: str = option("", doc="layer whose input is probed; by default the Linear that is called last")
    seed: int = option(0, at_least=0, doc="of the solver and of the samples to learn from")
    most: int = option(5000, at_least=10, doc="samples to learn from at most")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        def features(split: str, model: nn.Module) -> tuple[Floats, Ints]:
            return features_of(model, outputs.batches(split), layer=self.layer, objective=inputs.objective)

        @cache  # one fit for both splits
        def probe(model: nn.Module) -> Any:
            splits = [features(split, model) for split in ("forget-train", "retain-train")]
            return _probe(splits, what="the training data", most=self.most, seed=self.seed)

        def accuracy(split: str, model: nn.Module) -> float:
            judged = features(split, model)  # first, so that a missing split is the reason
            return float(probe(model).score(*judged))

        forget, retain = (outputs.for_each_model(s, partial(accuracy, s)) for s in ("forget-test", "retain-test"))
        return {**forget, **retain}


@final
@attrs.frozen(kw_only=True)
class HeadSwap(Metric):
    """Accuracy of the model's features under a freshly fitted head: no edit of the last layer alone changes it.

    ``"forget-test"``: the head is fitted to retained and forgotten training samples, and judged on unseen samples of
    the forgotten kind. ``"forget-train"``: it is fitted to retained samples alone, and judged on the forgotten ones,
    for forget sets of random samples. The head is a logistic regression of the inputs of the last Linear layer. A
    model with BatchNorm is measured a second time after its statistics are estimated again on retained samples, and
    the larger value counts: an edit of the statistics hides nothing.
    """

    name: ClassVar[str] = "head-swap"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Alain and Bengio 2016, with the last layer's input",
        cost="four passes of each model over the splits, and two to four fits for each model",
        trust="falls when a model is damaged, too: read it beside retain accuracy",
        holds=("forget-test", "forget-train"),
    )

    seed: int = option(0, at_least=0, doc="of the solver and of the samples to learn from")
    most: int = option(5000, at_least=10, doc="samples to learn from at most")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)
        both = ("forget-train", "retain-train")
        return {
            **self._accuracy(outputs, inputs, "forget-test", both),
            **self._accuracy(outputs, inputs, "forget-train", ("retain-train",)),
        }

    def _accuracy(
        self, outputs: ModelOutputs, inputs: EvaluationInputs, judged: str, learnt: tuple[str, ...]
    ) -> Values:
        def swapped(model: nn.Module) -> float:
            return head_swap(
                model,
                judged=outputs.batches(judged),
                learnt=[outputs.batches(split) for split in learnt],
                retain=outputs.batches("retain-train"),
                objective=inputs.objective,
                seed=self.seed,
                most=self.most,
            )

        samples = partial(_count_samples, outputs, judged, inputs.objective)
        return outputs.for_every_model(judged, swapped, error=lambda p: sampling_error(p, samples()))


def head_swap(
    model: nn.Module,
    *,
    judged: Iterable[Any],
    learnt: Iterable[Iterable[Any]],
    retain: Iterable[Any],
    objective: Objective | None = None,
    seed: int = 0,
    most: int = 5000,
) -> float:
    """Return the accuracy of a model's features under a freshly fitted head; `HeadSwap` says how.

    The head is fitted to the batches of each of ``learnt``; BatchNorm is estimated again on ``retain``.
    """

    def accuracy(model: nn.Module) -> float:
        features = partial(features_of, model, objective=objective)
        unseen, known = features(judged), [features(batches) for batches in learnt]
        return float(_probe(known, what="the samples to learn from", most=most, seed=seed).score(*unseen))

    found = accuracy(model)
    if not batch_norm_layers(model):
        return found
    again = copy_of(model).requires_grad_(True)  # the statistics of frozen layers may hide something, too
    try:
        reestimate_batch_norm(again, retain, objective=objective)
    except ValueError as error:  # batches of one sample
        raise InapplicableError(f"the statistics of BatchNorm cannot be estimated again: {error}") from error
    return max(found, accuracy(again))


@final
@attrs.frozen(kw_only=True)
class LayerProbe(Metric):
    """Area under the ROC curve of forgotten against retained samples, by logistic regression, at several depths.

    ``"depth I of N"`` is measured on unseen samples (``forget-test`` and ``retain-test``) with the outputs of a layer,
    averaged over positions; the layers are evenly spaced in the order in which they are called. 0.5 is chance.
    """

    name: ClassVar[str] = "layer-probe"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Alain and Bengio 2016",
        cost="one pass of each model over four splits, and one fit for each depth and model",
        trust="features of other classes separate an unknown one too: only the difference to a retrained model counts",
    )

    depths: int = option(4, at_least=1, doc="how many layers are probed")
    seed: int = option(0, at_least=0, doc="of the solver and of the samples to learn from")
    most: int = option(5000, at_least=10, doc="samples to learn from at most, of each split")

    def measure(self, inputs: EvaluationInputs) -> Values:
        from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - it takes long to import

        outputs, names = ModelOutputs(inputs), [f"depth {i} of {self.depths}" for i in range(1, self.depths + 1)]

        @cache
        def areas(model: nn.Module) -> list[float]:
            splits = {s: outputs.batches(s) for s in ("forget-train", "retain-train", "forget-test", "retain-test")}
            layers = _evenly(layers_called(model, splits["forget-train"], inputs.objective), self.depths)
            found = []
            for layer in layers:
                x = {s: pooled_outputs(model, batches, layer, inputs.objective) for s, batches in splits.items()}
                train = [_some(x[s], self.most, self.seed) for s in ("retain-train", "forget-train")]
                test = [x["retain-test"], x["forget-test"]]
                probe = linear_probe(np.concatenate(train), _part_numbers(train), seed=self.seed, balanced=True)
                found.append(float(roc_auc_score(_part_numbers(test), probe.decision_function(np.concatenate(test)))))
            return found

        values: Values = {}
        for i, name in enumerate(names):
            values |= outputs.for_each_model(name, lambda model, i=i: areas(model)[i])  # type: ignore[misc]
        return values


@final
@attrs.frozen(kw_only=True)
class FeatureSimilarity(Metric):
    """Linear CKA of the features of the forgotten samples: to retrained models, and to the original.

    1 is the same up to rotation and scale; see `linear_cka`. ``"to retrained"`` is the mean over retrained models,
    ``"to original"`` the nearness to the model before the edit; ``"… low"`` and ``"… high"`` are the ends of a 95 %
    interval over samples, by the delete-d jackknife with d a tenth of the samples. (Samples that are drawn twice, as by
    the bootstrap, would raise the similarity.) Nothing is trained.
    """

    name: ClassVar[str] = "feature-similarity"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Kornblith et al. 2019, linear CKA; Song et al. 2012, without bias; Shao and Wu 1989, the jackknife",
        cost="one pass of each model over the forget set, and as many small sums as there are draws",
        trust="compare with the value between retrained models; the interval covers samples, not training seeds",
    )

    seed: int = option(0, at_least=0, doc="of the jackknife")
    draws: int = option(100, at_least=20, doc="subsets of the jackknife")
    most: int = option(1000, at_least=10, doc="forgotten samples at most")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        @cache
        def products(model: nn.Module) -> Floats:
            values, labels = features_of(model, outputs.batches("forget-train"), objective=inputs.objective)
            outputs.check_order("forget-train", labels)
            values = _some(values, self.most, self.seed)
            if len(values) < _FEWEST:
                raise InapplicableError(f"at least {_FEWEST} forgotten samples are needed, saw {len(values)}")
            if not np.ptp(values, axis=0).any():
                raise InapplicableError("the features of a model are the same for all forgotten samples")
            return _products(values)

        def to_original() -> list[float]:
            mine = products(inputs.model)  # first, so that a missing split is the reason
            if inputs.original is None:
                raise InapplicableError("no original model at hand")
            return self._interval([(mine, products(inputs.original))])

        def to_retrained(model: nn.Module) -> list[float]:
            return self._interval([(products(model), products(known)) for known in outputs.retrained()])

        def among() -> list[float]:
            known = [products(model) for model in outputs.retrained(at_least=2)]
            return self._interval(list(combinations(known, 2)))

        pairs: dict[str, Callable[[], list[float]]] = {"to original": to_original, "among retrained": among}
        pairs |= {f"{prefix}to retrained": partial(to_retrained, model) for prefix, model in outputs.named.items()}
        values: Values = {}
        for name, measure in pairs.items():
            values |= answers((name, f"{name} low", f"{name} high"), measure)
        return values

    def _interval(self, pairs: list[tuple[Floats, Floats]]) -> list[float]:
        """Return the mean CKA of some pairs of inner products, and the ends of its interval."""
        random, samples = np.random.default_rng(self.seed), len(pairs[0][0])
        left_out, drawn = max(1, samples // 10), []
        for _ in range(self.draws):
            rows = np.ix_(*[random.permutation(samples)[left_out:]] * 2)
            drawn.append(mean(_cka(k[rows], m[rows]) for k, m in pairs))
        found = mean(_cka(k, m) for k, m in pairs)
        error = NORMAL_QUANTILE * float(np.std(drawn)) * sqrt(samples / left_out - 1)
        return [max(found, 0.0), max(found - error, 0.0), min(max(found + error, 0.0), 1.0)]


def linear_cka(one: ArrayLike, other: ArrayLike) -> float:
    """Linear CKA of two sets of features of the same n ≥ 4 samples, shapes (n, d) and (n, e), without bias.

    HSIC₁(K, M)/√(HSIC₁(K, K)·HSIC₁(M, M)) of K = XXᵀ and M = YYᵀ (Kornblith et al. 2019, eq. 2, with the estimator of
    Song et al. 2012, eq. 5): near 0, perhaps below it, for unrelated features, however few the samples are.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(20, 3))
        >>> round(linear_cka(x, 2 * x[:, ::-1] + 1), 6)
        1.0
    """
    x, y = (floats(values, what="features", dimensions=2) for values in (one, other))
    if len(x) != len(y) or len(x) < 4:
        raise MismatchError(f"linear_cka: expected features of the same 4 or more samples, saw {len(x)} and {len(y)}")
    return _cka(_products(x), _products(y))


def _products(features: Floats) -> Floats:
    x = features - features.mean(axis=0)  # changes nothing but the rounding
    return np.asarray(x @ x.T)


def _cka(one: Floats, other: Floats) -> float:
    x, y = _u_centred(one), _u_centred(other)
    own = float(np.linalg.norm(x) * np.linalg.norm(y))
    return min(float((x * y).sum()) / own, 1.0) if own else 0.0


def _u_centred(products: Floats) -> Floats:
    """Centre so that the mean of the elementwise product of two is HSIC₁ (Székely and Rizzo 2014, definition 2)."""
    n, found = len(products), products.copy()
    np.fill_diagonal(found, 0.0)
    rows = found.sum(axis=0) / (n - 2)
    found += rows.sum() / (n - 1) - rows - rows[:, None]
    np.fill_diagonal(found, 0.0)
    return found


def _count_samples(outputs: ModelOutputs, split: str, objective: Objective) -> int:
    return sum(len(classification_of(objective).labels(batch)) for batch in outputs.batches(split))


def _some(values: Floats, most: int, seed: int) -> Floats:
    return values[some_rows(len(values), most, seed=seed)]


def _part_numbers(parts: list[Floats]) -> Ints:
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def _evenly(layers: list[str], count: int) -> list[str]:
    places = np.linspace(0, len(layers) - 1, count + 1)[1:] if len(layers) > count else np.arange(len(layers))
    chosen = [layers[round(float(place))] for place in places]
    return chosen + chosen[-1:] * (count - len(chosen))


def layers_called(model: nn.Module, batches: Iterable[Any], objective: Objective | None = None) -> list[str]:
    """Name the layers with parameters, in the order in which they are called, whose outputs have a row per sample."""
    classification, called = classification_of(objective), dict[str, None]()
    first = next(iter(batches), None)
    if first is None:
        raise InapplicableError("the split is empty")

    def note(name: str, size: int, _: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() > 1 and len(output) == size and output.is_floating_point():
            called[name] = None

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name and not list(module.children()) and list(module.parameters(recurse=False)):
                hook = partial(note, name, len(classification.labels(first)))
                hooks.enter_context(module.register_forward_hook(hook))
        map_rows(model, [first], lambda batch: (classification.logits(model, batch), classification.labels(batch)))
    if not called:
        raise InapplicableError("the model has no layer whose output has a row for each sample")
    return list(called)


def pooled_outputs(model: nn.Module, batches: Iterable[Any], layer: str, objective: Objective | None = None) -> Floats:
    """Return a layer's outputs, averaged over positions: shape (n, channels)."""
    classification, seen = classification_of(objective), list[Tensor]()
    module = model.get_submodule(layer)
    # The LayerNorm2d of ConvNeXt is a LayerNorm, with channels second.
    second = isinstance(module, _CHANNELS_SECOND) or type(module).__name__ == "LayerNorm2d"

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        positions = tuple(range(2, output.dim())) if second else tuple(range(1, output.dim() - 1))
        seen[:] = [output.mean(positions) if positions else output]

    def record(batch: Any) -> tuple[Tensor, Tensor]:
        labels = classification.labels(batch)
        classification.logits(model, batch)
        return seen[-1].detach(), labels

    with module.register_forward_hook(keep):
        return floats(map_rows(model, batches, record)[0], what="features", dimensions=2)


def features_of(
    model: nn.Module, batches: Iterable[Any], *, layer: str = "", objective: Objective | None = None
) -> tuple[Floats, Ints]:
    """Inputs (n, features) of a layer, by default of the `torch.nn.Linear` that is called last, and labels."""
    classification = classification_of(objective)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            seen[:] = [inputs[0].detach()]

    def record(batch: Any) -> tuple[Tensor, Tensor]:
        seen.clear()
        y, size = classification.labels(batch), len(classification.logits(model, batch))
        if not seen or len(seen[-1]) != size or y.dim() != 1 or y.is_floating_point():
            raise InapplicableError(f"layer {layer or 'Linear'!r} has no row of features for each labelled sample")
        return seen[-1].flatten(1), y

    with ExitStack() as hooks:
        for module in _layers(model, layer):
            hooks.enter_context(module.register_forward_pre_hook(keep))
        values, labels = map_rows(model, batches, record)
    return floats(values, what="features", dimensions=2), labels


def linear_probe(features: Floats, labels: Ints, *, seed: int = 0, balanced: bool = False) -> Any:
    """Fit scikit-learn's logistic regression to standardised features (Alain and Bengio 2016).

    ``balanced`` gives each class the same weight, however many samples it has.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - it takes seconds to import
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    if len(np.unique(labels)) < 2:
        raise ConfigurationError("linear_probe: expected at least two classes to learn, saw one")
    regression = LogisticRegression(max_iter=5000, random_state=seed, class_weight="balanced" if balanced else None)
    return make_pipeline(StandardScaler(), regression).fit(features, labels)


def _probe(parts: list[tuple[Floats, Ints]], *, what: str, most: int, seed: int) -> Any:
    """Fit a linear probe to some rows of several splits."""
    values, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    rows = some_rows(len(labels), most, seed=seed)
    if len(np.unique(labels[rows])) < 2:
        raise InapplicableError(f"{what} have one class only: there is nothing to tell apart")
    return linear_probe(values[rows], labels[rows], seed=seed)


def _layers(model: nn.Module, layer: str) -> list[nn.Module]:
    known = {name: module for name, module in model.named_modules() if name or isinstance(module, nn.Linear)}
    if layer and layer not in known:
        raise InapplicableError(f"the model has no layer {layer!r}{nearest(layer, known)}")
    found = [known[layer]] if layer else [m for m in known.values() if isinstance(m, nn.Linear)]
    if not found:
        raise InapplicableError("the model has no Linear layer: name the layer whose input is to be probed")
    return found
