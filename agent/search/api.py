"""SearchAPI: the corpus and the model of a data folder, opened; questions and answers as plain documents."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from agent.config import Config, find_config_file, load_config
from agent.domain import SearchRequest
from agent.errors import CorpusError, DamagedPapersError, ModelError, NotReadyError
from agent.footprint import MODEL_MIB, footprint
from agent.paths import catalog_dir, find_model
from agent.protocol.answers import AnswerFacts, search_result
from agent.protocol.manifest import ModelManifest, parse_manifest
from agent.protocol.requests import request_from
from agent.search.corpus_index import CorpusIndex
from agent.search.embedder import Embedder
from agent.search.engine import SearchEngine
from agent.store.generations import current_generation, ensure_generation, no_corpus


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
        self._engine: SearchEngine | None = None
        self._model: Embedder | None = None
        self._model_problem: str | None = None
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
        if model:
            self._model = self._model or self._load_model()  # before the index: of libraries one must come first
        self._search_in(self.index_of(folder, owner=owner))
        return self

    def index_of(self, folder: Path, *, owner: bool) -> CorpusIndex:
        """Open the corpus in a folder, made as the configuration wants it. Raises CorpusError."""
        return CorpusIndex(folder, self.config.model.name, self.dimensions, owner=owner, fits=self.footprint)

    def use(self, index: CorpusIndex) -> None:
        """Search in this corpus from the next question on, from any thread.

        Questions under way end on the one before, which closes when nobody has it any more.
        """
        self._model = self._model or self._load_model()
        self._search_in(index)

    def _search_in(self, index: CorpusIndex) -> None:
        settings = self._engine.config if self._engine else self.config.search
        self._engine = SearchEngine(index, self._model, settings)

    def _load_model(self) -> Embedder | None:
        """The configured model; None, and a problem, where it is missing or damaged or does not fit.

        Keywords work without it.
        """
        name = self.config.model.name
        if not self.footprint.model:
            self._model_problem = (
                f"model {name} needs {MODEL_MIB} MiB and {self.footprint.memory_mib} are allowed: keyword search only"
            )
            return None
        folder = find_model(self.config.data_dir, name)
        self._model_problem = f"model {name} is not installed: keyword search only"
        if folder is None:
            return None
        try:
            embedder = Embedder(folder)
        except ModelError as error:
            self._model_problem = f"model {name} is damaged: keyword search only ({error.message})"
            return None
        self._model_problem = None
        return embedder

    @property
    def problems(self) -> list[str]:
        """What keeps answers from being as good as they could be, in words."""
        found = [self._model_problem] if self._model_problem else []
        index = self.engine.index
        try:
            if not index.papers.damage and not index.papers.last_change():
                found.append("the corpus holds no papers")
            return found + index.problems()
        except CorpusError as error:
            damage = index.papers.damage
            return [*found, f"papers.db is damaged: {damage}" if damage else error.message]

    @property
    def dimensions(self) -> int:
        """Of the configured model's vectors, whether it is installed or only known."""
        return find_manifest(self.config.data_dir, self.config.model.name).dimensions

    @property
    def engine(self) -> SearchEngine:
        if self._engine is None:
            raise NotReadyError("the search is not open yet", hint="await initialize() first")
        return self._engine

    @property
    def embedder(self) -> Embedder:
        """The model. Raises ModelError where none is installed."""
        return self.engine.embedder or load_embedder(self.config)

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


def load_embedder(config: Config) -> Embedder:
    """The configured model, loaded. Raises ModelError, with the command to install it, where it is missing."""
    name = config.model.name
    folder = find_model(config.data_dir, name)
    if folder is None:
        raise ModelError(f"model {name} is not installed", hint=f"arxplorer-agent model install {name}")
    return Embedder(folder)


def find_manifest(data_dir: Path, name: str) -> ModelManifest:
    """The manifest of a model, installed or in the catalog. Raises ModelError for one that nobody knows."""
    for folder in (find_model(data_dir, name), catalog_dir() / name):
        # The catalog still knows a model whose installed manifest is damaged.
        with suppress(ModelError, OSError, UnicodeDecodeError):
            if folder:
                path = folder / "model.yaml"
                return parse_manifest(path.read_text("utf-8"), where=str(path))
    raise ModelError(f"model {name!r} is neither installed nor known", hint="arxplorer-agent model list")
