"""Trainings that are killed, or interrupted, end in the bytes of those that are not."""

import functools
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import kattn
from kattn.callbacks.exact_resume import ExactResume
from kattn.callbacks.gradient_clipping import GradientClipping
from kattn.callbacks.learning_rate import LearningRate
from kattn.data import EpochShuffled
from tests.callbacks import killed_training
from tests.callbacks.killed_training import BATCH, EPOCHS, STEPS, end_state, make_arrays

BACKEND = keras.backend.backend()
SCRIPT = pathlib.Path(killed_training.__file__)
# Places to die at, and how often they may be passed before.
PLACES = {
    "begin": 5,
    "record": 120,
    "rename": 3,
    "end": 5,
    "flush": 6,
    "epoch": 1,
    "remove": 1,
    "seconds": 3,
}


def start(jobs, cache=None):
    source = str(pathlib.Path(kattn.__file__).parents[1])
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]),
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        JAX_ENABLE_COMPILATION_CACHE=str(cache is not None),
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.02",
        CUDA_VISIBLE_DEVICES="-1",  # their sums need not be the same each time
    )
    command = [sys.executable, str(SCRIPT), json.dumps(jobs)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output)


def compare(one, other):
    """Part by part, so that a failure names the part."""
    one, other = (json.loads(path.read_text()) for path in (one, other))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name


@pytest.mark.parametrize(
    ("data", "names"), [("shuffled", list(PLACES)[:4]), ("arrays", list(PLACES)[4:])]
)
def test_killed_anywhere(tmp_path, data, names):
    rng = np.random.default_rng(len(data))
    names.sort(key="seconds".__eq__)  # the last, as it may come too late
    kills = [[name, int(rng.integers(PLACES[name] + 1))] for name in names]
    ends = [str(tmp_path / name) for name in ("never_killed", "killed")]
    never = {"end": ends[0], "folder": None, "data": data, "kills": []}
    killed = {"end": ends[1], "folder": str(tmp_path / "backups"), "data": data, "kills": kills}
    how = finish(start([never, killed], tmp_path / "cache"))
    assert how[0] == [0]
    certain = [end for end, name in zip(how[1], names, strict=False) if name != "seconds"]
    assert certain == [signal.SIGKILL] * len(certain), kills
    assert how[1][-1] == 0
    compare(*(tmp_path / name for name in ("never_killed", "killed")))


def test_killed_from_outside(tmp_path):
    folder = tmp_path / "backups"
    job = {"end": str(tmp_path / "killed"), "folder": str(folder)}
    process = start([job])
    while process.poll() is None and not list(folder.glob("*.kattn")):
        time.sleep(0.002)
    time.sleep(float(np.random.default_rng().uniform(0, 0.05)))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start([{"end": str(tmp_path / "never_killed"), "folder": None, "kills": []}, job]))
    compare(tmp_path / "never_killed", tmp_path / "killed")


class StopError(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    """Interrupts the n-th step, skipped or not; counts the steps that are not skipped."""

    def __init__(self, count=None):
        super().__init__()
        self.left, self.done = count, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.before = self.count()
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise StopError

    def on_train_batch_end(self, batch, logs=None):
        assert math.isfinite(logs["loss"])
        self.done += self.count() > self.before

    def count(self):
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))


def small_model(steps_per_execution=1, *, optimizer="adam", width=4, dtype="float32"):
    """Of little to compile, with weights, seeds and metrics."""
    keras.utils.set_random_seed(7)
    hidden = keras.layers.Dense(width, activation="relu", dtype=dtype)
    model = keras.Sequential([keras.Input((5,)), hidden, keras.layers.Dropout(0.3)])
    model.add(keras.layers.Dense(3))
    model.compile(optimizer, "mse", metrics=["mae"], steps_per_execution=steps_per_execution)
    return model


