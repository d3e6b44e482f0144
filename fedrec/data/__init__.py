"""Interactions, catalogues, named sources, splits and user batches."""
