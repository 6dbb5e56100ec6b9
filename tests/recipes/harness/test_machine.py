"""Machine and versions."""

import numpy as np

from recipes import harness


def test_machine_and_versions():
    assert set(harness.machine()) == {"CPU", "cores", "system"}
    found = harness.versions("numpy", "no-such-package")
    assert found["numpy"] == np.__version__
    assert found["no-such-package"] == "not installed as a package"
