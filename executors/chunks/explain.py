"""What went wrong in an analysis, as a sentence: in which line of whose code, and with which file."""

from __future__ import annotations

import difflib
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pickle import PicklingError
from types import FrameType
from typing import Any, TypeAlias

import uproot
from coffea.processor.executor import UprootMissTreeError
from parsl.errors import ParslError
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from sonic_parsl.errors import AnalysisError, DataError, PoolError, SonicError, find_ours

Frames: TypeAlias = Sequence[tuple[FrameType, int]]
"""The calls that led to an error, outermost first, each with the number of its line."""

REASON_CHARACTERS = 300
NEAR, KNOWN = 5, 20
"""So many names close to a wrong one are told, or so many of all where none is close."""
LIBRARIES = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib")})
BY_VALUE = "<dynamic-code>"
"""What cloudpickle calls the file of a function that it sent by value."""
NO_FIELD = re.compile(r"no field (?:named )?'([^']+)'")
COPY_AGAIN = "It was cut off or is damaged: copy it again, or leave it out."
REACH = "Check its name, and that the workers' nodes can read it."
INSTALL = "Install it in the environment of driver and workers."
SEE_MORE = "`sonic-parsl --debug ...` shows the whole traceback; in Python, the error's `details` has it."


@dataclass(frozen=True)
class Explained:
    """Runs coffea's work on one file, and says in a sentence what went wrong."""

    function: Callable[..., Any]

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", "work")

    def __call__(self, item: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the work returns.

        Raises
        ------
        SonicError
            What went wrong; an error of another library would lose what it wraps when it is pickled.
        """
        try:
            return self.function(item, *args, **kwargs)
        except Exception as error:
            if getattr(self.function, "keywords", {}).get("use_result_type"):
                raise  # coffea's Runner then sorts errors by their type
            raise explain(error, file=item.filename, tree=item.treename) from None


@contextmanager
def parsl_explained() -> Iterator[None]:
    """Say in a sentence what went wrong between driver and workers, while Parsl ran coffea's work.

    Raises
    ------
    PoolError
        No worker could be started, or each that tried was lost.
    AnalysisError
        Something cannot be pickled on its way.
    """
    try:
        yield
    except (WorkerLost, ManagerLost) as error:
        raise PoolError(
            f"Each worker that tried a chunk was lost: {reason(error)}.",
            hint="It may have had too little memory: try smaller chunks, or ask for more in the site file.",
        ) from None
    except ParslError as error:
        raise PoolError(
            "Parsl could not run the work on its workers. "
            f"Look at workers, worker-init and options, in the site file:\n{str(error).strip()}"
        ) from None
    except (TypeError, PicklingError) as error:
        if "pickle" not in str(error):
            raise
        raise AnalysisError(
            f"What process() returns, or takes, cannot be sent between driver and workers: {reason(error)}.",
            hint="Return numbers, histograms and arrays, in dictionaries and lists.",
        ) from None


def explain(error: BaseException, *, file: str | None = None, tree: str | None = None) -> SonicError:
    """Return an error of ours that says what `error`, raised by an analysis or on its way, means.

    Parameters
    ----------
    file, tree
        What was read, where that is known.
    """
    ours = find_ours(error)
    if ours is not None:
        return ours.at(file=file)
    error = _within_coffeas(error)
    frames = list(traceback.walk_tb(error.__traceback__))
    told = _trouble_with_file(error, frames, file, tree) or _trouble_with_code(error, frames).at(file=file)
    return told.with_details("".join(traceback.format_exception(error)))


def _trouble_with_file(error: BaseException, frames: Frames, file: str | None, tree: str | None) -> DataError | None:
    if isinstance(error, UprootMissTreeError):
        return DataError(f"{file} has no tree '{tree}'.", hint=_known_trees(error, tree or ""))
    if not _is_reading(frames):
        return None
    branch = f", in branch {name}" if (name := _branch(frames)) else ""
    return DataError(f"{file} cannot be read{branch}: {reason(error)}.", hint=_way_out(error))


def _trouble_with_code(error: BaseException, frames: Frames) -> AnalysisError:
    if missing := _missing_field(error, frames):
        return AnalysisError(missing, hint=_near(error, frames))
    text = "".join(traceback.format_exception_only(error)).strip().rstrip(".")
    return AnalysisError(f"The analysis failed{_place(frames)}: {text}.", hint=SEE_MORE)


def reason(error: BaseException) -> str:
    """Return what another library's error says, in one line."""
    said = error.message if isinstance(error, uproot.DeserializationError) else str(error)
    return " ".join((said or type(error).__name__).split())[:REASON_CHARACTERS].rstrip(".")


def near(name: str, known: Sequence[str]) -> str:
    """Return a question with the known names that are close to `name`, or the first of all of them."""
    if close := difflib.get_close_matches(name, known, n=NEAR):
        return f"Did you mean {' or '.join(close)}?"
    more = ", ..." if len(known) > KNOWN else ""
    return f"There are: {', '.join(known[:KNOWN])}{more}."


def _within_coffeas(error: BaseException) -> BaseException:
    """Return what coffea's own error, a text around another one, is about."""
    while type(error) is Exception and error.__cause__ is not None and str(error).startswith("Failed "):
        error = error.__cause__
    return error


# Whose line -------------------------------------------------------------------


def _place(frames: Frames) -> str:
    """Return where in the user's code it was: the innermost line that no library owns."""
    for frame, line in reversed(frames):
        if _is_users(frame):
            path = frame.f_code.co_filename
            file = frame.f_globals.get("__file__") if path == BY_VALUE else path
            where = f"{file}, line {line}" if file else f"line {line} of its cell"
            return f" in {frame.f_code.co_name}() ({where})"
    return ""


def _is_users(frame: FrameType) -> bool:
    module, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
    if module.startswith("sonic_parsl.") and not module.startswith("sonic_parsl.workflows."):
        return False
    return file == BY_VALUE or not file.startswith(("<", *LIBRARIES))


# Fields ------------------------------------------------------------------------


def _missing_field(error: BaseException, frames: Frames) -> str:
    """Return what has not which field, where that is what went wrong."""
    found = NO_FIELD.search(str(error))
    if found is None or not isinstance(error, AttributeError | LookupError):
        return ""
    record = _record(frames)
    what = "The events have" if record in {"NanoEvents", ""} else f"{record} has"
    return f"{what} no field '{found[1]}', wanted{_place(frames)}."


def _near(error: BaseException, frames: Frames) -> str:
    found = NO_FIELD.search(str(error))
    known = _local(frames, "awkward", lambda array: array.fields)
    return near(found[1], known) if found and known else ""


def _record(frames: Frames) -> str:
    """Return the name of the records that lack the field, such as Jet."""
    parameter = _local(
        frames, "awkward", lambda array: getattr(array, "layout", array).purelist_parameter("__record__")
    )
    return str(parameter or "")


# Files -------------------------------------------------------------------------


def _is_reading(frames: Frames) -> bool:
    """Return whether coffea was reading its file, and not the user's code another one."""
    modules = [str(frame.f_globals.get("__name__", "")) for frame, _ in frames]
    ours = any(module.startswith("coffea.nanoevents") for module in modules) or not _place(frames)
    return ours and any(module.startswith(("uproot.", "fsspec")) for module in modules)


def _way_out(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return INSTALL
    # uproot, too, says of a file that ends too early that it is an OSError; it has no number then.
    unreachable = isinstance(error, OSError) and (error.errno is not None or "Chunk" not in str(error))
    return REACH if unreachable else COPY_AGAIN


def _branch(frames: Frames) -> str:
    return str(_local(frames, "uproot.behaviors", lambda branch: branch.name) or "")


def _known_trees(error: BaseException, tree: str) -> str:
    keys = getattr(error.__cause__, "keys", None) or ()
    return near(tree, sorted({str(key).partition(";")[0] for key in keys})) if keys else ""


def _local(frames: Frames, package: str, ask: Callable[[Any], Any]) -> Any:
    """Return what the innermost object of `package` that was at work answers; None where none does."""
    for frame, _ in reversed(frames):
        if str(frame.f_globals.get("__name__", "")).startswith(package):
            with suppress(Exception):  # what has no answer is not what was meant
                if answer := ask(frame.f_locals.get("self")):
                    return answer
    return None
