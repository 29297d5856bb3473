"""The trainer, its callbacks and history, and resuming bit for bit."""

import builtins
import copy
import csv
import io
import json
import math
import re
import sys
import time

import numpy as np
import pytest

from fastconv import nn, optim
from fastconv.data import ArrayDataset, Compose, DataLoader, RandomHorizontalFlip, RandomShift
from fastconv.models import lenet
from fastconv.train import (
    Callback,
    Checkpoint,
    CheckpointError,
    EarlyStopping,
    History,
    LearningRateSchedule,
    NonFiniteLossError,
    Trainer,
    accuracy,
    confusion_matrix,
    load_checkpoint,
    save_checkpoint,
    top_k_accuracy,
)

FORMATS = (".safetensors", ".npz")


def stripes(n=60, seed=0, dtype=np.float32):
    """Small images, bright in the upper or in the lower half."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    images = rng.standard_normal((n, 1, 8, 8)).astype(dtype)
    images[labels == 0, :, :4] += 1
    images[labels == 1, :, 4:] += 1
    return ArrayDataset(images, labels)


def make(seed=0, *, callbacks=(), schedule="epoch", optimizer="adam", **kwargs):
    """A trainer with everything that has state: batch norm, dropout, momenta, a schedule."""
    rng = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, rng=rng),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.3, rng=rng),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 2, rng=rng),
    )
    if optimizer == "adam":
        opt = optim.Adam(model.parameters(), lr=0.01)
    else:
        opt = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    schedules = [LearningRateSchedule(optim.ExponentialLR(opt, 0.95), schedule)] if schedule else []
    options = {"rng": np.random.default_rng(seed + 100), "verbose": False, "batch_size": 8, **kwargs}
    return Trainer(model, nn.CrossEntropyLoss(), opt, callbacks=[*schedules, *callbacks], **options)


def linear(lr=0.1, **kwargs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, rng=0))
    opt = optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, nn.CrossEntropyLoss(), opt, rng=np.random.default_rng(0), verbose=False, **kwargs)


def loader(seed=0, prefetch=0, data=None):
    return DataLoader(
        stripes() if data is None else data,
        8,
        shuffle=True,
        transform=Compose(RandomShift(1), RandomHorizontalFlip()),
        rng=np.random.default_rng(seed + 200),
        prefetch=prefetch,
    )


def assert_same(a, b, where="state"):
    """Bitwise equality of nested values, but for the seconds in the history."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "seconds":
                assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{k}]")
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), where
    else:
        assert a == b or (a != a and b != b), where


class Interrupt(Callback):
    """Breaks off after a step, like Ctrl-C. Runs after everything else."""

    order = 1000

    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.step == self.step:
            raise KeyboardInterrupt


# --- training ---


@pytest.mark.smoke
def test_it_learns():
    trainer = make()
    history = trainer.fit(loader(), stripes(40, seed=1), epochs=15)
    assert history is trainer.history
    assert len(history) == trainer.epoch == 15
    assert trainer.step == 15 * 8
    assert history["loss"][-1] < history["loss"][0] / 2
    assert history["val_accuracy"][-1] >= 0.9
    assert history["epoch"] == list(range(1, 16))
    assert np.allclose(history["lr"], 0.01 * 0.95 ** np.arange(15))
    assert history.columns == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"]


def test_a_step_is_the_loop_written_out():
    """The same numbers as a loop by hand over the same batches, bit for bit."""
    data = stripes(40)
    batches = [data[k : k + 8] for k in range(0, 40, 8)]
    trainer = make(schedule=None)
    model = copy.deepcopy(trainer.model)
    opt = optim.Adam(model.parameters(), lr=0.01)
    criterion = nn.CrossEntropyLoss()
    losses, right = [], 0
    for images, labels in batches:
        outputs = model(images)
        losses.append(criterion(outputs, labels))
        right += int((outputs.argmax(axis=1) == labels).sum())
        opt.zero_grad()
        model.backward(criterion.backward())
        opt.step()
    trainer.fit(batches, epochs=1)
    assert_same(trainer.model.state_dict(), model.state_dict())
    assert math.isclose(trainer.history["loss"][0], np.mean(losses), rel_tol=1e-12)
    assert trainer.history["accuracy"] == [right / 40]