def fit(folder, callbacks=(), *, model=None, stop_at=None, source=None, x=None, y=None, **options):
    """What `fit` leaves; `folder` None: without backups."""
    model = small_model() if model is None else model
    if x is None:
        x, y = make_arrays()
    settings = {name: options.pop(name) for name in ("every", "keep") if name in options}
    resume = ExactResume(
        "unused" if folder is None else folder,
        **{"every": 2} | settings,
        callbacks=callbacks,
        data=source,
    )
    stop = StopAt(stop_at)
    listed = [*callbacks, *([] if folder is None else [resume]), stop]
    fed = {"x": x, "y": y, "batch_size": BATCH} if source is None else {"x": source}
    options = {"epochs": EPOCHS, "verbose": 0, "shuffle": source is None} | options
    if stop_at is None:
        model.fit(**fed, callbacks=listed, **options)
    else:
        with pytest.raises(StopError):
            model.fit(**fed, callbacks=listed, **options)
    return model, resume, stop.done


def state(model):
    """Variables and history, as bytes."""
    stand_ins = [
        GradientClipping(),
        None,
        keras.callbacks.EarlyStopping(),
        keras.callbacks.ReduceLROnPlateau(),
    ]
    stand_ins[2].best = None
    stand_ins[2].best_epoch = 0
    return end_state(model, stand_ins)


@functools.cache
def straight(device):
    """The state after a training without interruption, on the device in use."""
    return state(fit(None)[0])


def check_same(one, other):
    one, other = (x if isinstance(x, dict) else state(x) for x in (one, other))
    for name in one:
        assert one[name] == other[name], name


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backups")
    fit(folder, stop_at=STEPS + 5)
    (folder / "backup-000001-000000006.unfinished").write_bytes(b"half")
    return folder


@pytest.fixture
def backups(made_once, tmp_path):
    """A folder with backups up to the second epoch, and what a killed process has left."""
    shutil.copytree(made_once, tmp_path / "backups")
    return tmp_path / "backups"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_goes_on_within_the_epoch(tmp_path, device):
    fit(tmp_path, stop_at=STEPS + 5)
    assert names(tmp_path) == ["backup-000001-000000002.kattn", "backup-000001-000000004.kattn"]
    fit(tmp_path, stop_at=5)  # in the same epoch
    model, resume, done = fit(tmp_path)
    assert resume.resumed_from == (1, 4)
    assert done == (EPOCHS - 1) * STEPS - 4
    check_same(model, straight(device))


def test_ended_training_trains_nothing(tmp_path):
    source = EpochShuffled(make_arrays(), batch_size=BATCH)
    expected, resume, _ = fit(tmp_path, source=source)
    assert resume.resumed_from is None
    model, resume, done = fit(tmp_path, source=source)
    assert (resume.resumed_from, done) == ((EPOCHS, 0), 0)
    check_same(model, expected)
    assert fit(None, model=model, epochs=2)[2] == 2 * STEPS


def test_more_epochs_go_on(tmp_path):
    ema = {"use_ema": True, "ema_momentum": 0.9}  # whose weights Keras puts in place at the end

    def model():
        return small_model(optimizer=keras.optimizers.AdamW(0.01, **ema))

    fit(tmp_path, model=model(), epochs=2)
    found, resume, _ = fit(tmp_path, model=model())
    assert resume.resumed_from == (2, 0)
    check_same(found, fit(None, model=model())[0])


def test_next_fit_is_whole(backups):
    model, _, _ = fit(backups)
    assert fit(None, model=model, epochs=2)[2] == 2 * STEPS


def test_interrupted_while_it_skips(backups, device):
    model, _, _ = fit(backups, stop_at=2)
    assert fit(None, model=model, epochs=1)[2] == STEPS
    check_same(fit(backups)[0], straight(device))


@pytest.mark.skipif(BACKEND == "torch", reason="has no steps_per_execution")
def test_steps_per_execution(tmp_path):
    fit(tmp_path, model=small_model(4), stop_at=3, every=3)
    assert names(tmp_path) == ["backup-000001-000000000.kattn", "backup-000001-000000004.kattn"]
    model, resume, _ = fit(tmp_path, model=small_model(4), every=3)
    assert resume.resumed_from == (1, 4)
    check_same(model, fit(None, model=small_model(4))[0])


