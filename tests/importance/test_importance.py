"""Importances: totals and counts, their algebra, incompatible kinds, and the file."""

import copy
import pickle

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from unlearnkit import (
    CrossEntropy,
    DiagonalFisher,
    Importance,
    MismatchError,
    NonFiniteError,
    StoreError,
    UnlearnKitWarning,
)
from unlearnkit.importance import DataOrder, Fingerprint, Role

SETTINGS = settings(derandomize=True, deadline=None, max_examples=50)
TERMS = st.lists(st.floats(0, 1e6, width=32), min_size=2, max_size=2)


def importance(*terms, dtype=torch.float64, **fields):
    """Add terms one by one, as an estimator does."""
    total = torch.zeros(2, dtype=dtype)
    for term in terms:
        total += torch.tensor(term, dtype=dtype)
    return Importance(totals={"w": total}, count=len(terms), samples=len(terms), **fields)


def test_merge_subtract_and_mean():
    forget, retain = importance([1.0, 4.0]), importance([3.0, 0.0], [2.0, 0.0])
    full = forget + retain
    assert full.totals["w"].tolist() == [6.0, 4.0]
    assert (full.count, full.samples) == (3, 3)
    assert full.mean()["w"].tolist() == [2.0, 4 / 3]
    assert (full - forget).totals["w"].tolist() == [5.0, 0.0]
    assert (full - forget).count == 2
    assert full.unnormalised().mean()["w"].tolist() == [6.0, 4.0]
    assert repr(full) == "Importance(1 tensors, 2 weights, count=3, samples=3, role=unknown)"


@SETTINGS
@given(st.lists(TERMS, min_size=1, max_size=4), st.lists(TERMS, min_size=1, max_size=4))
def test_merging_is_addition_in_any_order(a, b):
    one, two, both = importance(*a), importance(*b), importance(*a, *b)
    torch.testing.assert_close((one + two).totals["w"], both.totals["w"], rtol=1e-12, atol=0)
    assert torch.equal((one + two).totals["w"], (two + one).totals["w"])
    assert (one + two).count == both.count