def test_evaluate_predict_and_metrics():
    trainer = make()
    data = stripes(50, seed=3)
    trainer.fit(stripes(), epochs=3)
    outputs = trainer.predict(data.inputs)
    assert outputs.shape == (50, 2)
    trainer.model.eval()
    assert np.allclose(outputs, trainer.model(data.inputs), atol=1e-6)
    trainer.model.train()
    for form in (data, (data.inputs, data.targets), DataLoader(data, 7), [data[:20], data[20:]]):
        assert np.allclose(trainer.predict(form), outputs, atol=1e-6)
        result = trainer.evaluate(form)
        assert result["accuracy"] == accuracy(outputs, data.targets)
        assert math.isclose(result["loss"], nn.CrossEntropyLoss()(outputs, data.targets), rel_tol=1e-5)


def test_evaluation_changes_nothing():
    trainer = make()
    trainer.fit(stripes(), epochs=1)
    before = copy.deepcopy(trainer.state_dict())
    trainer.evaluate(stripes(seed=4))
    trainer.predict(stripes(seed=4))
    assert_same(trainer.state_dict(), before)
    assert trainer.model.training
    trainer.model.eval()
    trainer.evaluate(stripes(seed=4))
    assert not trainer.model.training


def test_regression_has_no_accuracy():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 4))
    model = nn.Sequential(nn.Linear(4, 1, rng=0, dtype=np.float64))
    trainer = Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1), verbose=False)
    history = trainer.fit((x, x.sum(axis=1, keepdims=True)), epochs=60)
    assert history.columns == ["epoch", "loss", "lr", "seconds"]
    assert history["loss"][-1] < 1e-3


def test_labels_for_every_pixel():
    x = np.random.default_rng(0).standard_normal((16, 1, 4, 4)).astype(np.float32)
    model = nn.Sequential(nn.Conv2d(1, 2, 1, rng=0))
    trainer = Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=1.0), verbose=False)
    history = trainer.fit((x, (x[:, 0] > 0).astype(int)), epochs=30)
    assert 0.9 < history["accuracy"][-1] <= 1


def test_the_input_gradient_is_not_computed():
    seen = []

    class Spy(nn.Linear):
        def backward(self, grad_output):
            seen.append(self.needs_input_grad)
            return super().backward(grad_output)

    model = nn.Sequential(Spy(4, 2, rng=0), nn.ReLU(), nn.Linear(2, 2, rng=0))
    trainer = Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), verbose=False)
    trainer.fit((np.ones((4, 4), np.float32), np.array([0, 1, 0, 1])), epochs=1)
    assert seen == [False]
    assert model.needs_input_grad  # as it was


def test_clipping_gradients():
    norms = []

    class Norm(Callback):
        def on_step_end(self, trainer):
            squares = [(p.grad.astype(np.float64) ** 2).sum() for p in trainer.model.parameters()]
            norms.append(math.sqrt(sum(squares)))

    make(callbacks=[Norm()]).fit(stripes(), epochs=1)
    free = norms.copy()
    norms.clear()
    make(callbacks=[Norm()], clip_grad_norm=0.2).fit(stripes(), epochs=1)
    assert max(free) > 0.3
    assert max(norms) <= 0.2 + 1e-6
    assert math.isclose(max(norms), 0.2, rel_tol=1e-3)
    with pytest.raises(ValueError, match="clip_grad_norm must be above 0"):
        make(clip_grad_norm=0)


# --- losses that are not finite ---


