"""Train a small model, be killed on the way, start again; the end state as a file.

    python killed_training.py '{"end": "end.json", "folder": "backups", "data": "arrays"}'

With `kills` each start is a fork of this process, made before any framework has computed anything,
and a real SIGKILL ends it: `[["step", 3], ["rename", 2], ["seconds", 0.5]]`.
"""

import json
import os
import pathlib
import random
import signal
import sys
import threading
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from kattn import schedules
from kattn.callbacks.exact_resume import ExactResume
from kattn.callbacks.gradient_clipping import GradientClipping
from kattn.callbacks.hyperparameter_schedule import HyperparameterSchedule
from kattn.data import EpochShuffled

EXAMPLES, BATCH, EPOCHS, EVERY = 46, 8, 3, 2  # 6 steps an epoch, the last of 6 examples
STEPS = -(-EXAMPLES // BATCH)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class KillAtStep(keras.callbacks.Callback):
    """At the begin or the end of the n-th step of this process that is not skipped."""

    def __init__(self, when, count, resume):
        super().__init__()
        self.when, self.left, self.resume = when, count, resume

    def on_train_batch_begin(self, batch, logs=None):
        self.maybe("begin")

    def on_train_batch_end(self, batch, logs=None):
        if not self.resume.is_skipping:
            self.maybe("end")

    def on_epoch_end(self, epoch, logs=None):
        self.maybe("epoch")

    def maybe(self, when):
        if when == self.when:
            self.left -= 1
            if self.left < 0:
                kill()


def kill_at_call(module, name, count):
    """Die in the n-th call of a function from now on, before it does its work."""
    function, calls = getattr(module, name), []

    def counting(*arguments, **options):
        calls.append(name)
        if len(calls) > count:
            kill()
        return function(*arguments, **options)

    setattr(module, name, counting)


CALLS = {  # places in the writing of a backup
    "record": (np.lib.format, "write_array"),
    "flush": (os, "fsync"),
    "rename": (os, "replace"),
    "remove": (pathlib.Path, "unlink"),
}


def make_model(steps_per_execution=1):
    keras.utils.set_random_seed(7)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(3),
        ]
    )
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer, "mse", metrics=["mae"], steps_per_execution=steps_per_execution)
    return model


def make_arrays():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(EXAMPLES, 5)), rng.normal(size=(EXAMPLES, 3))
    return x.astype("float32"), y.astype("float32")


def make_callbacks():
    return [
        GradientClipping("autoclip", percent=50.0, window=7),
        HyperparameterSchedule("beta_1", schedules.Cosine(0.9, 0.5, EPOCHS * STEPS)),
        keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=1.0, cooldown=1),
    ]


def train(folder, data="shuffled", kill_at=None, epochs=EPOCHS, steps_per_execution=1):
    """The end state, which is that without backups where `folder` is None."""
    model, callbacks, (x, y) = make_model(steps_per_execution), make_callbacks(), make_arrays()
    source = EpochShuffled((x, y), batch_size=BATCH, seed=5) if data == "shuffled" else None
    more = []
    if folder is not None:
        resume = ExactResume(folder, every=EVERY, callbacks=callbacks, data=source)
        more = [resume]
        if kill_at is not None and kill_at[0] in ("begin", "end", "epoch"):
            more = [resume, KillAtStep(*kill_at, resume)]
    fed = {"x": x, "y": y, "batch_size": BATCH} if source is None else {"x": source}
    model.fit(
        **fed,
        shuffle=source is None,
        epochs=epochs,
        verbose=0,
        validation_data=(x[:9], y[:9]),
        callbacks=[*callbacks, *more],
    )
    state = end_state(model, callbacks)
    if keras.backend.backend() == "tensorflow" and data == "arrays":
        # It has no metrics after a start with nothing left to train, and no data to make them by.
        del state["metrics"]
    return state


def end_state(model, callbacks):
    """All that the training leaves behind, as JSON can hold it."""
    groups = {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    state = {
        name: [keras.ops.convert_to_numpy(variable) for variable in variables]
        for name, variables in groups.items()
    }
    clipping, _, stopping, plateau = callbacks
    stopped = (stopping.wait, stopping.best, stopping.best_epoch, stopping.best_weights)
    state["history"] = [model.history.epoch, model.history.history]
    state["callbacks"] = [clipping.history, stopped, plateau.wait, plateau.cooldown_counter]
    state["random"] = [random.getstate(), np.random.get_state(legacy=False)]  # noqa: NPY002
    return exact(state)


def exact(value):
    """Bytes as hexadecimals, floats as their shortest exact text."""
    if isinstance(value, (np.ndarray, np.generic)):
        return [str(value.dtype), list(value.shape), value.tobytes().hex()]
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(item) for item in value]
    return repr(value)


def run(end, kill_at=None, **options):
    """Train, with a kill on the way or without, and write the end state."""
    if kill_at is not None and kill_at[0] in CALLS:
        kill_at_call(*CALLS[kill_at[0]], kill_at[1])
    if kill_at is not None and kill_at[0] == "seconds":
        threading.Timer(kill_at[1], kill).start()
    if kill_at is not None and keras.backend.backend() == "jax":
        # It reads compiled functions that an earlier run has kept, but must not tear their files.
        jax_config = sys.modules["jax"].config
        jax_config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    state = train(kill_at=kill_at, **options)
    pathlib.Path(end).write_text(json.dumps(state, indent=1, sort_keys=True))


def survive(kills, end, **options):
    """Start again until training ends; how the starts ended: [SIGKILL or 0, ...]."""
    ends = []
    for kill_at in [*kills, None]:
        process = os.fork()
        if process == 0:
            code = 1
            try:
                run(end, kill_at, **options)
                code = 0
            except Exception:  # noqa: BLE001 - for whoever reads the output
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(process, 0)
        ends.append(-os.waitstatus_to_exitcode(status))
    return ends


def main(jobs):
    """Do each job, and print how the starts of each ended."""
    found = []
    for job in jobs:
        found.append(survive(**job) if "kills" in job else run(**job))
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
