"""The base class of callbacks that act in updates."""

import contextlib

import keras

from kattn import backend
from kattn.arguments import error
from kattn.callbacks.update import fit_callbacks, interruption
from kattn.callbacks.update.hooks import hook_of, optimizer_of, unused_optimizer

# Callbacks of Keras that set the learning rate at the ends of epochs.
RIVALS = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)


class RuleCallback(keras.callbacks.Callback):
    """Base class of callbacks that act in each update by one rule.

    Override `signature` and `make_rule`; `begin` to make the rule act; and `synchronize` to read
    and write variables of the rule from time to time.

    Args:
        optimizer: Optimizer whose updates the callback acts on, or the name of the attribute of the
            model that holds it. None for `model.optimizer`.

    Attributes:
        optimizer: As the argument.
        synchronize_every: `synchronize` is called at least once in this many updates, besides at
            the beginning of training and at the end of each epoch. None: only then.
    """

    synchronize_every: int | None = None
    _updates_left = 0  # until `synchronize` is due

    def __init__(self, optimizer=None):
        super().__init__()
        self.optimizer = optimizer

    def signature(self):
        """Return what the trace of the rule depends on, as something that can be compared.

        A rule that is left from an earlier fit is used again if the signatures are equal.
        """
        raise NotImplementedError

    def make_rule(self):
        """Return a new `Rule`."""
        raise NotImplementedError

    def begin(self, rule):
        """Make the rule act, on the host, when training begins."""

    def synchronize(self, rule):
        """Read what the rule has recorded and write what it needs next, on the host."""

    def renew(self):
        """Write what the rule needs for another number of updates, which has been set on the host.

        It is called when `SpikeGuard` sets the training back.
        """

    def as_trained(self):
        """Give the model its weights as trained for a block, if an average is in their place."""
        return contextlib.nullcontext()

    @property
    def rule(self):
        """The rule in use, or None outside of `fit`.

        Reading this property brings the variables of a model on JAX up to date.
        """
        if self._model is None:
            return None
        optimizer = self.optimizer or getattr(self.model, "optimizer", None)
        return None if optimizer is None else self.hook.rule_of(self)

    @property
    def hook(self):
        """The hook of the optimizer that the callback acts on, as `hook_of` returns it."""
        return hook_of(self.model, self.optimizer)

    def on_train_begin(self, logs=None):
        hook = self._hook = self.hook
        interruption.watch(self)
        rule, is_new = hook.use(self, self.signature(), self.make_rule)
        if rule.sets == "learning_rate":
            self._check_rivals()
        if rule.sees_gradients:
            _check_replicas(self.model, type(self).__name__)
        if is_new:
            # An error in a rule would leave a model on JAX without its weights: find it before.
            backend.dry_run(optimizer_of(self.model, self.optimizer))
            hook.has_updated = False
            self.model.make_train_function(force=True)
        self._steps = getattr(self.model, "steps_per_execution", 1)
        self.begin(rule)
        self._synchronize(rule)

    def on_train_batch_begin(self, batch, logs=None):
        # Not at the end of a batch, which would keep Keras from running ahead of the device.
        if self.synchronize_every is not None:
            if self._updates_left < self._steps:
                self._synchronize(self.rule)
            self._updates_left -= self._steps

    def on_epoch_end(self, epoch, logs=None):
        if not self._hook.has_updated:
            raise unused_optimizer(self)
        self._synchronize(self.rule)

    def on_train_end(self, logs=None):
        self.release()

    def _check_rivals(self):
        before, after = fit_callbacks.before_and_after(self)
        fit_callbacks.refuse(
            self,
            [*before, *after],
            RIVALS,
            f"{type(self).__name__} sets the learning rate, so that no other callback of a fit can",
        )

    def release(self):
        """Stop acting on the optimizer.

        It is called at the end of `fit`, also of one that is interrupted or raises an error.
        """
        interruption.end(self)
        rule = self.rule
        if rule is not None:
            rule.release()
            rule.owner = None

    def _synchronize(self, rule):
        self.synchronize(rule)
        self._updates_left = self.synchronize_every or 0


def _check_replicas(model, name):
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's alone
    replicas = getattr(strategy, "num_replicas_in_sync", 1)
    if replicas > 1:
        raise error(
            f"{name} must see the gradients of the whole batch, but under tf.distribute an "
            "optimizer sees those of one replica; train on one replica, or without this callback",
            num_replicas_in_sync=replicas,
        )
