"""Membership inference by coin flip: a fair coin for each user, or for one interaction of each, and then guess it.

    users           coin "out": the user never takes part            coin "in": with the whole history
    interactions    coin "out": one interaction is held back         coin "in": nothing is

Three things are attacked, each by what its owner sees:

    final model     the parameters after the last round: everybody has them
    releases        the noisy sums of all rounds, under a plan: all that its epsilon is about
    node sums       the clear sums of the last round, node by node: what the server is trusted with

The attacker knows every candidate's history, what the model is and how it starts; not the coins, and not whom devices
drew where the claim rests on it. On each view there is the attack that a stranger would try first, and the strongest
one here: shadow runs against the model, joint decoding against sums. Which is which was fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedrec import assemble
from fedrec.audit.candidates import Attack, Candidates
from fedrec.audit.measures import area_under_curve, true_positive_rate
from fedrec.audit.shadows import calibrated_scores
from fedrec.audit.subject import Subject, rounds
from fedrec.audit.sums import SumAttacks
from fedrec.data.batches import user_batches
from fedrec.randomness import Key

FALSE_POSITIVES = 0.01
_SCORES_AT_ONCE = 2**24


def attack_membership(
    subject: Subject,
    candidates: Candidates,
    num_runs: int,
    num_shadows: int,
    key: Key,
    say: Callable[[str], None] = lambda text: None,
) -> dict[Attack, list[tuple[float, float]]]:
    """Train with fresh coins `num_runs` + `num_shadows` times and attack the first `num_runs` of them.

    Each attacked run has all other runs for shadows, so the runs are not quite independent of each other.

    Args:
        subject: what is audited.
        candidates: who coins are flipped for.
        num_runs: runs to attack.
        num_shadows: further runs, to learn from.
        key: of everything that is drawn.
        say: is told what is going on.

    Returns:
        Attack -> (AUC, true positive rate at 1% false positives) of each attacked run.

    Raises:
        DataError: where all coins of a run fell on one side.
    """
    key, total = key.fold(candidates.what), num_runs + num_shadows
    coins = np.stack([key.fold("coins", run).uniforms(len(candidates.rows)) < 0.5 for run in range(total)])
    statistics = np.empty(coins.shape)
    scores: dict[Attack, list[np.ndarray]] = {}
    for run, included in enumerate(coins):
        if run % 5 == 0:
            say(f"membership of {candidates.what}: run {run + 1} of {total}")
        sums = SumAttacks(subject, candidates, included)
        train, rows = candidates.world(subject.train, included)
        for done in rounds(subject, key.fold("run", run), train, rows):
            if run < num_runs:
                sums.look_at(done, train)
        final = assemble.as_broadcast(subject.config, done.server.shared, done.number)
        statistics[run] = _fit(subject, candidates, final)
        for attack, found in sums.scores.items():
            scores.setdefault(attack, []).append(found)
    scores |= _attacks_on_the_model(candidates.what, statistics, coins, num_runs)
    return {
        attack: [
            (area_under_curve(one, included), true_positive_rate(one, included, FALSE_POSITIVES))
            for one, included in zip(found, coins[:num_runs], strict=True)
        ]
        for attack, found in scores.items()
    }


def _attacks_on_the_model(
    what: str, statistics: np.ndarray, coins: np.ndarray, num_runs: int
) -> dict[Attack, list[np.ndarray]]:
    """Return the scores of both attacks on the final model, for each attacked run."""
    total, others = len(coins), [np.arange(len(coins)) != run for run in range(num_runs)]
    found = {Attack(what, "final model", "fit to the history", total < 3): list(statistics[:num_runs])}
    if total >= 3:
        name = f"fit, calibrated by {total - 1} shadow runs"
        found[Attack(what, "final model", name, True)] = [
            calibrated_scores(statistics[run], statistics[other], coins[other]) for run, other in enumerate(others)
        ]
    return found


def _fit(subject: Subject, candidates: Candidates, shared: Mapping[str, Tensor]) -> np.ndarray:
    """Return how high a model ranks what a candidate's coin decided about, over all items in standard deviations.

    For users it is the mean over the user's own history; for interactions the held-back item, after a fit to the rest
    of the history. Times are left out: an attack has no use for recency.
    """
    model, place = subject.model, np.zeros(subject.train.num_users, dtype=np.int64)
    place[candidates.rows] = np.arange(len(candidates.rows))
    shared = model.prepare({name: tensor.to(subject.device) for name, tensor in shared.items()})
    users, targets = candidates.without(subject.train), candidates.targets(subject.train)
    found = np.empty(len(candidates.rows))
    most = max(1, _SCORES_AT_ONCE // subject.train.num_items)
    for batch in user_batches(users, candidates.rows, model.batch_cells, most, subject.user_keys):
        batch = replace(batch, times=None).to(subject.device)
        scores = model.score(shared, model.fit_users(shared, batch), batch).to(torch.float64)
        scores = (scores - scores.mean(dim=1, keepdim=True)) / scores.std(dim=1, keepdim=True).clamp(min=1e-12)
        mine = place[batch.rows]
        if targets is None:
            own = scores.gather(1, batch.items) * batch.mask
            found[mine] = (own.sum(dim=1) / batch.lengths.clamp(min=1)).cpu().numpy()
        else:
            found[mine] = scores[torch.arange(len(mine)), torch.from_numpy(targets[mine])].cpu().numpy()
    return np.asarray(np.nan_to_num(found))
