"""The command line: results on stdout, progress on stderr, exit code 0 done, 2 bad input, 1 anything else."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedrec.errors import ConfigError, FedrecError

app = typer.Typer(
    name="fedrec",
    help="Federated recommendation with user-level differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at data files.", no_args_is_help=True)
app.add_typer(data_app, name="data")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Run config, a TOML file.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a config key.")
]
RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="Run folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print result.json as one line, the last of stdout.")]
Runtime = Annotated[str, typer.Option(help="'local' (in-process) or 'ray' (Flower's simulation engine).")]

DataFile = Annotated[Path, typer.Argument(metavar="FILE", help="CSV, TSV or Parquet file.")]
UserColumn = Annotated[str, typer.Option(help="Column of user ids.")]
ItemColumn = Annotated[str, typer.Option(help="Column of item ids.")]
TimeColumn = Annotated[str | None, typer.Option(help="Column of times.")]
RatingColumn = Annotated[str | None, typer.Option(help="Column of ratings.")]

_DELTA = typer.Option(help="Delta of the guarantee, well below 1 / population size.")
_POPULATION = typer.Option(min=1, max=10**15, help="Public, declared number of users (or of interactions).")
NumRounds = Annotated[int | None, typer.Option(min=1, max=10**15, help="T: number of releases; default 1.")]
Sampling = Annotated[float | None, typer.Option(help="q: probability to be drawn for a release (Poisson); default 1.")]
Unit = Annotated[str, typer.Option(help="What is protected: 'user' or 'interaction'.")]
Trust = Annotated[str, typer.Option(help="'central' or 'local'; default: central for users, local for interactions.")]
AccountJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]


@app.command()
def simulate(
    config: ConfigFile,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; default runs/CONFIG-TIME.")] = None,
    as_json: AsJson = False,
    runtime: Runtime = "local",
) -> None:
    """Run a federated training with all its nodes on this machine."""
    from fedrec import assemble
    from fedrec import config as configs
    from fedrec.run_folder import RunFolder
    from fedrec.simulation import check_runtime

    loaded = configs.load(config, settings or ())
    folder = RunFolder(out if out is not None else _new_folder(config.stem))
    if (folder.path / "config.toml").exists():
        raise ConfigError(
            f"{folder.path} holds a run already; go on with: fedrec resume {folder.path}, or give another --out"
        )
    check_runtime(runtime)
    assemble.check(loaded)
    folder.create(loaded)
    _run(folder.path, runtime, as_json)


@app.command()
def resume(directory: RunDir, as_json: AsJson = False, runtime: Runtime = "local") -> None:
    """Go on with a run that was stopped, or print the result of one that is finished."""
    from fedrec.run_folder import RunFolder

    RunFolder(directory).config()
    _run(directory, runtime, as_json)


@app.command()
def sweep(
    config: ConfigFile,
    space: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file, one [[range]] table a key.")] = None,
    set_range: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B|LOW..HIGH[:log]", help="Search this key; may be repeated.")
    ] = None,
    settings: Settings = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those found in --out included.")] = 20,
    sampler: Annotated[str, typer.Option(help="'tpe' or 'random'.")] = "tpe",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of a trial; their mean counts.")] = 1,
    metric: Annotated[str, typer.Option(help="Of validation; more is better.")] = "ndcg@10",
    prune: Annotated[bool, typer.Option("--prune", help="End trials that fall below the median.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default runs/CONFIG-sweep-TIME.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json as one line, the last of stdout.")] = False,
) -> None:
    """Search hyper-parameters by validation data alone; the same command with --out DIR goes on."""
    from fedrec.tuning.command import sweep_of_options, warnings_of
    from fedrec.tuning.sweep import run_sweep
    from fedrec.tuning.table import show

    asked = sweep_of_options(config, settings or (), space, set_range or (), (sampler, metric, seeds, prune), trials)
    folder = out if out is not None else _new_folder(f"{config.stem}-sweep")
    _say(f"sweep: {folder}")
    logging.getLogger("server").setLevel(logging.WARNING)  # not a line a round
    try:
        found = run_sweep(asked, folder, trials)
    except KeyboardInterrupt:
        _say(f"interrupted; go on with the same command and --out {folder}")
        raise typer.Exit(1) from None
    show(found["trials"], metric)
    for warning in warnings_of(found):
        _say(f"warning: {warning}")
    typer.echo(json.dumps(found, sort_keys=True) if as_json else str(folder / "best.toml"))


@app.command()
def evaluate(directory: RunDir, as_json: AsJson = False) -> None:
    """Evaluate the final model of a finished run again and write its result.json."""
    from fedrec.recommend import final_state
    from fedrec.run_folder import RunFolder

    final_state(directory, RunFolder(directory).config())
    _run(directory, "local", as_json, again=True)


@app.command()
def recommend(
    run: Annotated[Path, typer.Option(metavar="DIR", help="Finished run folder.")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="Parquet file to write: user, item, rank, score.")],
    every_user: Annotated[bool, typer.Option("--all", help="Make the list of every user.")] = False,
    user: Annotated[list[str] | None, typer.Option(help="Make the list of this user (may be repeated).")] = None,
    top: Annotated[int, typer.Option(min=1, help="Length of the lists.")] = 100,
    context: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Context the lists are for (may be repeated).")
    ] = None,
) -> None:
    """Write recommendation lists as at test time, in the data's own ids; a context that is not given is unknown."""
    from fedrec.recommend import read_context, write_recommendations

    if every_user == bool(user):
        raise ConfigError("give either --all or --user ID (once or more)")
    written = write_recommendations(run, to, top, None if every_user else user or [], read_context(context or ()))
    _say(f"{written} rows written to {to}")


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="One run folder, or several to compare.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; default DIR/report.")] = None,
) -> None:
    """Write an HTML page and plots of a run, or of several side by side."""
    from fedrec.report.comparison import compare
    from fedrec.report.page import write_report

    if len(directories) == 1:
        page = write_report(directories[0], out)
    elif out is None:
        raise ConfigError(f"found {len(directories)} runs and no --out; say where the comparison goes: --out DIR")
    else:
        page = compare(directories, out)
    typer.echo(str(page))


