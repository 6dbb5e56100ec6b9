"""Schedules that are composed of other schedules."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kattn.arguments import check_integers, check_rates, error
from kattn.schedules.boundaries import check_boundaries
from kattn.schedules.curves import between, fraction
from kattn.schedules.schedule import Schedule


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class WarmUp(Schedule):
    """Rise linearly from `start` to schedule(0) in `steps` updates, then follow the schedule.

    The value after the warm-up is schedule(t - steps).

    Args:
        schedule: Schedule after the warm-up: one of kattn or of Keras, or a function of the step. A
            function is called with float64 arrays and float32 tensors, and must be registered to be
            saved (`keras.saving.register_keras_serializable`).
        steps: Number of updates of the warm-up, an integer >= 1.
        start: Value at step 0, >= 0.

    Raises:
        ValueError: If an argument is out of range; when saved, if `schedule` is a function that is
            not registered.

    Example:
        >>> kattn.schedules.WarmUp(kattn.schedules.Cosine(1.0, 0.0, 8), 4)([0, 2, 4, 8, 12])
        array([0. , 0.5, 1. , 0.5, 0. ])

    Reference:
        Goyal et al. 2017, sec. 2.2, "gradual warmup", https://arxiv.org/abs/1706.02677
    """

    schedule: Callable[[Any], Any]
    steps: int
    _: dataclasses.KW_ONLY
    start: float = 0.0

    def check(self):
        _check_schedule("schedule", self.schedule)
        check_integers(1, steps=self.steps)
        check_rates(start=self.start)

    def value(self, t, xp):
        # Up to `steps` the schedule stands at its step 0.
        later = _evaluate(self.schedule, xp.maximum(t - self.steps, 0.0), xp)
        return between(self.start, later, fraction(t, self.steps, xp))

    def get_config(self):
        return {**super().get_config(), "schedule": _serialize(self.schedule)}

    @classmethod
    def from_config(cls, config):
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**{**config, "schedule": schedule})


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Joined(Schedule):
    """Follow schedules one after the other, each from its own step 0.

    The value is schedules[i](t - boundaries[i - 1]) from boundaries[i - 1] up to boundaries[i].

    Args:
        schedules: List of schedules, of kattn or of Keras, or functions of the step. A function is
            called with float64 arrays and float32 tensors, and must be registered to be saved
            (`keras.saving.register_keras_serializable`). A schedule of Keras computes in float32,
            even if it is called with a number.
        boundaries: List of the steps at which the second schedule and later ones begin: integers
            >= 1, each above the one before.

    Raises:
        ValueError: If an argument is out of range, or there is not exactly one schedule more than
            there are boundaries; when saved, if a schedule is a function that is not registered.

    Example:
        >>> schedules = [kattn.schedules.Constant(1.0), kattn.schedules.Linear(0.5, 0.0, 4)]
        >>> kattn.schedules.Joined(schedules, [10])([9, 10, 12])
        array([1.  , 0.5 , 0.25])
    """

    schedules: tuple[Callable[[Any], Any], ...]
    boundaries: tuple[int, ...]

    def check(self):
        if not isinstance(self.schedules, tuple):
            raise error("`schedules` must be a list or tuple", schedules=self.schedules)
        for i, schedule in enumerate(self.schedules):
            _check_schedule(f"schedules[{i}]", schedule)
        check_boundaries(self.boundaries)
        if len(self.schedules) != len(self.boundaries) + 1:
            raise error(
                "There must be one schedule more than boundaries",
                **{"len(schedules)": len(self.schedules), "len(boundaries)": len(self.boundaries)},
            )

    def value(self, t, xp):
        first, *others = self.schedules
        value = _evaluate(first, t, xp)
        for schedule, boundary in zip(others, self.boundaries, strict=True):
            own = xp.maximum(t - boundary, 0.0)
            value = xp.where(t >= boundary, _evaluate(schedule, own, xp), value)
        return value

    def get_config(self):
        return {**super().get_config(), "schedules": [_serialize(x) for x in self.schedules]}

    @classmethod
    def from_config(cls, config):
        schedules = [keras.saving.deserialize_keras_object(x) for x in config["schedules"]]
        return cls(**{**config, "schedules": schedules})


def _check_schedule(name, schedule):
    if not callable(schedule):
        raise error(f"`{name}` must be a schedule or a function of the step", **{name: schedule})


def _evaluate(schedule, t, xp):
    """The value of a schedule in the type and shape of `t`, an array or a tensor as `xp` says."""
    if isinstance(schedule, Schedule):
        return schedule.value(t, xp)
    value = schedule(t)
    if xp is ops:
        return 0.0 * t + ops.convert_to_tensor(value, "float32")
    return 0.0 * t + (ops.convert_to_numpy(value) if ops.is_tensor(value) else value)


def _serialize(schedule):
    """The config of a schedule; raises ValueError for a function that could not be loaded."""
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        named = schedule if hasattr(schedule, "__name__") else type(schedule)
        name = keras.saving.get_registered_name(named)
        if keras.saving.get_registered_object(name) is not named:
            raise error(
                "A function in a schedule must be registered to be saved, by "
                "`keras.saving.register_keras_serializable`",
                schedule=schedule,
            )
    return keras.saving.serialize_keras_object(schedule)