@pytest.mark.smoke
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops(value):
    data = stripes(40)
    batches = [data[k : k + 8] for k in range(0, 40, 8)]
    trainer = linear()
    trainer.fit(batches, epochs=2)
    after_two = copy.deepcopy(trainer.model.state_dict())
    broken = [*batches[:3], (np.full_like(batches[3][0], value), batches[3][1]), batches[4]]
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(NonFiniteLossError, match="epoch 3, step 14: the loss is nan"),
    ):
        trainer.fit(broken, epochs=5)
    assert all(np.isfinite(array).all() for array in trainer.model.state_dict().values())
    assert trainer.step == 13
    assert not np.array_equal(trainer.model.state_dict()["1.weight"], after_two["1.weight"])
    assert len(trainer.history) == 2


def test_gradients_that_are_not_finite_stop_when_clipping():
    class Overflow(nn.Linear):
        def backward(self, grad_output):
            return super().backward(grad_output * np.float32(np.inf))

    model = nn.Sequential(nn.Flatten(), Overflow(64, 2, rng=0))
    opt = optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.CrossEntropyLoss(), opt, clip_grad_norm=1.0, verbose=False)
    before = copy.deepcopy(model.state_dict())
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1: .* the norm of its gradients (nan|inf)"),
    ):
        trainer.fit(stripes(), epochs=1)
    assert_same(model.state_dict(), before)


def test_a_validation_loss_that_is_not_finite_stops_before_saving(tmp_path):
    path = tmp_path / "c.npz"
    trainer = linear(callbacks=[Checkpoint(path)])
    bad = (np.full((4, 1, 8, 8), np.nan, np.float32), np.zeros(4, int))
    with pytest.raises(NonFiniteLossError, match="epoch 1: the validation loss is nan"):
        trainer.fit(stripes(), bad, epochs=3)
    assert not path.exists()


# --- data of every form, and none ---


def test_data_sets_are_shuffled_by_the_trainers_generator():
    orders = []

    class Spy(Callback):
        def on_epoch_end(self, trainer, row):
            orders.append(row["loss"])

    for seed in (0, 0, 1):
        trainer = make(callbacks=[Spy()])
        trainer.rng = np.random.default_rng(seed)
        trainer.fit(stripes(), epochs=2)
    assert orders[:2] == orders[2:4] != orders[4:]


def test_no_data():
    for data in ([], DataLoader(stripes(0), 4), (np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, int))):
        with pytest.raises(ValueError, match="hold no batch"):
            make().fit(data, epochs=1)
        with pytest.raises(ValueError, match="hold no batch"):
            make().evaluate(data)
        with pytest.raises(ValueError, match="hold no batch"):
            make().predict(data)
        with pytest.raises(ValueError, match="hold no batch"):
            make().dry_run(data)


def test_data_that_cannot_be_iterated_again():
    with pytest.raises(TypeError, match="more than once, got a generator"):
        make().fit((batch for batch in [stripes()[:8]]), epochs=2)
    with pytest.raises(TypeError, match=r"DataLoader, a data set.*got int"):
        make().fit(3, epochs=1)


LABELS = np.array([0, 1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((2, 1, 8, 8)), r"a pair \(inputs, targets\), got one array of shape \(2, 1, 8, 8\)"),
        (([[0.0] * 64] * 2, [0, 1]), "a pair of arrays .* got tuple of list, list"),
        ([np.zeros((2, 64)), LABELS], "a pair of arrays .* got list of ndarray, ndarray"),
        ((np.zeros((2, 64)), [0, 1]), "a pair of arrays .* got tuple of ndarray, list"),
        ((list(np.zeros((2, 1, 8, 8))), list(LABELS)), "a pair of arrays .* got tuple of list, list"),
        ((np.zeros((2, 64)), LABELS, LABELS), "a pair of arrays .* got tuple of ndarray, ndarray, ndarray"),
    ],
    ids=["no targets", "lists", "list of arrays", "list of labels", "lists of arrays", "three"],
)
def test_data_of_no_known_form(data, message):
    trainer = linear()
    for call in (trainer.fit, trainer.evaluate, trainer.dry_run):
        with pytest.raises(TypeError, match=f"^Trainer: the data must be {message}"):
            call(data)
    assert trainer.step == 0