@app.command()
def account(
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="Run folder, in place of a plan.")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="z: noise std / L2 sensitivity.")] = None,
    delta: Annotated[float | None, _DELTA] = None,
    population_size: Annotated[int | None, _POPULATION] = None,
    num_rounds: NumRounds = None,
    sampling_probability: Sampling = None,
    event: Annotated[
        list[str] | None, typer.Option(metavar="Z,Q,T", help="T releases of noise multiplier Z; may be repeated.")
    ] = None,
    unit: Unit = "user",
    trust_model: Trust = "",
    accountant: Annotated[str, typer.Option(help="'auto' (the tightest), 'rdp', or 'zcdp' (where q = 1).")] = "auto",
    as_json: AccountJson = False,
) -> None:
    """Say in words what a plan spends, or what the run in folder DIR has spent so far."""
    from fedrec import accounts
    from fedrec.privacy import explanation

    if directory is None:
        plan = accounts.plan_of_options(
            noise_multiplier,
            event or (),
            num_rounds,
            sampling_probability,
            delta,
            population_size,
            (unit, trust_model),
        )
        found = explanation.to_json(plan, plan.events, accountant)
        _tell(found, "" if as_json else explanation.explain_plan(plan, accountant))
        return
    plan_options = (noise_multiplier, event, num_rounds, sampling_probability, delta, population_size, trust_model)
    if any(option not in (None, "", []) for option in plan_options) or unit != "user":
        raise ConfigError(f"found {directory} and options of a plan; a run has its own: give one or the other")
    run = accounts.spend_of_run(directory)
    if run is None:
        _tell({"epsilon": None, "warnings": []}, "" if as_json else accounts.NO_PRIVACY)
        return
    found = explanation.run_to_json(run, accountant)
    _tell(found, "" if as_json else explanation.explain_run(run, str(directory), accountant))


@app.command()
def calibrate(
    target_epsilon: Annotated[float, typer.Option(help="Epsilon not to exceed.")],
    delta: Annotated[float, _DELTA],
    population_size: Annotated[int, _POPULATION],
    num_rounds: NumRounds = None,
    sampling_probability: Sampling = None,
    unit: Unit = "user",
    trust_model: Trust = "",
    as_json: AccountJson = False,
) -> None:
    """Find the least noise that keeps a plan within a target epsilon."""
    from fedrec import accounts
    from fedrec.privacy import explanation
    from fedrec.privacy.plan import PrivacyPlan

    plan = PrivacyPlan.calibrate(
        target_epsilon=target_epsilon,
        delta=delta,
        num_rounds=num_rounds or 1,
        sampling_probability=1.0 if sampling_probability is None else sampling_probability,
        clipping_norm=1.0,
        population_size=population_size,
        unit=unit,
        trust_model=trust_model or accounts.own_trust_model(unit),
    )
    noise = plan.events[0].noise_multiplier
    found = {
        "noise_multiplier": noise,
        "target_epsilon": target_epsilon,
        **explanation.to_json(plan, plan.events),
    }
    answer = (
        f"answer     noise multiplier {noise!r} spends epsilon {plan.epsilon!r} of the {target_epsilon:g} asked for"
    )
    _tell(found, "" if as_json else f"{answer}\n{explanation.explain_plan(plan)}")


