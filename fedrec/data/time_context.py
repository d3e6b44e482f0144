"""Context from time: hour and weekday of an interaction as context fields, also for data without context columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.reading.problems import nearest
from fedrec.data.reading.times import UNKNOWN_TIME
from fedrec.data.reading.values import UNKNOWN_CATEGORY
from fedrec.errors import ConfigError, DataError

_DAY, _HOUR = 86_400, 3_600
_THURSDAY = 3  # 1970-01-01, with Monday as 0
_VALUES = {
    "hour": tuple(str(hour) for hour in range(24)),
    "weekday": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
}


def add_time_context(interactions: Interactions, fields: Sequence[str]) -> Interactions:
    """Add categorical context fields that follow from the times, in UTC.

    The values are the same for all data, "unknown" (an unknown time) among them. At ranking time the field's value is
    that of the moment for which the list is wanted, a held-out interaction's own time in an evaluation: a device knows
    what time it is when it is asked.

    Args:
        interactions: with times.
        fields: of "hour" (0-23) and "weekday".

    Raises:
        ConfigError: for a field that is unknown, stands twice, or that the data has already.
        DataError: where the data has no times.

    Example:
        >>> ids = Vocabulary(np.arange(1))
        >>> zero = np.zeros(1, dtype=np.int64)
        >>> found = add_time_context(Interactions(zero, zero, ids, ids, times=zero + 7200), ["hour", "weekday"])
        >>> [found.context_ids[name].ids[found.context[name][0]].item() for name in ("hour", "weekday")]
        ['2', 'thursday']
    """
    context, context_ids = dict(interactions.context), dict(interactions.context_ids)
    for name in fields:
        if name not in _VALUES:
            hint = nearest(name, _VALUES)
            raise ConfigError(
                f"data.time_context holds {name!r}; allowed are {', '.join(_VALUES)}"
                + (f"; did you mean {hint}?" if hint else "; remove it")
            )
        if name in context:
            raise ConfigError(f"data.time_context holds {name!r}, a context field that is there already; remove it")
        if interactions.times is None:
            raise DataError(
                f"data.time_context={list(fields)} but the data has no times; remove it or name a timestamp"
            )
        codes = interactions.times // _HOUR % 24
        if name == "weekday":
            codes = (interactions.times // _DAY + _THURSDAY) % 7
        context[name] = np.where(interactions.times == UNKNOWN_TIME, len(_VALUES[name]), codes)
        context_ids[name] = Vocabulary(np.array([*_VALUES[name], UNKNOWN_CATEGORY]))
    return replace(interactions, context=context, context_ids=context_ids) if fields else interactions
