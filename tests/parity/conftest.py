from tests.end_to_end.conftest import *  # noqa: F403 - the same fixtures
