"""Sources: files of many shapes give the same interactions, and named sets are found by their own or official files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from fedrec.data.catalogue import Dataset
from fedrec.data.reading.times import UNKNOWN_TIME
from fedrec.data.sources import SOURCES, available, load
from fedrec.errors import ConfigError, DataError

CSV = "user,item,timestamp,rating\n7,b,300,5\n7,a,100,4\n12,b,200,3\n7,c,200,1\n"


def rows(data: Dataset) -> list[tuple[object, ...]]:
    """Return (user id, item id, time) of every interaction, in order."""
    found = data.interactions
    times = [None] * len(found) if found.times is None else found.times.tolist()
    users, items = found.user_ids.ids[found.users].tolist(), found.item_ids.ids[found.items].tolist()
    return list(zip(users, items, times, strict=True))


SORTED = [(7, "a", 100), (7, "c", 200), (7, "b", 300), (12, "b", 200)]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (CSV, "data.csv"),
        (CSV.strip(), "data.csv"),
        (CSV.replace("\n", "\r\n"), "data.csv"),
        (CSV.replace("\n", "\r"), "data.csv"),
        ("\ufeff" + CSV, "data.csv"),
        ("\n\n" + CSV.replace("\n", "\n\n"), "data.csv"),
        (CSV.replace(",", " , "), "data.csv"),
        (CSV.replace(",", "\t"), "data.tsv"),
        (CSV.replace(",", "\t"), "data.csv"),
        (CSV.replace(",", ";"), "data.csv"),
        (CSV.replace(",", "|"), "data.txt"),
        (CSV.replace(",", "::"), "data.dat"),
        (CSV.replace("b", '"b"'), "data.csv"),
        (gzip.compress(CSV.encode(), mtime=0), "data.csv.gz"),
        (gzip.compress(CSV.encode(), mtime=0), "data.csv"),
        ("note,rating,timestamp,item,user\n" + "x,5,300,b,7\nx,4,100,a,7\nx,3,200,b,12\nx,1,200,c,7\n", "data.csv"),
    ],
)
def test_text_files_of_many_shapes_read_the_same(content: str | bytes, name: str, write) -> None:
    data = load(path=write(content, name))
    assert rows(data) == SORTED
    assert data.interactions.ratings is not None
    assert data.interactions.ratings.tolist() == [4, 1, 5, 3]
    assert data.catalogue.item_ids is data.interactions.item_ids
    assert data.name == name


@pytest.mark.parametrize("kind", ["int32", "float", "text", "dictionary", "large_string", "timestamp", "nanoseconds"])
def test_parquet_types_read_the_same(kind: str, tmp_path: Path) -> None:
    users, items, times = [7, 7, 12, 7], ["b", "a", "b", "c"], [300, 100, 200, 200]
    columns = {"user": pa.array(users), "item": pa.array(items), "timestamp": pa.array(times)}
    match kind:
        case "int32":
            columns["user"] = pa.array(users, pa.int32())
        case "float":
            columns |= {"user": pa.array(users, pa.float64()), "timestamp": pa.array(times, pa.float64())}
        case "text":
            columns |= {"user": pa.array(map(str, users)), "timestamp": pa.array(map(str, times))}
        case "dictionary":
            columns["item"] = pa.array(items).dictionary_encode()
        case "large_string":
            columns["item"] = pa.array(items, pa.large_string())
        case "timestamp":
            columns["timestamp"] = pa.array(times, pa.timestamp("s", "Europe/Berlin"))
        case "nanoseconds":
            columns["timestamp"] = pa.array(pd.to_datetime(times, unit="s"))
    path = tmp_path / "data.parquet"
    pa.parquet.write_table(pa.table(columns), path)
    assert rows(load(path=path)) == SORTED


def test_columns_name_the_roles(write) -> None:
    path = write("who,what,when,place,heat\n1,2,5,home,1.5\n1,3,4,,2\n")
    columns = {"user": "who", "item": "what", "timestamp": "when", "context": ["place", "heat"]}
    found = load(path=path, columns=columns).interactions
    assert found.times is not None and found.times.tolist() == [4, 5]
    assert found.context_ids["place"].ids[found.context["place"]].tolist() == ["unknown", "home"]
    assert found.context["heat"].tolist() == [2, 1.5] and "heat" not in found.context_ids


def test_an_empty_name_leaves_a_column_out(write) -> None:
    found = load(path=write(CSV), columns={"timestamp": "", "rating": ""}).interactions
    assert found.times is None and found.ratings is None


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"users": "who"}, "did you mean user"),
        ({"user": 3}, "not a column name"),
        ({"context": "place"}, "not a list"),
        ({"user": "x", "item": "x"}, "one role"),
    ],
)
def test_unknown_roles_are_config_errors(columns: dict[str, object], words: str, write) -> None:
    with pytest.raises(ConfigError, match=words):
        load(path=write(CSV), columns=columns)


def test_ids_are_whole_numbers_only_if_all_are(write) -> None:
    head = "user,item\n"
    assert load(path=write(head + "1,1\n2,-3\n")).catalogue.item_ids.ids.tolist() == [-3, 1]
    assert load(path=write(head + "1,007\n2,7\n")).catalogue.item_ids.ids.tolist() == ["007", "7"]
    assert load(path=write(head + "1,1\n2,x\n")).catalogue.item_ids.ids.tolist() == ["1", "x"]
    digits = "1" * 32
    assert load(path=write(head + f"1,{digits}\n2,abc\n")).catalogue.item_ids.ids.tolist() == [digits, "abc"]
    assert load(path=write(head + "1,café\n2,日本\n")).catalogue.item_ids.ids.tolist() == ["café", "日本"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1714564800", 1714564800),
        ("1714564800.7", 1714564800),
        ("1.7145648e9", 1714564800),
        ("1714564800123", 1714564800),
        ("1714564800123456", 1714564800),
        ("1714564800123456789", 1714564800),
        ("2024-05-01", 1714521600),
        ("2024-05-01T12:00:00Z", 1714564800),
        ("2024-05-01 14:00:00.5+02:00", 1714564800),
        ("1969-12-31T23:59:59", -1),
        ("0", 0),
        ("", UNKNOWN_TIME),
    ],
)
def test_times_are_seconds_milliseconds_or_iso(written: str, seconds: int, write) -> None:
    found = load(path=write(f"user,item,timestamp\n1,2,{written}\n2,2,5\n")).interactions
    assert found.times is not None and found.times.tolist() == [seconds, 5]


def test_a_column_may_mix_ways_to_write_times(write) -> None:
    found = load(path=write("user,item,timestamp\n1,1,2024-05-01\n1,2,5\n1,3,\n1,4,6.5\n")).interactions
    assert found.times is not None and found.times.tolist() == [UNKNOWN_TIME, 5, 6, 1714521600]


def test_milliseconds_decide_before_the_order_of_the_file(write) -> None:
    late_first = "user,item,timestamp\n1,9,1714564800900\n1,8,1714564800100\n1,7,1714564800500\n"
    assert [item for _, item, _ in rows(load(path=write(late_first)))] == [8, 7, 9]


def test_ties_and_rows_without_times_keep_the_order_of_the_file(write) -> None:
    assert [item for _, item, _ in rows(load(path=write("user,item,timestamp\n1,9,5\n1,8,5\n1,7,5\n")))] == [9, 8, 7]
    assert [item for _, item, _ in rows(load(path=write("user,item\n1,9\n1,8\n1,7\n")))] == [9, 8, 7]


def test_no_known_time_at_all_is_data_without_times(write) -> None:
    assert load(path=write("user,item,timestamp\n1,9,\n1,8,\n")).interactions.times is None


def test_a_repeated_pair_keeps_its_latest_row_unless_repeat(write) -> None:
    path = write("user,item,timestamp,rating\n1,9,50,1\n1,8,20,2\n1,9,10,3\n1,8,20,4\n")
    once = load(path=path).interactions
    assert once.ratings is not None and once.ratings.tolist() == [4, 1]
    assert len(load(path=path, repeat=True).interactions) == 4


def test_min_rating_drops_rows_and_who_then_has_none(write) -> None:
    data = load(path=write(CSV), min_rating=4)
    assert rows(data) == [(7, "a", 100), (7, "b", 300)]
    assert data.catalogue.num_items == 2 and data.interactions.num_users == 1


def test_min_rating_needs_ratings_that_reach_it(write) -> None:
    with pytest.raises(DataError, match=r"leaves no interaction; ratings go from 1 to 5"):
        load(path=write(CSV), min_rating=6)
    with pytest.raises(DataError, match="there are no ratings"):
        load(path=write("user,item\n1,2\n"), min_rating=3)
    with pytest.raises(ConfigError, match="no ratings"):
        load("synthetic", min_rating=3)


def test_unknown_names_are_config_errors() -> None:
    with pytest.raises(ConfigError, match=r"did you mean ml-1m\?"):
        load("ml-1M ")
    with pytest.raises(ConfigError, match="neither"):
        load()
    with pytest.raises(ConfigError, match=r"data\.synthetic\.num_user=3: .*did you mean num_users"):
        load("synthetic", synthetic={"num_user": 3})
    with pytest.raises(ConfigError, match=r"data\.synthetic: mean_interactions=40 is more than"):
        load("synthetic", synthetic={"num_items": 100})


def test_synthetic_needs_nothing() -> None:
    data = load("synthetic", synthetic={"num_users": 30, "num_items": 200})
    assert data.interactions.num_users == 30 and data.catalogue.num_items == 200
    again = load("synthetic", synthetic={"num_users": 30, "num_items": 200})
    assert again.interactions.fingerprint() == data.interactions.fingerprint()


MOVIES_1M = "1::One (1990)::Action|Drama\n2::Two caf\xe9\x85 (1991)::Drama\n3::Unrated (1992)::War\n".encode("latin-1")
EXTRA_1M = "1::One::1990::R::d::g::dir::wri::An Actor::Something happens.::url\n"


def test_official_ml_1m_and_the_csv_form_are_the_same(write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write("1::1::5::100\n1::2::3::50\n2::2::4::70\n", "official/ml-1m/ratings.dat")
    write(
        gzip.compress(b"user_id,movie_id,rating,timestamp\n1,1,5,100\n1,2,3,50\n2,2,4,70\n"),
        "ours/ml-1m/ratings.csv.gz",
    )
    for kind in ("official", "ours"):
        write(MOVIES_1M, f"{kind}/ml-1m/movies.dat")
        write(gzip.compress(EXTRA_1M.encode()), f"{kind}/ml-1m/movies_extrainfos.dat.gz")
    loaded = []
    for kind in ("official", "ours"):
        monkeypatch.setenv("FEDREC_DATA", str(tmp_path / kind))
        loaded.append(load("ml-1m"))
    assert rows(loaded[0]) == rows(loaded[1]) == [(1, 2, 50), (1, 1, 100), (2, 2, 70)]
    catalogue = loaded[0].catalogue
    assert catalogue.titles == ["One (1990)", "Two caf\xe9\x85 (1991)"]
    assert catalogue.texts is not None and catalogue.categories is not None
    assert catalogue.texts[0] == "One (1990). Categories: Action, Drama. With An Actor. Something happens"
    assert list(catalogue.category_names) == ["Action", "Drama"]
    assert catalogue.categories.tolist() == [[True, True], [False, True]]


def test_private_tags_are_in_the_public_texts_only_if_asked(
    write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write("userId,movieId,rating,timestamp\n1,5,4.0,100\n2,6,3.5,200\n", "ml-latest-small/ratings.csv")
    write('movieId,title,genres\n5,"Film, The",Action\n6,Other,(no genres listed)\n', "ml-latest-small/movies.csv")
    write("userId,movieId,tag,timestamp\n1,5,Funny,1\n2,5,funny,2\n2,5,sad,3\n", "ml-latest-small/tags.csv")
    monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
    assert load("ml-latest-small").catalogue.texts == ["Film, The. Categories: Action", "Other"]
    tagged = load("ml-latest-small", user_tags=True).catalogue.texts
    assert tagged == ["Film, The. Categories: Action. Tags: funny, sad", "Other"]


def test_lastfm_has_one_interaction_a_day_and_impossible_dates_are_unknown(
    write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ["2\t52\t13\t1\t4\t2009", "2\t52\t15\t1\t4\t2009", "2\t52\t15\t2\t4\t2009", "2\t53\t1\t31\t2\t2009"]
    lines += ["2\t54\t1\t1\t1\t1956", "3\t52\t9\t1\t1\t2010"]
    head = "userID\tartistID\ttagID\tday\tmonth\tyear"
    write("\r\n".join([head, *lines, ""]), "lastfm-2k/user_taggedartists.dat")
    write("id\tname\turl\tpictureURL\r\n52\tBj\xf6rk\tu\tp\r\n".encode("latin-1"), "lastfm-2k/artists.dat")
    monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
    april = 1238544000
    unknown = [(2, 53, UNKNOWN_TIME), (2, 54, UNKNOWN_TIME)]
    assert rows(load("lastfm-2k")) == [*unknown, (2, 52, april + 86_400), (3, 52, 1262304000)]
    repeated = rows(load("lastfm-2k", repeat=True))
    assert repeated == [*unknown, (2, 52, april), (2, 52, april + 86_400), (3, 52, 1262304000)]
    assert load("lastfm-2k").catalogue.titles == ["Björk", "53", "54"]


def test_frappe_has_context_and_no_times(write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fields = "user item cnt daytime weekday isweekend homework cost weather country city".split()  # noqa: SIM905
    first = ["0", "5", "1", "morning", "sunday", "weekend", "unknown", "free", "sunny", "Spain", "0"]
    lines = ["\t".join(row) for row in (fields, first, first, [*first[:1], "4", "9", "night", *first[4:]])]
    write(gzip.compress("\n".join(lines).encode()), "frappe/frappe.csv.gz")
    meta = 'item\tcategory\tname\tdescription\n5\tTools\tHammer\t"Two\nlines"\n4\tunknown\tunknown\tunknown\n'
    write(gzip.compress(meta.encode()), "frappe/meta.csv.gz")
    monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
    data = load("frappe", repeat=True)
    assert rows(data) == [(0, 5, None), (0, 5, None), (0, 4, None)]
    daytime = data.interactions.context_ids["daytime"].ids[data.interactions.context["daytime"]]
    assert daytime.tolist() == ["morning", "morning", "night"] and len(data.interactions.context) == 8
    assert data.catalogue.titles == ["", "Hammer"]
    assert data.catalogue.texts == ["", "Hammer. Categories: Tools. Two\nlines"]
    assert data.catalogue.categories is not None and data.catalogue.categories.tolist() == [[False], [True]]
    assert len(load("frappe").interactions) == 2


def test_surveys_have_context_and_no_times(write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    films = "userid,itemid,rating,Time,Location,Companion\n7,tt2,2,NA,NA,NA\n7,tt1,5,Weekend,Home,Alone\n"
    write(films, "depaul-movie/ratings.txt")
    head = "UserID,ItemID, Rating,DrivingStyle,landscape,mood,naturalphenomena ,RoadType,sleepiness,trafficConditions,"
    write(head + "weather\n1,9,2,,,,,,,,sunny\n1,8,0,,,sad,,,,,\n", "incar-music/ContextualRating.csv")
    tracks = "id, album, artist, title, mp3url, description, imageurl, category_id\n"
    write(tracks + "9,\\N,A Band,A Song,m,\\N,i,2\n8,An Album,\\N,Song,m,\\N,i,\\N\n", "incar-music/Music_Track.csv")
    write("2,Jazz music\n", "incar-music/Music_Category.csv")
    monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
    data = load("depaul-movie")
    assert rows(data) == [(7, "tt2", None), (7, "tt1", None)]
    found = data.interactions
    assert found.ratings is not None and found.ratings.tolist() == [2, 5]
    companion = found.context_ids["Companion"].ids[found.context["Companion"]]
    assert companion.tolist() == ["unknown", "Alone"]
    data = load("incarmusic")
    assert rows(data) == [(1, 9, None), (1, 8, None)]
    found = data.interactions
    assert found.context_ids["weather"].ids[found.context["weather"]].tolist() == ["sunny", "unknown"]
    assert found.context_ids["mood"].ids[found.context["mood"]].tolist() == ["unknown", "sad"]
    catalogue = data.catalogue
    assert catalogue.texts == ["Song. From An Album", "A Song. Categories: Jazz music. By A Band"]
    assert catalogue.categories is not None and catalogue.categories.tolist() == [[False], [True]]


def movielens_100k(write, users: str) -> None:
    """Write an ml-100k of three users with one film."""
    write("1\t5\t5\t100\n2\t5\t3\t50\n3\t5\t4\t70\n", "ml-100k/u.data")
    write("Action|1\n", "ml-100k/u.genre")
    write("|".join(["5", "Film (1990)", "", "", "", "1", *["0"] * 18]) + "\n", "ml-100k/u.item")
    if users:
        write(users, "ml-100k/u.user")


def test_facts_about_users_are_attributes_and_who_is_not_listed_is_unknown(
    write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    movielens_100k(write, "1|17|M|student|0\n3|56|F|writer|0\n4|30|F|none|0\n")
    monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
    found = load("ml-100k").interactions
    told = {name: ids.ids[found.user_attributes[name]].tolist() for name, ids in found.user_attribute_ids.items()}
    assert told == {
        "gender": ["male", "unknown", "female"],
        "age": ["under 18", "unknown", "56 and over"],
        "occupation": ["student", "unknown", "writer"],
    }
    assert not found.context and not load("ml-100k").catalogue.features


def test_a_copy_without_facts_about_users_is_read_without(
    write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    movielens_100k(write, "")
    monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
    assert not load("ml-100k").interactions.user_attributes


@pytest.mark.parametrize(
    ("users", "words"),
    [
        ("1|17|X|student|0\n", r"u\.user, line 1, column 'gender': found 'X'; allowed: female, male"),
        ("1|17|M|student|0\n2|old|M|student|0\n", r"line 2, column 'age': found 'old'"),
        ("1|17|M|pirate|0\n", "column 'occupation': found 'pirate'"),
        ("1|17|M|student\n", "4 fields; allowed: 5 fields"),
    ],
)
def test_wrong_facts_about_users_are_named(
    users: str, words: str, write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    movielens_100k(write, users)
    monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
    with pytest.raises(DataError, match=words):
        load("ml-100k")


def test_a_set_without_its_catalogue_file_says_so(write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write("1\t2\t5\t100\n", "ml-100k/u.data")
    monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"no u\.genre; the data set needs it"):
        load("ml-100k")


def test_a_damaged_named_set_names_line_and_column(write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write("1\t2\t5\t100\n1\t3\tfive\t100\n", "ml-100k/u.data")
    monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"u\.data, line 2, column 'rating': found 'five'"):
        load("ml-100k")


def test_a_set_that_is_nowhere_says_where_to_put_it(empty_home: Path) -> None:
    with pytest.raises(
        DataError, match=r"no stable official download; get it from https://.*frappe.*\$FEDREC_DATA/frappe"
    ):
        load("frappe")
    assert set(available()) == set(SOURCES) and not any(available().values())


def test_a_wrong_data_folder_is_named(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_DATA", str(empty_home / "nowhere"))
    with pytest.raises(DataError, match="is not a folder"):
        load("ml-1m")


def test_the_cache_is_looked_at_after_the_own_folder(write, empty_home: Path) -> None:
    write("a,b,5.0,100\n", "home/.cache/fedrec/amazon-video/ratings.dat")
    assert rows(load("amazon-video")) == [("a", "b", 100)]
    assert available()["amazon-video"] == empty_home / ".cache" / "fedrec" / "amazon-video"


def test_texts_of_ids_are_numpy_text(write) -> None:
    assert load(path=write(CSV)).catalogue.item_ids.ids.dtype.kind == "U"
    assert load(path=write(CSV)).interactions.user_ids.ids.dtype == np.int64
