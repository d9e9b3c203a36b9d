import dataclasses
import json
import math
import os
import shutil
import signal
import threading

import pytest
import torch

from dkpn import DKPN
from dkpn.checkpoint import load_weights
from dkpn.monitor import TERMS
from dkpn.run_folder import find_resume
from dkpn.schedule import StopRequest
from dkpn.train import new_state, train
from tests.dkpn.training_runs import (
    SAME_CURVE,
    SMALLEST,
    curve,
    rows,
    tiny_config,
    tiny_pairs,
    tiny_scenes,
    tiny_validation,
    weights,
)

COMPILING = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own


class StopAfter(StopRequest):
    """Asks for a stop at a given iteration, as Ctrl-C would."""

    def __init__(self, iteration):
        super().__init__()
        self.iteration = iteration

    def after(self, iteration):
        return signal.SIGINT if iteration >= self.iteration else 0


@pytest.fixture(scope="module")
def scenes():
    return tiny_scenes()


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory):
    """A run that nothing disturbed."""
    run, out = tiny_config(), tmp_path_factory.mktemp("whole")
    model = train(run, tiny_pairs(scenes, run), tiny_validation(scenes), out, quiet=True)
    return out, model


def test_a_run_leaves_all_that_its_docstring_names(whole):
    out, model = whole
    expected = {"run.json", "metrics.csv", "metrics.png", "validation", "checkpoints", "best"}
    expected |= {"model.safetensors", "config.json"}
    assert {path.name for path in out.iterdir()} == expected
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["00000002", "00000004", "00000006"]
    assert [row["iteration"] for row in rows(out, "validation")] == ["0", "3", "6"]
    assert [path.name for path in sorted((out / "validation").iterdir())] == [
        "00000000.png",
        "00000003.png",
        "00000006.png",
    ]
    # A row for each checkpoint: what is saved has been found to be finite.
    assert [row["iteration"] for row in rows(out, "train")] == ["2", "4", "6"]
    assert all(math.isfinite(float(row["total"])) for row in rows(out, "train"))
    assert all(float(row["gradient_norm"]) > 0 for row in rows(out, "train"))
    for saved, returned in zip(load_weights(out).parameters(), model.parameters(), strict=True):
        assert torch.equal(saved, returned)
    run = json.loads((out / "run.json").read_text())
    assert run["train"]["iterations"] == 6
    assert list(run["code"]) == ["0"]


def test_the_best_weights_are_those_of_the_lowest_validation_loss(scenes, tmp_path):
    # Two good steps, then two that are far too large: the last weights are not the best.
    run = tiny_config(iterations=4, validate_every=1, learning_rate=3e-3, ema_decay=0.0)
    pairs, judged = tiny_pairs(scenes, run), tiny_validation(scenes)
    train(run, pairs, judged, tmp_path, stop=StopAfter(2), quiet=True)
    resume = find_resume(tmp_path, "auto")
    state = json.loads((resume / "state.json").read_text())
    state["config"]["train"]["learning_rate"] = 30.0
    (resume / "state.json").write_text(json.dumps(state))
    wild = dataclasses.replace(run, train=dataclasses.replace(run.train, learning_rate=30.0))
    train(wild, pairs, judged, tmp_path, resume=resume, quiet=True)
    losses = {int(row["iteration"]): float(row["total"]) for row in rows(tmp_path, "validation")}
    best = json.loads((tmp_path / "best" / "validation.json").read_text())
    assert losses[best["iteration"]] == min(losses.values())
    assert best["iteration"] < 4
    assert best["total"] == pytest.approx(min(losses.values()), rel=1e-5)  # the CSV's six digits
    assert list(best) == ["iteration", *TERMS]
    assert not torch.equal(weights(tmp_path / "best"), weights(tmp_path))


