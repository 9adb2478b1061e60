"""Which models a ledger keeps: after any sequence of operations, every model that may be needed can be rebuilt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearnkit.deletion.state import KeptModel, State
from unlearnkit.utils.errors import StoreError

STEPS = st.lists(
    st.tuples(st.sampled_from(["edit", "edit to an earlier one", "rollback", "refresh", "purge"]), st.booleans()),
    max_size=12,
)


def model(number, through=None):
    name = f"{number:032x}"
    return KeptModel(digest=name, file=name, through="" if through is None else f"{through:032x}")


def after(state, step, number, *, patched, keep):
    now = int(state.current.digest, 16)
    if step == "rollback":
        last = state.kept[-1]
        return state.with_models(model(int(last.digest, 16)), base=state.base, kept=state.kept[:-1])
    if step == "refresh":
        return state.with_models(state.current, base=state.current, kept=state.kept)
    if step == "purge":
        return state.with_models(state.current, base=state.current, kept=())
    kept = (*state.kept, state.current)
    patch = model(now, through=number) if patched and number != now else None
    return state.with_models(model(number), base=state.base, kept=kept[len(kept) - keep :], patch=patch)


@given(steps=STEPS, keep=st.integers(0, 3))
def test_every_needed_model_can_be_rebuilt_and_no_other_is_kept(steps, keep):
    state = State(current=model(0), base=model(0))
    may_be_put_back = []
    for number, (step, patched) in enumerate(steps, start=1):
        if step == "rollback" and not state.kept:
            continue
        current, kept = state.current.digest, [m.digest for m in state.kept]
        target = number if step == "edit" else number // 2
        state = after(state, step, target, patched=patched, keep=keep)
        if step.startswith("edit"):
            may_be_put_back = [*kept, current][len(kept) + 1 - keep :]
        else:
            may_be_put_back = {"rollback": kept[:-1], "refresh": kept, "purge": []}[step]
        assert [m.digest for m in state.kept] == may_be_put_back
        assert state.current.through == ""
        names = [m.digest for m in state.models]
        assert len(names) == len(set(names))
        needed = set()
        for one in (state.base, *state.kept):
            way = state.path_to(one)
            assert way[0].through == ""
            assert [m.through for m in way[1:]] == [m.digest for m in way[:-1]]
            assert way[-1] == one
            needed.update(way)
        assert set(state.models) == needed | {state.current}


def test_missing_model_is_named():
    lost = model(1, through=2)
    with pytest.raises(StoreError, match=r"is a patch of the model 0{31}2, which is missing"):
        State(current=model(3), base=lost).path_to(lost)
    round_about = State(current=model(3), base=lost, kept=(model(2, through=1),))
    with pytest.raises(StoreError, match="which is missing"):
        round_about.path_to(lost)


@pytest.mark.parametrize("name", ["../../x", "", "0" * 31, "0" * 32 + "\n", "G" * 32])
def test_names_that_are_no_digests_are_refused(name):
    with pytest.raises(StoreError, match="expected a name"):
        KeptModel(digest=name, file="")
