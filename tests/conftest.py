"""Fixtures for everything that has a compiled and a plain form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from fedrec.compiled import reference


@pytest.fixture(params=["compiled", "reference"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the tests that use it in both forms: compiled kernels, and the plain torch that they must agree with."""
    with reference() if request.param == "reference" else nullcontext():
        yield request.param
