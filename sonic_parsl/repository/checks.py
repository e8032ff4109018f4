"""What can be wrong with a model's folder: one function a question, one sentence a problem."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from sonic_parsl.errors import RepositoryError
from sonic_parsl.protocol import TensorSpec
from sonic_parsl.repository.folder import DATATYPES, INVALID, Parsed, Section, read_source
from sonic_parsl.repository.signature import DATATYPES as ONNX_DATATYPES
from sonic_parsl.repository.signature import Signature

SECTIONS: tuple[Section, Section] = ("input", "output")
NUMERIC_KINDS = re.compile(r"fp32|fp16|bf16|int8|ap_fixed<\d+,\d+(,\w+)*>")


def problems(model: Parsed, siblings: Collection[str], backends: Collection[str] | None) -> Iterator[str]:
    """Yield everything that is wrong with a model.

    Parameters
    ----------
    model
        Its folder.
    siblings
        Names of all models of the repository, its own included.
    backends
        Backends of the runtime that is to serve it; None where that is not known.
    """
    for check in CHECKS:
        yield from check(model)
    yield from steps(model, siblings)
    if backends is not None:
        yield from runtime(model, backends)


def name(model: Parsed) -> Iterator[str]:
    """Check that folder and configuration name one model."""
    if model.config.name and model.config.name != model.name:
        yield (
            f"{model.config_name} names the model '{model.config.name}', but its folder is '{model.name}'; "
            "give both one name, or leave the name out of the file."
        )


def backend(model: Parsed) -> Iterator[str]:
    """Check that a backend is named."""
    if model.backend:
        return
    if model.config.platform:
        yield f"{model.config_name} names the unknown platform '{model.config.platform}'; name a backend instead."
    else:
        yield f'{model.config_name} names no backend; add a line such as backend: "onnxruntime".'


def batch(model: Parsed) -> Iterator[str]:
    """Check that the batch size is a size."""
    if model.config.max_batch_size < 0:
        yield (
            f"{model.config_name} has max_batch_size {model.config.max_batch_size}; "
            "give the most rows of a request, or 0 for a model without a batch dimension."
        )


def version_folders(model: Parsed) -> Iterator[str]:
    """Check that there are version folders and that their names are numbers."""
    misnamed = [folder for folder in model.folders if folder not in model.present and _like_version(model, folder)]
    for folder in misnamed:
        yield (
            f"{model.name}/{folder} is no version that Triton serves; "
            f"rename it to a whole number without leading zeros, such as {model.name}/1."
        )
    if not model.present and not misnamed:
        yield f"{model.name} has no version folder; put the model's files into {model.name}/1."


def _like_version(model: Parsed, folder: str) -> bool:
    holds_model = model.filename is not None and (model.path / folder / model.filename).exists()
    return holds_model or re.match(r"[vV]?[0-9]", folder) is not None


def version_policy(model: Parsed) -> Iterator[str]:
    """Check that what the version policy serves is there."""
    asked = [str(version) for version in model.config.version_policy.specific.versions]
    absent = [version for version in asked if version not in model.present]
    for version in absent:
        yield (
            f"{model.config_name} serves version {version}, which has no folder (there are: {_list(model.present)}); "
            f"add {model.name}/{version}, or take it out of version_policy."
        )
    if model.present and not model.versions and not absent:
        yield f"{model.config_name} has a version_policy that serves no version; name one, or serve the latest."


def files(model: Parsed) -> Iterator[str]:
    """Check that each served version has its model file."""
    for version in model.versions:
        path = model.model_file(version)
        if path is not None and not path.exists():
            yield (
                f"{model.name}/{version}/{model.filename} is missing; "
                "put the model there, or name its file as default_model_filename."
            )


def source(model: Parsed) -> Iterator[str]:
    """Check that a file that names what the model was made from holds a digest."""
    try:
        read_source(model.path)
    except RepositoryError as error:
        yield error.message


def numeric_kind(model: Parsed) -> Iterator[str]:
    """Check that the model counts in a known way."""
    if not NUMERIC_KINDS.fullmatch(model.numeric_kind):
        yield (
            f"{model.config_name} has the unknown numeric_kind '{model.numeric_kind}'; "
            "use fp32, fp16, bf16, int8 or ap_fixed<width,integer bits>."
        )


def tags(model: Parsed) -> Iterator[str]:
    """Check that tags belong to versions that exist."""
    for version in model.tags:
        if version not in model.present:
            yield (
                f"{model.config_name} has tags for version {version}, which has no folder "
                f"(there are: {_list(model.present)}); correct the parameter tags.{version}, or remove it."
            )


def tensors(model: Parsed) -> Iterator[str]:
    """Check that each tensor of the configuration has a name of its own, a datatype and dims."""
    for section in SECTIONS:
        declared = model.declared(section) if getattr(model.config, section) else ()
        for tensor, count in Counter(spec.name for spec in declared).items():
            if not tensor:
                yield f"{model.config_name} has an {section} without a name; give it the name it has in the model."
            elif count > 1:
                yield f"{model.config_name} has {count} {section}s named '{tensor}'; give each its own name."
        for spec in declared:
            yield from _tensor(model, section, spec)


def _tensor(model: Parsed, section: Section, spec: TensorSpec) -> Iterator[str]:
    where = f"{model.config_name} gives {section} '{spec.name}'"
    if spec.datatype == INVALID:
        known = _list(kind for kind in DATATYPES.values() if kind != INVALID)
        yield f"{where} no data_type that Triton knows; use TYPE_ and one of {known.replace('BYTES', 'STRING')}."
    if not spec.shape:
        yield f"{where} no dims; write its shape without the batch dimension, -1 for any size."
    elif any(size < 1 and size != -1 for size in spec.shape):
        yield f"{where} the dims {list(spec.shape)}; each is 1 or more, or -1 for any size."


def onnx(model: Parsed) -> Iterator[str]:
    """Check that the ONNX file of each served version loads and is what the configuration says."""
    for version, signature in model.signatures.items():
        file = f"{model.name}/{version}/{model.filename}"
        if isinstance(signature, RepositoryError):
            yield signature.message
        else:
            for section in SECTIONS:
                yield from _onnx_section(model, section, signature, file)


def _onnx_section(model: Parsed, section: Section, signature: Signature, file: str) -> Iterator[str]:
    own = {spec.name: spec for spec in (signature.inputs if section == "input" else signature.outputs)}
    for spec in own.values():
        yield from _servable(model, section, spec, file)
    given = bool(getattr(model.config, section))
    if not given and model.newest is None:
        return
    origin = model.config_name if given else f"{model.name}/{model.versions[-1]}/{model.filename}"
    expected = {spec.name: spec for spec in model.expected(section)}
    for spec in expected.values():
        if spec.name in own:
            yield from _agree(model, f"{origin} gives {section} '{spec.name}'", spec, own[spec.name], file)
        elif spec.name:
            yield f"{origin} has an {section} '{spec.name}' that {file} lacks (it has: {_list(own)}); correct the name."
    # Triton itself fills control inputs, which are declared in sections of their own.
    if section == "input" and not (model.config.batch_input or model.config.HasField("sequence_batching")):
        for missing in [name for name in own if name not in expected]:
            yield f"{origin} has no input '{missing}', which {file} needs; add it to the input section."


def _servable(model: Parsed, section: Section, spec: TensorSpec, file: str) -> Iterator[str]:
    if spec.datatype not in ONNX_DATATYPES.values():
        yield (
            f"{file} has an {section} '{spec.name}' of type {spec.datatype}, which Triton cannot serve; "
            "export the model with plain tensors (from scikit-learn: with zipmap off)."
        )
    elif not spec.shape and not getattr(model.config, section):
        yield f"{file} does not tell the shape of {section} '{spec.name}'; write an {section} section into {model.config_name}."
    if model.max_batch_size > 0 and spec.shape and spec.shape[0] != -1:
        yield (
            f"{file} fixes the first dimension of {section} '{spec.name}' to {spec.shape[0]}, but max_batch_size is "
            f"{model.max_batch_size}; export it with a free batch dimension, or set max_batch_size: 0."
        )


def _agree(model: Parsed, claim: str, spec: TensorSpec, own: TensorSpec, file: str) -> Iterator[str]:
    if spec.datatype not in (own.datatype, INVALID):
        yield f"{claim} the type {spec.datatype}, but in {file} it is {own.datatype}; make them agree."
    if own.shape and not _shapes_agree(spec.shape, model.row(own)):
        rest = " after the batch dimension" if model.max_batch_size else ""
        yield (
            f"{claim} the dims {list(spec.shape)}, but in {file} they are {list(model.row(own))}{rest}; make them agree."
        )


def _shapes_agree(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(left) == len(right) and all(a == b or -1 in (a, b) for a, b in zip(left, right, strict=True))


def steps(model: Parsed, siblings: Collection[str]) -> Iterator[str]:
    """Check that an ensemble has steps and that their models are there."""
    if model.backend != "ensemble":
        return
    asked = dict.fromkeys(step.model_name for step in model.config.ensemble_scheduling.step)
    if not asked:
        yield f"{model.config_name} is an ensemble without steps; name its models under ensemble_scheduling."
    for step in asked:
        if step not in siblings:
            yield (
                f"{model.config_name} has a step that runs the model '{step}', which the repository lacks "
                f"(it has: {_list(sorted(siblings))}); add its folder, or correct the step."
            )


def runtime(model: Parsed, backends: Collection[str]) -> Iterator[str]:
    """Check that the runtime has the backend; ensembles need none."""
    if model.backend and model.backend != "ensemble" and model.backend not in backends:
        yield (
            f"{model.config_name} needs the backend '{model.backend}', which this Triton runtime lacks "
            f"(it has: {_list(sorted(backends))}); use a runtime that has it, such as NVIDIA's container, "
            "or export the model for a backend that is here."
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


CHECKS: tuple[Callable[[Parsed], Iterator[str]], ...] = (
    name,
    backend,
    batch,
    version_folders,
    version_policy,
    files,
    source,
    numeric_kind,
    tags,
    tensors,
    onnx,
)
