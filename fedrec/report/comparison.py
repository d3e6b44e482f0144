"""Several runs side by side: one page with their metrics, and their utility against epsilon."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedrec.errors import ConfigError
from fedrec.report.formats import epsilon_text, metric_name, metric_text, plural, seconds_text
from fedrec.report.html import Banner, Page, Picture, Section, page_path, picture, sections_with_content, write_page
from fedrec.report.plots import CURVES, Bar, BarLabels, Point, bars, privacy_utility
from fedrec.report.run import Privacy, Run, read_run
from fedrec.report.tables import Table, compared_metrics, distinct_terms, terms


@dataclass(frozen=True)
class Entry:
    """What is compared: one run, or several of the same experiment with different seeds."""

    label: str
    runs: tuple[Run, ...]

    @property
    def privacy(self) -> Privacy | None:
        """Return the guarantee, the same for all repeats; None without privacy or while unfinished."""
        return next((run.result.privacy for run in self.runs if run.result), None)

    @property
    def finished(self) -> bool:
        """Return whether any of its runs has a result."""
        return any(run.result for run in self.runs)

    @property
    def num_seeds(self) -> int:
        """Return the number of different seeds, of runs where the seeds are not recorded."""
        seeds = {run.seed for run in self.runs}
        return len(self.runs) if None in seeds else len(seeds)

    @property
    def is_popularity(self) -> bool:
        """Return whether it is the popularity baseline."""
        return self.runs[0].model_name.lower().startswith("pop")

    def values(self, key: str) -> list[float]:
        """Return a test metric of every finished run, where it is known and finite."""
        found = [run.result.metrics.get("test", {}).get(key) for run in self.runs if run.result]
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, key: str) -> float | None:
        """Return the mean of a test metric over the repeats."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def span(self, key: str) -> tuple[float, float] | None:
        """Return lowest and highest of a test metric, None without repeats."""
        values = self.values(key)
        return (min(values), max(values)) if len(values) > 1 else None


def compare(run_dirs: Sequence[Path], out: Path, labels: Sequence[str] | None = None) -> Path:
    """Write one page that shows several runs side by side.

    Args:
        run_dirs: the run folders, in the order they are shown.
        out: a folder (gets `comparison.html`), or the path of an *.html file.
        labels: a name a run; runs that share a label are repeats of one experiment and appear as their mean and
            spread. By default runs whose configs differ in nothing but the seed are repeats, named after what their
            folders' names have in common.

    Returns:
        The path of the HTML page; its figures lie beside it.

    Raises:
        ConfigError: where the labels do not fit the runs.
        DataError: where a folder is no run folder or one of its files is damaged.
    """
    if not run_dirs:
        raise ConfigError("there are no runs to compare; give at least one run folder")
    if labels is not None and len(labels) != len(run_dirs):
        raise ConfigError(f"there are {len(labels)} labels for {len(run_dirs)} runs; give one label a run")
    names = _folder_names(run_dirs)
    runs = [read_run(folder) for folder in run_dirs]
    entries = _entries(_merge_repeats(names, runs) if labels is None else labels, runs)
    page = Page(
        title=f"{plural(len(run_dirs), 'run')} compared",
        subtitle="Data: " + ", ".join(dict.fromkeys(run.data_name for entry in entries for run in entry.runs)),
        banner=_banner(entries),
        facts=(),
        sections=sections_with_content((_quality(entries), _frontier(entries), _guarantees(entries))),
    )
    return write_page(page, page_path(out, "comparison.html"))


def _folder_names(folders: Sequence[Path]) -> list[str]:
    """Name runs after their folders, with as many parents as it takes to tell them apart."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ConfigError("a run folder is given twice; give each one once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _merge_repeats(names: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Give runs that differ in nothing but the seed one name: the common start of their folders' names."""
    groups: dict[str, list[str]] = {}
    kinds = []
    for name, run in zip(names, runs, strict=True):
        tables = {key: table for key, table in run.config.items() if key != "runtime"}
        runtime = {key: value for key, value in run.config_table("runtime").items() if key != "seed"}
        kinds.append(json.dumps([tables, runtime], sort_keys=True, default=str))
        groups.setdefault(kinds[-1], []).append(name)
    common = {kind: group[0] if len(group) == 1 else _common_start(group) for kind, group in groups.items()}
    ambiguous = len(set(common.values())) < len(common) or "" in common.values()
    return list(names) if ambiguous else [common[kind] for kind in kinds]


