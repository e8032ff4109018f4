"""Every error of the project, in one tree.

::

    SonicError
    ├── ConfigError             a site file, an option or an argument is wrong
    ├── DataError               a file of events cannot be had, or is damaged
    ├── AnalysisError           the analysis's own code failed, or cannot be sent to workers
    ├── RepositoryError         a model repository is invalid
    ├── RuntimeMissingError     no Triton or ONNX Runtime here, or a damaged one
    ├── InputError              an array does not fit the model
    ├── InferenceError          a call failed
    │   ├── RejectedError       the server says that the request is wrong
    │   ├── ModelNotFoundError  no server of the pool has this model, version or tag
    │   ├── ModelFailedError    the model failed on the server, or the process that it runs in
    │   ├── ResponseError       the server's answer is not what was asked for
    │   └── DeadlineError       the call's time is over
    └── PoolError               the pool as a whole
        ├── PoolNotFoundError   this process was not told of a pool
        ├── PoolLostError       the pool is gone; nothing that waits can succeed
        ├── ServerStartError    a server's block could not be brought up
        ├── VersionMismatchError  two parts of the pool are of different versions
        └── ModelMismatchError  two servers serve different models under one name

None of them is, or is chained to, an ``OSError``: coffea's ``skipbadfiles``
drops the events of a chunk without a word when it finds one in the chain.
Raise them ``from None`` where another library's error is translated.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import Self, override


class SonicError(Exception):
    """Root of all errors of sonic-parsl.

    Parameters
    ----------
    message
        What happened, to which thing: one full sentence.
    hint
        What to do now, another sentence; empty where nothing can be done.
    **context
        Where it happened (``model=``, ``server=``, ``request=``, ``chunk=``, ``block=``),
        appended to the text. Values that are None are left out.

    Attributes
    ----------
    details
        What helps to find the cause, such as a traceback from another process; not part of the text.
    """

    def __init__(self, message: str, *, hint: str = "", **context: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = ""
        self.context = {key: value for key, value in context.items() if value is not None}

    @override
    def __str__(self) -> str:
        where = ", ".join(f"{key} {value}" for key, value in self.context.items())
        text = f"{self.message} ({where})" if where else self.message
        return f"{text} {self.hint}" if self.hint else text

    @override
    def __repr__(self) -> str:
        # coffea quotes the repr of what it wraps: it has to say as much as the text.
        return f"{type(self).__name__}({str(self)!r})"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.details, self.context)

    def at(self, **context: object) -> SonicError:
        """Return the same error with more context; what it already says is kept."""
        more = {**context, **self.context}
        return type(self)(self.message, hint=self.hint, **more).with_details(self.details)

    def with_details(self, details: str) -> Self:
        """Set :attr:`details` and return the error."""
        self.details = details
        return self


def find_ours(error: BaseException | None) -> SonicError | None:
    """Return the first error of ours in the chain that led to `error`, or None."""
    while error is not None and not isinstance(error, SonicError):
        error = error.__cause__ or error.__context__
    return error


def _rebuild(cls: type[SonicError], message: str, hint: str, details: str, context: dict[str, object]) -> SonicError:
    return cls(message, hint=hint, **context).with_details(details)


class ConfigError(SonicError):
    """A site file, an option or an argument is wrong."""


class DataError(SonicError):
    """A file of events cannot be had, or is damaged."""


class AnalysisError(SonicError):
    """The analysis's own code failed, or cannot be sent to workers."""


class RepositoryError(SonicError):
    """A model repository is invalid."""


class RuntimeMissingError(SonicError):
    """There is no Triton or ONNX Runtime here, or a damaged one."""


class InputError(SonicError):
    """An array does not fit the model: a field, its type or a value."""


class InferenceError(SonicError):
    """An inference call failed."""


class RejectedError(InferenceError):
    """The server says that the request is wrong; asking again would not help."""


class ModelNotFoundError(InferenceError):
    """No server of the pool has this model, version or tag."""


class ModelFailedError(InferenceError):
    """The model failed on the server, or the process that it runs in."""


class ResponseError(InferenceError):
    """The server's answer is not what was asked for."""


class DeadlineError(InferenceError):
    """The time given to the call is over."""


class PoolError(SonicError):
    """Something is wrong with the pool as a whole."""


class PoolNotFoundError(PoolError):
    """Nobody told this process of a pool."""


class PoolLostError(PoolError):
    """The pool is gone: nothing that waits for it can succeed."""


class ServerStartError(PoolError):
    """A server's block could not be brought up."""


class VersionMismatchError(PoolError):
    """Driver, agent and worker are of different versions."""


class ModelMismatchError(PoolError):
    """Two servers serve different models under one name and version: their scores must not mix."""
