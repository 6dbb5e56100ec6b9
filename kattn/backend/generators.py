"""The state of PyTorch's generator beside another framework: its DataLoader draws from it."""

import sys


def random_state():
    """Of PyTorch's generator on the CPU, where PyTorch is loaded beside the framework."""
    torch = sys.modules.get("torch")
    return [] if torch is None else [torch.get_rng_state().numpy().copy()]


def set_random_state(state):
    """Set what `random_state` has returned."""
    torch = sys.modules.get("torch")
    if state and torch is not None:
        torch.set_rng_state(torch.from_numpy(state[0].copy()))
