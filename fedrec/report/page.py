"""The report of one run: which sections it has and what they say."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fedrec.report.formats import count_text, epsilon_text, exact_text, metric_text, plural, seconds_text
from fedrec.report.html import (
    Banner,
    Fact,
    Fold,
    Page,
    Picture,
    Section,
    page_path,
    picture,
    sections_with_content,
    write_page,
)
from fedrec.report.plots import CURVES, curve_points, learning_curve, popularity_shares, recall_by_group
from fedrec.report.run import Group, Privacy, Run, read_run
from fedrec.report.slices import MIN_USERS, gap_text, shown_groups, slice_table
from fedrec.report.tables import (
    activity_table,
    communication_table,
    environment_table,
    events_table,
    guarantee_table,
    item_popularity_table,
    metrics_table,
    rounds_table,
    terms,
    timing_table,
)


def write_report(run_dir: Path, out: Path | None = None, min_users: int = MIN_USERS) -> Path:
    """Write the report of one run, finished or not.

    Args:
        run_dir: the run folder.
        out: a folder, or the path of an *.html file; by default `<run_dir>/report`.
        min_users: metrics of groups with fewer users are shown in no figure and no table.

    Returns:
        The path of the HTML page; its figures lie beside it.

    Raises:
        DataError: where `run_dir` is no run folder or one of its files is damaged.
    """
    run = read_run(run_dir)
    sections = (_quality(run), _learning(run), _groups_served(run, min_users), _privacy(run), _cost(run))
    page = Page(
        title=f"{run.model_name} on {run.data_name}",
        subtitle=_subtitle(run),
        banner=_banner(run),
        facts=_facts(run),
        sections=sections_with_content(sections),
    )
    return write_page(page, page_path(out or run_dir / "report", "report.html"))


def seed_phrase(run: Run) -> str:
    """Return how many seeds a number rests on."""
    return "One run" + (f" (seed {run.seed})" if run.seed is not None else ", seed not recorded") + "; no spread."


def statement(privacy: Privacy) -> str:
    """Return the run's own privacy statement; one put together from its terms where it has none."""
    if privacy.statement:
        return privacy.statement
    text = ", ".join(f"{name} {value}" for name, value in terms(privacy))
    return f"Epsilon {epsilon_text(privacy.epsilon)} at {text}. The run states nothing about hyper-parameter selection."


def _subtitle(run: Run) -> str:
    data = run.result.data if run.result else {}
    counts = [
        f"{count_text(float(data[key]))} {noun}"
        for key, noun in (("num_interactions", "interactions"), ("num_users", "users"), ("num_items", "items"))
        if isinstance(data.get(key), int | float)
    ]
    return " · ".join([*counts, f"run folder {run.folder.resolve().name}"])


def _banner(run: Run) -> Banner:
    if run.result and run.result.privacy:
        privacy = run.result.privacy
        text = ", ".join(f"{name} {value}" for name, value in terms(privacy))
        return Banner(True, f"Privacy: epsilon {epsilon_text(privacy.epsilon)}", (statement(privacy), f"With {text}."))
    if run.result or (run.config and not run.config_table("privacy")):
        text = "No privacy: this run adds no noise, so nothing bounds what its shared parameters reveal about a user."
        return Banner(False, "No privacy", (text,))
    configured = run.config_table("privacy")
    spent = next((entry.epsilon_spent for entry in reversed(run.rounds) if entry.epsilon_spent is not None), None)
    if not configured and spent is None:
        return Banner(False, "Privacy unknown", ("The run is unfinished and its folder holds no config.toml.",))
    stated = ", ".join(f"{key} {value}" for key, value in configured.items() if not isinstance(value, dict))
    logged = "no spending" if spent is None else f"epsilon {epsilon_text(spent)} as spent so far"
    texts = (
        f"The run is unfinished. It has logged {logged}; the accountant and the final statement come with the result.",
        f"Configured: {stated}." if stated else "Its folder holds no config.toml.",
    )
    return Banner(False, "Privacy not final", texts)


def _facts(run: Run) -> tuple[Fact, ...]:
    if run.result is None:
        planned = run.config_table("federated").get("num_rounds")
        last = {key: curve_points(run.rounds, key)[-1:] for key, _ in CURVES}
        facts = [Fact("Rounds so far", f"{len(run.rounds):,}", f"of {planned}" if planned else "")]
        facts += [
            Fact(name, metric_text(key, at[0][1]), "validation") for key, name in CURVES for at in [last[key]] if at
        ]
        return tuple(facts)
    test, privacy = run.result.metrics.get("test", {}), run.result.privacy
    epsilon = (
        Fact("Epsilon", "none", "no privacy")
        if privacy is None
        else Fact(
            "Epsilon",
            epsilon_text(privacy.epsilon),
            f"delta {exact_text(privacy.delta)}, unit {privacy.unit or 'not stated'}",
        )
    )
    return (
        *(Fact(name, metric_text(key, test.get(key)), "test, full ranking") for key, name in CURVES),
        epsilon,
        Fact("Seconds", seconds_text(run.result.timing.get("total_seconds")), plural(len(run.rounds), "round")),
    )


