"""The benchmark of per-user gradients: every way finds the same ones."""

from __future__ import annotations

import torch

from simulations.per_user_gradients import measure, setting, table, ways

SMALL = {"window": 4, "dim": 8, "num_items": 30, "num_negatives": 5}


def test_every_way_finds_the_gradients_that_vmap_does() -> None:
    model, shared, users = setting(3, **SMALL)
    found = {name: take() for name, take in ways(model, shared, users).items()}
    wanted = found["vmap, float64"]
    for name in ("vmap, float32", "hooks, float32", "hooks, float64", "loop, float32"):
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
    assert [line[:16].strip() for line in lines[1:]] == [
        *("one sum", "vmap, float64", "vmap, float32", "hooks, float32", "hooks, float64", "loop, float32")
    ]
    assert all(float(line[16:].split()[0]) > 0 for line in lines[1:])