@SETTINGS
@given(st.lists(TERMS, min_size=1, max_size=4), st.lists(TERMS, min_size=1, max_size=4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subtracting_undoes_merging_and_is_never_negative(dtype, a, b):
    part, rest = importance(*a, dtype=dtype), importance(*b, dtype=dtype)
    whole = importance(*b, *a, dtype=dtype)
    left = whole - part
    error = torch.finfo(dtype).eps * 8 * whole.totals["w"].max()
    torch.testing.assert_close(left.totals["w"], rest.totals["w"], rtol=0, atol=float(error))
    assert bool((left.totals["w"] >= 0).all())
    assert (left.count, left.samples, left.role, left.trail) == (len(b), len(b), Role.UNKNOWN, DataOrder())


@pytest.mark.parametrize("step", [1, 16, 1000])
def test_subset_is_never_refused_for_rounding(step):
    terms = torch.full((20_000, 1), 0.1)  # equal terms drift the most
    totals = [chunk.sum(0) for chunk in terms.split(step)]
    whole = torch.zeros(1)
    for total in totals:
        whole += total
    exact = (terms.double().sum(0)).float()
    one = Importance(totals={"w": whole}, count=20_000, samples=20_000)
    other = Importance(totals={"w": exact}, count=20_000, samples=20_000)
    assert (one - other).count == (other - one).count == 0


def test_the_importance_of_real_data_minus_that_of_a_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(60, 4), torch.randint(0, 3, (60,))

    def measure(rows, size):
        batches = list(zip(x[rows].split(size), y[rows].split(size), strict=True))
        return DiagonalFisher().estimate(model, batches, objective=CrossEntropy())

    left = measure(slice(0, 60), 32) - measure(slice(0, 7), 3)
    retain = measure(slice(7, 60), 10)
    for name, total in retain.totals.items():
        torch.testing.assert_close(left.totals[name], total, rtol=1e-3, atol=1e-5)
    assert left.count == 53


def test_result_shares_no_memory_with_its_operands():
    one, two = importance([1.0, 1.0]), importance([2.0, 2.0])
    both, left = one + two, importance([3.0, 3.0], [1.0, 1.0]) - one
    both.totals["w"].zero_()
    left.totals["w"].zero_()
    assert one.totals["w"].tolist() == [1.0, 1.0]


def test_roles_and_data_orders_when_merging():
    forget, retain = importance([1.0, 1.0], role="forget"), importance([1.0, 1.0], role="retain")
    assert (forget + forget).role is Role.FORGET
    assert (forget + retain).role is Role.UNKNOWN
    trailed = attrs.evolve(forget, trail=DataOrder(sizes={2: 1}, order="a"))
    assert dict((trailed + trailed).trail.sizes) == {2: 2}


ERRORS = st.none() | st.just(0.0) | st.floats(0, 4)


def estimated(error, samples=3):
    return Importance(totals={"w": torch.ones(1) * samples}, count=samples, samples=samples, relative_error=error)


def test_relative_errors_of_sums_and_differences():
    """sd(X + Y) ≤ sd X + sd Y, correlated or not; no such bound holds relative to a difference."""
    assert (estimated(0.3, 10) + estimated(0.1, 30)).relative_error == pytest.approx(0.15)
    assert (estimated(0.0, 10) + estimated(0.5, 30)).relative_error == pytest.approx(0.375)
    assert (estimated(0.2) + estimated(None)).relative_error is None
    assert (estimated(0.2, 30) - estimated(0.2, 10)).relative_error is None
    assert (estimated(0.0, 30) - estimated(0.0, 10)).relative_error == 0.0
    unknown = Importance(totals={"w": torch.ones(1)}, count=3, relative_error=0.4)  # unknown number of samples
    assert (unknown + estimated(0.1)).relative_error == 0.4
    assert repr(estimated(1 / 3)).endswith("samples=3, role=unknown, relative_error=0.333)")
    assert repr(estimated(None)).endswith("relative_error=None)")


@SETTINGS
@given(ERRORS, ERRORS, ERRORS, st.integers(1, 9), st.integers(1, 9))
def test_errors_of_sums_are_those_of_all_samples_in_any_order(a, b, c, n, m):
    one, two, three = estimated(a, n), estimated(b, m), estimated(c)
    found = ((one + two) + three).relative_error
    known = [error for error in (a, b, c) if error is not None]
    if len(known) < 3:
        assert found is None
    else:
        assert min(known) * (1 - 1e-9) <= found <= max(known) * (1 + 1e-9)
        assert found == pytest.approx((a * n + b * m + c * 3) / (n + m + 3))
    again = (three + (two + one)).relative_error
    assert found == again or found == pytest.approx(again)


@pytest.mark.parametrize("error", [0.25, 0.0, None])
def test_an_error_is_kept(tmp_path, error):
    one = estimated(error)
    kept = [one.to(dtype=torch.float64), one.unnormalised(), pickle.loads(pickle.dumps(one)), copy.deepcopy(one)]
    one.save(tmp_path / "i")
    for found in [*kept, Importance.load(tmp_path / "i")]:
        assert found.relative_error == error


def test_to_converts_and_refuses_half_precision():
    assert importance([1.0, 1.0]).to(dtype=torch.float32).totals["w"].dtype == torch.float32
    with pytest.raises(MismatchError, match=r"w: expected float32 or float64, saw torch.float16.*vanish"):
        importance([1.0, 1.0]).to(dtype=torch.float16)


# What is refused


FOREIGN = [
    ({"totals": {"v": torch.zeros(2)}}, r"(?s)v: expected, but missing.*w: not expected"),
    ({"totals": {"w": torch.zeros(3)}}, r"w: expected shape \(3,\), saw \(2,\)"),
    ({"totals": {"w": torch.zeros(2)}}, r"w: expected torch.float32 on cpu, saw torch.float64 on cpu: use .to\(\)"),
    *(
        ({"fingerprint": Fingerprint(**{f.name: "other"})}, rf"{f.name}: '' against 'other'")
        for f in attrs.fields(Fingerprint)
    ),
]


@pytest.mark.parametrize("operation", [Importance.merge, Importance.subtract, Importance.check_same_kind])
@pytest.mark.parametrize(("fields", "said"), FOREIGN)
def test_importances_of_different_kinds_cannot_be_mixed(operation, fields, said):
    one = importance([1.0, 1.0])
    with pytest.raises(MismatchError, match=said):
        operation(one, attrs.evolve(one, **fields))


def test_batch_sizes_count_for_a_batched_estimator_only():
    def trailed(size, unit):
        return importance(
            [1.0, 1.0], fingerprint=Fingerprint(unit=unit), trail=DataOrder(sizes={size: 4}, order=str(size))
        )

    assert (trailed(2, "sample") + trailed(4, "sample")).count == 2
    with pytest.raises(MismatchError, match=r"batch size: 2 against 4.*estimate both with one batch size"):
        trailed(2, "batch") + trailed(4, "batch")


def test_non_subset_cannot_be_subtracted():
    with pytest.raises(MismatchError, match=r"Importance.subtract: w: the part is larger than the whole by 1"):
        importance([1.0, 1.0], [1.0, 1.0]) - importance([3.0, 1.0])
    with pytest.raises(MismatchError, match=r"expected a part of 1 terms, saw 2"):
        importance([3.0, 3.0]) - importance([1.0, 1.0], [1.0, 1.0])


def test_there_is_no_mean_of_zero_terms():
    with pytest.raises(MismatchError, match=r"at least one term, saw count = 0: estimate on data first"):
        importance().mean()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"totals": {}}, "at least one named tensor, saw none"),
        ({"totals": [torch.zeros(2)]}, "expected a mapping of names to tensors, saw list"),
        ({"totals": {"w": [1.0]}}, "w: expected a tensor, saw list"),
        ({"totals": {"w": torch.zeros(2, dtype=torch.long)}}, "saw torch.int64"),
        ({"count": -1}, r"Importance.count: expected a whole number ≥ 0, saw -1"),
        ({"count": 1.5}, "saw 1.5"),
        ({"samples": True}, "Importance.samples: expected a whole number ≥ 0, saw True"),
        ({"relative_error": -0.1}, r"Importance.relative_error: expected a finite number ≥ 0 or None, saw -0.1"),
        ({"relative_error": float("inf")}, "saw inf"),
        ({"relative_error": "0"}, "saw '0'"),
        ({"role": "forgot"}, "did you mean 'forget'"),
    ],
)
def test_an_impossible_importance_cannot_be_made(fields, said):
    with pytest.raises(ValueError, match=said):
        Importance(**{"totals": {"w": torch.zeros(2)}, "count": 1, **fields})