def _quality(run: Run) -> Section:
    if run.result is None:
        return Section("Quality", ("The run is unfinished: test metrics come with its result.",))
    return Section("Quality", (seed_phrase(run),), tables=(metrics_table(run.result),))


def _learning(run: Run) -> Section:
    texts = []
    if run.torn:
        texts.append(
            "The last line of rounds.jsonl is incomplete (it is being written, or the run was stopped); it is left out."
        )
    if not run.rounds:
        return Section("Learning", (*texts, "No rounds are logged."))
    curves = [(name, curve_points(run.rounds, key)) for key, name in CURVES]
    ends = [f"{name} {p[0][1]:.4f} in round {p[0][0]}, {p[-1][1]:.4f} in round {p[-1][0]}" for name, p in curves if p]
    pictures: tuple[Picture, ...] = ()
    if any(len(points) > 1 for _, points in curves):
        alt = f"Line chart of validation scores by round: {'; '.join(ends)}."
        caption = f"Validation scores by round. {seed_phrase(run)}"
        pictures = (picture("learning_curve", alt, caption, partial(learning_curve, run.rounds)),)
    elif ends:
        only = ", ".join(f"{name} {p[0][1]:.4f} after round {p[0][0]}" for name, p in curves if p)
        texts.append(f"Validation was measured once: {only}. {seed_phrase(run)}")
    else:
        texts.append("No validation NDCG@10 or HR@10 was logged during training.")
    fold = Fold(f"Numbers of {plural(len(run.rounds), 'round')}", (rounds_table(run.rounds),))
    return Section("Learning", tuple(texts), pictures, folds=(fold,))


def _groups_served(run: Run, min_users: int) -> Section:
    if run.result is None:
        return Section("")
    items, activity = run.result.item_popularity, run.result.activity
    pictures = []
    if _known(items, "recommendation_share") or _known(items, "interaction_share"):
        alt = "Bar chart of shares by item popularity: " + _spelled(items, "interaction_share", "recommendation_share")
        caption = f"What is interacted with and what is recommended, by popularity of the item. {seed_phrase(run)}"
        pictures.append(picture("popularity_shares", alt, caption, partial(popularity_shares, items)))
    for name, groups, count, noun, axis, words in (
        ("recall_by_activity", activity, "num_users", "users", "Training interactions", "activity of the user"),
        (
            "recall_by_popularity",
            items,
            "num_targets",
            "targets",
            "Items, most popular first",
            "popularity of the item",
        ),
    ):
        groups = shown_groups(groups, count, min_users)
        if _known(groups, "recall@20"):
            draw = partial(recall_by_group, groups, count, noun, axis)
            alt = f"Bar chart of Recall@20 by {words}: {_spelled(groups, 'recall@20')}"
            caption = f"Recall@20 on the test split by {words}. Small groups are uncertain. {seed_phrase(run)}"
            pictures.append(picture(name, alt, caption, draw))
    tables = [
        make(groups, min_users)
        for make, groups in ((activity_table, activity), (item_popularity_table, items))
        if groups
    ]
    tables += [slice_table(one, min_users) for one in run.result.slices]
    folds = (Fold("Numbers by group", tuple(tables)),) if tables else ()
    texts = [gap_text(one) for one in run.result.gaps]
    if tables:
        texts.append(f"Metrics of groups of fewer than {plural(min_users, 'user')} are in no figure and no table.")
    return Section("Whom and what it serves", tuple(texts), tuple(pictures), folds=folds)


def _privacy(run: Run) -> Section:
    privacy = run.result.privacy if run.result else None
    if privacy is None:
        return Section("")
    tables = (guarantee_table(privacy), *((events_table(privacy),) if privacy.events else ()))
    return Section("Privacy", tables=tables)


def _cost(run: Run) -> Section:
    tables = []
    if run.result:
        made = (timing_table(run.result.timing), communication_table(run.result.communication))
        tables = [table for table in (*made, environment_table(run.result.environment)) if table]
    folds = (Fold("Resolved config", text=run.config_text),) if run.config_text else ()
    return Section("Cost and environment", tables=tuple(tables), folds=folds)


def _known(groups: tuple[Group, ...], key: str) -> bool:
    return any(key in group.values for group in groups)


def _spelled(groups: tuple[Group, ...], *keys: str) -> str:
    """Return the values of each group in words, for readers who do not see the figure."""
    texts = []
    for group in groups:
        values = " and ".join(f"{group.values[key]:.3f}" for key in keys if key in group.values)
        texts.append(f"{group.name} {values or 'unknown'}")
    return "; ".join(texts) + "."
