"""Compiled kernels of the models, each behind a function of `fedrec.models` that also has a plain torch form.

Compiled code is cached beside the source, by file: after a change to a kernel that others call (`dense`), or to
`fedrec.compiled.OPTIONS`, delete the `*.nbi` and `*.nbc` files in `__pycache__`, or the callers keep the old code.
"""