def _common_start(names: Sequence[str]) -> str:
    """Return what the names begin with, without a trailing "-seed-"."""
    lengths = range(min(map(len, names)), 0, -1)
    start = next((names[0][:n] for n in lengths if all(name.startswith(names[0][:n]) for name in names)), "")
    return start.rstrip("-_/ ").removesuffix("seed").rstrip("-_/ ")


def _entries(labels: Sequence[str], runs: Sequence[Run]) -> list[Entry]:
    grouped: dict[str, list[Run]] = {}
    for label, run in zip(labels, runs, strict=True):
        grouped.setdefault(label, []).append(run)
    for label, repeats in grouped.items():
        kinds = {(*_protocol(run), run.model_name, _epsilon(run), _claim(run)) for run in repeats if run.result}
        if len(kinds) > 1:
            raise ConfigError(
                f"label {label!r} stands for runs that differ in data, protocol, model, epsilon or claim; only "
                "repeats of one experiment may share a label"
            )
    return [Entry(label, tuple(repeats)) for label, repeats in grouped.items()]


def _protocol(run: Run) -> tuple[str, ...]:
    fingerprint = run.result.data.get("fingerprint") if run.result else None
    return (run.data_name, str(fingerprint), str(run.config_table("evaluation").get("protocol", "leave_one_out")))


def _epsilon(run: Run) -> str:
    if run.result is None:
        return "unfinished"
    return "none" if run.result.privacy is None else epsilon_text(run.result.privacy.epsilon)


def _claim(run: Run) -> str:
    return run.result.privacy.claim if run.result and run.result.privacy else "none"


def _banner(entries: Sequence[Entry]) -> Banner:
    private = [entry for entry in entries if entry.privacy]
    open_ones = [entry.label for entry in entries if entry.finished and not entry.privacy]
    unfinished = [entry.label for entry in entries if not entry.finished]
    promises = distinct_terms(entry.privacy for entry in private)
    texts = [f"Epsilon {', '.join(epsilons)}: {text}." for text, epsilons in promises.items()]
    texts += [f"No privacy: {'; '.join(open_ones)}."] if open_ones else []
    texts += [f"Unfinished: {'; '.join(unfinished)}."] if unfinished else []
    heading = f"Privacy: {len(private)} of {len(entries)} with a guarantee" if private else "No privacy"
    return Banner(len(private) == len(entries), heading, tuple(texts))


def _quality(entries: Sequence[Entry]) -> Section:
    texts = []
    if len({_protocol(run) for entry in entries for run in entry.runs if run.result}) > 1:
        texts.append("Not comparable as they stand: these runs differ in data or evaluation protocol.")
    pictures: tuple[Picture, ...] = ()
    rows = [
        Bar(entry.label, tuple(entry.mean(key) for key, _ in CURVES), tuple(entry.span(key) for key, _ in CURVES))
        for entry in entries
        if any(entry.values(key) for key, _ in CURVES)
    ]
    if rows:
        spelled = (f"{row.label} {' and '.join(metric_text('hr', value) for value in row.values)}" for row in rows)
        alt = f"Bar chart of test NDCG@10 and HR@10: {'; '.join(spelled)}."
        labels = BarLabels("Test score, full ranking", "", "{:.4f}".format)
        draw = partial(bars, rows, [name for _, name in CURVES], labels)
        pictures = (picture("metrics_by_run", alt, f"NDCG@10 and HR@10 on the test split. {_seeds(entries)}", draw),)
    return Section("Quality", tuple(texts), pictures, (_table(entries),))


