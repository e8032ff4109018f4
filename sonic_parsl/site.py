"""Site files: what a site offers for workers and servers, as YAML, checked before anything starts."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from sonic_parsl.devices import BUILT_IN, Device, Family, Fidelity
from sonic_parsl.endpoint import Endpoint, Section, beside_site_file
from sonic_parsl.errors import ConfigError
from sonic_parsl.poolref import StaticServer
from sonic_parsl.ports import as_range, ipv4_of
from sonic_parsl.protocol import LEASE_S
from sonic_parsl.walltime import Walltime
from sonic_parsl.yaml_file import read_yaml

Provider = Literal["local", "slurm", "htcondor", "gridengine", "pbspro", "lsf"]
RuntimeName = Literal["wheel", "host", "apptainer"]
PACKAGED_MODELS = "packaged"
"""Word in a site file for the model repository that comes with sonic-parsl."""

MOST = 1000
"""Jobs of a kind; more are a slip of the finger, and on this machine more than it has memory for."""


def _as_range(value: object) -> object:
    if isinstance(value, int):
        return {"min": value, "max": value}
    if isinstance(value, dict) and isinstance(value.get("min"), int):
        return {"max": value["min"], **value}
    if isinstance(value, (dict, Count)):
        return value
    msg = f"{value!r} is neither a number nor {{min: ..., max: ...}}"
    raise ValueError(msg)


class Count(Section):
    """How many, at least and at most: as many as the least, where a site file does not say."""

    min: Annotated[int, Field(ge=1, le=MOST)] = 1
    max: Annotated[int, Field(ge=1, le=MOST)] = 1

    @model_validator(mode="after")
    def _check_order(self) -> Count:
        if self.min > self.max:
            msg = f"min is {self.min}, which is more than max, {self.max}"
            raise ValueError(msg)
        return self


Range = Annotated[Count, BeforeValidator(_as_range)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


WORDS = ("partition", "queue", "nodes", "walltime", "account", "request", "launcher")
"""Of a job, said by each batch system in its own way; see :mod:`sonic_parsl.executors.batch.dialects`."""


class Job(Section):
    """How a job of this site is asked for.

    Attributes
    ----------
    provider
        Batch system, or ``local`` for processes on this machine.
    worker_init
        Shell lines that prepare the environment on the node.
    partition, queue
        Where the job waits: Slurm has partitions, Grid Engine, PBS and LSF have queues.
    nodes
        Nodes of a block; each has a server, or workers.
    walltime
        Length of the job, as ``HH:MM:SS`` or in seconds.
    account
        Whom it is charged to.
    request
        What else the job asks for, in the scheduler's own words without what its lines begin with:
        ``--gres=gpu:1`` (Slurm), ``-l fpga=1`` (Grid Engine), ``request_gpus = 1`` (HTCondor).
    launcher
        What starts the block's processes: ``single-node``, or ``srun`` on Slurm; the latter by default where
        a block has several nodes.
    options
        Further arguments of Parsl's provider, by their names in Parsl.
    """

    provider: Provider = "local"
    worker_init: str = ""
    partition: str | None = None
    queue: str | None = None
    nodes: Annotated[int, Field(ge=1)] | None = None
    walltime: Walltime | None = None
    account: str | None = None
    request: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list)
    launcher: Literal["single-node", "srun"] | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class Workers(Job):
    """Where the chunks of an analysis run.

    Attributes
    ----------
    count
        Blocks, at least and at most.
    workers_per_node
        Processes on a node.
    """

    count: Range = Count()
    workers_per_node: Annotated[int, Field(ge=1)] = 2


class ServerGroup(Job):
    """Servers of one kind; see :class:`sonic_parsl.executors.ServerExecutor` for what each setting does.

    Attributes
    ----------
    static
        Servers that somebody else runs; such a group has no jobs.
    models
        Folder of a Triton model repository, relative to the site file; ``packaged`` is the one of sonic-parsl.
    serve
        Names of the models to serve; all by default.
    address
        IPv4 address or interface of the node that servers listen on; the one by which it reaches the driver
        by default.
    start_timeout
        A server must be ready so many seconds after its job started, and the first job must start in as many.
    lease
        A server of which nothing is heard for so many seconds is replaced.
    drain_before
        So many seconds before its walltime ends, a server takes no new requests.
    """

    device: str = "cpu"
    static: list[Endpoint] = Field(default_factory=list)
    count: Range = Count()
    runtime: RuntimeName = "wheel"
    image: str | None = None
    binary: str | None = None
    models: str = PACKAGED_MODELS
    serve: list[str] | None = None
    address: str | None = None
    start_timeout: Annotated[float, Field(gt=0)] = 300.0
    lease: Annotated[float, Field(ge=3)] = LEASE_S
    drain_before: Annotated[float, Field(ge=0)] = 120.0

    def repository(self, packaged: Path) -> Path:
        """Return the folder of its models, where `packaged` is the one that comes with sonic-parsl."""
        return packaged if self.models == PACKAGED_MODELS else Path(self.models).absolute()

    @model_validator(mode="after")
    def _check_drain(self) -> ServerGroup:
        if self.walltime is not None and self.drain_before >= self.walltime:
            msg = f"drain-before, {self.drain_before:g} s, leaves nothing of the walltime, {self.walltime:g} s"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_static(self) -> ServerGroup:
        idle = sorted(name.replace("_", "-") for name in self.model_fields_set - _OF_STATIC)
        if self.static and idle:
            msg = f"static servers are run by somebody else, so {', '.join(idle)} would do nothing here; leave it out"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_image(self) -> ServerGroup:
        if self.runtime == "apptainer" and not self.image:
            msg = "runtime apptainer needs an image, a SIF file or docker://nvcr.io/nvidia/tritonserver:24.10-py3"
            raise ValueError(msg)
        if self.runtime != "apptainer" and self.image:
            msg = f"an image is for runtime apptainer, and would do nothing for runtime {self.runtime}; leave one out"
            raise ValueError(msg)
        return self

    @field_validator("models")
    @classmethod
    def _find_models(cls, value: str, info: ValidationInfo) -> str | None:
        return value if value == PACKAGED_MODELS else beside_site_file(value, info)


_OF_STATIC = {"static", "device", "models", "start_timeout"}
"""Settings that mean something for servers of others."""


class DeviceKind(Section):
    """A kind of device of this site."""

    family: Family
    fidelity: Fidelity = "hardware"


class Driver(Section):
    """Where the driver can be reached.

    Attributes
    ----------
    address
        IPv4 address of the driver's machine that the nodes can reach, or the name of an interface, such as ib0.
    port_range
        First and last port for the registry, the servers and Parsl's interchange.
    run_dir
        Folder, seen by all nodes, for the files of runs; the user's state folder by default.
    """

    address: str = "127.0.0.1"
    port_range: Annotated[tuple[int, int], BeforeValidator(as_range)] | None = None
    run_dir: Path | None = None

    @property
    def ipv4(self) -> str:
        """The address itself; raises ConfigError where this machine has no such interface."""
        return ipv4_of(self.address)

    @model_validator(mode="after")
    def _check_ports(self) -> Driver:
        if self.port_range is not None and not 1024 <= self.port_range[0] <= self.port_range[1] <= 65535:
            msg = f"port-range {list(self.port_range)} is not [first, last] with 1024 <= first <= last <= 65535"
            raise ValueError(msg)
        return self


class Allocation(Section):
    """When a server group grows and shrinks between its minimum and maximum.

    Attributes
    ----------
    queue_ms
        Requests that wait longer than this in the servers, on average, ask for one more server.
    idle
        Without a request for so many seconds, a group shrinks to its minimum.
    """

    queue_ms: Annotated[float, Field(gt=0)] = 50.0
    idle: Annotated[float, Field(gt=0)] = 120.0


class SiteFile(Section):
    """A site: workers, server groups, and what connects them.

    Attributes
    ----------
    security
        ``tls``, or ``none`` on the loopback address only; see :class:`sonic_parsl.ServerPool`.
    shared_filesystem
        Whether the nodes see the driver's ``run-dir``; otherwise jobs carry what they need of it.
    fallback
        ``cpu``: where no server starts within ``start-timeout``, or the pool is lost, workers compute ONNX models
        themselves. They have to see the model repositories. Without it the run fails.
    mix_numerics
        Whether one model may count in several ways in one run, such as ``fp16`` on servers and ``fp32`` in workers.
    """

    workers: Workers = Workers()
    servers: Annotated[dict[str, ServerGroup], Field(min_length=1)]
    devices: dict[str, DeviceKind] = Field(default_factory=dict)
    driver: Driver = Driver()
    allocation: Allocation = Allocation()
    security: Literal["tls", "none"] = "tls"
    shared_filesystem: bool = True
    fallback: Literal["cpu"] | None = None
    mix_numerics: bool = False

    @model_validator(mode="after")
    def _check_devices(self) -> SiteFile:
        known = {*BUILT_IN, *self.devices}
        for name, group in self.servers.items():
            if group.device not in known:
                msg = f"servers.{name}.device is {group.device!r}; known are {', '.join(sorted(known))}"
                raise ValueError(msg)
        return self

    def static_servers(self) -> list[StaticServer]:
        """Return the servers that somebody else runs, with their secrets.

        Raises
        ------
        ConfigError
            A certificate or a token is missing.
        """
        return [
            endpoint.server(label, number, group.device)
            for label, group in self.servers.items()
            for number, endpoint in enumerate(group.static)
        ]

    def jobs(self) -> dict[str, Job]:
        """Return what jobs are asked for, by ``workers`` and ``servers <group>``; servers of others have none."""
        groups = {f"servers {label}": group for label, group in self.servers.items() if not group.static}
        return {"workers": self.workers, **groups}

    def device(self, kind: str) -> Device:
        """Return the record of a kind of device."""
        if kind in self.devices:
            record = self.devices[kind]
            return Device(kind=kind, family=record.family, fidelity=record.fidelity)
        return BUILT_IN[kind]


# Finding and reading -------------------------------------------------------


def packaged_folder() -> Path:
    """Folder of the site files that come with sonic-parsl."""
    return Path(__file__).parent / "configs"


def packaged_models() -> Path:
    """Folder of the model repository that comes with sonic-parsl."""
    return Path(__file__).parent / "workflows" / "models"


def user_folder() -> Path:
    """Folder of the user's own site files."""
    return platformdirs.user_config_path("sonic-parsl") / "sites"