def test_values_are_checked_by_name():
    for value, error, said in [
        (float("nan"), NonFiniteError, r"me: expected finite importances, saw NaN or infinity in w"),
        (float("inf"), NonFiniteError, r"infinity in w"),
        (-1.0, MismatchError, r"me: w: expected importances ≥ 0, saw a negative one"),
    ]:
        with pytest.raises(error, match=said):
            importance([value, 1.0]).check_values(who="me")


def test_totals_cannot_be_replaced():
    one = importance([1.0, 1.0])
    with pytest.raises(TypeError):
        one.totals["w"] = torch.zeros(2)
    assert not one.totals["w"].requires_grad


# The file


FULL = Importance(
    totals={"layer.weight": torch.tensor([[1.0, 0.0], [1e-30, 3e30]]), "layer.bias": torch.tensor([0.5])},
    count=7,
    samples=14,
    fingerprint=Fingerprint(estimator="e", unit="batch", labels="data", objective="o", model="m", options="α='β'"),
    role=Role.FORGET,
    trail=DataOrder(sizes={512: 2, 3: 1}, order="abc"),
)


def same(one, other):
    return (
        {n: (t.dtype, t.tolist()) for n, t in one.totals.items()}
        == {n: (t.dtype, t.tolist()) for n, t in other.totals.items()}
        and (one.count, one.samples, one.role, one.fingerprint, one.trail)
        == (other.count, other.samples, other.role, other.fingerprint, other.trail)
    )  # fmt: skip


