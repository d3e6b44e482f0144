"""What `fedrec account` and `fedrec calibrate` are given, as plans and runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedrec.errors import ConfigError
from fedrec.privacy.plan import PrivacyEvent, PrivacyPlan
from fedrec.privacy.spent import RunSpend, read_spent

_HOW = "give a run folder, or a plan: --noise-multiplier Z (or --event Z,Q,T, repeated), --delta and --population-size"
NO_PRIVACY = (
    "This run has no privacy plan: no noise is added to anything, so no epsilon is spent and none may be stated."
)


def plan_of_options(
    noise_multiplier: float | None,
    events: Sequence[str],
    num_rounds: int | None,
    sampling_probability: float | None,
    delta: float | None,
    population_size: int | None,
    claim: tuple[str, str],
) -> PrivacyPlan:
    """Make the plan that options of the command line describe.

    Args:
        noise_multiplier: of equal releases; None where `events` are given.
        events: "Z,Q,T" each; empty where the releases are equal.
        num_rounds: of equal releases; 1 where None.
        sampling_probability: of equal releases; 1 where None.
        delta: must be given.
        population_size: must be given.
        claim: unit and trust model; "" for the unit's own trust model.

    Raises:
        ConfigError: where options are missing, or exclude each other.
        PrivacyError: where a value is out of range.

    Privacy:
        The plan's noise is relative to the sensitivity; its clipping norm is 1 and stands for any.
    """
    equal = {"--num-rounds": num_rounds, "--sampling-probability": sampling_probability}
    extra = [name for name, value in {"--noise-multiplier": noise_multiplier, **equal}.items() if value is not None]
    if events and extra:
        raise ConfigError(f"found --event and {', '.join(extra)}; --event Z,Q,T says it all: leave out {extra[0]}")
    if not events and noise_multiplier is None:
        raise ConfigError(f"found no noise; {_HOW}")
    if delta is None or population_size is None:
        raise ConfigError(f"found no {'--delta' if delta is None else '--population-size'}; {_HOW}")
    parsed = [event_of_text(text) for text in events]
    if noise_multiplier is not None:
        probability = 1.0 if sampling_probability is None else sampling_probability
        parsed = [PrivacyEvent(noise_multiplier, probability, num_rounds or 1)]
    unit, trust_model = claim
    return PrivacyPlan(
        tuple(parsed), delta, 1.0, population_size, unit=unit, trust_model=trust_model or own_trust_model(unit)
    )


def own_trust_model(unit: str) -> str:
    """Return the trust model that goes without saying: central for users, local for interactions."""
    return "local" if unit == "interaction" else "central"


def event_of_text(text: str) -> PrivacyEvent:
    """Read "Z,Q,T": noise multiplier, sampling probability, number of releases.

    Raises:
        ConfigError: where the text is nothing of the kind.
        PrivacyError: where a value is out of range.
    """
    try:
        noise, probability, count = text.split(",")
        return PrivacyEvent(float(noise), float(probability), int(count))
    except ValueError as error:
        raise ConfigError(
            f"--event {text!r} is not Z,Q,T (noise multiplier, sampling probability, whole number of releases); "
            "write for instance --event 4.5,0.1,20"
        ) from error


def spend_of_run(directory: Path) -> RunSpend | None:
    """Read what a run has spent, by its ledger and as far as its checkpoint can vouch that nothing is missing.

    Returns:
        The spend, or None for a run without privacy.

    Raises:
        FedrecError: where there is no run, or its ledger is missing or damaged.

    Privacy:
        See `read_spent`.
    """
    from fedrec.federated.checkpoint import read_checkpoint
    from fedrec.run_folder import RunFolder

    folder = RunFolder(directory)
    ledger, checkpoint = folder.checkpoint / "ledger.jsonl", folder.checkpoint / "server.safetensors"
    position = read_checkpoint(checkpoint).ledger_position if checkpoint.exists() else None
    if position is None and not ledger.exists():
        if folder.config().privacy is None:
            return None
        raise ConfigError(f"{directory} has no ledger: the run has not begun; begin it with: fedrec resume {directory}")
    return read_spent(ledger, position)
