"""Deletion requests on the digits: requests, edits, receipts and refusals."""

import json
import shutil
from unittest.mock import Mock

import attrs
import numpy as np
import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner
from unlearnkit_methods.ssd_adaptive import AdaptiveSynapticDampening as Adaptive

from unlearnkit import CrossEntropy, DiagonalFisher
from unlearnkit.cli.app import app
from unlearnkit.deletion import Deletion, purge, rollback, verify
from unlearnkit.deletion.state import lost_accuracy
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.models.checkpoint import save_checkpoint
from unlearnkit.models.parameters import digest
from unlearnkit.utils.checksummed_json import write_sealed
from unlearnkit.utils.errors import ConfigurationError, StoreError


def samples_of(deletion, digit):
    return np.flatnonzero(deletion.experiment.bundle.train.targets.numpy() == digit).tolist()


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_store_equals_a_pass_over_the_data(deletion):
    store, train = deletion.ledger.store, deletion.experiment.bundle.train
    assert store.keys == tuple("0123456789")
    model = deletion.model(deletion.ledger.state.current).double()
    batch = [(train.subset(samples_of(deletion, 3))[i]) for i in range(len(samples_of(deletion, 3)))]
    x, y = (torch.stack(part) for part in zip(*[(b[0].double(), b[-1]) for b in batch], strict=True))
    want = DiagonalFisher().estimate(model, [(x, y)], objective=CrossEntropy()).totals
    for name, total in store.group("3").totals.items():
        scale = float(want[name].abs().max())
        torch.testing.assert_close(total, want[name], rtol=1e-4, atol=1e-5 * scale)


def test_a_string_is_not_taken_for_groups_of_one_letter(deletion):
    with pytest.raises(ConfigurationError, match=r"expected several names, saw '35': write \['35'\]"):
        deletion.ask("ticket-1", groups="35")
    assert deletion.work() is None


def test_a_whole_group_is_forgotten_without_a_pass_over_data(deletion, monkeypatch):
    monkeypatch.setattr(DiagonalFisher, "accumulator", lambda *_, **__: pytest.fail("a gradient was taken"))
    before = deletion.ledger.store.total().count
    deletion.ask("ticket-1", groups=["3"])
    receipt = deletion.work()
    assert receipt.outcome == "forgotten"
    assert receipt.groups == ("3",)
    assert len(receipt.samples) == len(samples_of(deletion, 3))
    assert receipt.after["forget-train"]["accuracy"] < receipt.before["forget-train"]["accuracy"] - 0.3
    assert receipt.before["retain-test"]["accuracy"] - receipt.after["retain-test"]["accuracy"] <= 0.05
    assert "3" not in deletion.ledger.store.keys
    assert deletion.ledger.store.total().count == before - len(receipt.samples)
    assert digest(deletion.model(deletion.ledger.state.current)) == receipt.model_after != receipt.model_before
    assert receipt.edit["changed"] == sum(t["changed"] for t in receipt.edit["tensors"]) > 0
    assert "no certificate of erasure" in receipt.statement
    assert deletion.ledger.store.staleness().edits == 1
    verify(deletion.ledger)


def test_samples_of_a_request_are_measured_and_subtracted_from_their_groups(ledger_toml):
    gentle = Deletion.load(load_config(ledger_toml, ["deletion.method=gentle"]))
    some = samples_of(gentle, 3)[:30] + samples_of(gentle, 5)[:2]
    before = {key: gentle.ledger.store.group(key).count for key in "35"}
    gentle.ask("ticket-1", samples=some)
    receipt = gentle.work()
    store = gentle.ledger.store
    assert receipt.outcome == "forgotten"
    assert receipt.groups == ()
    assert (store.group("3").count, store.group("5").count) == (before["3"] - 30, before["5"] - 2)
    assert gentle.ledger.forgotten() == set(gentle.hashes(some))