@pytest.mark.parametrize("kind", ["bfloat16", "loss_scale"])
def test_dtypes_and_optimizers(tmp_path, kind):
    def model():
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        if kind == "bfloat16":
            return small_model(optimizer=optimizer, dtype="bfloat16")
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=3)
        return small_model(optimizer=optimizer)

    fit(tmp_path, model=model(), stop_at=STEPS + 5)
    check_same(fit(tmp_path, model=model())[0], fit(None, model=model())[0])


def test_keeps_the_last(tmp_path):
    fit(tmp_path, every=4, keep=3)
    last = ["backup-000002-000000000", "backup-000002-000000004", "backup-000003-000000000"]
    assert names(tmp_path) == [f"{name}.kattn" for name in last]


def test_unfinished_files_are_removed(tmp_path):
    (tmp_path / "backup-000000-000000002.unfinished").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    fit(tmp_path, epochs=1, every=100)
    assert names(tmp_path) == ["backup-000001-000000000.kattn", "notes.txt"]


def early_stopping():
    # Nothing is ever better than the first epoch.
    return keras.callbacks.EarlyStopping(
        "loss", patience=2, min_delta=100.0, restore_best_weights=True
    )


def test_stopped_training_stays_stopped(tmp_path):
    fit(tmp_path, [early_stopping()], epochs=9, stop_at=2 * STEPS + 3)
    stopping = early_stopping()
    model, _, _ = fit(tmp_path, [stopping], epochs=9)
    assert (stopping.stopped_epoch, stopping.best_epoch) == (2, 0)
    again, _, done = fit(tmp_path, [early_stopping()], epochs=9)
    assert done == 0
    straight, _, _ = fit(None, [early_stopping()], epochs=9)
    for one in (model, again):
        assert state(one)["history"] == state(straight)["history"]
        assert state(one)["model"] == state(straight)["model"]


def test_checkpoint_knows_the_best(tmp_path):
    def checkpoint():
        path = str(tmp_path / "best.weights.h5")
        return keras.callbacks.ModelCheckpoint(
            path, "loss", save_best_only=True, save_weights_only=True
        )

    folder = tmp_path / "backups"
    first = checkpoint()
    fit(folder, [first], stop_at=STEPS + 5)
    second = checkpoint()
    fit(folder, [second], stop_at=3)
    assert first.best is not None
    assert second.best == first.best


def check_refused(folder, message, *arguments, **options):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        fit(folder, *arguments, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"width": 7}, r"model_variables\[0\]='.*/kernel \[5, 4\] float32' in .*, '.*\[5, 7\]"),
        ({"dtype": "float16"}, r"model_variables\[0\]='.*\] float32' in .*, '.*\] float16' here"),
        ({"optimizer": "sgd"}, r"optimizers\[0\]='Adam' in the backup, 'SGD' here"),
    ],
)
def test_other_models_are_refused(backups, others, message):
    check_refused(backups, message, model=small_model(**others))


def test_other_trainings_are_refused(backups):
    x, y = make_arrays()
    check_refused(backups, "steps=6 in the backup, 5 here", x=x[:40], y=y[:40])
    stopping = keras.callbacks.EarlyStopping("loss")
    check_refused(backups, r"callbacks\[0\]=None in .*, 'EarlyStopping' here", [stopping])
    check_refused(
        backups, "`epochs` must not be fewer.*; received: .*epochs=1, ended=1, step=4", epochs=1
    )
    source = EpochShuffled((x, y), batch_size=BATCH)
    check_refused(backups, "data='NoneType' in the backup, {'examples': 46", source=source)


def test_other_rules_are_refused(tmp_path):
    fit(tmp_path, [LearningRate(lambda step: 0.1)], epochs=1)
    message = (
        r"callbacks\[0\]='LearningRate' .*optimizer_variables\[.*\]='.*learning_rate_is_active"
    )
    check_refused(tmp_path, message)


def test_another_order_is_refused(tmp_path):
    fit(tmp_path, source=EpochShuffled(make_arrays(), batch_size=BATCH, seed=1), epochs=1)
    other = EpochShuffled(make_arrays(), batch_size=BATCH, seed=2)
    check_refused(tmp_path, "'seed': 1.*in the backup, .*'seed': 2", source=other)


