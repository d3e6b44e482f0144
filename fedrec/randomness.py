"""Randomness as a function: every draw follows from a key and a purpose, never from the order of calls.

A `Key` is 32 bytes. `fold` derives independent keys for a round, a purpose, a node; the draws of a key never depend
on how users are spread over nodes, batches or devices. Simulations start from a seed; deployments from the operating
system.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import ECB

from fedrec.errors import PrivacyError

_TO_UNIT = float(2.0**-53)
_USERS_AT_ONCE = 2**16

_NUM_WORDS = 624  # of 32 bits, the state of a Mersenne twister (mt19937)
# A CPU generator's `get_state()`. Source: torch, aten/src/ATen/CPUGeneratorImpl.cpp, `CPUGeneratorImplState`.
_STATE = np.dtype(
    [
        *(("seed", "<u8"), ("left", "<i4"), ("seeded", "<i4"), ("next", "<u8"), ("words", "<u8", _NUM_WORDS)),
        *(("normal_x", "<f8"), ("normal_y", "<f8"), ("normal_rho", "<f8"), ("has_normal", "<i4")),
        *(("float_normal", "<f4"), ("has_float_normal", "?")),
    ],
    align=True,
)


@dataclass(frozen=True)
class Key:
    """A source of randomness: 32 secret bytes, and whether they come from the operating system.

    Args:
        secret: 32 bytes.
        from_system: True where the bytes were drawn from the operating system, so that nobody can repeat the draws.

    Example:
        >>> key = Key.from_seed(0)
        >>> key.fold("noise", 3) == Key.from_seed(0).fold("noise", 3)
        True
        >>> key.fold("noise", 3) == key.fold("noise", 4)
        False
    """

    secret: bytes
    from_system: bool = False

    @classmethod
    def from_seed(cls, seed: int) -> Key:
        """Make the key of a simulation; the same seed gives the same draws everywhere."""
        return cls(hashlib.blake2b(str(seed).encode(), digest_size=32, person=b"fedrec-seed").digest())

    @classmethod
    def from_system_entropy(cls) -> Key:
        """Make the key of a deployment from the operating system's generator."""
        return cls(secrets.token_bytes(32), from_system=True)

    def fold(self, *parts: int | str) -> Key:
        """Derive an independent key for a purpose; `parts` are unambiguous (type and length are hashed too)."""
        digest = hashlib.blake2b(key=self.secret, digest_size=32, person=b"fedrec-fold")
        for part in parts:
            encoded = f"{type(part).__name__}:{part}".encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return Key(digest.digest(), self.from_system)

    def torch_generator(self) -> torch.Generator:
        """Return a CPU generator seeded by this key, for where models and searches start; not for noise or secrets.

        torch keeps 32 bits of a seed: among 80,000 keys, some probably share all their draws.
        """
        generator = torch.Generator(device="cpu")
        generator.manual_seed(int.from_bytes(self.secret[:8], "little") & (2**63 - 1))
        return generator

    def noise_generator(self) -> torch.Generator:
        """Return a CPU generator whose whole state is this key's ChaCha20 key stream, for the noise of simulations.

        No 32-bit seed stands between the key and the draws, so keys don't share them by chance. It is still a Mersenne
        twister, whose words are linear in its state: who knows enough of its draws can work out the others. Deployments
        don't use it.

        Returns:
            A generator as after `manual_seed`, but for its words; its `initial_seed()` means nothing.

        Raises:
            PrivacyError: where this torch keeps the state in another way than the one known here.
        """
        generator, state = torch.Generator(device="cpu"), _seeded_state().copy()
        state.view(_STATE)["words"] = np.frombuffer(self._stream(4 * _NUM_WORDS), dtype="<u4")
        generator.set_state(torch.from_numpy(state))
        return generator

    def numpy_generator(self) -> np.random.Generator:
        """Return a generator keyed with 128 bits of this key, for noise of simulations that is drawn for every user.

        Its normals are drawn faster than `noise_generator`'s, and there are users x coordinates of them in a round.
        """
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self.secret[:16], "little")))

    def uniforms(self, num: int) -> np.ndarray:
        """Draw `num` float64 values in [0, 1) from the ChaCha20 key stream of this key."""
        words = np.frombuffer(self._stream(8 * num), dtype="<u8")
        return np.asarray((words >> np.uint64(11)) * _TO_UNIT)

    def user_uniforms(self, user_keys: np.ndarray, num_draws: int = 1) -> np.ndarray:
        """Draw values in [0, 1) that depend on nothing but this key and each user's own key.

        AES-256 with this key as a pseudo-random function of (user key, draw number): one call for all users.

        Args:
            user_keys: (num_users,) uint64, see `user_keys`.
            num_draws: draws for each user.

        Returns:
            (num_users, num_draws) float64 in [0, 1).
        """
        words = self._user_blocks(user_keys, (num_draws + 1) // 2)
        return np.asarray((words[:, :num_draws] >> np.uint64(11)) * _TO_UNIT)

    def user_words(self, user_keys: np.ndarray, num_words: int) -> np.ndarray:
        """Draw whole numbers that depend on nothing but this key and each user's own key; see `user_uniforms`.

        Returns:
            (num_users, >= num_words) uint32; the first words of a user are the same whatever `num_words` is.
        """
        return self._user_blocks(user_keys, (num_words + 3) // 4).view("<u4")

    def _stream(self, num_bytes: int) -> bytes:
        """Return the first bytes of the ChaCha20 key stream."""
        return Cipher(ChaCha20(self.secret, b"\0" * 16), mode=None).encryptor().update(bytes(num_bytes))

    def _user_blocks(self, user_keys: np.ndarray, num_blocks: int) -> np.ndarray:
        """Return (num_users, 2 num_blocks) uint64: AES of (user key, block number)."""
        blocks = np.empty((len(user_keys), num_blocks, 2), dtype="<u8")
        blocks[:, :, 0] = user_keys[:, None]
        blocks[:, :, 1] = np.arange(num_blocks, dtype="<u8")
        cipher = Cipher(AES(self.secret), ECB()).encryptor()  # a PRF on distinct counters; nothing is being encrypted
        return np.frombuffer(cipher.update(blocks.tobytes()), dtype="<u8").reshape(len(user_keys), 2 * num_blocks)


def user_keys(user_ids: np.ndarray) -> np.ndarray:
    """Hash user ids to the 64-bit keys that their random draws follow from.

    Args:
        user_ids: (num_users,) integers or strings; the integer 7 and the string "7" are the same user.

    Returns:
        (num_users,) uint64.
    """
    keys = np.empty(len(user_ids), dtype="<u8")
    for start in range(0, len(user_ids), _USERS_AT_ONCE):
        part = slice(start, start + _USERS_AT_ONCE)
        digests = (hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in user_ids[part].tolist())
        keys[part] = np.frombuffer(b"".join(digests), dtype="<u8")
    return keys


@cache
def _seeded_state() -> np.ndarray:
    """Return the bytes of a `_STATE` that was just seeded: nothing drawn, no normal kept for later."""
    state = torch.Generator(device="cpu").manual_seed(5489).get_state().numpy()
    if not _is_laid_out(state):
        problem = f"torch {torch.__version__} does not lay out the state of its CPU generator as torch 2.13 does"
        raise PrivacyError(f"{problem}, so noise can't be drawn from a whole key; install torch==2.13.0")
    return state


def _is_laid_out(found: np.ndarray) -> bool:
    """Return whether the bytes of a generator seeded with 5489 are a `_STATE`.

    numpy's twister, seeded in the same way, says which words must be there; and a state that is given the words of
    another seed must draw what that seed draws, for more than one turn of the twister.
    """
    if found.nbytes != _STATE.itemsize:
        return False
    state = found.copy().view(_STATE)
    fields = [int(state[name][0]) for name in ("seed", "left", "seeded", "next", "has_normal", "has_float_normal")]
    if fields != [5489, 1, 1, 0, 0, 0] or not np.array_equal(state["words"][0], _mersenne_words(5489)):
        return False
    state["words"] = _mersenne_words(1)
    filled, seeded = torch.Generator(device="cpu"), torch.Generator(device="cpu").manual_seed(1)
    filled.set_state(torch.from_numpy(state.view(np.uint8)))
    first, second = (torch.randn(_NUM_WORDS + 1, generator=g, dtype=torch.float64) for g in (filled, seeded))
    return torch.equal(first, second)


def _mersenne_words(seed: int) -> np.ndarray:
    """Return the (624,) uint32 words that a Mersenne twister starts from."""
    return np.asarray(np.random.RandomState(seed).get_state(legacy=False)["state"]["key"])