def test_ledger_stores_no_raw_sample_number_and_no_request(gentle):
    gentle.ask("ticket-1", samples=[1000, 1001])
    gentle.work()
    assert list((gentle.ledger.folder / "queue").iterdir()) == []
    assert list((gentle.ledger.folder / "pending").iterdir()) == []
    receipt = json.loads((gentle.ledger.folder / "receipts" / "000002.json").read_text())["content"]
    assert receipt["samples"] == sorted(gentle.hashes([1000, 1001]))
    assert (gentle.ledger.folder / "salt").stat().st_mode & 0o777 == 0o600


def test_a_repeated_request_is_refused_by_name(gentle):
    gentle.ask("ticket-1", samples=[4, 5])
    with pytest.raises(ConfigurationError, match="'ticket-1' is waiting already"):
        gentle.ask("ticket-1", samples=[6])
    gentle.work()
    with pytest.raises(ConfigurationError, match=r"'ticket-1' was dealt with already \(receipt 2: forgotten\)"):
        gentle.ask("ticket-1", samples=[6])


def test_samples_forgotten_already_are_left_out(gentle):
    gentle.ask("ticket-1", samples=[4, 5])
    gentle.work()
    gentle.ask("ticket-2", samples=[5, 6])
    assert gentle.work().samples == tuple(gentle.hashes([6]))
    gentle.ask("ticket-3", samples=[4, 6])
    receipt = gentle.work()
    assert receipt.outcome == "nothing to forget"
    assert receipt.model_before == receipt.model_after
    verify(gentle.ledger)


def test_queued_requests_are_processed_in_one_edit(gentle):
    gentle.ask("ticket-1", samples=[4, 5])
    gentle.ask("ticket-2", samples=[5, 6])
    receipt = gentle.work()
    assert receipt.requests == ("ticket-1", "ticket-2")
    assert len(receipt.samples) == 3
    assert gentle.work() is None


def test_forget_set_too_large_for_alpha_is_reported(ledger_toml):
    config = load_config(ledger_toml, ["method.ssd.options.alpha=5.0"])
    deletion = Deletion.load(config)
    deletion.ask("ticket-1", groups=[*"348"])
    with pytest.warns(UserWarning, match="can select nothing"):
        receipt = deletion.work()
    assert receipt.outcome == "rolled back"
    assert "can select nothing" in receipt.reason


def test_derived_options_are_in_the_receipt_and_computed_once(ledger_toml, monkeypatch):
    ledger_toml.write_text(ledger_toml.read_text() + '[[method]]\nname = "ssd-adaptive"\n')
    ready, prepare = [], Adaptive.prepare
    monkeypatch.setattr(Adaptive, "prepare", lambda *a: ready.append(prepare(*a)) or ready[-1])
    deletion = Deletion.load(load_config(ledger_toml, ["deletion.method='ssd-adaptive'", "deletion.budget=1.0"]))
    deletion.ask("ticket-1", groups=["3"])
    receipt = deletion.work()
    assert len(ready) == 1
    assert receipt.edit["derived"] == {"alpha": ready[0].alpha}
    assert receipt.edit["options"]["alpha"] is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["deletion.method=prune"], "of the accuracy on retained test data"),
        (["deletion.method=prune", "method.prune.max_fraction=0.2"], "expected at most 0.2 of the weights to change"),
        (["method.ssd.options.alpha=9.8"], "ssd changed nothing: 0 of 678 weights. The largest F_f/F_r seen is"),
    ],
)
def test_edit_over_budget_is_rolled_back_and_reported(ledger_toml, settings, reason):
    deletion = Deletion.load(load_config(ledger_toml, settings))
    before = deletion.ledger.state.current, deletion.ledger.store.manifest
    deletion.ask("ticket-1", groups=["3"])
    receipt = deletion.work()
    assert receipt.outcome == "rolled back"
    assert reason in receipt.reason
    assert (deletion.ledger.state.current, deletion.ledger.store.manifest) == before
    assert deletion.ledger.forgotten() == frozenset()
    verify(deletion.ledger)
    deletion.ask("ticket-1", groups=["3"])  # with other options it may be asked again


