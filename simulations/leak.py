"""The leak of published federated code: held-out items are never drawn as negatives in training.

No config switches it on, and nothing in the library imports this module: within `leaking`, models of published peers
are made with the held-out items of all users, and afterwards as before. It is here to show what it is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from fedrec import assemble
from fedrec.config import Config
from fedrec.data.splits import Split
from fedrec.errors import ConfigError
from fedrec.models.peers.examples import HeldOut
from fedrec.models.peers.fedmf import FedMf
from fedrec.models.peers.fedncf import FedNcf
from fedrec.models.peers.fedrecon import FedRecon
from fedrec.models.peers.pfedrec import PFedRec
from fedrec.models.protocol import FederatedModel
from fedrec.randomness import user_keys

LEAKING = (FedMf, FedNcf, FedRecon, PFedRec)


def held_out_of(split: Split) -> HeldOut:
    """Return the validation and test items of all users: what an honest node has no use for in training."""
    keys = user_keys(split.train.user_ids.ids)
    parts = (split.validation, split.test)
    widths = [int(part.lengths.max(initial=0)) for part in parts]
    items = np.full((len(keys), sum(widths)), -1, dtype=np.int64)
    for part, first in zip(parts, (0, widths[0]), strict=True):
        place = np.arange(len(part)) - part.indptr[part.users]
        items[part.users, first + place] = part.items
    order = np.argsort(keys)
    return HeldOut(keys[order], items[order])


@contextmanager
def leaking(config: Config) -> Iterator[None]:
    """Train the peers of this process with the leak until the block ends.

    Raises:
        ConfigError: for a model that draws no negatives in this way.
    """
    honest = assemble.model_of
    held_out = held_out_of(assemble.whole_split(config.to_json()))

    def model_of(config: Config) -> FederatedModel:
        model = honest(config)
        for kind in LEAKING:
            if isinstance(model, kind):
                return kind(model.config, held_out)  # type: ignore[arg-type]
        names = ", ".join(kind.__name__.lower() for kind in LEAKING)
        raise ConfigError(f"model {config.model['name']!r} has no leak to show; allowed are {names}")

    model_of(config)
    with patch.object(assemble, "model_of", model_of):
        yield
