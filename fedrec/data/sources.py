"""Sources: a data set by name or by path, as interactions and the catalogue of exactly their items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from fedrec.data.catalogue import Catalogue, Dataset
from fedrec.data.columnar import is_columnar, open_columnar
from fedrec.data.interactions import Interactions, Vocabulary, deduplicate
from fedrec.data.named import amazon, depaul, frappe, incarmusic, lastfm, movielens
from fedrec.data.named.folders import Home, find_folder, locate
from fedrec.data.reading.columns import ColumnNames
from fedrec.data.reading.problems import nearest
from fedrec.data.reading.reader import rated_at_least, read_values, to_interactions
from fedrec.data.reading.values import Values
from fedrec.data.synthetic import SyntheticConfig, generate
from fedrec.data.time_context import add_time_context
from fedrec.errors import ConfigError
from fedrec.randomness import Key


@dataclass(frozen=True)
class Source:
    """A named data set: where it lies, how its interactions are read, its items described and its users known."""

    home: Home
    read: Callable[[Path], Values]
    describe: Callable[[Path, Vocabulary], Catalogue]
    with_users: Callable[[Path, Interactions], Interactions] = lambda folder, interactions: interactions


SOURCES: Mapping[str, Source] = {
    "ml-100k": Source(
        movielens.ML_100K, movielens.read_ml_100k, movielens.describe_ml_100k, movielens.with_users_of_ml_100k
    ),
    "ml-1m": Source(movielens.ML_1M, movielens.read_ml_1m, movielens.describe_ml_1m, movielens.with_users_of_ml_1m),
    "ml-latest-small": Source(
        movielens.ML_LATEST_SMALL, movielens.read_ml_latest_small, movielens.describe_ml_latest_small
    ),
    "amazon-video": Source(amazon.AMAZON_VIDEO, amazon.read_amazon_video, amazon.describe_amazon_video),
    "lastfm-2k": Source(lastfm.LASTFM_2K, lastfm.read_lastfm_2k, lastfm.describe_lastfm_2k),
    "frappe": Source(frappe.FRAPPE, frappe.read_frappe, frappe.describe_frappe),
    "depaul-movie": Source(depaul.DEPAUL_MOVIE, depaul.read_depaul_movie, depaul.describe_depaul_movie),
    "incarmusic": Source(incarmusic.INCARMUSIC, incarmusic.read_incarmusic, incarmusic.describe_incarmusic),
}


def load(
    name: str | None = None,
    path: str | Path | None = None,
    columns: Mapping[str, object] | None = None,
    min_rating: float | None = None,
    repeat: bool = False,
    synthetic: SyntheticConfig | Mapping[str, object] | None = None,
    key: Key | None = None,
    user_tags: bool = False,
    time_context: Sequence[str] = (),
) -> Dataset:
    """Load a data set.

    Args:
        name: one of `SOURCES` or "synthetic"; not looked at where `path` is given.
        path: a CSV or TSV file (plain or gzip), a Parquet file, or a folder of columnar files.
        columns: for `path`: role -> column name; only roles that stand here must be in the file, see `ColumnNames`.
        min_rating: least rating of a row that counts; None keeps every row. Users and items without a row go.
        repeat: keep every row; else a repeated user-item pair keeps its latest.
        synthetic: options of the generator, for the name "synthetic".
        key: randomness of the generator; that of seed 0 where None, so that data does not change with the run's seed.
        user_tags: for "ml-latest-small": put the users' own (private!) tags into the public texts.
        time_context: context fields to make of the times, see `add_time_context`.

    Returns:
        Interactions, and a catalogue that knows their items and the values that their context fields may take.

    Raises:
        ConfigError: where neither name nor path is given, or the name or an option is unknown.
        DataError: where a file is missing or malformed, naming file, line and column.

    Example:
        >>> load("synthetic", synthetic={"num_users": 50, "num_items": 200}).catalogue.num_items
        200
    """
    if path is not None:
        data = _from_file(Path(path), columns, min_rating, repeat)
    elif name == "synthetic":
        data = _from_generator(synthetic, min_rating, key)
    elif name is None or name not in SOURCES:
        raise _unknown(name)
    else:
        data = _from_source(name, min_rating, repeat, user_tags)
    interactions = add_time_context(data.interactions, time_context)
    catalogue = replace(data.catalogue, context_fields=interactions.context_fields)
    return Dataset(data.name, interactions, catalogue)


def available() -> dict[str, Path | None]:
    """Return the folder of every named data set on this machine, None where it is not here."""
    return {name: locate(source.home) for name, source in SOURCES.items()}


def _from_source(name: str, min_rating: float | None, repeat: bool, user_tags: bool) -> Dataset:
    source = SOURCES[name]
    folder = find_folder(source.home)
    interactions = to_interactions(source.read(folder), min_rating, name)
    interactions = interactions if repeat else deduplicate(interactions)
    interactions = source.with_users(folder, interactions)
    describe = source.describe
    if user_tags and name == "ml-latest-small":
        describe = partial(movielens.describe_ml_latest_small, user_tags=True)
    return Dataset(name, interactions, describe(folder, interactions.item_ids))


def _from_file(path: Path, columns: Mapping[str, object] | None, min_rating: float | None, repeat: bool) -> Dataset:
    path = path.expanduser()
    if is_columnar(path):
        return _from_folder(path, columns, min_rating, repeat)
    values = read_values(path, ColumnNames.from_mapping(columns))
    interactions = to_interactions(values, min_rating, str(path))
    interactions = interactions if repeat else deduplicate(interactions)
    return Dataset(path.name, interactions, Catalogue(interactions.item_ids))


def _from_folder(path: Path, columns: Mapping[str, object] | None, min_rating: float | None, repeat: bool) -> Dataset:
    if (named := ColumnNames.from_mapping(columns).by_role()) != ColumnNames().by_role():
        raise ConfigError(
            f"data.columns names {', '.join(named.values())}, but {path} is a folder of columnar files, "
            "whose columns are fixed; remove data.columns"
        )
    interactions = open_columnar(path).to_interactions()
    if min_rating is not None:
        interactions = rated_at_least(interactions, min_rating, str(path))
    interactions = interactions if repeat else deduplicate(interactions)
    return Dataset(path.name, interactions, Catalogue(interactions.item_ids))


def _from_generator(
    options: SyntheticConfig | Mapping[str, object] | None, min_rating: float | None, key: Key | None
) -> Dataset:
    if min_rating is not None:
        raise ConfigError(f"data.min_rating={min_rating} but synthetic data has no ratings; remove min_rating")
    try:
        config = (
            options if isinstance(options, SyntheticConfig) else SyntheticConfig.model_validate(dict(options or {}))
        )
    except ValidationError as error:
        first = error.errors()[0]
        field, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if not field:
            raise ConfigError(f"data.synthetic: {message}") from None
        hint = nearest(field, SyntheticConfig.model_fields) if first["type"] == "extra_forbidden" else None
        did_you_mean = f"; did you mean {hint}?" if hint else ""
        raise ConfigError(f"data.synthetic.{field}={first['input']!r}: {message}{did_you_mean}") from None
    return generate(config, key or Key.from_seed(0))


def _unknown(name: str | None) -> ConfigError:
    allowed = ", ".join([*SOURCES, "synthetic"])
    if name is None:
        return ConfigError(f"neither data.name nor data.path is given; name one of {allowed}, or a file")
    hint = nearest(name, [*SOURCES, "synthetic"])
    return ConfigError(
        f"data.name={name!r} is unknown; allowed are {allowed}; "
        + (f"did you mean {hint}?" if hint else "for a file of your own set data.path")
    )