@pytest.mark.parametrize("where", [1, 3])
def test_stopped_and_resumed_gives_the_same_weights_bit_for_bit(scenes, whole, tmp_path, where):
    run, stop = tiny_config(), StopAfter(where)
    pairs, judged = tiny_pairs(scenes, run), tiny_validation(scenes)
    train(run, pairs, judged, tmp_path, stop=stop, quiet=True)
    assert stop.number == signal.SIGINT
    checkpoint = find_resume(tmp_path, "auto")
    assert checkpoint is not None
    assert int(checkpoint.name) == where
    torch.manual_seed(99)  # another process would start with other random numbers
    train(run, pairs, judged, tmp_path, resume=checkpoint, quiet=True)
    for folder in ("", "best"):
        assert torch.equal(weights(tmp_path / folder), weights(whole[0] / folder))
    for split in ("validation", "train"):
        assert rows(tmp_path, split)[-1]["iteration"] == "6"
    # Numbers too, wherever both validated: a run that is told to stop does not validate first.
    expected = {row["iteration"]: row for row in rows(whole[0], "validation")}
    for row in rows(tmp_path, "validation"):
        assert [row[name] for name in TERMS] == [expected[row["iteration"]][name] for name in TERMS]
    assert list(json.loads((tmp_path / "run.json").read_text())["code"]) == ["0", str(where)]


def test_a_stop_with_the_last_iteration_is_none(scenes, tmp_path):
    run, stop = tiny_config(SMALLEST, iterations=2), StopAfter(2)
    train(run, tiny_pairs(scenes, run), tiny_validation(scenes), tmp_path, stop=stop, quiet=True)
    assert not stop.requested
    assert [row["iteration"] for row in rows(tmp_path, "validation")] == ["0", "2"]


def test_rows_after_the_checkpoint_are_written_again_not_twice(scenes, tmp_path):
    run = tiny_config(SMALLEST, iterations=4)
    pairs, judged = tiny_pairs(scenes, run), tiny_validation(scenes)[:1]
    train(run, pairs, judged, tmp_path, quiet=True)
    shutil.rmtree(tmp_path / "checkpoints" / "00000004")
    train(run, pairs, judged, tmp_path, resume=find_resume(tmp_path, "auto"), quiet=True)
    assert [row["iteration"] for row in rows(tmp_path, "validation")] == ["0", "3", "4"]
    assert [row["iteration"] for row in rows(tmp_path, "train")] == ["2", "4"]


def test_resuming_a_finished_run_changes_nothing_but_older_weights(scenes, tmp_path):
    run = tiny_config(SMALLEST, iterations=2)
    first = train(run, tiny_pairs(scenes, run), [], tmp_path, quiet=True)
    expected = weights(tmp_path)
    # As if the process had been killed between the checkpoint and the weights.
    (tmp_path / "model.safetensors").unlink()
    resume = find_resume(tmp_path, "auto")
    again = train(run, tiny_pairs(scenes, run), [], tmp_path, resume=resume, quiet=True)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(weights(tmp_path), expected)


def test_a_checkpoint_of_an_older_version_lacks_fields_that_have_their_defaults(scenes, tmp_path):
    run = tiny_config(SMALLEST, iterations=2)
    pairs = tiny_pairs(scenes, run)
    train(run, pairs, [], tmp_path, quiet=True)
    resume = find_resume(tmp_path, "auto")
    state = json.loads((resume / "state.json").read_text())
    del state["config"]["train"]["accumulate"]
    (resume / "state.json").write_text(json.dumps(state))
    train(run, pairs, [], tmp_path, resume=resume, quiet=True)
    other = tiny_config(SMALLEST, iterations=2, accumulate=2)
    with pytest.raises(ValueError, match=r"train\.accumulate: 1 and 2"):
        train(other, pairs, [], tmp_path, resume=resume, quiet=True)


def test_training_lowers_the_loss_on_one_scene(scenes, tmp_path):
    run = tiny_config(
        learning_rate=3e-3, ema_decay=0.8, iterations=30, validate_every=30, checkpoint_every=30
    )
    judged = tiny_validation(scenes[:1])
    train(run, tiny_pairs(scenes[:1], run), judged, tmp_path, quiet=True)
    before, after = rows(tmp_path, "validation")
    assert float(after["total"]) < float(before["total"])