def _table(entries: Sequence[Entry]) -> Table:
    rows, metrics = [], compared_metrics(run.result for entry in entries for run in entry.runs)
    for entry in entries:
        seconds = [
            run.result.timing["total_seconds"]
            for run in entry.runs
            if run.result and "total_seconds" in run.result.timing
        ]
        rows.append(
            (
                entry.label,
                entry.runs[0].model_name,
                _epsilon(next((run for run in entry.runs if run.result), entry.runs[0])),
                str(entry.num_seeds),
                *(_mean_and_spread(key, entry.values(key)) for key in metrics),
                seconds_text(statistics.fmean(seconds) if seconds else None),
            )
        )
    columns = ("Run", "Model", "Epsilon", "Seeds", *(metric_name(key) for key in metrics), "Seconds")
    note = "Full ranking. Where a run has repeats: mean ± standard deviation over them."
    return Table("Test metrics", columns, tuple(rows), note=note)


def _mean_and_spread(key: str, values: Sequence[float]) -> str:
    mean = metric_text(key, statistics.fmean(values) if values else None)
    return f"{mean}\n± {metric_text(key, statistics.stdev(values))}" if len(values) > 1 else mean


def _frontier(entries: Sequence[Entry]) -> Section:
    """Plot utility against epsilon if there is more than one privacy level to tell apart."""
    levels = {_epsilon(run) for entry in entries for run in entry.runs if run.result}
    key, name = CURVES[0]
    points = [
        Point(_series(entry, entries), entry.privacy.epsilon, mean, entry.span(key))
        for entry in entries
        if entry.privacy and entry.privacy.epsilon and math.isfinite(entry.privacy.epsilon)
        if (mean := entry.mean(key)) is not None
    ]
    if not points or len(levels) < 2:
        return Section("")
    lines = _horizontal_lines(entries, {entry.runs[0].model_name for entry in entries if entry.privacy}, key)
    spelled = [f"{point.series} at epsilon {epsilon_text(point.epsilon)} {point.value:.4f}" for point in points]
    spelled += [f"{label} (line) {value:.4f}" for label, value in lines]
    alt = f"Point plot of test {name} against epsilon: {'; '.join(spelled)}."
    promises = list(distinct_terms(entry.privacy for entry in entries))
    shared = (
        f"All at {promises[0]}." if len(promises) == 1 else "The terms of the epsilons differ; see the table below."
    )
    caption = f"{name} on the test split against epsilon. {shared} {_seeds(entries)}"
    draw = partial(privacy_utility, points, lines, name)
    return Section("Privacy and utility", pictures=(picture("privacy_utility", alt, caption, draw),))


def _series(entry: Entry, entries: Sequence[Entry]) -> str:
    """Name the curve of a private entry: its model, and its claim where there is more than one."""
    claims = {other.privacy.claim for other in entries if other.privacy}
    name = entry.runs[0].model_name
    return f"{name} ({entry.privacy.claim})" if entry.privacy and len(claims) > 1 else name


def _horizontal_lines(entries: Sequence[Entry], models: set[str], key: str) -> list[tuple[str, float]]:
    """Return popularity and the non-private runs of the same models; of all models where there is no such run."""
    open_ones = [entry for entry in entries if entry.finished and not entry.privacy and entry.values(key)]
    same = [entry for entry in open_ones if entry.runs[0].model_name in models and not entry.is_popularity]
    shown = [entry for entry in open_ones if entry.is_popularity or not same or entry in same]
    return [(entry.label, statistics.fmean(entry.values(key))) for entry in shown]


def _guarantees(entries: Sequence[Entry]) -> Section:
    private = [(entry.label, entry.privacy) for entry in entries if entry.privacy]
    if not private:
        return Section("")
    columns = ("Run", "epsilon", *(name for name, _ in terms(private[0][1])))
    rows = [(label, epsilon_text(one.epsilon), *(value for _, value in terms(one))) for label, one in private]
    tables = [Table("What each epsilon stands under", columns, tuple(rows), numeric=False)]
    statements = tuple((label, one.statement) for label, one in private if one.statement)
    if statements:
        tables.append(Table("Privacy statements", ("Run", "Statement"), statements, numeric=False))
    return Section("Privacy", tables=tuple(tables))


def _seeds(entries: Sequence[Entry]) -> str:
    """Return how many seeds the values rest on, and what their lines mean."""
    counts = sorted({entry.num_seeds for entry in entries})
    if counts == [1]:
        return "One seed a run; no spread."
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Means over {number} seeds; thin lines go from the lowest to the highest."
