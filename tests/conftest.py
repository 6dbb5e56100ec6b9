"""Every test runs on each device of the backend; the header says which there are."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On a CPU TensorFlow has channels-first convolutions by oneDNN only, and turns that on by itself
# on some processors and not on others.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import pytest

from kattn import backend


def _exact_matrix_products():
    """Full float32 on GPUs, which may round to 10 bits (TF32) otherwise."""
    name = keras.backend.backend()
    if name == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
    elif name == "torch":
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    elif name == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_tensor_float_32_execution(False)


_exact_matrix_products()


def _quick_compilation():
    """Thousands of small functions are compiled here, each of which runs once or twice.

    So it does not pay to optimise them.
    """
    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow

        tensorflow.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    elif name == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", True)
        # The way in which XLA wrote loops before takes it half of the time; results differ in the
        # last bit, which callbacks are compared to. Nor does it pay to split a small program into
        # parts that are compiled side by side. A flag that XLA does not know would stop the
        # process, so they are for the versions that were tried. Processes of xdist inherit them.
        are_asked_for = os.environ.pop("KATTN_FORMER_LOOPS", None)
        are_exact = any("callbacks" in arg for arg in sys.argv[1:] if not arg.startswith("-"))
        if are_asked_for and not are_exact and jax.__version__.startswith("0.10."):
            flags = os.environ.get("XLA_FLAGS", "")
            quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
            os.environ["XLA_FLAGS"] = f"{flags} {quick}".strip()


_quick_compilation()


def pytest_report_header(config):
    devices = backend.devices()
    where = ", ".join(devices) if len(devices) > 1 else f"{devices[0]} only: no GPU here"
    return f"keras {keras.__version__} on {keras.backend.backend()}, devices: {where}"


@pytest.fixture(params=backend.devices(), autouse=True)
def device(request):
    """The device that the test runs on."""
    with keras.device(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def seed():
    """Of the weights that Keras draws, so that a test does not depend on those before it."""
    keras.utils.set_random_seed(int(os.environ.get("KATTN_TEST_SEED", "0")))


@pytest.fixture
def rng():
    """NumPy's generator, seeded."""
    return np.random.default_rng(0)