def test_batches_in_a_sequence():
    batch = (np.zeros((2, 64), np.float32), LABELS)
    for data in ([batch], (batch, batch), [list(batch)] * 3):
        trainer = linear()
        trainer.fit(data)
        assert trainer.step == len(data)


@pytest.mark.parametrize("epochs", [1.5, "2", True, None])
def test_epochs_are_a_whole_number(epochs):
    with pytest.raises(TypeError, match=r"Trainer\.fit: epochs must be an int, got"):
        make().fit(stripes(), epochs=epochs)


def test_a_seed_for_the_trainers_generator():
    losses = [make(rng=rng).fit(stripes(), epochs=1).rows[0]["loss"] for rng in (5, np.random.default_rng(5))]
    assert losses[0] == losses[1]
    with pytest.raises(
        TypeError, match=r"Trainer: rng must be a numpy\.random\.Generator, an int seed or None"
    ):
        make(rng=np.random.RandomState(0))


def test_criterion_must_average():
    model = nn.Sequential(nn.Linear(2, 2, rng=0))
    with pytest.raises(ValueError, match="reduction"):
        Trainer(model, nn.CrossEntropyLoss(reduction="sum"), optim.SGD(model.parameters(), lr=0.1))


def test_epochs_count_from_the_start(capsys):
    trainer = make()
    trainer.fit(stripes(), epochs=2)
    trainer.fit(stripes(), epochs=3)
    assert trainer.history["epoch"] == [1, 2, 3]
    trainer.verbose = True
    trainer.fit(stripes(), epochs=3)
    assert "nothing to train: 3 of 3 epochs are complete" in capsys.readouterr().out
    assert len(trainer.history) == 3
    with pytest.raises(ValueError, match="3 epochs are complete"):
        trainer.fit(stripes(), epochs=2)


def test_dry_run_leaves_no_trace():
    trainer = make()
    train = loader(prefetch=2)
    trainer.fit(train, stripes(seed=1), epochs=1)
    before, train_before = copy.deepcopy(trainer.state_dict()), train.state_dict()
    result = trainer.dry_run(train, stripes(seed=1))
    assert result.keys() == {"loss", "val_loss"}
    assert all(map(math.isfinite, result.values()))
    assert_same(trainer.state_dict(), before)
    assert train.state_dict() == train_before
    assert all(p.grad is None for p in trainer.model.parameters())
    other = make()
    other.fit(loader(), stripes(seed=1), epochs=2)
    trainer.fit(train, stripes(seed=1), epochs=2)
    assert_same(trainer.model.state_dict(), other.model.state_dict())


def test_dry_run_shows_what_does_not_fit():
    trainer = linear()
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(ValueError, match="Linear"):
        trainer.dry_run((np.zeros((4, 1, 9, 9), np.float32), np.zeros(4, int)))
    after = trainer.state_dict()
    assert_same(after["model"], before["model"])


# --- what is printed ---


def test_table(capsys):
    make(verbose=True).fit(stripes(), stripes(seed=1), epochs=2)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 3
    titles = ["epoch", "train loss", "train acc", "val loss", "val acc", "lr", "seconds"]
    assert re.split(r"\s{2,}", lines[0].strip()) == titles
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split()[0] == "2"
    assert printed.err == ""  # no bar where there is no terminal


def test_progress_bar(capsys):
    pytest.importorskip("tqdm")

    class Slow(Callback):
        def on_step_end(self, trainer):
            time.sleep(0.06)  # tqdm draws ten times a second

    make(progress=True, callbacks=[Slow()]).fit(stripes(), epochs=2)
    err = capsys.readouterr().err
    assert re.search(r"epoch 1/2:.* [3-8]/8 .*loss=\d\.\d{4}", err)
    assert "epoch 2/2" in err
    assert not err.rstrip("\r").endswith("batch/s]")  # it is wiped out


