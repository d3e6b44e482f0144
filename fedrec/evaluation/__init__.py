"""Ranking metrics, slices and protocols, computed on the nodes as summable counts."""
