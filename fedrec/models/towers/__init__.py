"""The parts of the two-tower model: what a history and a context say of a user, and how that meets the items.

A tower is a torch module without parameters of its own values: its tensors come from the shared parameters, by name,
through `torch.func.functional_call`. Every tower works on one user's (T, d) and on a batch's (B, T, d) alike.
"""
