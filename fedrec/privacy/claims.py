"""Claims: what a privacy unit and a trust model imply together.

    unit         trust    adjacency                       L2 sensitivity of what noise goes on
    user         central  add-or-remove one user          clipping_norm: the server's sum over all users
    user         local    replace one user                2 x clipping_norm: each user's own vector, on its node
    interaction  local    add-or-remove one interaction   max_grad_norm: a node's sum of clipped per-example gradients

Epsilons of different claims are never added up: a plan makes one claim, and a ledger holds one plan.
"""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    """What a unit and a trust model imply.

    Args:
        neighboring_relation: the adjacency.
        sensitivity: L2, in clipping norms.
        trust: who is trusted with what.
        covers: what is differentially private, as the subject of a sentence.
        limit: what a reader might expect but is not claimed, or "".
    """

    neighboring_relation: str
    sensitivity: float
    trust: str
    covers: str
    limit: str


CLAIMS = {
    ("user", "central"): Claim(
        "add-or-remove one user",
        1.0,
        "the server is trusted with each node's sum of clipped contributions",
        "Everything that leaves the server",
        "",
    ),
    ("user", "local"): Claim(
        "replace one user",
        2.0,
        "every user's clipped vector gets its own noise on its node; the server need not be trusted",
        "Everything that leaves a user's node",
        "no amplification by sampling is claimed",
    ),
    ("interaction", "local"): Claim(
        "add-or-remove one interaction",
        1.0,
        "a node is trusted with its own users and adds the noise; the server need not be trusted",
        "Everything that leaves a node",
        "it protects single interactions, not a user's whole history",
    ),
}
UNITS = {
    "user": "one person, one enrolment",
    "interaction": "one user met one item once",
}