def test_rollback_restores_the_model_and_recommends_new_importances(deletion):
    before = deletion.ledger.state.current
    deletion.ask("ticket-1", groups=["3"])
    deletion.work()
    receipt = rollback(deletion)
    assert receipt.outcome == "restored"
    assert deletion.ledger.state.current == before
    assert deletion.ledger.forgotten() == frozenset()
    verify(deletion.ledger)
    deletion.ask("ticket-1", groups=["3"])
    with pytest.raises(StoreError, match=r"groups \['3'\] differ. Measure them again"):
        deletion.work()
    assert deletion.refresh().outcome == "measured again"
    assert deletion.work().outcome == "forgotten"
    assert [p.name for p in deletion.ledger.folder.glob("importances-*")] == ["importances-1"]
    verify(deletion.ledger)


def test_a_request_for_what_was_forgotten_may_be_asked_again_after_a_rollback(gentle):
    gentle.ask("ticket-1", samples=[4, 5])
    gentle.work()
    gentle.ask("ticket-2", samples=[5])
    assert gentle.work().outcome == "nothing to forget"
    with pytest.raises(ConfigurationError, match=r"'ticket-2' was dealt with already \(receipt 3: nothing to forget\)"):
        gentle.ask("ticket-2", samples=[5])
    rollback(gentle)
    gentle.refresh()
    gentle.ask("ticket-2", samples=[5])
    assert gentle.work().samples == tuple(gentle.hashes([5]))
    verify(gentle.ledger)
    with pytest.raises(ConfigurationError, match="'ticket-2' was dealt with already"):
        gentle.ask("ticket-2", samples=[5])
    gentle.ask("ticket-1", samples=[4, 5])  # not all of them are forgotten
    assert [request.name for request in gentle.ledger.queue.waiting()] == ["ticket-1"]


def test_test_samples_of_groups_that_were_emptied_before_are_in_no_split(deletion):
    counts = np.bincount(deletion.experiment.bundle.test.targets.numpy())
    for digit, left in ((3, counts.sum() - counts[3]), (5, counts.sum() - counts[3] - counts[5])):
        deletion.ask(f"ticket-{digit}", groups=[str(digit)])
        after = deletion.work().after
        assert (after["forget-test"]["samples"], after["retain-test"]["samples"]) == (counts[digit], left)


def test_a_receipt_says_that_the_loss_did_not_rise(load, monkeypatch):
    lower = iter([1.0, 2.0, 0.5, 1.5])  # before and after the edit, of forget-train and of retain-test

    def scores(self, model, splits):
        return {name: {"loss": next(lower), "accuracy": 1.0, "samples": 1} for name in ("forget-train", "retain-test")}

    monkeypatch.setattr(Deletion, "_scores", scores)
    load().ask("t1", groups=["ant"])
    said = "but their loss did not rise (1 → 0.5), so the edit may have forgotten nothing"
    assert load().work().reason == said


@pytest.mark.parametrize("setting", ["importance.estimator='sampled-fisher'", "objective.options.targets=label"])
def test_other_settings_than_those_of_the_stored_importances_are_refused(load, setting):
    load().ask("t1", groups=["ant"])
    for work in (load(setting).start, load(setting).work):
        with pytest.raises(StoreError, match=r"were measured with other settings: .*Set them as they were, or measure"):
            work()
    assert load().work().outcome == "forgotten"