def test_no_tqdm(monkeypatch, capsys):
    real = builtins.__import__

    def without_tqdm(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError("no tqdm here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    make().fit(stripes(), epochs=1)
    assert capsys.readouterr().err == ""
    with pytest.raises(ImportError, match=r"pip install 'fastconv\[train\]'"):
        make(progress=True).fit(stripes(), epochs=1)


# --- callbacks ---


def test_callbacks_are_called_in_order():
    calls = []

    class Recorder(Callback):
        def __init__(self, name, order):
            self.name, self.order = name, order

        def __getattribute__(self, attribute):
            if attribute.startswith("on_"):
                calls.append(f"{self.name}.{attribute}")
            return super().__getattribute__(attribute)

    data = stripes(16)
    make(callbacks=[Recorder("b", 5), Recorder("a", 1)], schedule=None).fit(data, epochs=1)
    assert calls == [
        f"{name}.on_{event}"
        for event in ("fit_begin", "step_end", "step_end", "epoch_end", "fit_end")
        for name in "ab"
    ]


@pytest.mark.parametrize(("mode", "values"), [("min", [5, 3, 4, 3, 2.95, 9]), ("max", [1, 3, 2, 3, 3.05, 0])])
def test_early_stopping(mode, values, capsys):
    class Fake(Callback):
        def on_epoch_end(self, trainer, row):
            row["score"] = values[trainer.epoch - 1]

    stopping = EarlyStopping("score", patience=3, min_delta=0.1, mode=mode)
    trainer = make(callbacks=[Fake(), stopping], verbose=True)
    trainer.fit(stripes(16), epochs=20)
    assert trainer.epoch == 5  # the best at 2, then three without
    assert trainer.stop_reason == "score has not improved on 3 for 3 epochs"
    assert "stopped: score has not improved" in capsys.readouterr().out
    trainer.fit(stripes(16), epochs=20)
    assert trainer.epoch == 5  # it stays stopped
    trainer.stop_reason = None
    trainer.fit(stripes(16), epochs=6)
    assert trainer.epoch == 6


def test_early_stopping_on_a_column_that_is_not_there():
    with pytest.raises(KeyError, match="no column 'val_loss'; there are epoch, loss"):
        make(callbacks=[EarlyStopping()]).fit(stripes(16), epochs=2)
    for bad in ({"patience": 0}, {"mode": "up"}):
        with pytest.raises(ValueError, match=r"patience|mode"):
            EarlyStopping(**bad)


def test_schedule_per_step():
    trainer = make(schedule="step")
    trainer.fit(stripes(), epochs=2)
    assert math.isclose(trainer.learning_rate, 0.01 * 0.95**16)
    assert math.isclose(trainer.history["lr"][1], 0.01 * 0.95**8)
    with pytest.raises(ValueError, match="every"):
        LearningRateSchedule(optim.ExponentialLR(trainer.optimizer, 0.9), "batch")


def test_checkpoint_callback(tmp_path):
    epochs = []

    class Spy(Checkpoint):
        def _save(self, trainer):
            epochs.append((trainer.epoch, trainer.step))
            super()._save(trainer)

    path = tmp_path / "deep" / "down" / "c.npz"
    make(callbacks=[Spy(path, every_epochs=2, metadata={"name": "x"})]).fit(stripes(), epochs=5)
    assert epochs == [(2, 16), (4, 32), (5, 40)]
    assert load_checkpoint(path)["metadata"] == {"name": "x"}
    epochs.clear()
    make(callbacks=[Spy(path, every_steps=6)]).fit(stripes(), epochs=2)
    assert epochs == [(0, 6), (1, 8), (1, 12), (2, 16)]

    class Fake(Callback):
        def on_epoch_end(self, trainer, row):
            row["score"] = [1, 3, 2, 4][trainer.epoch - 1]

    epochs.clear()
    make(callbacks=[Spy(path, monitor="score", mode="max"), Fake()]).fit(stripes(), epochs=4)
    assert [epoch for epoch, _ in epochs] == [1, 2, 4]
    for bad in ({"every_epochs": 0}, {"every_steps": 0}, {"monitor": "loss", "mode": "best"}):
        with pytest.raises(ValueError, match=r"at least 1|mode"):
            Checkpoint(path, **bad)
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.npz"):
        Checkpoint(tmp_path / "c.pt")


# --- resuming, bit for bit ---

STOPS = {"after epoch 2": 16, "within epoch 3": 19, "at the last step of epoch 3": 24}


def callbacks_for(path, *, every_steps=None):
    return [EarlyStopping("val_loss", patience=30), Checkpoint(path, every_steps=every_steps)]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    ("schedule", "optimizer", "prefetch"), [("epoch", "adam", 0), ("step", "sgd", 2)], ids=["adam", "sgd"]
)
def test_resumed_equals_uninterrupted(tmp_path, suffix, stop, schedule, optimizer, prefetch):
    def trainer(name, seed, extra=()):
        callbacks = callbacks_for(tmp_path / f"{name}{suffix}", every_steps=1)
        return make(seed, callbacks=[*callbacks, *extra], schedule=schedule, optimizer=optimizer)

    val = stripes(20, seed=1)
    whole = trainer("whole", 0)
    whole.fit(loader(0, prefetch), val, epochs=5)

    broken = trainer("broken", 0, [Interrupt(STOPS[stop])])
    with pytest.raises(KeyboardInterrupt):
        broken.fit(loader(0, prefetch), val, epochs=5)

    # Other seeds everywhere: whatever the checkpoint does not bring would show.
    resumed = trainer("broken", 55, [Interrupt(-1)])
    resumed.load(tmp_path / f"broken{suffix}")
    assert resumed.step == STOPS[stop]
    resumed.fit(loader(77, prefetch), val, epochs=5)

    expected, found = whole.state_dict(), resumed.state_dict()
    expected["callbacks"].append(["Interrupt", {}])
    assert_same(found, expected)
    files = [load_checkpoint(tmp_path / f"{name}{suffix}") for name in ("whole", "broken")]
    files[0]["callbacks"].append(["Interrupt", {}])
    assert_same(*files)


@pytest.mark.smoke
@pytest.mark.parametrize("form", ["data set", "list of batches"])
def test_resuming_within_an_epoch_without_a_loader(tmp_path, form):
    data = stripes()
    train = data if form == "data set" else [data[k : k + 8] for k in range(0, 60, 8)]
    path = tmp_path / "c.npz"
    whole = make(0)
    whole.fit(train, epochs=3)
    broken = make(0, callbacks=[Checkpoint(path, every_steps=1), Interrupt(11)])
    with pytest.raises(KeyboardInterrupt):
        broken.fit(train, epochs=3)
    resumed = make(55, callbacks=[Checkpoint(path, every_steps=1), Interrupt(-1)])
    resumed.load(path)
    resumed.fit(train, epochs=3)
    expected, found = whole.state_dict(), resumed.state_dict()
    del expected["callbacks"], found["callbacks"]
    assert_same(found, expected)


@pytest.mark.parametrize("form", ["loader", "list of batches"])
def test_fit_after_an_interrupt_begins_the_epoch_anew(form):
    data = stripes()
    train = loader() if form == "loader" else [data[k : k + 8] for k in range(0, 60, 8)]
    trainer = make(callbacks=[Interrupt(11)])
    with pytest.raises(KeyboardInterrupt) as error:  # which holds on to the frames, as a notebook does
        trainer.fit(train, epochs=3)
    assert trainer.state_dict()["sums"] is None
    assert trainer.state_dict()["loaders"].get("train", {"position": 0})["position"] == 0
    trainer.fit(train, epochs=3)
    assert trainer.step == 11 + 16
    assert error.value is not None


@pytest.mark.parametrize("suffix", FORMATS)
def test_resuming_in_bfloat16(tmp_path, suffix):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    path = tmp_path / f"c{suffix}"
    data = stripes(dtype=bfloat16)

    def fresh():
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3, rng=0), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2, rng=1)
        )
        model.to(bfloat16)
        opt = optim.Adam(model.parameters(), lr=0.01)
        return Trainer(model, nn.CrossEntropyLoss(), opt, rng=0, verbose=False)

    whole, first, second = fresh(), fresh(), fresh()
    whole.fit(data, epochs=3)
    first.fit(data, epochs=1)
    first.save(path)
    second.load(path)
    assert_same(second.state_dict(), first.state_dict())
    second.fit(data, epochs=3)
    assert_same(second.model.state_dict(), whole.model.state_dict())
    assert second.model.state_dict()["0.weight"].dtype == bfloat16


