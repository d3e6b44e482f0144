"""Compiled kernels of the models, each behind a function of `fedrec.models` that also has a plain torch form."""
