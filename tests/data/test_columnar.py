"""Columnar files: what was written comes back, batch by batch; what is damaged or half written is never opened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.compiled import reference
from fedrec.data import columnar, columnar_writer
from fedrec.data.batches import UserBatch, make_batch, user_batches
from fedrec.data.columnar import HEADER, StoredHistories, open_columnar
from fedrec.data.columnar_writer import store_interactions, write_columnar
from fedrec.data.interactions import Interactions, Vocabulary
from fedrec.data.sources import load
from fedrec.data.synthetic import SyntheticConfig, generate, stream
from fedrec.errors import ConfigError, DataError
from fedrec.randomness import Key
from tests.data.histories import histories, make

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORLD = SyntheticConfig(num_users=60, num_items=40, mean_interactions=8)


def some() -> Interactions:
    """Return six users of different lengths, the third without interactions, with a numeric context field, too."""
    rows = [(u, (u + 3 * i) % 9, i) for u in (5, 0, 1, 3, 4) for i in range(u + 1)]
    data = make(rows, num_users=6, num_items=9)
    heat = np.linspace(0, 1, len(data)).astype(np.float32)
    return replace(
        data,
        context={**data.context, "heat": heat},
        user_attributes={"hair": np.array([0, 1, 1, 0, 2, 2])},
        user_attribute_ids={"hair": Vocabulary(np.array(["red", "none", "unknown"]))},
    )


def same_batches(left: UserBatch, right: UserBatch) -> None:
    """Check that two batches hold the same bits in the same types."""
    columns = [
        {"rows": torch.from_numpy(b.rows), "items": b.items, "mask": b.mask, "times": b.times, "ratings": b.ratings}
        | dict(b.context)
        for b in (left, right)
    ]
    assert columns[0].keys() == columns[1].keys()
    for name, value in columns[0].items():
        other = columns[1][name]
        if value is None or other is None:
            assert value is other
        else:
            assert value.dtype == other.dtype and torch.equal(value, other), name


@pytest.fixture
def stored(tmp_path: Path) -> StoredHistories:
    return store_interactions(tmp_path / "data", some())


def test_folders_without_user_attributes_are_what_they_were_before_there_were_any(tmp_path: Path) -> None:
    plain = replace(some(), user_attributes={}, user_attribute_ids={})
    stored = store_interactions(tmp_path / "data", plain)
    assert "attribute" not in (stored.folder / HEADER).read_text()
    assert not stored.to_interactions().user_attributes


def test_an_attribute_that_does_not_know_every_user_is_refused(tmp_path: Path) -> None:
    data = some()
    attributes = {"hair": (np.zeros(5, dtype=np.int64), data.user_attribute_ids["hair"])}
    with pytest.raises(DataError, match="user attribute hair has 5 rows, there are 6 users"):
        write_columnar(tmp_path / "data", [data], data.user_ids, data.item_ids, data.context_ids, attributes)


@given(data=histories(repeat=True), max_elements=st.integers(1, 30))
@FEW
def test_batches_of_stored_histories_are_those_of_the_interactions(
    data: Interactions, max_elements: int, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    stored = store_interactions(tmp_path / "data", data)
    pairs = zip(
        user_batches(data, max_elements=max_elements), user_batches(stored, max_elements=max_elements), strict=True
    )
    for ordinary, mapped in pairs:
        same_batches(ordinary, mapped)
        assert mapped.items.dtype == torch.int64
    assert stored.to_interactions().fingerprint() == data.fingerprint()
    stored.verify()


@given(data=histories(repeat=True))
@FEW
def test_compiled_padding_agrees_with_the_plain_form(data: Interactions) -> None:
    rows = np.arange(data.num_users)[::-1].copy()
    compiled = make_batch(data, rows)
    with reference():
        same_batches(compiled, make_batch(data, rows))


def test_the_number_of_threads_does_not_change_a_batch(stored: StoredHistories) -> None:
    threads = torch.get_num_threads()
    batches = []
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        batches.append(make_batch(stored, np.arange(6)))
    torch.set_num_threads(threads)
    same_batches(batches[0], batches[1])
    same_batches(batches[0], batches[2])


def test_everything_comes_back(stored: StoredHistories) -> None:
    data, back = some(), stored.to_interactions()
    assert back.fingerprint() == data.fingerprint()
    assert back.user_ids.ids.tolist() == data.user_ids.ids.tolist()
    assert back.context_ids["place"].ids.tolist() == ["home", "way", "work"] and "heat" not in back.context_ids
    assert back.user_attributes["hair"].tolist() == [0, 1, 1, 0, 2, 2]
    assert back.user_attribute_ids["hair"].ids.tolist() == ["red", "none", "unknown"]
    assert (len(stored), stored.num_users, stored.num_items) == (len(data), 6, 9)
    assert stored.items.dtype == np.int32 and not stored.items.flags.writeable
    files = [path for path in stored.folder.iterdir() if path.name != HEADER]
    assert stored.num_bytes == sum(path.stat().st_size for path in files)


def test_a_stream_in_parts_is_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, whole = Key.from_seed(3), generate(WORLD, Key.from_seed(3)).interactions
    ids = whole.user_ids, whole.item_ids, whole.context_ids
    once = store_interactions(tmp_path / "once", whole)
    parts = write_columnar(tmp_path / "parts", stream(WORLD, key, chunk_users=7), *ids)
    monkeypatch.setattr(columnar_writer, "CHUNK", 11)
    monkeypatch.setattr(columnar, "CHUNK", 5)
    pieces = store_interactions(tmp_path / "pieces", whole)
    assert once.header == parts.header == pieces.header
    assert parts.header.fingerprint == once.header.fingerprint
    assert parts.to_interactions().fingerprint() == whole.fingerprint()


def test_no_interactions_at_all(tmp_path: Path) -> None:
    nobody = write_columnar(tmp_path / "nobody", [], Vocabulary(np.arange(0)), Vocabulary(np.arange(0)))
    assert len(nobody) == nobody.num_users == 0 and list(user_batches(nobody)) == []
    silent = store_interactions(tmp_path / "silent", make([], 2, 1))
    assert make_batch(silent, np.arange(2)).items.shape == (2, 0)
    assert silent.ratings is not None and silent.times is not None and list(silent.context) == ["place"]


def chunk(users: list[int], items: list[int], times: list[int] | None = None) -> Interactions:
    """Return rows in exactly this order, whatever is wrong with them."""
    good = make([(0, 0, 0)], 1, 1)
    rows = good.take(np.zeros(0, dtype=np.int64))
    for name, column in (("users", users), ("items", items), ("times", times)):
        object.__setattr__(rows, name, None if column is None else np.array(column))
    object.__setattr__(rows, "ratings", None)
    object.__setattr__(rows, "context", {})
    return rows


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([chunk([1, 0], [0, 0])], "not sorted"),
        ([chunk([0, 0], [0, 0], [2, 1])], "not sorted"),
        ([chunk([1], [0]), chunk([0], [0])], "not sorted"),
        ([chunk([1], [0], [2]), chunk([1], [0], [1])], "not sorted"),
        ([chunk([0], [3])], "items holds rows 3..3, allowed are 0..2"),
        ([chunk([-1], [0])], "users holds rows -1..-1"),
        ([chunk([2], [0])], "users holds rows 2..2"),
        ([chunk([0], [0], [1]), chunk([1], [0])], "must agree"),
        ([chunk([0, 1], [0])], "must agree"),
        ([chunk([0], [0.5])], "whole numbers"),  # type: ignore[list-item]
    ],
)
def test_rows_that_are_wrong_leave_nothing_behind(parts: list[Interactions], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        write_columnar(tmp_path / "data", parts, Vocabulary(np.arange(2)), Vocabulary(np.arange(3)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "column", "words"),
    [("place", [3], "rows 3..3, allowed are 0..2"), ("mood", [1], "no vocabulary"), ("place", [0.5], "whole numbers")],
)
def test_context_without_a_name_for_its_codes(field: str, column: list[float], words: str, tmp_path: Path) -> None:
    rows = chunk([0], [0])
    object.__setattr__(rows, "context", {field: np.array(column)})
    names = {"place": Vocabulary(np.array(["home", "way", "work"]))}
    with pytest.raises(DataError, match=words):
        write_columnar(tmp_path / "data", [rows], Vocabulary(np.arange(2)), Vocabulary(np.arange(3)), names)


def test_a_folder_that_exists_is_not_overwritten(stored: StoredHistories) -> None:
    with pytest.raises(DataError, match="exists"):
        store_interactions(stored.folder, some())
    stored.verify()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be written"):
        store_interactions(tmp_path / "missing" / "data", some())


def test_a_source_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[Interactions]:
        yield some()
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError):
        write_columnar(tmp_path / "data", failing(), some().user_ids, some().item_ids, some().context_ids)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from fedrec.data.columnar_writer import write_columnar
from tests.data.test_columnar import some

def killed():
    yield some()
    os.kill(os.getpid(), signal.SIGKILL)

data = some()
write_columnar(sys.argv[1], killed(), data.user_ids, data.item_ids, data.context_ids)
"""


