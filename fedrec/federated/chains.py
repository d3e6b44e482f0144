"""Names of codec chains and what is allowed of them; plain words only, so that configs are read without torch."""

from __future__ import annotations

from collections.abc import Sequence

from fedrec.errors import ConfigError

STAGES = ("touched_rows", "low_rank", "int8")
"""The stages in the only order in which they help each other; `dense` is no stage at all."""


def check_chain(chain: Sequence[str]) -> None:
    """Refuse chains that make no sense.

    Raises:
        ConfigError: for an unknown or repeated stage, another order, or `dense` beside others.
    """
    unknown = [name for name in chain if name not in ("dense", *STAGES)]
    if unknown or not chain:
        raise ConfigError(f"codec {list(chain)} is unknown; allowed are 'dense' or a chain of {', '.join(STAGES)}")
    if "dense" in chain and len(chain) > 1:
        raise ConfigError(f"codec {list(chain)} has 'dense' beside other stages; give 'dense' alone, or leave it out")
    if "dense" not in chain and [name for name in STAGES if name in chain] != list(chain):
        raise ConfigError(f"codec {list(chain)} is out of order or repeats a stage; the order is {', '.join(STAGES)}")


def check_private_upload(chain: Sequence[str]) -> None:
    """Refuse to upload, under a privacy plan, what is not the sum that the noise was calibrated to.

    Raises:
        ConfigError: for anything but `dense`.

    Privacy:
        See `fedrec.federated.codec`; a plan's noise is calibrated to sums that arrive as they were added up.
    """
    if tuple(chain) != ("dense",):
        raise ConfigError(
            f"federated.upload_codec={list(chain)} under a privacy plan: what the server would decode has no known "
            "sensitivity, and message lengths may tell what users met, so the noise would promise too much; "
            "upload 'dense', and compress the download (federated.download_codec): it is post-processing"
        )
