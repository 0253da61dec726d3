"""SearchAPI: the corpus and the model of a data folder, opened; questions and answers as plain documents."""

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from weakref import WeakValueDictionary

from agent.config import Config, SearchConfig, find_config_file, load_config
from agent.domain import SearchRequest
from agent.errors import CorpusError, DamagedPapersError, ModelError, NotReadyError
from agent.footprint import MODEL_MIB, footprint
from agent.paths import catalog_dir, find_model
from agent.protocol.answers import AnswerFacts, search_result
from agent.protocol.manifest import ModelManifest, parse_manifest
from agent.protocol.pack_manifest import MODEL
from agent.protocol.requests import request_from
from agent.search.corpus_index import LOCAL, CorpusIndex
from agent.search.embedder import Embedder
from agent.search.engine import SearchEngine
from agent.store.generations import current_generation, ensure_generation, no_corpus, pack_of


class SearchAPI:
    """Search arXiv papers on this device.

    api = SearchAPI()
    await api.initialize()
    message = await api.search("neural networks", {"category": "cs.LG", "max_results": 5})
    """

    def __init__(self, config: Config | None = None) -> None:
        """Without a configuration, the one that the command line would use."""
        self.config: Final = config or load_config(find_config_file(None))
        self.footprint: Final = footprint(self.config.limits.memory_mb, self.config.limits.workers)
        self._guard: Final = threading.Lock()
        self._settings = self.config.search
        self._engine: SearchEngine | None = None
        # As long as somebody searches with them: two corpora of one model share it.
        self._embedders: Final[WeakValueDictionary[Path, Embedder]] = WeakValueDictionary()
        self._pool: ThreadPoolExecutor | None = None

    async def initialize(self) -> None:
        """Open model and corpus, to read. Raises NotReadyError where there is no corpus."""
        await asyncio.to_thread(self.open)

    def open(self, *, owner: bool = False, model: bool = True) -> Self:
        """Open model and corpus; as `owner` also to write, making an empty corpus where there is none.

        A device without a model, or with a damaged one, answers by keyword; `problems` says so. Without `model` none
        is loaded, which saves a moment. Raises CorpusError and NotReadyError.
        """
        folder = ensure_generation(self.config.data_dir) if owner else current_generation(self.config.data_dir)
        if folder is None:
            raise no_corpus(self.config.data_dir)
        self.use(self.engine_of(self.index_of(folder, owner=owner), model=model))
        return self

    def index_of(self, folder: Path, *, owner: bool) -> CorpusIndex:
        """Open the corpus in a folder, for the model that it was made with. Raises CorpusError and ModelError."""
        model, dimensions, version = corpus_model(self.config, folder)
        return CorpusIndex(folder, model, dimensions, owner=owner, fits=self.footprint, version=version)

    def engine_of(self, index: CorpusIndex, *, model: bool = True) -> SearchEngine:
        """An opened corpus together with its model, where there is one, to be searched or to be `use`d."""
        embedder, problem = self._embedder_of(index) if model else (None, None)
        return SearchEngine(index, embedder, self._settings, problem=problem)

    def use(self, engine: SearchEngine) -> SearchEngine | None:
        """Search in this corpus from the next question on, from any thread; returns what was used before.

        Questions under way end on that. It may be closed when nobody has it any more.
        """
        if engine.index.folder.parent == (self.config.data_dir / "generations").resolve():
            engine.index.papers.bind(self.config.data_dir / "current")
        with self._guard:
            engine.configure(self._settings)
            before, self._engine = self._engine, engine
        return before

    def configure(self, settings: SearchConfig) -> None:
        """Search so from the next question on, in whatever corpus; from any thread."""
        with self._guard:
            self._settings = settings
            if self._engine:
                self._engine.configure(settings)

    def _embedder_of(self, index: CorpusIndex) -> tuple[Embedder | None, str | None]:
        """The model of a corpus; None, and a problem, where it is missing or damaged or does not fit.

        Keywords work without it.
        """
        name = index.model
        if not self.footprint.model:
            allowed = self.footprint.memory_mib
            return None, f"model {name} needs {MODEL_MIB} MiB and {allowed} are allowed: keyword search only"
        folder = model_folder(self.config, index.folder, name)
        if folder is None:
            return None, f"model {name} is not installed: keyword search only"
        try:
            with self._guard:
                embedder = self._embedders.get(folder) or Embedder(folder)
                self._embedders[folder] = embedder
        except ModelError as error:
            return None, f"model {name} is damaged: keyword search only ({error.message})"
        if embedder.dimensions != index.dimensions:
            told = f"gives vectors of {embedder.dimensions} dimensions, the corpus has {index.dimensions}"
            return None, f"model {name} {told}: keyword search only"
        return embedder, None

    @property
    def problems(self) -> list[str]:
        """What keeps answers from being as good as they could be, in words."""
        engine = self.engine  # kept while its index is used, or it might be closed
        found = [engine.problem] if engine.problem else []
        index = engine.index
        try:
            if not index.papers.damage and not index.papers.last_change():
                found.append("the corpus holds no papers")
            return found + index.problems()
        except CorpusError as error:
            damage = index.papers.damage
            return [*found, f"papers.db is damaged: {damage}" if damage else error.message]

    @property
    def model_name(self) -> str:
        """The model of the open corpus, whether it is installed or not: that of its pack, else the configured one."""
        return self.engine.index.model

    @property
    def dimensions(self) -> int:
        """Of that model's vectors."""
        return self.engine.index.dimensions

    @property
    def engine(self) -> SearchEngine:
        if self._engine is None:
            raise NotReadyError("the search is not open yet", hint="await initialize() first")
        return self._engine

    @property
    def embedder(self) -> Embedder:
        """The model of the open corpus. Raises ModelError where it is not installed."""
        engine = self.engine
        if engine.embedder:
            return engine.embedder
        folder = model_folder(self.config, engine.index.folder, self.model_name)
        if folder is None:
            raise _no_model(self.model_name)
        return Embedder(folder)

    @property
    def workers(self) -> int:
        """Searches at a time."""
        return self.footprint.workers

    @property
    def pool(self) -> ThreadPoolExecutor:
        """The threads in which searches run."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="search")
        return self._pool

    def answer(self, request: SearchRequest, *, queue_ms: float = 0.0) -> dict[str, Any]:
        """Answer one request in this thread: the result message. Raises NotReadyError."""
        started = time.perf_counter()
        engine = self.engine
        result = engine.search(request)
        papers = engine.index.papers
        if not result.hits and papers.damage:
            raise DamagedPapersError(f"papers.db is damaged: {papers.damage}")
        if not result.hits and not papers.last_change():
            raise NotReadyError(
                "the corpus holds no papers yet", hint="arxplorer-agent corpus import FILE, or --sample"
            )
        took = (time.perf_counter() - started) * 1e3
        return search_result(request, result, AnswerFacts(self.config.thing_name, time.time(), took, queue_ms))

    def search_sync(self, query: str, filters: Mapping[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
        """Search; `filters` as in a request message, `rest` its other fields (offset, request_id, ..).

        Returns the result message. Raises RequestError, which names the field, and NotReadyError.
        """
        return self.answer(request_from(query, filters, **rest))

    async def search(self, query: str, filters: Mapping[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
        """As `search_sync`, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(
            self.pool, lambda: self.search_sync(query, filters, **rest)
        )

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        if self._engine:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CorpusModel(NamedTuple):
    """What a corpus was made with: the model by name, the length of its vectors, the version of the pack or `local`."""

    name: str
    dimensions: int
    version: str