def test_groups_that_do_not_exist_start_no_ledger(load):
    shutil.rmtree(load().ledger.folder)
    with pytest.raises(ConfigurationError, match=r"deletion.groups: expected one of the label kinds .*saw 'person'"):
        load("deletion.groups=person").start()
    assert not load().ledger.folder.exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_rollback_after_the_importances_were_measured_again(load, monkeypatch, interrupted):
    """They are of the model after the edit, and without the samples that come back."""
    ledger = load().ledger
    start = ledger.state.current.digest
    load().ask("t1", groups=["ant"])
    load().work()
    load().refresh()
    if interrupted:
        with monkeypatch.context() as patch:
            patch.setattr(type(ledger), "commit", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                load().refresh()
    assert rollback(load()).model_after == start
    assert len(verify(ledger)) == 4
    load().ask("t2", groups=["bee"])
    with pytest.raises(StoreError, match=r"the importances in .* are not complete: `unlearnkit ledger CONFIG"):
        load().work()
    load().start()
    assert ledger.store.keys == ("ant", "bee", "cow")
    assert load().work().groups == ("bee",)
    verify(ledger)


def test_no_rollback_after_a_purge(gentle):
    gentle.ask("ticket-1", samples=[4, 5])
    gentle.work()
    assert len(list((gentle.ledger.folder / "models").iterdir())) == 2
    purge(gentle)
    assert len(list((gentle.ledger.folder / "models").iterdir())) == 1
    with pytest.raises(ConfigurationError, match="expected an earlier model to put back, saw none"):
        rollback(gentle)
    gentle.ask("ticket-2", samples=[6])
    with pytest.raises(StoreError, match="was purged"):
        gentle.work()
    gentle.refresh()
    assert gentle.work().outcome == "forgotten"
    verify(gentle.ledger)


def test_bad_requests(deletion):
    with pytest.raises(ConfigurationError, match="expected samples between 0 and 1346, saw"):
        deletion.ask("ticket-1", samples=[1347, -1])
    with pytest.raises(ConfigurationError, match="no group is called '33'"):
        deletion.ask("ticket-1", groups=["33"])
    with pytest.raises(ConfigurationError, match="expected a name"):
        deletion.ask(" ", samples=[1])
    with pytest.raises(ConfigurationError, match="saw neither"):
        deletion.ask("ticket-1")
    with pytest.raises(ConfigurationError, match="some must stay"):
        deletion.ask("ticket-1", groups=list("0123456789"))


def test_missing_ledger_is_an_error(deletion, tmp_path):
    shutil.rmtree(deletion.ledger.folder)
    with pytest.raises(StoreError, match=r"out/ledger: there is no ledger: `unlearnkit ledger CONFIG.toml` starts one"):
        deletion.work()
    assert not deletion.ledger.folder.exists()


def test_second_process_gets_an_error(ledger_toml, deletion):
    deletion.ask("ticket-1", groups=["3"])
    with FileLock(deletion.ledger.folder / "lock"):
        for command in ("forget", "ledger", "rollback", "purge"):
            result = call(command, ledger_toml, "-q")
            assert result.exit_code == 2
            assert "another process is working on the ledger" in " ".join(result.output.split())
        verify(deletion.ledger)  # readers need no lock
    assert call("forget", ledger_toml, "-q").exit_code == 0


# --- the chain --------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(deletion):
    for number, digit in enumerate("123", start=1):
        deletion.ask(f"ticket-{number}", groups=[digit])
        deletion.work()
    return deletion


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "lock")


def test_every_changed_byte_is_detected(three):
    verify(three.ledger)
    rng = np.random.default_rng(0)
    for path in files(three.ledger.folder):
        good = path.read_bytes()
        for position in {0, len(good) - 1, *rng.integers(0, len(good), 2).tolist()}:
            bad = bytearray(good)
            bad[position] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(bad)
            with pytest.raises(StoreError):
                verify(three.ledger)
        path.write_bytes(good)
    verify(three.ledger)


