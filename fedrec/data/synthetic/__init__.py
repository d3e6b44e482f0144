"""Synthetic data: a seeded world of users and items that looks like real interaction data."""

from fedrec.data.synthetic.config import SyntheticConfig
from fedrec.data.synthetic.generator import Chunk, generate, stream, write_parquet

__all__ = ["Chunk", "SyntheticConfig", "generate", "stream", "write_parquet"]
