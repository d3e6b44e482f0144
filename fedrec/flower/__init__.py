"""Flower runtimes and record codecs: the only package that may import Flower's private modules."""

import os

# Read by flwr when it is first imported; whoever sets them otherwise keeps that choice.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
