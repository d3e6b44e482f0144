"""Cohorts, rounds and checkpoints: what happens between a model and the runtime that carries its messages."""
