"""Hyper-parameter search that looks at validation data only."""