def test_saving_after_fit_and_before_it_keeps_the_loader(tmp_path):
    whole = make()
    whole.fit(loader(), epochs=4)
    first = make()
    first.fit(loader(), epochs=2)
    first.save(tmp_path / "a.npz")
    second = make(7)
    second.load(tmp_path / "a.npz")
    second.dry_run(loader(5))  # must not lose what waits for fit
    second.save(tmp_path / "b.npz")  # nor must saving
    third = make(8)
    third.load(tmp_path / "b.npz")
    third.fit(loader(9), epochs=4)
    assert_same(third.state_dict(), whole.state_dict())


def test_early_stopping_survives_resuming(tmp_path):
    class Fake(Callback):
        def on_epoch_end(self, trainer, row):
            row["score"] = [5, 3, 4, 4, 4, 1][trainer.epoch - 1]

    path = tmp_path / "c.npz"

    def trainer():
        return make(callbacks=[Fake(), EarlyStopping("score", patience=3), Checkpoint(path)])

    trainer().fit(stripes(16), epochs=3)
    resumed = trainer()
    resumed.load(path)
    resumed.fit(stripes(16), epochs=6)
    assert resumed.epoch == 5
    again = trainer()
    again.load(path)
    again.fit(stripes(16), epochs=6)
    assert again.epoch == 5  # a stopped training is not taken up
    assert again.stop_reason == resumed.stop_reason != None  # noqa: E711