def test_other_images_or_settings_are_another_run(scenes, tmp_path):
    run = tiny_config(SMALLEST, iterations=2)
    train(run, tiny_pairs(scenes, run), [], tmp_path, quiet=True)
    resume = find_resume(tmp_path, "auto")
    with pytest.raises(ValueError, match=r"images: '3 scenes.*'2 scenes"):
        train(run, tiny_pairs(scenes[:2], run), [], tmp_path, resume=resume, quiet=True)
    other = tiny_config(SMALLEST, iterations=3)
    with pytest.raises(ValueError, match=r"train\.iterations: 2 and 3"):
        train(other, tiny_pairs(scenes, other), [], tmp_path, resume=resume, quiet=True)


# --- what is not finite --------------------------------------------------------------------------


def all_saved_is_finite(out):
    saved = [*out.rglob("model.safetensors"), *out.rglob("ema.safetensors")]
    vectors = [weights(path.parent) for path in saved if (path.parent / "config.json").is_file()]
    return all(bool(torch.isfinite(vector).all()) for vector in vectors)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(scenes, tmp_path):
    run = tiny_config(learning_rate=1e30, iterations=20)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train(run, tiny_pairs(scenes, run), tiny_validation(scenes), tmp_path, quiet=True)
    assert all_saved_is_finite(tmp_path)


class Poisoned:
    """Pairs of which one has a truth of NaN."""

    def __init__(self, pairs, poisoned):
        self.pairs, self.scenes, self.poisoned = pairs, pairs.scenes, poisoned

    def batch(self, indices):
        photo, truth = self.pairs.batch(indices)
        if self.poisoned in indices:
            truth = truth * float("nan")
        return photo, truth

    def batches(self, parts):
        yield from map(self.batch, parts)


def test_a_step_that_is_not_finite_is_never_saved(scenes, tmp_path):
    run = tiny_config(SMALLEST, iterations=6, checkpoint_every=2)
    pairs = Poisoned(tiny_pairs(scenes, run), poisoned=7)  # in the fourth step
    with pytest.raises(FloatingPointError, match="iteration 4"):
        train(run, pairs, tiny_validation(scenes), tmp_path, quiet=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000002"]
    assert all_saved_is_finite(tmp_path)


def test_a_gradient_that_is_not_finite_is_never_saved(scenes, tmp_path, monkeypatch):
    """The loss of the step is finite; only the weights that it leaves are not."""

    def poisoned(config, device, start):
        state = new_state(config, device, start)

        def poison(gradient):
            return gradient * float("nan") if state.iteration == 3 else gradient

        state.model.head.convolution.weight.register_hook(poison)
        return state

    monkeypatch.setattr("dkpn.train.new_state", poisoned)
    run = tiny_config(SMALLEST, iterations=6, checkpoint_every=2)
    before = set(threading.enumerate())
    with pytest.raises(FloatingPointError) as caught:
        train(run, tiny_pairs(scenes, run), tiny_validation(scenes), tmp_path, quiet=True)
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in left if name.startswith("batches")]
    caught.match("norm of the gradient is nan at iteration 4")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000002"]
    assert all_saved_is_finite(tmp_path)


# --- options -------------------------------------------------------------------------------------


def test_a_batch_in_parts_gives_the_same_run_up_to_rounding(scenes, tmp_path):
    curves = []
    for parts in (1, 2, 4):
        run = tiny_config(batch_size=4, accumulate=parts, checkpoint_every=1, learning_rate=3e-4)
        out = tmp_path / str(parts)
        train(run, tiny_pairs(scenes, run), tiny_validation(scenes), out, quiet=True)
        curves.append(curve(out))
    assert curves[1] == pytest.approx(curves[0], rel=SAME_CURVE)
    assert curves[2] == pytest.approx(curves[0], rel=SAME_CURVE)