def corpus_model(config: Config, folder: Path) -> CorpusModel:
    """That of the pack which the generation in a folder was made from, else the configured one.

    Raises ModelError for a model that nobody knows.
    """
    if pack := pack_of(folder):
        return CorpusModel(pack.model, pack.dimensions, pack.version)
    name = config.model.name
    return CorpusModel(name, find_manifest(config.data_dir, name).dimensions, LOCAL)


def model_folder(config: Config, folder: Path, name: str) -> Path | None:
    """Where the model of a generation is installed: with it, where its pack brought one, else as any other."""
    own = folder / MODEL
    return own if (own / "model.onnx").is_file() else find_model(config.data_dir, name)


def load_embedder(config: Config) -> Embedder:
    """The configured model, loaded. Raises ModelError, with the command to install it, where it is missing."""
    name = config.model.name
    folder = find_model(config.data_dir, name)
    if folder is None:
        raise _no_model(name)
    return Embedder(folder)


def _no_model(name: str) -> ModelError:
    return ModelError(f"model {name} is not installed", hint=f"arxplorer-agent model install {name}")


def find_manifest(data_dir: Path, name: str) -> ModelManifest:
    """The manifest of a model, installed or in the catalog. Raises ModelError for one that nobody knows."""
    for folder in (find_model(data_dir, name), catalog_dir() / name):
        # The catalog still knows a model whose installed manifest is damaged.
        with suppress(ModelError, OSError, UnicodeDecodeError):
            if folder:
                path = folder / "model.yaml"
                return parse_manifest(path.read_text("utf-8"), where=str(path))
    raise ModelError(f"model {name!r} is neither installed nor known", hint="arxplorer-agent model list")