@SETTINGS
@given(
    TERMS,
    st.integers(0, 5),
    st.text(max_size=5),
    st.sampled_from(Role),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_save_and_load_round_trip(tmp_path_factory, term, samples, text, role, dtype):
    path = tmp_path_factory.mktemp("importance") / "i.safetensors"
    one = Importance(
        totals={"w": torch.tensor(term, dtype=dtype), "empty": torch.zeros(0, dtype=dtype)},
        count=3,
        samples=samples,
        role=role,
        fingerprint=Fingerprint(objective=text),
    )
    one.save(path)
    assert same(Importance.load(path), one)
    assert [p.name for p in path.parent.iterdir()] == ["i.safetensors"]


def test_views_and_shared_memory_are_saved(tmp_path):
    shared = torch.ones(3, 2)
    one = Importance(totals={"a": shared, "b": shared, "t": shared.t(), "x": torch.ones(1).expand(4)}, count=1)
    one.save(tmp_path / "i")
    assert same(Importance.load(tmp_path / "i"), one)


def test_every_flipped_bit_is_detected(tmp_path):
    path = tmp_path / "i"
    FULL.save(path)
    data = path.read_bytes()
    damaged = bytearray(data)
    for place in range(0, len(data) * 8, 5):
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        damaged[place // 8] = data[place // 8]
        with pytest.raises(StoreError, match=str(path)):
            Importance.load(path)


@pytest.mark.parametrize("keep", [0, 1, 8, 9, 100, -100, -8, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "i"
    FULL.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match=str(path)):
        Importance.load(path)


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("hello" * 100)
    save_file({"w": torch.zeros(2)}, tmp_path / "checkpoint")
    torch.save({"w": torch.zeros(2)}, tmp_path / "pickle")
    (tmp_path / "folder").mkdir()
    for name in ("text", "pickle", "folder", "missing"):
        with pytest.raises(StoreError, match=rf"{name}: expected an importance file, saw"):
            Importance.load(tmp_path / name)
    with pytest.raises(StoreError, match=r"saw format None: a model's checkpoint is not an importance"):
        Importance.load(tmp_path / "checkpoint")


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "i"
    FULL.save(path)
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("unlearnkit.utils.safetensors.save_file", full_disk)
    with pytest.raises(StoreError, match=r"cannot write .*No space left"):
        importance([1.0, 1.0]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StoreError, match=r"expected the folder"):
        importance([1.0, 1.0]).save(tmp_path / "no" / "i")


def test_rounding_of_float32_gradients_is_allowed_beside_large_totals():
    kind = Fingerprint(precision="gradients float32, totals float64")
    whole, part = (
        Importance(totals={"w": torch.tensor(values, dtype=torch.float64)}, count=n, fingerprint=kind)
        for values, n in (([1.0, 1e-15, 0.5], 9), ([0.5, 2e-15, 0.5 + 1e-8], 8))
    )
    assert (whole - part).totals["w"].tolist() == [0.5, 0.0, 0.0]
    with pytest.raises(MismatchError, match="the part is larger than the whole"):
        whole - attrs.evolve(part, totals={"w": torch.tensor([0.5, 1e-3, 0.5], dtype=torch.float64)})


def test_squares_of_batch_means_are_not_subtracted_without_a_warning():
    kind = Fingerprint(unit="batch")
    whole, part = (
        Importance(totals={"w": torch.tensor([v])}, count=n, fingerprint=kind) for v, n in ((3.0, 2), (1.0, 1))
    )
    with pytest.warns(
        UnlearnKitWarning, match="squares of batch means, so the difference is that of the rest only where"
    ):
        rest = whole - part
    assert rest.totals["w"].tolist() == [2.0]
