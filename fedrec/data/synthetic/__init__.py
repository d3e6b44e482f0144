"""Synthetic data: a seeded world of users and items that looks like real interaction data."""

from fedrec.data.synthetic.config import SyntheticConfig
from fedrec.data.synthetic.context_taste import planted_preference, user_groups
from fedrec.data.synthetic.generator import Chunk, generate, stream, write_parquet

__all__ = ["Chunk", "SyntheticConfig", "generate", "planted_preference", "stream", "user_groups", "write_parquet"]
