"""What torch reads from the environment, once, when it is loaded."""

import os


def prepare_for_torch() -> None:
    """Set what is not set yet; call this before torch is imported."""
    # Its own C++ warnings would go to stderr, where the platform takes them for the user's error message.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Threads that spin while they wait for each other are fast alone and hopeless where they share cores, with other
    # jobs, under a quota, or with our own decoding: 200 frames took 254 s against 0.9 s on two busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
