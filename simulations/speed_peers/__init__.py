"""Peers: other systems at the same work, one module each; a library is imported when its peer is made."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedrec.errors import ConfigError
from simulations.speed_peers.work import Peer, Work


@dataclass(frozen=True)
class System:
    """One bar of the comparison.

    Args:
        label: how it is shown.
        place: module of this package and class, "module:Class".
        against: name of our own system that it is compared with: the same work, with or without privacy.
        library: the package it needs.
        private: with clipping and noise.
        closed_form: alternating least squares instead of SGD.
        threaded: can use more than one thread; the others are measured on one only.
        max_users: measured on so many users, spread evenly over lengths of histories; on all where None.
        whole_machine: brings processes of its own, so it runs on all cores and when the others are done.
    """

    label: str
    place: str
    against: str = "fedrec"
    library: str = "torch"
    private: bool = False
    closed_form: bool = False
    threaded: bool = False
    max_users: int | None = None
    whole_machine: bool = False

    @property
    def is_ours(self) -> bool:
        """Return whether this is our own engine."""
        return self.place.startswith("engine:")


PEERS: Mapping[str, System] = {
    "fedrec": System("fedrec", "engine:EngineSgd", threaded=True),
    "fedrec-dp": System("fedrec, with DP", "engine:EngineSgd", "fedrec-dp", private=True, threaded=True),
    "fedrec-fitted": System("fedrec, users start at the fit", "engine:EngineSgdFitted", threaded=True),
    "rows": System("loop, touched rows, by hand", "row_loop:RowLoop"),
    "rows-dp": System("loop, touched rows, by hand, with DP", "row_loop:RowLoop", "fedrec-dp", private=True),
    "deepcopy": System("loop, deepcopy and autograd", "deepcopy_loop:DeepcopyLoop"),
    "fedjax": System("FedJAX for_each_client", "jax_clients:JaxClients", library="fedjax"),
    "fedjax-dp": System(
        "FedJAX for_each_client, with DP", "jax_clients:JaxClients", "fedrec-dp", "fedjax", private=True
    ),
    "fedjax-by-hand": System("FedJAX, gradient by hand", "jax_clients:JaxClientsByHand", library="fedjax"),
    "pfl": System("Apple pfl", "pfl_users:PflUsers", library="pfl"),
    "pfl-dp": System("Apple pfl, with DP", "pfl_users:PflUsers", "fedrec-dp", "pfl", private=True),
    "pfl-by-hand": System("Apple pfl, gradient by hand", "pfl_users:PflUsersByHand", library="pfl"),
    "opacus": System("Opacus hooks, one step, with DP", "opacus_rows:OpacusRows", "fedrec-dp", "opacus", private=True),
    "flower": System(
        "Flower on Ray, one node per user", "ray_nodes:RayNodes", library="ray", max_users=300, whole_machine=True
    ),
    "fedrec-als": System("fedrec ALS, federated", "engine:EngineAls", "fedrec-als", closed_form=True, threaded=True),
    "implicit": System(
        "implicit ALS, exact", "implicit_als:ImplicitExact", "fedrec-als", "implicit", closed_form=True, threaded=True
    ),
    "implicit-cg": System(
        "implicit ALS, 3 CG steps",
        "implicit_als:ImplicitApproximate",
        "fedrec-als",
        "implicit",
        closed_form=True,
        threaded=True,
    ),
}


def check_installed(name: str) -> None:
    """Raise a `ConfigError` for an unknown peer, or one whose library is not here."""
    if name not in PEERS:
        raise ConfigError(f"peer {name!r} is unknown; allowed are {', '.join(PEERS)}")
    library = PEERS[name].library
    if importlib.util.find_spec(library) is None:
        raise ConfigError(
            f"peer {name!r} needs {library}, which is not installed; run: pip install 'fedrec[peers]', "
            "or choose others with --peers"
        )


def make_peer(name: str, work: Work) -> Peer:
    """Import and make a peer.

    Args:
        name: one of `PEERS`.
        work: given clipping and noise here where the peer is a private one.

    Raises:
        ConfigError: for an unknown name, or where the library is not installed.
    """
    check_installed(name)
    system = PEERS[name]
    module, _, class_name = system.place.partition(":")
    made: Any = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    peer: Peer = made(work.with_privacy() if system.private else work)
    return peer
