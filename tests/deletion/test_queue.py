"""Requests that wait: refused before they wait, set aside, tried alone, withdrawn; none stops the others."""

import pytest
from typer.testing import CliRunner

from unlearnkit.cli.app import app
from unlearnkit.deletion import purge, verify, work
from unlearnkit.utils.errors import BudgetError, ConfigurationError, NonFiniteError, StoreError


def call(*arguments):
    done = CliRunner().invoke(app, [*arguments, "-q"])
    return done.exit_code, " ".join(done.output.split())


def outcomes(deletion):
    return [(receipt.outcome, *receipt.requests) for receipt in deletion.ledger.receipts()[1:]]


def waiting(deletion):
    return [request.name for request in deletion.ledger.queue.waiting()]


def test_request_for_everything_does_not_wait(load):
    with pytest.raises(ConfigurationError, match="ask for all 18 samples that are left: some must stay"):
        load().ask("everything", groups=["ant", "bee", "cow"])
    assert waiting(load()) == []
    load().ask("innocent", groups=["ant"])
    assert load().work().outcome == "forgotten"


def test_request_that_others_make_impossible_is_set_aside(load):
    load().ask("first", groups=["ant", "bee"])
    load().ask("second", groups=["cow"])
    load().ask("third", samples=[1])
    code, said = call("forget", "small.toml")
    assert code == 1
    assert "Receipt 3 (second): the request cannot be done and was set aside: the requests ask for all 6" in said
    assert outcomes(load()) == [("forgotten", "first"), ("set aside", "second"), ("nothing to forget", "third")]
    assert waiting(load()) == []
    verify(load().ledger)
    load().ask("second", samples=[14])  # may be asked again, for less
    assert load().work().outcome == "forgotten"


def test_request_that_meets_an_error_waits_and_the_others_go_on(load):
    purge(load())  # then the model that parts of groups are measured on is still the one in use
    load().ask("first", groups=["ant"])
    load().work()
    purge(load())
    load().ask("part", samples=[8])
    load().ask("whole", groups=["cow"])
    with pytest.raises(StoreError, match="was purged") as error:
        load().work()
    assert error.value.__notes__ == [
        "Still waiting: part; `unlearnkit forget CONFIG.toml --withdraw NAME` takes one back."
    ]
    assert outcomes(load())[-1] == ("forgotten", "whole")
    assert waiting(load()) == ["part"]
    code, said = call("forget", "small.toml")
    assert code == 2
    assert said.endswith("Still waiting: part; `unlearnkit forget CONFIG.toml --withdraw NAME` takes one back.")
    load().refresh()
    assert load().work().requests == ("part",)
    verify(load().ledger)


def test_requests_over_the_budget_together_are_tried_alone(load, monkeypatch):
    def check(before, after, budget):
        if after["forget-train"]["samples"] > 6:
            raise BudgetError("too much")

    monkeypatch.setattr(work, "check_budget", check)
    load().ask("first", groups=["ant"])
    load().ask("second", groups=["bee"])
    load().work()
    assert outcomes(load()) == [("forgotten", "first"), ("forgotten", "second")]


def test_error_that_is_one_requests_fault(load, monkeypatch):
    measure = work.Deletion.measure

    def broken(deletion, base, rows):
        if 7 in rows:
            raise NonFiniteError("expected finite gradients, saw NaN")
        return measure(deletion, base, rows)

    monkeypatch.setattr(work.Deletion, "measure", broken)
    for name, samples in {"first": [1], "bad": [7], "third": [13]}.items():
        load().ask(name, samples=samples)
    with pytest.raises(NonFiniteError):
        load().work()
    assert outcomes(load()) == [("forgotten", "first"), ("forgotten", "third")]
    assert waiting(load()) == ["bad"]


def test_withdraw(load):
    load().ask("first", groups=["ant"])
    load().ask("second", groups=["bee"])
    code, said = call("forget", "small.toml", "--withdraw", "frist")
    assert code == 2
    assert "expected a request that waits, saw 'frist'; did you mean 'first'?" in said
    code, said = call("forget", "small.toml", "--withdraw", "first", "-g", "cow")
    assert (code, "expected --withdraw alone" in said) == (2, True)
    assert call("forget", "small.toml", "--withdraw", "first") == (
        0,
        "Receipt 2 (first): the request was withdrawn.",
    )
    assert waiting(load()) == ["second"]
    load().work()
    assert outcomes(load()) == [("withdrawn", "first"), ("forgotten", "second")]
    verify(load().ledger)


def test_the_same_request_may_be_added_again_and_another_of_its_name_not(load):
    load().ask("first", samples=[1, 2])
    load().ask("first", samples=[2, 1, 1])
    with pytest.raises(ConfigurationError, match="'first' is waiting already, for other samples"):
        load().ask("first", samples=[1])
    assert waiting(load()) == ["first"]


def test_failed_data_check_says_what_waits(load, tmp_path):
    load().ask("first", samples=[1])
    (tmp_path / "data/train/bee/0.png").unlink()
    code, said = call("forget", "small.toml")
    assert code == 2
    assert "missing though not forgotten" in said
    assert "Still waiting: first;" in said


@pytest.mark.parametrize(
    ("tested", "seen"),
    [(["ant"], {"forget-train", "forget-test"}), (["bee"], {"forget-train", "retain-test"})],
)
def test_test_data_without_retained_or_forgotten_samples(load, tested, seen):
    data = ["data.name=''", "data.factory='small_ledger:tested_on'", f"data.options={{root='data', classes={tested}}}"]
    load().ask("first", groups=["ant"])
    receipt = load(*data).work()
    assert receipt.outcome == "forgotten"
    assert receipt.after.keys() == seen
    assert ("the budget was not checked" in receipt.sentence()) == (tested == ["ant"])


def test_importances_that_are_not_complete(load):
    folder = "deletion.folder='half'"
    half = load(folder)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.Deletion, "_fill", stop)
        with pytest.raises(KeyboardInterrupt):
            half.start()
    half.ask("first", groups=["ant"])
    with pytest.raises(StoreError, match=r"are not complete: `unlearnkit ledger CONFIG.toml` continues"):
        half.work()
    purge(half)  # another receipt does not end the pass
    load(folder).start()
    assert load(folder).work().outcome == "forgotten"
