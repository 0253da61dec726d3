"""config.yaml and the environment: frozen, validated, each key with a default, a range and a line of documentation.

Precedence: defaults < config.yaml < environment (`ARXPLORER__LOCAL_BROKER__PORT=18830`).
"""

import difflib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
import msgspec.yaml  # reads by libyaml; PyYAML's own reader is ten times as slow
from msgspec import Meta, Struct, field

from agent.domain import MAX_RESULTS, Mode
from agent.errors import ConfigError, validation_place
from agent.paths import SYSTEM_CONFIG, default_data_dir

ENVIRONMENT_PREFIX: Final = "ARXPLORER__"

Topic = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        pattern=r"^[^#+\x00]*$",
        description="A topic, or a template: {thing_name} and, for results, {client_id} are filled in.",
    ),
]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Topics(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    search_requests: Annotated[Topic, Meta(description="Requests are taken here and below /{thing_name}.")] = (
        "arxplorer/search/requests"
    )
    search_results: Annotated[Topic, Meta(description="Answers to requests that name no topic of their own.")] = (
        "arxplorer/search/results"
    )
    embeddings: Annotated[Topic, Meta(description="Embedding requests; answered below /response.")] = (
        "arxplorer/embeddings"
    )
    corpus_updates: Annotated[Topic, Meta(description="Papers to add and remove.")] = "arxplorer/corpus/updates"
    status: Annotated[Topic, Meta(description="Status; retained below /{thing_name}.")] = "arxplorer/status"
    response_prefix: Annotated[Topic, Meta(description="Topics that a request may ask its answer to go to.")] = (
        "arxplorer/responses/"
    )


class LocalBroker(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    enabled: Annotated[bool, Meta(description="Answer requests from a local MQTT 5 broker.")] = True
    host: Annotated[str, Meta(min_length=1, description="Its host name or address.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Its TCP port.")] = 1883
    client_id: Annotated[str, Meta(max_length=128, description="MQTT client id; empty: the thing name.")] = ""
    username: Annotated[str, Meta(description="User name; empty: none.")] = ""
    password_file: Annotated[str, Meta(description="A file that holds the password; empty: none.")] = ""
    ca_cert: Annotated[str, Meta(description="CA certificate; when given, the connection uses TLS.")] = ""
    keep_alive: Annotated[int, Meta(ge=5, le=1200, description="MQTT keep-alive in seconds.")] = 45
    topics: Topics = field(default_factory=Topics)


class Certificates(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    ca_cert: Annotated[str, Meta(description="Amazon's root CA certificate.")] = "certs/AmazonRootCA1.pem"
    cert_file: Annotated[str, Meta(description="The device's certificate.")] = "certs/device-certificate.pem.crt"
    private_key: Annotated[str, Meta(description="The device's private key, mode 600.")] = (
        "certs/device-private.pem.key"
    )


class AwsIot(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    enabled: Annotated[bool, Meta(description="Connect to AWS IoT Core as well.")] = False
    region: Annotated[str, Meta(description="AWS region.")] = "us-east-1"
    endpoint: Annotated[str, Meta(description="The account's data endpoint.")] = ""
    endpoints: Annotated[list[str], Meta(description="Further ones, tried in order; HOST or HOST:PORT.")] = field(
        default_factory=list
    )
    port: Annotated[Port, Meta(description="8883, or 443 with ALPN.")] = 8883
    thing_name: Annotated[
        str,
        Meta(pattern=r"^[a-zA-Z0-9:_-]{0,128}$", description="Name of this device; empty: arxplorer-HOSTNAME."),
    ] = ""
    certificates: Certificates = field(default_factory=Certificates)
    topics: Topics = field(default_factory=Topics)
    share_group: Annotated[
        str,
        Meta(pattern=r"^[^/+#\x00]{1,128}$", description="Of the agents of which one answers a request to them all."),
    ] = "arxplorer"
    qos: Annotated[Literal[0, 1], Meta(description="Quality of service on the cloud link.")] = 1
    keep_alive: Annotated[int, Meta(ge=30, le=1200, description="MQTT keep-alive in seconds.")] = 45
    max_backoff_s: Annotated[int, Meta(ge=1, le=3600, description="Longest wait between attempts, in seconds.")] = 120
    probe_s: Annotated[int, Meta(ge=5, le=86400, description="Seconds between checks that messages arrive.")] = 300


class SearchConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    default_mode: Annotated[Mode, Meta(description="Mode of requests that name none.")] = "hybrid"
    max_results: Annotated[int, Meta(ge=1, le=MAX_RESULTS, description="Results of requests that name no number.")] = 10
    semantic_weight: Annotated[float, Meta(ge=0, le=1, description="Share of the cosine in a hybrid score.")] = 0.7
    candidates: Annotated[int, Meta(ge=100, le=1000, description="Candidates taken from each of the two lists.")] = 100


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=100, description="Installed model that embeds queries.")] = (
        "all-MiniLM-L6-v2"
    )


class CorpusSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What of the corpus may change while the agent runs."""

    sync_interval_s: Annotated[
        int,
        Meta(ge=0, le=31_536_000, description="Seconds between looks into the repository for a newer pack; 0: none."),
    ] = 86_400


class HarvestConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """New papers straight from arXiv, by its OAI-PMH interface."""

    categories: Annotated[list[str], Meta(description="Categories whose new papers to take in; empty: none.")] = field(
        default_factory=list
    )
    interval_s: Annotated[
        int, Meta(ge=0, le=31_536_000, description="Seconds between harvests by the running agent; 0: by hand only.")
    ] = 86_400
    contact: Annotated[
        str, Meta(description="Mail address or web page for the User-Agent, so that arXiv can reach you.")
    ] = ""
    url: Annotated[str, Meta(min_length=1, description="The OAI-PMH interface.")] = "https://oaipmh.arxiv.org/oai"


class CorpusConfig(CorpusSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    embed_in_background: Annotated[
        bool, Meta(description="The running agent embeds papers that have no vector yet.")
    ] = True
    repository: Annotated[
        str, Meta(description="Signed repository of packs: an https:// or file:// URL, or a folder; empty: none.")
    ] = ""
    channel: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Which of the repository's packs to follow."),
    ] = "stable"
    trust: Annotated[
        str,
        Meta(description="root.json, whose keys vouch for the repository; empty: the one given to corpus install."),
    ] = ""
    ca_cert: Annotated[str, Meta(description="CA certificate of the repository's server; empty: the system's.")] = ""
    download_kib_s: Annotated[
        int, Meta(ge=0, le=1_048_576, description="KiB a second that a download may take; 0: no limit.")
    ] = 0
    harvest: HarvestConfig = field(default_factory=HarvestConfig)


class StoreConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    data_dir: Annotated[str, Meta(description="Data folder; empty: /var/lib/arxplorer-agent or the user's own.")] = ""


class HealthConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    heartbeat_s: Annotated[float, Meta(ge=1, le=3600, description="Seconds between status messages.")] = 60.0


class LimitSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Those limits that may change while the agent runs."""

    max_pending: Annotated[int, Meta(ge=1, le=256, description="Unanswered requests taken from the broker.")] = 32
    requests_per_minute: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Search and embedding requests answered a minute on each link; 0: no limit.",
        ),
    ] = 0


