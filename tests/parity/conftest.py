"""The small data file and configs of the end-to-end tests."""

from tests.end_to_end.conftest import *  # noqa: F403 - the same fixtures
