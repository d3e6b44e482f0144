"""Promise of the run's setup: configs that some runtime could not carry are refused at once."""

from __future__ import annotations

import pytest

from fedrec.errors import ConfigError
from fedrec.flower.app_context import checked_config, server_context


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], r"run_config\['x'\] is a list; allowed are str, int, float and bool"),
        (None, r"run_config\['x'\] is a NoneType"),
        (b"raw", r"run_config\['x'\] is a bytes"),
        (2**63, r"run_config\['x'\]=9223372036854775808 does not fit a signed 64-bit integer"),
    ],
)
def test_configs_that_flower_cannot_carry_are_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_config("run_config", {"x": value})  # type: ignore[dict-item]


def test_the_servers_config_is_a_copy() -> None:
    config: dict[str, str | int | float | bool] = {"rounds": 3, "als.dim": 32, "name": "", "private": False}

    context = server_context(config)
    context.run_config["rounds"] = 4

    assert config["rounds"] == 3
    assert context.node_config == {}
