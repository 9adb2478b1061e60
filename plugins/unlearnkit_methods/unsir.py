"""UNSIR: impair the model with noise that it finds hard for the forgotten classes, then repair it."""

from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, UnsupportedModelError, hookimpl, option
from unlearnkit.unlearning import EpochConfig, class_labels, class_logits, teacher_of


@final
@attrs.frozen(kw_only=True)
class Unsir(TrainingUnlearner):
    """Learn noise N that minimises −ℓ(θ; N, y_f) + λ·‖N‖², train on N labelled y_f and on D_r, then on D_r alone.

    The noise begins as N(0, 1) in the shape of an input and is learnt with Adam, the model in eval mode; its labels are
    the classes of the forget set in turn. In the first pass (*impair*) every batch of the retain set is joined by the
    noise, in the second (*repair*) it is not. Of the forget set only the classes are used, so the method is for whole
    classes: samples of another kind within a class are not told apart from it.

    The authors' code trains on a mixture of about one noise sample for two of the retain set, here too where a batch
    has 64, with the learning rate 0.02 in the first and 0.01 in the second pass; here one rate serves both.

    Good for: whole classes, with few retained samples: noise takes the place of the forget set.

    Source: Tarun, Chundawat, Mandal and Kankanhalli 2023 (Fast Yet Effective Machine Unlearning), the error-maximising
    noise and the impair and repair steps; the number of steps, the rate and λ from the authors' code.

    Examples:
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> Unsir().unlearn(model, UnlearningInputs(forget_data=forget, retain_data=retain)).changed
        4
    """

    name: ClassVar[str] = "unsir"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})

    lam: float = option(0.1, symbol="λ", at_least=0.0, doc="weight of the norm of the noise")
    samples: int = option(32, at_least=1, doc="noise samples that join each batch")
    steps: int = option(40, at_least=1, doc="of Adam on the noise")
    noise_rate: float = option(0.1, above=0.0, doc="step size of Adam on the noise")
    impair_epochs: int = option(1, at_least=1, doc="passes with noise")
    epochs: int = option(3, at_least=1, doc="passes of the repair; 1 in the paper, on larger data")

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterator[EpochConfig]:
        teacher = teacher_of(model)
        assert inputs.forget_data is not None, "FORGET_DATA is among the needs"
        seen = {y for batch in inputs.forget_data for y in class_labels(inputs.objective, batch).flatten().tolist()}
        wrong = torch.tensor([*islice(cycle(sorted(seen - {-100})), self.samples)], dtype=torch.long)
        noise: list[Tensor] = []  # learnt when the first batch shows the shape of an input

        def impair(student: nn.Module, batch: Any) -> Tensor:
            labels = class_labels(inputs.objective, batch)
            if not noise:
                noise.append(self.noise(teacher, batch, wrong.to(labels.device), inputs))
            logits = class_logits(inputs.objective, _With(student, noise[0]), batch)
            return cross_entropy(logits, torch.cat([labels, wrong.to(labels.device)]))

        yield from EpochConfig.epochs(inputs.retain_data, impair, count=self.impair_epochs, name="impair epoch")
        yield from EpochConfig.epochs(inputs.retain_data, inputs.mean_loss, count=self.epochs, name="repair epoch")

    def noise(self, teacher: nn.Module, batch: Any, labels: Tensor, inputs: UnlearningInputs) -> Tensor:
        """Learn the noise: one sample for each label, in the shape of the inputs of the batch."""
        alone = _With(teacher, None, count=len(labels))
        class_logits(inputs.objective, alone, batch)
        noise = alone.noise[0].requires_grad_()
        optimizer = torch.optim.Adam([noise], lr=self.noise_rate)
        for _ in range(self.steps):
            error = cross_entropy(class_logits(inputs.objective, alone, batch), labels)
            norm = noise.square().flatten(1).sum(1).mean()
            (noise.grad,) = torch.autograd.grad(self.lam * norm - error, [noise])
            optimizer.step()
        return noise.detach()


@final
class _With(nn.Module):
    """Calls a model on its input with the noise after it; or, with a count, on that many samples of noise alone."""

    def __init__(self, model: nn.Module, noise: Tensor | None, *, count: int = 0) -> None:
        super().__init__()
        self._model = [model]  # in a list, so that it does not become a part of this module
        self.noise = [] if noise is None else [noise]
        self._count = count

    def forward(self, x: Any = None, **named: Any) -> Any:
        if named or not isinstance(x, Tensor) or not x.is_floating_point():
            seen = str(x.dtype) if isinstance(x, Tensor) else ", ".join(named) or type(x).__name__
            raise UnsupportedModelError(f"unsir learns inputs: expected one floating tensor by position, saw {seen}")
        if not self.noise:
            self.noise.append(torch.randn(self._count, *x.shape[1:], dtype=x.dtype, device=x.device))
        return self._model[0](self.noise[0] if self._count else torch.cat([x, self.noise[0]]))


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [Unsir]
