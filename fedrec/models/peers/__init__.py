"""Published federated recommenders, written from their papers, to be compared with on one engine.

    name        paper                                        on the device                   what is summed
    fcf         Ammad-ud-din et al., 2019                    p_u, solved anew                gradients of items
    fedmf       Chai et al., 2020 (without the encryption)   p_u, kept                       gradients of items
    fedncf      Perifanis & Efraimidis, 2022                 p_u, kept                       moves of items and network
    fedrecon    Singhal et al., 2021                         p_u, reconstructed anew         moves of items
    pfedrec     Zhang et al., 2023                           a scoring layer and scores      moves of items

They run without privacy only, as published. All rank implicit feedback here; where a paper predicts ratings, met items
have target 1 and drawn ones 0, which is how later papers compare with it. "Kept" is private state that the node hands
back in the user's next round (`UserBatch.state`); a user without any starts from public numbers.

    examples.py   what a user trains on in a round: the items met, and drawn items not met
    descent.py    local gradient steps for many users side by side
    peer.py       what they have in common

Negatives are drawn among the items that are not in the user's training part: validation and test items are among them.
Published code leaves the held-out items out, so that the item asked for is never pushed down: the answer leaks into
training. To show how much that is worth a model can be made with `HeldOut` items; no setting does it, only
`simulations.leak`, and what it makes says so.

Left out: GPFedRec (Zhang et al., 2024) and CoFedRec (He et al., 2024). Their servers compare users by the item tables
that each of them uploads, and send each user, or cluster, a table of its own. Here a server sees sums over users only.
"""