def test_missing_and_rewritten_receipts_are_detected(three):
    folder = three.ledger.folder / "receipts"
    _, second, *_, last = three.ledger.receipts()
    (folder / "000002.json").rename(folder / "aside")
    with pytest.raises(StoreError, match="one is missing"):
        verify(three.ledger)
    (folder / "aside").rename(folder / "000002.json")
    write_sealed(folder / "000004.json", attrs.evolve(last, reason="rewritten"), kind="unlearnkit-receipt-3")
    with pytest.raises(StoreError, match="receipts were added or removed"):
        verify(three.ledger)
    write_sealed(folder / "000002.json", attrs.evolve(second, samples=()), kind="unlearnkit-receipt-3")
    with pytest.raises(StoreError, match=r"000003.json: .* the chain is broken here"):
        verify(three.ledger)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_commands(ledger_toml, tmp_path):
    (tmp_path / "ids.txt").write_text("4\n5\n")
    started = call("ledger", ledger_toml, "-q")
    assert started.exit_code == 0, started.output
    assert "10 groups" in started.output
    queued = call("forget", ledger_toml, "-q", "--request", "t1", "--samples", "ids.txt", "--queue")
    assert "1 requests are waiting" in queued.output
    done = call("forget", ledger_toml, "-q", "-r", "t2", "-g", "3")
    assert done.exit_code == 0, done.output
    assert "Receipt 2 (t1, t2)" in done.output
    assert "forget-train: accuracy" in done.output
    assert "no request is waiting" in call("forget", ledger_toml, "-q").output
    again = call("forget", ledger_toml, "-q", "-r", "t2", "-g", "3")
    assert again.exit_code == 2
    assert "was dealt with already" in " ".join(again.output.split())
    refused = call("forget", ledger_toml, "-q", "-r", "t3", "-g", "4", "--set", "deletion.method=prune")
    assert refused.exit_code == 1
    assert "rolled back" in " ".join(refused.output.split())
    verified = call("verify-receipts", ledger_toml)
    assert verified.exit_code == 0
    assert "3 receipts, all as they were written" in verified.output
    assert "restored" not in verified.output
    assert "put back" in call("rollback", ledger_toml, "-q").output
    assert call("purge", ledger_toml, "-q").exit_code == 0
    path = tmp_path / "out" / "ledger" / "receipts" / "000002.json"
    path.write_text(path.read_text().replace('"number": 2', '"number": 3'))
    tampered = call("verify-receipts", ledger_toml)
    assert tampered.exit_code == 2
    assert "000002.json" in tampered.output


def test_what_all_edits_have_cost_is_shown(load):
    def retained(receipt):
        return receipt.before["retain-test"]["accuracy"] - receipt.after["retain-test"]["accuracy"]

    assert "in all" not in call("forget", "small.toml", "-q", "-r", "t1", "-g", "ant").output
    said = call("forget", "small.toml", "-q", "-r", "t2", "-g", "bee").output
    cost = sum(map(retained, load().ledger.receipts()[1:]))
    assert f"2 edits have cost {cost:.3f} of the accuracy on retained test data in all" in " ".join(said.split())
    call("rollback", "small.toml", "-q")
    first = retained(load().ledger.receipts()[1])
    assert lost_accuracy(load().ledger.receipts()) == (1, pytest.approx(first))


def test_ctrl_c_says_which_requests_still_wait(load, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Deletion, "_edit", Mock(side_effect=KeyboardInterrupt))
        stopped = call("forget", "small.toml", "-q", "-r", "t1", "-g", "ant")
    assert stopped.exit_code == 130
    assert "the next `unlearnkit forget` without a request goes on with t1" in " ".join(stopped.output.split())
    assert call("forget", "small.toml", "-q").exit_code == 0
    assert load().ledger.receipts()[-1].requests == ("t1",)


def test_a_ledger_refuses_a_tuned_method(ledger_toml):
    with pytest.raises(ConfigurationError, match="'gentle': expected fixed options for a ledger, saw tuned"):
        Deletion.load(load_config(ledger_toml, ["deletion.method=gentle", "method.gentle.tuned=true"]))


def test_a_ledger_is_of_one_model(ledger_toml, deletion):
    state = deletion.ledger.state
    experiment = Experiment.load(load_config(ledger_toml))
    save_checkpoint(experiment.fresh_model(pretrained=False), "other.safetensors")
    refused = call("ledger", ledger_toml, "-q", "-s", "model.checkpoint=other.safetensors")
    assert refused.exit_code == 2
    assert "is the ledger of another model" in " ".join(refused.output.split())
    assert deletion.ledger.state == state
    assert call("ledger", ledger_toml, "-q").exit_code == 0
    assert call("ledger", ledger_toml, "-q", "-s", "model.checkpoint=deleted.safetensors").exit_code == 0


def test_an_estimator_of_batches_is_refused_before_a_ledger_is_made(ledger_toml):
    batched = [f"output='{ledger_toml.parent}/batched'", "importance.estimator='batched-diagonal-fisher'"]
    with pytest.raises(ConfigurationError, match=r"expected one term per sample for a ledger.*saw 'batched-diagonal"):
        Deletion.load(load_config(ledger_toml, batched))
    assert not (ledger_toml.parent / "batched").exists()
