"""Randomness: what is drawn follows from all of a key, and from nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from scipy.stats import kstest

from fedrec.errors import PrivacyError
from fedrec.randomness import _STATE, Key, _is_laid_out, _seeded_state

KEY = Key.from_seed(4)


def normals(generator: torch.Generator, num: int) -> np.ndarray:
    return torch.randn(num, generator=generator, dtype=torch.float64).numpy()


def seeded() -> np.ndarray:
    """Return the bytes of the state that the layout is checked on, as this torch has them."""
    return torch.Generator(device="cpu").manual_seed(5489).get_state().numpy()


def test_a_noise_generator_is_a_mersenne_twister_that_starts_from_the_key_stream() -> None:
    """For three turns of the state, against numpy's twister and a ChaCha20 key stream of its own."""
    stream = Cipher(ChaCha20(KEY.secret, bytes(16)), mode=None).encryptor().update(bytes(4 * 624))
    twister = np.random.MT19937()
    words = {"key": np.frombuffer(stream, dtype="<u4"), "pos": 624}
    twister.state = {"bit_generator": "MT19937", "state": words}
    high, low = twister.random_raw(2000).reshape(-1, 2).T
    expected = ((high << 32 | low) % 2**53) * 2.0**-53  # how torch makes a uniform of two words
    assert np.array_equal(torch.rand(1000, generator=KEY.noise_generator(), dtype=torch.float64).numpy(), expected)


def test_a_key_always_draws_the_same_noise_and_leaves_torch_as_it_is() -> None:
    before = torch.get_rng_state()
    first, again = (KEY.noise_generator() for _ in range(2))
    for num in (3, 1, 700):  # few normals are drawn in another way than many, and one of a pair is kept for later
        assert np.array_equal(normals(first, num), normals(again, num))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_bits", [0, 32, 63, 128, 255])
def test_every_bit_of_a_key_changes_the_noise(num_bits: int) -> None:
    secret = int.from_bytes(KEY.secret, "little") ^ 1 << num_bits
    other = Key(secret.to_bytes(32, "little"))
    assert not (normals(KEY.noise_generator(), 1000) == normals(other.noise_generator(), 1000)).any()


def test_200_000_keys_draw_200_000_different_normals() -> None:
    """Kolmogorov-Smirnov at level 1e-6. By chance, two of them would be the same once in 400,000 such tests."""
    first = torch.empty(200_000, dtype=torch.float64)
    for number, draw in enumerate(first.split(1)):
        draw.normal_(generator=KEY.fold(number).noise_generator())
    assert len(first.unique()) == 200_000
    assert kstest(first.numpy(), "norm").pvalue > 1e-6


def test_normals_of_one_key_are_normal() -> None:
    """Kolmogorov-Smirnov at level 1e-6, for few normals at a time and for many at once."""
    generator = KEY.noise_generator()
    assert kstest(normals(generator, 100_000), "norm").pvalue > 1e-6
    assert kstest(np.concatenate([normals(generator, 5) for _ in range(4000)]), "norm").pvalue > 1e-6


def words_of_half_the_size(state: np.ndarray) -> np.ndarray:
    fields = state.view(_STATE)
    return np.concatenate([state[:24], fields["words"].astype("<u4").view(np.uint8).ravel(), state[24 + 624 * 8 :]])


def words_somewhere_else(state: np.ndarray) -> np.ndarray:
    return np.roll(state, 8)


def with_field(name: str, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(state: np.ndarray) -> np.ndarray:
        state.view(_STATE)[name] = value
        return state

    return change


CHANGES = [with_field("left", 624), with_field("next", 1), with_field("has_normal", 1), with_field("seed", 1)]


@pytest.mark.parametrize("change", [words_of_half_the_size, words_somewhere_else, *CHANGES])
def test_a_torch_that_keeps_its_state_in_another_way_is_noticed(change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert _is_laid_out(seeded()) and not _is_laid_out(change(seeded()))


def test_noise_of_an_unknown_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _seeded_state.cache_clear()
    monkeypatch.setattr("fedrec.randomness._is_laid_out", lambda state: False)
    with pytest.raises(PrivacyError, match=r"does not lay out the state .* install torch==2\.13\.0"):
        KEY.noise_generator()
