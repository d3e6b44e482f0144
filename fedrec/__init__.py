"""Federated recommendation with user-level differential privacy."""

import os

# Threads of torch that wait by spinning take the cores from the threads of the kernels; asked before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