def test_the_fused_head_trains_the_same_network(scenes, whole, tmp_path):
    run = tiny_config(head="fused")
    train(run, tiny_pairs(scenes, run), tiny_validation(scenes), tmp_path, quiet=True)
    assert curve(tmp_path) == pytest.approx(curve(whole[0]), rel=SAME_CURVE)
    assert load_weights(tmp_path).config == run.model


def test_bfloat16_trains_nearly_the_same_network(scenes, whole, tmp_path):
    run = tiny_config(precision="bfloat16")
    train(run, tiny_pairs(scenes, run), tiny_validation(scenes), tmp_path, quiet=True)
    assert curve(tmp_path) != curve(whole[0])
    # Features have 8 bits of precision; validation runs in float32.
    assert curve(tmp_path) == pytest.approx(curve(whole[0]), rel=2**-7)


@COMPILING
def test_a_compiled_network_has_weights_of_the_same_names(scenes, whole, tmp_path):
    run = tiny_config(compile=True)
    with torch.compiler.set_stance("force_eager"):
        train(run, tiny_pairs(scenes, run), tiny_validation(scenes), tmp_path, quiet=True)
    assert torch.equal(weights(tmp_path), weights(whole[0]))


@COMPILING
@pytest.mark.slow
def test_a_compiled_network_trains_the_same_way(scenes, whole, tmp_path):
    run = tiny_config(compile=True)
    train(run, tiny_pairs(scenes, run), tiny_validation(scenes), tmp_path, quiet=True)
    assert curve(tmp_path) == pytest.approx(curve(whole[0]), rel=SAME_CURVE)


def test_tensorboard_gets_the_numbers_of_the_csv_file(scenes, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny_config(SMALLEST, tensorboard=True)
    pairs, judged = tiny_pairs(scenes, run), tiny_validation(scenes)
    train(run, pairs, judged, tmp_path, stop=StopAfter(3), quiet=True)
    train(run, pairs, judged, tmp_path, resume=find_resume(tmp_path, "auto"), quiet=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for split in ("train", "validation"):
        for name in ("total", "psnr"):
            expected = {int(row["iteration"]): float(row[name]) for row in rows(tmp_path, split)}
            actual = {event.step: event.value for event in events.Scalars(f"{name}/{split}")}
            assert actual == pytest.approx(expected, rel=1e-6)  # stored as float32


def test_without_tensorboard_the_run_says_what_to_install(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("dkpn.monitor.find_spec", lambda name: None)
    run = tiny_config(SMALLEST, tensorboard=True)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        train(run, tiny_pairs(scenes, run), [], tmp_path, quiet=True)


def test_a_signal_asks_for_a_stop_and_the_handlers_come_back(scenes, tmp_path):
    usual = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    class Interrupted(StopRequest):
        def after(self, iteration):
            if iteration == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes it on a second time
            return super().after(iteration)

    run, stop = tiny_config(SMALLEST), Interrupted()
    with stop.listening():
        train(run, tiny_pairs(scenes, run), [], tmp_path, stop=stop, quiet=True)
    assert stop.number == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == usual
    latest = find_resume(tmp_path, "auto")
    assert latest is not None
    # The signal's handler runs between two bytecodes, so the loop may be one step further.
    assert int(latest.name) in (2, 3)


def test_a_run_may_start_from_a_network():
    torch.manual_seed(5)
    start = DKPN(SMALLEST)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    config = tiny_config(SMALLEST)
    state = new_state(config, torch.device("cpu"), start)
    for network in (state.model, state.ema):
        for name, weight in network.state_dict().items():
            assert torch.equal(weight, start.state_dict()[name]), name
    other = dataclasses.replace(config, model=dataclasses.replace(SMALLEST, width=8))
    with pytest.raises(ValueError, match="start: the network has other choices"):
        new_state(other, torch.device("cpu"), start)