def find(name: str) -> Path:
    """Return the site file `name`: a path, else one of the user's, else a packaged one.

    Raises
    ------
    ConfigError
        There is none.
    """
    candidates = [Path(name), *(folder / f"{name}.yaml" for folder in (user_folder(), packaged_folder()))]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted({path.stem for folder in (user_folder(), packaged_folder()) for path in folder.glob("*.yaml")})
    raise ConfigError(
        f"There is no site '{name}'.",
        hint=f"Give the path of a site file, or one of: {', '.join(known)}. Your own go to {user_folder()}.",
    )


def read(path: Path) -> SiteFile:
    """Read and check a site file.

    Raises
    ------
    ConfigError
        It is no YAML, or something in it is wrong: each problem in a line, with the nearest right key.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is not a site file.", hint="It should be a mapping with the key 'servers'.")
    try:
        return SiteFile.model_validate(data, context={"folder": path.absolute().parent})
    except ValidationError as error:
        problems = "\n".join(f"  {_sentence(item)}" for item in error.errors(include_url=False))
        raise ConfigError(f"{path} is wrong:\n{problems}") from None


def _sentence(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{where}: there is no such key.{_nearest(item['loc'])}"
    if item["type"] == "missing":
        return f"{where}: this key is missing."
    if item["type"] in {"model_type", "dict_type"}:
        return f"{where}: this should be a mapping, with keys of its own."
    if item["type"] == "too_short":
        return f"{where}: this should have an entry at least."
    text = str(item["msg"]).removeprefix("Value error, ")
    if isinstance(item["input"], str | int | float):
        text = text.replace("Input should", f"{item['input']!r} should", 1)
    return f"{where}: {text}." if where else f"{text}."


def _nearest(loc: tuple[int | str, ...]) -> str:
    """Return a hint with the known keys at this place of the file."""
    section: Any = SiteFile
    for part in loc[:-1]:
        if isinstance(part, str):  # a number only says which of a list
            section = _step(section, part)
    if section is None:
        return ""
    known = sorted(field.alias or name for name, field in section.model_fields.items())
    close = difflib.get_close_matches(str(loc[-1]).replace("_", "-"), known, n=1)
    return f" Did you mean '{close[0]}'?" if close else f" Known are {', '.join(known)}."


_MAPPINGS: dict[str, type[Section]] = {"servers": ServerGroup, "devices": DeviceKind}
_LISTS: dict[str, type[Section]] = {"static": Endpoint}


def _step(section: Any, part: str) -> Any:
    """Follow one part of a place in the file to the section it names."""
    if section is None:
        return None
    if isinstance(section, str):  # the name of a group or of a kind, under one of the mappings
        return _MAPPINGS[section]
    if section is SiteFile and part in _MAPPINGS:
        return part
    if section is ServerGroup and part in _LISTS:
        return _LISTS[part]
    fields = {field.alias or name: field for name, field in section.model_fields.items()}
    kind = fields[part].annotation if part in fields else None
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None