def test_the_best_value_survives_resuming(tmp_path):
    path = tmp_path / "best.npz"
    values = [3, 1, 2, 1.5]

    class Fake(Callback):
        def on_epoch_end(self, trainer, row):
            row["score"] = values[trainer.epoch - 1]

    def trainer():
        return make(callbacks=[Fake(), Checkpoint(path, monitor="score")])

    first = trainer()
    first.fit(stripes(16), epochs=2)
    first.save(tmp_path / "last.npz")
    resumed = trainer()
    resumed.load(tmp_path / "last.npz")
    resumed.fit(stripes(16), epochs=4)
    assert load_checkpoint(path)["epoch"] == 2


# --- checkpoints of something else ---


def test_loading_the_checkpoint_of_another(tmp_path):
    path = tmp_path / "c.npz"
    make().save(path)
    model = lenet(rng=0)
    other = Trainer(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters()), callbacks=make().callbacks)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        CheckpointError, match=r"c\.npz: a checkpoint of another training: .*state_dict"
    ) as error:
        other.load(path)
    assert "1.weight" in str(error.value)
    assert_same(model.state_dict(), before)
    with pytest.raises(CheckpointError, match="callbacks"):
        make(callbacks=[EarlyStopping()]).load(path)
    with pytest.raises(CheckpointError, match="another training"):
        make(optimizer="sgd").load(path)
    double = make()
    double.model.to(np.float64)
    with pytest.raises(CheckpointError, match="float32, the model has float64"):
        double.load(path)
    mt = make(rng=np.random.Generator(np.random.MT19937(0)))
    with pytest.raises(CheckpointError, match="PCG64 generator, expected MT19937"):
        mt.load(path)
    mt.save(path)
    back = make(rng=np.random.Generator(np.random.MT19937(1)))
    back.load(path)
    assert back.rng.integers(0, 1 << 60) == mt.rng.integers(0, 1 << 60)


def test_a_loader_of_another_size_is_refused(tmp_path):
    trainer = make()
    trainer.fit(loader(), epochs=1)
    trainer.save(tmp_path / "c.npz")
    for data, words in (
        (stripes(100), "batches 8, this loader has 13"),
        ([stripes()[:8]], "this one has none"),
    ):
        fresh = make()
        fresh.load(tmp_path / "c.npz")
        with pytest.raises(CheckpointError, match=words):
            fresh.fit(data, epochs=2)