def test_initial_epoch_is_refused(tmp_path):
    fit(tmp_path, stop_at=4)
    check_refused(
        tmp_path,
        "`initial_epoch` must be left out .*; received: initial_epoch=1, epoch_of_backup=0",
        initial_epoch=1,
    )


@pytest.mark.parametrize("change", ["flipped", "cut", "empty", "replaced"])
def test_damaged_backups_are_refused(backups, change):
    newest = sorted(backups.glob("*.kattn"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    whole = newest.read_bytes()
    changed = {"flipped": bytes(content), "cut": whole[:-7], "empty": b"", "replaced": b"x" * 99}
    newest.write_bytes(changed[change])
    check_refused(backups, f"it is damaged. It is left as it is.*{newest.name}")


def test_data_must_be_all_of_an_epoch(tmp_path):
    source = EpochShuffled(make_arrays(), batch_size=BATCH)
    with pytest.raises(ValueError, match="without steps_per_epoch; received: batches=6, steps=3"):
        fit(tmp_path, source=source, steps_per_epoch=3)


class OwnStopping(keras.callbacks.EarlyStopping):
    pass


def resume_with(*callbacks, **options):
    return ExactResume("unused", callbacks=callbacks, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resume_with(every=0), "`every` must be an integer >= 1; received: every=0"),
        (lambda: resume_with(keep=True), "`keep` must be an integer >= 1; received: keep=True"),
        (lambda: ExactResume(3), "`directory` must be a path; received: directory=3"),
        (
            lambda: ExactResume("gs://bucket/run"),
            "`directory` must be a path of this machine, not an address; .*'gs://bucket/run'",
        ),
        (
            lambda: ExactResume(__file__),
            "`directory` must not be a file; received: directory='.*.py'",
        ),
        (
            lambda: resume_with(data=np.ones(3)),
            "`data` must have set_epoch.*; received: data='ndarray'",
        ),
        (
            lambda: resume_with(keras.callbacks.CSVLogger("x")),
            "get_state.*EarlyStopping.*; received: callback=.*CSVLogger",
        ),
        (
            lambda: resume_with(OwnStopping("loss")),
            "themselves; .*received: callback=.*OwnStopping",
        ),
        (
            lambda: resume_with(keras.callbacks.ModelCheckpoint("x.keras", save_freq=3)),
            "ModelCheckpoint must save at the ends of epochs, .*; received: save_freq=3",
        ),
    ],
)
def test_refused_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            "resume stopping",
            r"last of the callbacks of fit, .*; received: after_it=\['EarlyStopping'\]",
        ),
        (
            "resume",
            "must also be in the list of callbacks of fit; received: callback='EarlyStopping'",
        ),
        (
            "stopping clipping resume",
            "`callbacks` must have GradientClipping, which keeps state; received: callbacks=",
        ),
        (
            "stopping resume rate",
            "must be the last of the callbacks of fit; a later one has added variables",
        ),
    ],
)
@pytest.mark.parametrize("is_second", [False, True])
def test_must_be_the_last(tmp_path, order, message, is_second):
    stopping = keras.callbacks.EarlyStopping("loss")
    callbacks = {
        "stopping": stopping,
        "resume": ExactResume(tmp_path, callbacks=[stopping]),
        "clipping": GradientClipping(),
        "rate": LearningRate(lambda step: 0.1),
    }
    x, y = make_arrays()
    model = small_model()
    if is_second:  # when callbacks still know the fit before
        model.fit(x[:8], y[:8], verbose=0, callbacks=[stopping])
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, verbose=0, callbacks=[callbacks[name] for name in order.split()])


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="others build models before fit, and have seeds"
)
def test_tensorflow_needs_a_built_model_and_a_seed(tmp_path):
    import tensorflow

    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match=r"must be built before fit: .*; received: .*, built=False"
    ):
        fit(tmp_path, model=model)
    model = small_model()
    tensorflow.random.set_seed(None)
    with pytest.raises(ValueError, match=r"TensorFlow must have a seed.*; received: data=None"):
        fit(tmp_path, model=model)