class LimitsConfig(LimitSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    workers: Annotated[
        int, Meta(ge=0, le=16, description="Searches at a time; 0: the cores, at most 4, or 2 up to 1 GB of memory.")
    ] = 0
    memory_mb: Annotated[
        int,
        Meta(ge=0, le=1_048_576, description="Memory to plan with, in MiB; 0: what machine and control group allow."),
    ] = 0


class OutboxConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of answers and of reports each."""

    max_bytes: Annotated[
        int,
        Meta(ge=262_144, le=1_073_741_824, description="Bytes kept while a link is down, of answers and reports each."),
    ] = 8_388_608
    max_age_s: Annotated[
        int, Meta(ge=60, le=31_536_000, description="Seconds after which what could not be sent is dropped.")
    ] = 604_800


class LoggingConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="debug reaches the MQTT library's own log."),
    ] = "info"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that is fixed while the agent runs. Relative paths count from the file's folder."""

    aws_iot: AwsIot = field(default_factory=AwsIot)
    local_broker: LocalBroker = field(default_factory=LocalBroker)
    search: SearchConfig = field(default_factory=SearchConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    outbox: OutboxConfig = field(default_factory=OutboxConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def thing_name(self) -> str:
        return self.aws_iot.thing_name or "arxplorer-" + re.sub(r"[^a-zA-Z0-9:_-]", "-", socket.gethostname())

    @property
    def data_dir(self) -> Path:
        return Path(self.store.data_dir) if self.store.data_dir else default_data_dir()


def find_config_file(named: Path | None) -> Path | None:
    """The file named on the command line, else ./config.yaml, else the system's, else None (defaults)."""
    if named:
        if not _is_file(named):
            raise ConfigError(f"{named} is no file", hint="name an existing file with --config")
        return named
    return next((path for path in (Path("config.yaml"), SYSTEM_CONFIG) if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    """False also in a folder that this user may not enter, as root's is where a user was changed to another."""
    try:
        return path.is_file()
    except OSError:
        return False


def load_config(
    file: Path | None = None, *, environment: Mapping[str, str] | None = None, data_dir: Path | None = None
) -> Config:
    """Read `file` (defaults without one) and the environment. Raises ConfigError naming the key.

    `data_dir`, from the command line, wins over both.
    """
    document = _read_yaml(file) if file else {}
    for path, value in _overrides(os.environ if environment is None else environment):
        _put(document, path, value)
    if data_dir:
        _put(document, ["store", "data_dir"], str(data_dir.absolute()))
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from error
    for section in ("aws_iot", "local_broker"):
        _check_topics(getattr(config, section).topics, f"{section}.topics")
    return _resolved(config, (file.parent if file else Path.cwd()).absolute())


def _check_topics(topics: Topics, path: str) -> None:
    """An agent that listens where it answers would answer itself for ever. Raises ConfigError."""
    listens = {"search_requests", "embeddings", "corpus_updates"}
    seen: dict[str, str] = {}
    for name, template in msgspec.structs.asdict(topics).items():
        known = {"{thing_name}"} | ({"{client_id}"} if name == "search_results" else set())
        unknown = set(re.findall(r"\{.*?\}", template)) - known
        if unknown:
            raise ConfigError(
                f"{min(unknown)} is no placeholder here; expected {' or '.join(sorted(known))}",
                path=f"{path}.{name}",
            )
        if name != "response_prefix":
            if template in seen and listens & {name, seen[template]}:
                raise ConfigError(f"is {template!r}, as is {seen[template]}; they must differ", path=f"{path}.{name}")
            seen[template] = name


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        document = msgspec.yaml.decode(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{file} holds a {type(document).__name__}, expected a mapping of sections")
    return document


def _overrides(environment: Mapping[str, str]) -> list[tuple[list[str], Any]]:
    """A key that holds text takes the value as it is; any other reads it as a YAML scalar."""
    found: list[tuple[list[str], Any]] = []
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            found.append((path, environment[name] if _is_text(path) else _scalar(environment[name])))
    return found


def _is_text(path: list[str]) -> bool:
    value: Any = Config()
    for name in path:
        value = getattr(value, name, None)
    return isinstance(value, str)


def _scalar(text: str) -> Any:
    try:
        return msgspec.yaml.decode(text)
    except msgspec.DecodeError:
        return text


def _put(document: dict[str, Any], path: list[str], value: Any) -> None:
    for position, key in enumerate(path[:-1]):
        section = document.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError("expected a section with keys below it", path=".".join(path[: position + 1]))
        document = section
    document[path[-1]] = value


def _explained(message: str) -> ConfigError:
    """Turn "Expected `int` - at `$.local_broker.port`" into an error that names the key, and the nearest one."""
    path, reason = validation_place(message)
    unknown = re.search(r"unknown field `(.*?)`", reason)
    if not unknown:
        return ConfigError(reason[:1].lower() + reason[1:], path=path or None)
    section = _section(path)
    near = difflib.get_close_matches(unknown[1], section.__struct_fields__, n=1, cutoff=0)
    return ConfigError(f"unknown key (did you mean {near[0]!r}?)", path=f"{path}.{unknown[1]}".lstrip("."))


def _section(path: str) -> type[Struct]:
    section: type[Struct] = Config
    for name in filter(None, path.split(".")):
        kind = msgspec.structs.fields(section)[section.__struct_fields__.index(name)].type
        section = kind if isinstance(kind, type) else get_args(kind)[0]
    return section


def _resolved(config: Config, folder: Path) -> Config:
    """Make the paths absolute, counted from the file's folder."""

    def absolute(path: str) -> str:
        return str(folder / Path(path).expanduser()) if path else path

    certificates = {
        name: absolute(value) for name, value in msgspec.structs.asdict(config.aws_iot.certificates).items()
    }
    broker, corpus = config.local_broker, config.corpus
    repository = corpus.repository if "://" in corpus.repository else absolute(corpus.repository)
    replace = msgspec.structs.replace
    return replace(
        config,
        aws_iot=replace(config.aws_iot, certificates=Certificates(**certificates)),
        corpus=replace(corpus, repository=repository, trust=absolute(corpus.trust), ca_cert=absolute(corpus.ca_cert)),
        local_broker=replace(broker, password_file=absolute(broker.password_file), ca_cert=absolute(broker.ca_cert)),
        store=replace(config.store, data_dir=absolute(config.store.data_dir)),
    )