@pytest.mark.parametrize("spoil", ["missing", "kind", "inside"])
def test_states_that_are_none(tmp_path, spoil):
    path = tmp_path / "c.npz"
    state = make().state_dict()
    for key in list(state):
        broken = dict(state)
        if spoil == "missing":
            del broken[key]
        elif spoil == "kind":
            broken[key] = 1.5
        elif isinstance(broken[key], dict) and key not in ("loaders", "model_rng"):
            broken[key] = {"nonsense": 1.5}
        elif isinstance(broken[key], list) and key == "callbacks":
            broken[key] = [["LearningRateSchedule", {"nonsense": 1.5}]]
        else:
            continue
        save_checkpoint(path, broken)
        with pytest.raises(CheckpointError, match=r"c\.npz"):
            make().load(path)


# --- history and metrics ---


def test_history_files(tmp_path):
    history = History([{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": math.nan, "val_loss": 1e-30}])
    history.write_csv(tmp_path / "h.csv")
    history.write_json(tmp_path / "h.json")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "h.csv").read_text())))
    assert float(rows[0]["loss"]) == 0.1 + 0.2
    assert rows[0]["val_loss"] == ""
    assert float(rows[1]["val_loss"]) == 1e-30
    assert json.loads((tmp_path / "h.json").read_text()) == [
        {"epoch": 1, "loss": 0.1 + 0.2},
        {"epoch": 2, "loss": None, "val_loss": 1e-30},
    ]
    with pytest.raises(KeyError, match="no column 'lr'; there are epoch, loss, val_loss"):
        history["lr"]


def test_metrics_against_their_definitions():
    rng = np.random.default_rng(0)
    outputs, labels = rng.standard_normal((200, 7)), rng.integers(0, 7, 200)
    ranks = [(row > row[label]).sum() for row, label in zip(outputs, labels, strict=True)]
    for k in range(1, 8):
        assert top_k_accuracy(outputs, labels, k) == np.mean([rank < k for rank in ranks])
    assert accuracy(outputs, labels) == (outputs.argmax(axis=1) == labels).mean()
    assert accuracy(np.zeros((2, 3)), [0, 1]) == 0.5  # a tie goes to the lower class
    assert math.isnan(accuracy(np.zeros((0, 3)), []))
    for bad in ((outputs, labels[:5], 1), (outputs, labels, 8), (outputs, labels, 0), (labels, labels, 1)):
        with pytest.raises(ValueError, match=r"shape|k must be"):
            top_k_accuracy(*bad)


def test_confusion_matrix_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 6, 300), rng.integers(0, 7, 300)
    expected = metrics.confusion_matrix(labels, predicted, labels=range(8))
    assert np.array_equal(confusion_matrix(labels, predicted, 8), expected)
    assert confusion_matrix([], [], 3).tolist() == [[0] * 3] * 3
    with pytest.raises(ValueError, match="from 0 to 6"):
        confusion_matrix(labels, predicted, 6)
    with pytest.raises(ValueError, match="from -1"):
        confusion_matrix([-1], [0], 6)
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix([1, 2], [1], 6)


def test_lenet_is_the_network_that_it_says():
    model = lenet(rng=0)
    sizes = []
    x = np.zeros((2, 1, 28, 28), np.float32)
    for layer in model:
        x = layer(x)
        sizes.append(x.shape[1:])
    assert sizes == [(10, 24, 24)] * 2 + [(10, 12, 12)] + [(20, 8, 8)] * 2 + [(20, 4, 4), (320,), (10,)]
    assert sum(parameter.size for parameter in model.parameters()) == 8490
    assert_same(lenet(rng=3).state_dict(), lenet(rng=np.random.default_rng(3)).state_dict())
    assert lenet(4, rng=0, dtype=np.float64)(np.zeros((1, 1, 28, 28))).dtype == np.float64
    assert lenet(4, rng=0)(np.zeros((1, 1, 28, 28), np.float32)).shape == (1, 4)
