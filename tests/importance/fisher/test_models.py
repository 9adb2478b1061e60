"""Complete models in the engine, against one sample at a time in float64."""

import pytest
import torch
import torchvision.models as tv
from fisher_oracle import distance, engine_only, estimate, oracle, squares_added
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unlearnkit import CrossEntropy, DiagonalFisher, UnlearnKitWarning
from unlearnkit.importance.fisher.engine.per_sample_fallback import SquaredGradients
from unlearnkit.models.objective import Autocast


def images(*sizes, side=8, classes=5):
    torch.manual_seed(1)
    return [(torch.randn(n, 3, side, side), torch.randint(0, classes, (n,))) for n in sizes]


def spread(model):
    """Randomise every weight: zeros hide mistakes."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    return model.eval()


class Tokens(nn.Module):
    """Pixels as tokens, some body, the mean over tokens."""

    def __init__(self, body, *, time_major=False):
        super().__init__()
        self.embed, self.body, self.head, self.time_major = nn.Linear(3, 8), body, nn.Linear(8, 5), time_major

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2))
        if self.time_major:
            return self.head(self.body(x.transpose(0, 1)).mean(0))
        return self.head(self.body(x).mean(1))


def encoder(*, batch_first, norm_first=False):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=norm_first, activation="gelu")
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Both(nn.Module):
    """nn.Transformer with another target than source: cross attention cuts its packed weights."""

    def __init__(self):
        super().__init__()
        self.both = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, x):
        return self.both(x, x[:, :5])


class Gpt(nn.Module):
    """One block, the head tied to the token embedding."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(11, 8), nn.Embedding(9, 8)
        self.block, self.norm = encoder(batch_first=True, norm_first=True), nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.token(tokens) + self.position(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.norm(self.block(x, mask=mask, is_causal=True))).transpose(1, 2)


class Unet(nn.Module):
    """Two levels with a skip; one label per pixel."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.c, self.d, self.n = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        a = F.relu(self.n(self.a(x)), inplace=True)
        return self.d(torch.cat([a, self.c(self.b(a).relu_())], 1))


class Residual(nn.Module):
    """In-place activations and residual additions, a shared module called twice, a layer scale."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.scale, self.head = nn.Parameter(torch.full((4, 1, 1), 0.5)), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x).relu_()
        for _ in range(2):
            y = self.twice(x).relu_() * self.scale
            y += x
            x = y
        return self.head(x.mean((2, 3)))


class Checkpointed(nn.Module):
    """The same body, recomputed in the backward pass."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(8, 5)
        self.stem = nn.Linear(3, 8)

    def forward(self, x):
        x = self.stem(x.flatten(2).transpose(1, 2))
        return self.head(checkpoint(self.body, x, use_reentrant=False).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(24, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.cell(x.flatten(1, 2).unflatten(1, (8, 3)).flatten(2))[0][:, -1])


class Experts(nn.Module):
    """Every sample goes to the expert with the highest score: rows per layer depend on the data."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(192, 3)
        self.experts = nn.ModuleList(nn.Linear(192, 5) for _ in range(3))

    def forward(self, x):
        x = x.flatten(1)
        scores = self.gate(x).softmax(1)
        chosen, y = scores.argmax(1), x.new_zeros(len(x), 5)
        for j, expert in enumerate(self.experts):
            rows = (chosen == j).nonzero()[:, 0]
            if len(rows):
                y = y.index_add(0, rows, expert(x[rows]) * scores[rows, j : j + 1])
        return y


SMALL = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(inplace=True), nn.Linear(8, 5)),
    "encoder": lambda: Tokens(encoder(batch_first=True)),
    "encoder, time-major": lambda: Tokens(encoder(batch_first=False), time_major=True),
    "transformer": lambda: Tokens(Both()),
    "residual": Residual,
    "checkpointed": lambda: Checkpointed(encoder(batch_first=True)),
    "weight norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 5))),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", SMALL)
def test_small_models(name):
    engine_only(spread(SMALL[name]()), images(4, 3, 1))


def test_tied_embedding_gpt():
    data = [(t, t.roll(-1, 1)) for t in (torch.randint(0, 11, (n, 6)) for n in (4, 3))]
    engine_only(spread(Gpt()), data)


@pytest.mark.parametrize("batch", [6, 9])
def test_a_batch_as_large_as_the_sequence(batch):
    tokens = torch.randint(0, 11, (batch, 6 if batch == 6 else 9))
    engine_only(spread(Gpt()), [(tokens, tokens.roll(-1, 1))])


def test_unet_with_a_label_per_pixel():
    engine_only(spread(Unet()), [(torch.randn(3, 3, 8, 8), torch.randint(0, 5, (3, 8, 8)))])


def test_dict_outputs():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(192, 5)

        def forward(self, x):
            return {"logits": self.f(x.flatten(1)), "other": 1}

    engine_only(Named(), images(3))


def test_frozen_base_with_a_low_rank_adapter():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(192, 5).requires_grad_(False)
            self.a, self.b = nn.Linear(192, 2, bias=False), nn.Linear(2, 5, bias=False)

        def forward(self, x):
            x = x.flatten(1)
            return self.base(x) + self.b(self.a(x))

    assert set(engine_only(Adapted(), images(4))) == {"a.weight", "b.weight"}


def test_functional_call_on_the_models_own_weights():
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(192, 5)

        def forward(self, x):
            return torch.func.functional_call(self.f, dict(self.f.named_parameters()), (x.flatten(1),))

    engine_only(Called(), images(4))