@app.command()
def audit(
    target: Annotated[Path, typer.Argument(metavar="RUN|CONFIG", help="Run folder or run config: its config is run.")],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default RUN/audit, or runs/CONFIG-audit-TIME.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json as one line, the last of stdout.")] = False,
    canaries: Annotated[int, typer.Option(help="Canaries of each kind.")] = 1000,
    runs: Annotated[int, typer.Option(help="Runs that membership inference attacks.")] = 5,
    shadows: Annotated[int, typer.Option(help="Further runs that it learns from.")] = 16,
    confidence: Annotated[float, typer.Option(help="Of the lower bounds together, and of intervals.")] = 0.95,
) -> None:
    """Attack a config and hold what was shown against what it claims; exit code 1 where the claim is refuted."""
    from fedrec import audits
    from fedrec.audit.audit import Settings as Work
    from fedrec.audit.audit import run_audit
    from fedrec.audit.subject import subject_of

    work = Work(num_canaries=canaries, num_runs=runs, num_shadows=shadows, confidence=confidence)
    config = audits.config_of_target(target, settings or ())
    subject_of(config)
    folder = out if out is not None else target / "audit" if target.is_dir() else _new_folder(f"{target.stem}-audit")
    audits.make_folder(folder)
    found = run_audit(config, work, _say)
    table = audits.write_audit(folder, found)
    typer.echo(json.dumps(found, sort_keys=True) if as_json else table)
    _say(f"audit: {folder}")
    if found["lower_bounds"] and found["lower_bounds"]["refuted"]:
        _say("error: the claim is refuted: what an attacker could show exceeds what is claimed")
        raise typer.Exit(1)


@data_app.command("check")
def check(
    file: DataFile,
    user: UserColumn = "user",
    item: ItemColumn = "item",
    timestamp: TimeColumn = None,
    rating: RatingColumn = None,
) -> None:
    """Name line and column of everything that is wrong in a data file, or summarise a good one."""
    from fedrec.data.check import check_file

    columns = {"user": user, "item": item, "timestamp": timestamp, "rating": rating, "context": ()}
    found = check_file(file, columns)
    typer.echo(str(found))
    if found.num_problems:
        raise typer.Exit(2)


@data_app.command("pack")
def pack(
    file: DataFile,
    to: Annotated[Path, typer.Option(metavar="DIR", help="New folder, for data.path of a config.")],
    user: UserColumn = "user",
    item: ItemColumn = "item",
    timestamp: TimeColumn = None,
    rating: RatingColumn = None,
    context: Annotated[list[str] | None, typer.Option(help="Column of a context field; may be repeated.")] = None,
) -> None:
    """Write every row of a data file as columnar files, which are mapped instead of parsed."""
    from fedrec.data.columnar_writer import store_interactions
    from fedrec.data.sources import load

    columns = {"user": user, "item": item, "timestamp": timestamp, "rating": rating, "context": context or ()}
    stored = store_interactions(to, load(path=file, columns=columns, repeat=True).interactions)
    typer.echo(
        f"{to}: {len(stored):,} interactions of {stored.num_users:,} users with {stored.num_items:,} items, "
        f"{stored.num_bytes:,} bytes"
    )


@app.command()
def doctor() -> None:
    """Say what this installation has: versions, devices, data sets."""
    from fedrec.doctor import examine

    typer.echo(examine())


def _run(directory: Path, runtime: str, as_json: bool, again: bool = False) -> None:
    from fedrec.recommend import final_state
    from fedrec.report.tables import metric_table
    from fedrec.run_folder import RunFolder
    from fedrec.simulation import run_simulation

    folder = RunFolder(directory)
    if again or not (directory / "result.json").exists():
        _say(f"run folder: {directory}")
        try:
            run_simulation(directory, folder.config(), runtime)
        except KeyboardInterrupt:
            _say(f"interrupted; go on with: fedrec resume {directory}")
            raise typer.Exit(1) from None
    final_state(directory, folder.config())
    result = folder.result()
    if as_json:
        typer.echo(json.dumps(result, sort_keys=True))
        return
    typer.echo(metric_table({str(result["model"]["name"]): result}))
    typer.echo(result["privacy"]["statement"] if result["privacy"] else "No privacy: no noise was added to anything.")
    _say(f"report: fedrec report {directory}")


def _new_folder(stem: str) -> Path:
    import datetime

    return Path("runs") / f"{stem}-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"


def _tell(found: Mapping[str, Any], text: str) -> None:
    """Print a text, or one line of JSON where it is empty; what must not be missed goes to stderr too."""
    typer.echo(text or json.dumps(found, sort_keys=True, allow_nan=False))
    for warning in found["warnings"]:
        _say(f"warning: {warning}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a `FedrecError` becomes one line on stderr and exit code 2."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    for name in ("fedrec", "server", "client"):
        logging.getLogger(name).setLevel(logging.INFO)
    code: Any = 0
    try:
        code = app(args=arguments, standalone_mode=False)
    except FedrecError as error:
        _say(f"error: {' '.join(str(error).split())}")
        code = 2
    except click.ClickException as error:
        if message := " ".join(error.format_message().split()).rstrip("."):  # none where the help was shown
            _say(f"error: {message}; see fedrec --help")
        code = 2
    except (KeyboardInterrupt, click.Abort):
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
