"""Errors are one tree, survive pickling, and never look like a bad file to coffea."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sonic_parsl
from sonic_parsl import errors
from sonic_parsl.errors import InferenceError, RejectedError, SonicError

PACKAGE = Path(sonic_parsl.__file__).parent
PARSED = {
    path: ast.parse(path.read_text())
    for folder in ("sonic_parsl", "executors", "workflows", "configs")
    for path in (PACKAGE.parent / folder).rglob("*.py")
}


def tree(cls: type[SonicError] = SonicError) -> Iterator[type[SonicError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


CLASSES = sorted(set(tree()), key=lambda cls: cls.__name__)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert list(drawn(errors.__doc__ or "")) == [(cls.__name__, cls.__bases__[0].__name__) for cls in tree()]


def drawn(text: str) -> Iterator[tuple[str, str]]:
    """Yield each class of a drawing, top down, and the one that it hangs on."""
    above = {-1: "Exception"}
    for line in text.splitlines():
        name = next((word for word in line.split() if word.startswith("SonicError") or word.endswith("Error")), "")
        if not name or not line.startswith("    ") or not set(line.partition(name)[0]) <= set(" │├└─"):
            continue
        depth = (line.index(name) - 4) // 4
        above[depth] = name
        yield name, above[depth - 1]


@pytest.mark.parametrize("cls", CLASSES)
def test_no_error_is_an_oserror(cls: type[SonicError]) -> None:
    assert cls.__module__ == "sonic_parsl.errors"
    assert not issubclass(cls, OSError)


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_pickles_with_all_it_says(cls: type[SonicError], pickler: Any) -> None:
    error = cls("Something broke.", hint="Mend it.", model="btag", server="triton-0-1", request=3, chunk=None)
    back = pickle.loads(pickler.dumps(error.with_details("its traceback"))).at(chunk=None)
    assert type(back) is cls
    assert back.details == "its traceback"
    assert (back.message, back.hint, back.context) == (error.message, error.hint, error.context)
    assert str(back) == "Something broke. (model btag, server triton-0-1, request 3) Mend it."


words = st.text("abc .", min_size=1, max_size=8)


@given(message=words, hint=st.just("") | words, context=st.dictionaries(st.sampled_from("mnop"), words | st.none()))
def test_the_text_holds_message_context_and_hint(message: str, hint: str, context: dict[str, str | None]) -> None:
    text = str(SonicError(message, hint=hint, **context))
    assert text.startswith(message)
    assert text.endswith(hint)
    for key, value in context.items():
        assert (f"{key} {value}" in text) is (value is not None)


def test_more_context_leaves_what_an_error_already_says() -> None:
    error = RejectedError("Wrong shape.", hint="Look at the inputs.", server="a").at(server="b", chunk="u:0-9")
    assert type(error) is RejectedError
    assert error.context == {"chunk": "u:0-9", "server": "a"}
    assert error.hint == "Look at the inputs."


def test_no_error_is_chained_to_another() -> None:
    chained = [
        f"{path}:{node.lineno}"
        for path, module in PARSED.items()
        for node in ast.walk(module)
        if isinstance(node, ast.Raise) and node.cause is not None and not is_none(node.cause)
    ]
    assert not chained


def test_an_error_raised_while_another_is_handled_hides_it() -> None:
    bare = [
        f"{path}:{node.lineno}"
        for path, module in PARSED.items()
        for handler in ast.walk(module)
        if isinstance(handler, ast.ExceptHandler)
        for node in ast.walk(handler)
        if isinstance(node, ast.Raise) and makes_ours(node) and node.cause is None
    ]
    assert not bare


def is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def makes_ours(node: ast.Raise) -> bool:
    names = {cls.__name__ for cls in CLASSES}
    return isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name) and node.exc.func.id in names


def test_a_caller_can_catch_every_failed_call_at_once() -> None:
    calls = {cls.__name__ for cls in tree(InferenceError)}
    assert calls > {"RejectedError", "ModelNotFoundError", "ModelFailedError", "ResponseError", "DeadlineError"}