def test_experts_that_get_only_some_samples():
    engine_only(spread(Experts()), images(5, 4))


def test_vmap_is_not_trusted_blindly():
    """The LSTM kernel of some builds has no batching rule and gives other gradients under vmap, silently."""
    model, (batch,) = spread(Recurrent()), images(4)
    squares = SquaredGradients(model, CrossEntropy())
    assert distance(squares_added(squares.add, batch), oracle(model, [batch])) < 1e-4


def test_gradients_that_are_wrong_under_vmap_are_taken_one_sample_at_a_time(monkeypatch):
    ordinary = SquaredGradients._chunks

    def wrong(self, batch):
        for rows, gradients in ordinary(self, batch):
            yield rows, {name: 1.01 * g if name == "1.weight" else g for name, g in gradients.items()}

    monkeypatch.setattr(SquaredGradients, "_chunks", wrong)
    model, (batch,) = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), images(4)
    squares = SquaredGradients(model, CrossEntropy())
    assert distance(squares_added(squares.add, batch), oracle(model, [batch])) < 1e-5
    assert squares.describe() == "one sample at a time"


@pytest.mark.parametrize("seed", range(3))
def test_half_precision_is_no_reason_to_distrust_vmap(seed):
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Embedding(50, 32), layer, nn.Flatten(), nn.Linear(7 * 32, 5)).eval()
    squares = SquaredGradients(model, Autocast(objective=CrossEntropy()))
    squares.add((torch.randint(0, 50, (6, 7)), torch.arange(6) % 5), lambda *_: None)
    assert squares.describe().startswith("torch.func")


def test_cross_sample_dependence_is_detected():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(192, 5)

        def forward(self, x):
            x = x.flatten(1)
            return self.f(x - x.mean(0)) if len(x) > 1 else self.f(x)

    with pytest.warns(UnlearnKitWarning, match="one sample at a time|torch.func"):
        seen = estimate(Mixing(), images(4))
    assert seen["f.weight"].shape == (5, 192)


def test_a_compiled_model_is_unwrapped():
    model = spread(SMALL["mlp"]())
    compiled = torch.compile(model, backend="eager")
    data = images(3)
    seen = DiagonalFisher().estimate(compiled, data, objective=CrossEntropy()).totals
    assert distance(seen, oracle(model, data)) < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02), (torch.float64, 1e-11)])
def test_other_dtypes(dtype, tolerance):
    model = spread(SMALL["encoder"]()).to(dtype)
    seen = engine_only(model, [(x.to(dtype), y) for x, y in images(4, 3)], tolerance=tolerance)
    assert {t.dtype for t in seen.values()} == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_autocast():
    model = spread(SMALL["mlp"]())
    with torch.autocast("cpu", torch.bfloat16):
        seen = estimate(model, images(4, 3))
    assert distance(seen, oracle(model, images(4, 3))) < 0.05


TORCHVISION = {
    "resnet18": lambda: tv.resnet18(num_classes=5),
    "mobilenet": lambda: tv.mobilenet_v3_small(num_classes=5),
    "convnext": lambda: tv.ConvNeXt(
        [tv.convnext.CNBlockConfig(8, 16, 1), tv.convnext.CNBlockConfig(16, None, 1)], num_classes=5
    ),
    "swin": lambda: tv.SwinTransformer([4, 4], 8, [2, 1], [2, 2], [4, 4], num_classes=5),
    "vit": lambda: tv.VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=5),
    "densenet": lambda: tv.DenseNet(4, (2, 2), 8, num_classes=5),
    "squeezenet": lambda: tv.squeezenet1_1(num_classes=5),
    "shufflenet": lambda: tv.shufflenet_v2_x0_5(num_classes=5),
    "efficientnet": lambda: tv.efficientnet_b0(num_classes=5),
    "regnet": lambda: tv.regnet_y_400mf(num_classes=5),
    "mnasnet": lambda: tv.mnasnet0_5(num_classes=5),
    "resnext": lambda: tv.resnext50_32x4d(num_classes=5),
    "swin v2": lambda: tv.SwinTransformer(
        [4, 4],
        8,
        [2, 1],
        [2, 2],
        [4, 4],
        num_classes=5,
        block=tv.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=tv.swin_transformer.PatchMergingV2,
    ),
    "vgg": lambda: tv.vgg11_bn(num_classes=5),
    "alexnet": lambda: tv.alexnet(num_classes=5),
    "maxvit": lambda: tv.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=5),
    "inception": lambda: tv.inception_v3(num_classes=5, aux_logits=False, init_weights=False),
    "mobilenet v2": lambda: tv.mobilenet_v2(num_classes=5),
    "efficientnet v2": lambda: tv.efficientnet_v2_s(num_classes=5),
    "wide resnet": lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=128),
    "googlenet": lambda: tv.googlenet(num_classes=5, aux_logits=False, init_weights=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    """In float64, where no activation changes sides by rounding."""
    model = spread(TORCHVISION[name]()).double()
    data = images(3, 2, side={"inception": 80, "alexnet": 64, "squeezenet": 64, "vgg": 64}.get(name, 32))
    engine_only(model, [(x.double(), y) for x, y in data], tolerance=1e-8)


def test_zero_initialised_head_does_not_hide_layers_from_the_probe():
    """A fresh vision transformer's head is zero, so that no gradient reaches its body in the probe."""
    torch.manual_seed(0)
    model = TORCHVISION["vit"]().eval()
    engine_only(model, images(4, 3, side=32))
