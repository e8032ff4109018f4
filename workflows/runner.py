"""Run an analysis at a site, and keep what came out of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coffea.util
from coffea.processor import Runner

from sonic_parsl.errors import ConfigError, DataError
from sonic_parsl.executors.chunks.explain import explain
from sonic_parsl.executors.pool_line import PoolLine
from sonic_parsl.executors.site import Site
from sonic_parsl.report import Report
from sonic_parsl.workflows.inputs import check_files, read_fileset
from sonic_parsl.workflows.loader import Fileset, Workflow
from sonic_parsl.workflows.pictures import draw_all


def run(workflow: Workflow, site: Site, fileset: Fileset, *, chunksize: int) -> Any:
    """Run `workflow` over `fileset` with the workers and servers of `site`.

    Parameters
    ----------
    chunksize
        Events of a chunk, at most.

    Returns
    -------
    object
        What the processor returned, accumulated.
    """
    with PoolLine(site.pool, coffea.util.coffea_console):
        site.wait_ready()
        runner = Runner(executor=site.coffea_executor(), schema=workflow.schema, chunksize=chunksize)
        return runner(fileset, workflow.processor)


def keep(workflow: Workflow, output: Any, report: Report, folder: Path) -> list[Path]:
    """Write the accumulator, the pictures and the report to `folder`; return the files.

    Raises
    ------
    DataError
        The folder cannot be written to any more; it says where accumulator and report are instead.
    AnalysisError
        The workflow's function that draws failed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        numbers = _written(workflow, output, report, folder)
        pictures = _drawn(workflow.draw, output, folder) if workflow.draw else draw_all(output, folder)
    except OSError as error:
        there = _kept_elsewhere(workflow, output, report)
        raise DataError(
            f"The folder {folder} cannot be written to any more: {error.strerror}.",
            hint=f"Accumulator and report are in {there}."
            if there
            else "Nor can the folder you are in, or that for temporary files: the result is lost.",
        ) from None
    return [*pictures, *numbers]


def _written(workflow: Workflow, output: Any, report: Report, folder: Path) -> list[Path]:
    accumulator = folder / f"{workflow.name}.coffea"
    coffea.util.save(output, str(accumulator))
    report.write(folder / "report.json")
    return [folder / "report.json", accumulator]


def _kept_elsewhere(workflow: Workflow, output: Any, report: Report) -> Path | None:
    """Write what took hours to get where there is room for it; return where that is, or None where there is none."""
    for place in (Path.cwd, tempfile.gettempdir):
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{workflow.name}-", dir=place()))
            _written(workflow, output, report, folder)
        except OSError:  # the next one may be there, and have room
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            return folder
    return None


def _drawn(draw: Callable[[Any, Path], list[Path]], output: Any, folder: Path) -> list[Path]:
    try:
        return draw(output, folder)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        raise explain(error) from None


def input_of(workflow: Workflow) -> Fileset:
    """Return the workflow's own input, of which all that is on this machine is there.

    Raises
    ------
    ConfigError
        It has none, or no fileset.
    DataError
        A file is missing or damaged.
    AnalysisError
        Its function failed.
    """
    if workflow.fileset is None:
        raise ConfigError(f"{workflow.name} brings no input of its own.", hint="Name ROOT files or a fileset JSON.")
    try:
        named = workflow.fileset()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        raise explain(error) from None
    fileset = read_fileset(named, f"What fileset() of {workflow.name} returns")
    check_files(fileset)
    return fileset
