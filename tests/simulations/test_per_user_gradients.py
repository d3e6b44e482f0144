"""The benchmark of per-user gradients: every way finds the same ones."""

from __future__ import annotations

import torch

from simulations.per_user_gradients import measure, setting, table, ways

SMALL = {"window": 4, "dim": 8, "num_items": 30, "num_negatives": 5}


def test_every_way_finds_the_gradients_of_the_model() -> None:
    model, shared, users = setting(3, **SMALL)
    found = {name: take() for name, take in ways(model, shared, users).items()}
    wanted = found["one by one, float64"]
    for name in ("one by one, float32", "vmap, float64", "hooks, float64"):
        assert found[name].keys() == wanted.keys()
        for part, values in wanted.items():
            tolerance = 1e-10 if name.endswith("64") else 1e-5
            distance = torch.linalg.vector_norm(found[name][part].double() - values)
            assert distance <= tolerance * torch.linalg.vector_norm(values) + 1e-12, (name, part)
    for part in wanted:
        if part not in ("items", "biases"):
            torch.testing.assert_close(found["one sum"][part].double(), wanted[part].sum(dim=0), rtol=1e-3, atol=1e-7)


def test_table_names_every_way_with_its_time() -> None:
    lines = table(measure(num_users=2, repeats=1, **SMALL)).splitlines()
    assert [line[:22].strip() for line in lines[1:]] == [
        *("one sum", "one by one, float64", "one by one, float32", "vmap, float64", "hooks, float64")
    ]
    assert all(float(line[22:].split()[0]) > 0 for line in lines[1:])