def test_a_killed_writer_leaves_nothing_that_opens(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "data")], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "data").exists()
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".data.partial-") and (partial / "items.npy").exists()
    with pytest.raises(DataError, match="writing was finished"):
        open_columnar(partial)
    store_interactions(tmp_path / "data", some()).verify()


def edit(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Return a damage that changes the header."""

    def damage(folder: Path) -> None:
        header = json.loads((folder / HEADER).read_text())
        change(header)
        (folder / HEADER).write_text(json.dumps(header))

    return damage


def put(name: str, values: list[object], dtype: str) -> Callable[[Path], None]:
    """Return a damage that replaces the content of a file, keeping its size where the values allow."""
    return lambda folder: np.save(folder / f"{name}.npy", np.array(values, dtype=dtype))


def cut(name: str, num_bytes: int) -> Callable[[Path], None]:
    """Return a damage that cuts off the end of a file (or makes it longer)."""
    return lambda folder: os.truncate(folder / f"{name}.npy", (folder / f"{name}.npy").stat().st_size - num_bytes)


NUM = len(some())
INDPTR = [int(i) for i in some().indptr]
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no header": (lambda f: (f / HEADER).unlink(), "writing was finished"),
    "header not json": (lambda f: (f / HEADER).write_text("{"), "a header of version 1"),
    "header of another kind": (edit(lambda h: h.update(format="other")), "format"),
    "header of the future": (edit(lambda h: h.update(version=2)), "version"),
    "unknown key": (edit(lambda h: h.update(extra=1)), "extra"),
    "negative count": (edit(lambda h: h.update(num_users=-1)), "num_users"),
    "other count": (edit(lambda h: h.update(num_users=7)), "as the counts say"),
    "huge item count": (edit(lambda h: h.update(num_items=2**31)), "num_items"),
    "file not named": (edit(lambda h: h["files"].pop("items")), "no entry for items.npy"),
    "file with a path": (edit(lambda h: h["files"].update({"../x": h["files"]["items"]})), "an entry"),
    "other type": (edit(lambda h: h["files"]["items"].update(dtype="int64")), "type 'int64' of items"),
    "codes without names": (edit(lambda h: h["files"].pop("context-ids-0")), "without names"),
    "one field twice": (edit(lambda h: h.update(context=["heat", "heat"])), "every name once"),
    "missing file": (lambda f: (f / "times.npy").unlink(), "times.npy: found no file"),
    "missing ids": (lambda f: (f / "user-ids.npy").unlink(), "user-ids.npy: found no file"),
    "short file": (cut("items", 4), "as the header says"),
    "long file": (cut("items", -4), "as the header says"),
    "empty file": (lambda f: (f / "items.npy").write_bytes(b""), "0 bytes"),
    "not npy": (lambda f: (f / "items.npy").write_bytes(bytes((f / "items.npy").stat().st_size)), "a .npy file"),
    "floats for rows": (put("items", [0.0] * NUM, "float32"), "float32"),
    "foreign byte order": (put("items", [0] * NUM, ">i4"), ">i4"),
    "another shape": (lambda f: np.save(f / "items.npy", np.zeros((1, NUM), np.int32)), r"shape \(1, "),
    "item out of range": (put("items", [0] * (NUM - 1) + [9], "int32"), r"rows 0\.\.9; allowed: 0\.\.8"),
    "negative item": (put("items", [-1] + [0] * (NUM - 1), "int32"), r"rows -1\.\.0"),
    "code out of range": (put("context-0", [3] * NUM, "int32"), r"rows 3\.\.3"),
    "attribute out of range": (put("attribute-0", [3] * 6, "int32"), r"attribute-0.*rows 3\.\.3"),
    "attribute not named": (edit(lambda h: h.update(attributes=[])), "an entry 'attribute-0'"),
    "attribute without names": (edit(lambda h: h["files"].pop("attribute-ids-0")), "no entry for attribute-ids-0"),
    "indptr falls": (put("indptr", [0, 5, 3, *INDPTR[3:]], "int64"), "5 before 3 at user 1"),
    "indptr starts late": (put("indptr", [1, *INDPTR[1:]], "int64"), "ends 1 and"),
    "indptr ends late": (put("indptr", [*INDPTR[:-1], NUM + 5], "int64"), f"and {NUM + 5}"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(name: str, stored: StoredHistories) -> None:
    damage, words = DAMAGES[name]
    copy = stored.folder.parent / "copy"
    shutil.copytree(stored.folder, copy)
    damage(copy)
    with pytest.raises(DataError, match=words) as error:
        open_columnar(copy)
    assert "; allowed: " in str(error.value) or "allowed" in str(error.value)


def test_pickles_are_never_loaded(stored: StoredHistories) -> None:
    path = stored.folder / "user-ids.npy"
    np.save(path, np.array([{"a": 1}] * 6, dtype=object), allow_pickle=True)
    header = json.loads((stored.folder / HEADER).read_text())
    header["files"]["user-ids"]["num_bytes"] = path.stat().st_size
    (stored.folder / HEADER).write_text(json.dumps(header))
    with pytest.raises(DataError, match=r"user-ids\.npy"):
        open_columnar(stored.folder)


def test_changed_bytes_within_range_are_found_by_verify(stored: StoredHistories) -> None:
    np.save(stored.folder / "items.npy", np.zeros(NUM, dtype=np.int32))
    opened = open_columnar(stored.folder)
    with pytest.raises(DataError, match=r"items\.npy: found other bytes"):
        opened.verify()


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        open_columnar(tmp_path / "nowhere")


@pytest.mark.parametrize(("min_rating", "repeat"), [(None, True), (None, False), (4.0, True), (4.0, False)])
def test_a_folder_loads_like_the_file_it_was_made_of(
    min_rating: float | None, repeat: bool, tmp_path: Path, write: Callable[..., Path]
) -> None:
    text = "user,item,timestamp,rating\n7,b,300,5\n7,a,100,4\n12,b,200,3\n7,b,200,4\n9,c,1,1\n9,a,2,4\n"
    file = write(text, "data.csv")
    store_interactions(tmp_path / "packed", load(path=file, repeat=True).interactions)
    packed = load(path=tmp_path / "packed", columns={}, min_rating=min_rating, repeat=repeat)
    wanted = load(path=file, min_rating=min_rating, repeat=repeat)
    assert packed.interactions.fingerprint() == wanted.interactions.fingerprint()
    assert packed.name == "packed" and packed.catalogue.item_ids is packed.interactions.item_ids


def test_columns_of_a_folder_are_not_named(stored: StoredHistories) -> None:
    with pytest.raises(ConfigError, match="whose columns are fixed"):
        load(path=stored.folder, columns={"user": "who"})


def test_a_folder_without_ratings_has_no_least_rating(tmp_path: Path) -> None:
    store_interactions(tmp_path / "data", replace(some(), ratings=None))
    with pytest.raises(DataError, match="there are no ratings"):
        load(path=tmp_path / "data", min_rating=1)
