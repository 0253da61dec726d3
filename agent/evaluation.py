"""Ranking quality on a BEIR-style folder: nDCG@10 and recall@100 of every mode.

    corpus.jsonl[.gz]    {"_id", "title", "text"}
    queries.jsonl[.gz]   {"_id", "text"}
    qrels/NAME.tsv       query-id, corpus-id, score (with a header line)

The measures are those of trec_eval (nDCG with linear gain); a query's score is averaged over the queries that have
at least one relevant document.
"""

import csv
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from agent.config import SearchConfig
from agent.corpus.embedding import embed_missing
from agent.corpus.source import open_lines
from agent.domain import MODES, Mode, Paper, SearchRequest
from agent.errors import CorpusError, validation_place
from agent.search.corpus_index import CorpusIndex
from agent.search.embedder import Embedder
from agent.search.engine import SearchEngine

NDCG_AT: Final = 10
RECALL_AT: Final = 100

Judgements = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> relevance."""


class _Row(msgspec.Struct):
    """A line of corpus or queries."""

    id: str | int = msgspec.field(name="_id")
    text: str
    title: str | None = None


_decoder: Final = msgspec.json.Decoder(_Row)


def ndcg(ranking: Sequence[str], relevance: Mapping[str, int], at: int = NDCG_AT) -> float:
    """Normalised discounted cumulative gain (Jarvelin and Kekalainen 2002), linear gain, in [0, 1]."""
    gained = sum(relevance.get(doc, 0) / math.log2(rank + 2) for rank, doc in enumerate(ranking[:at]))
    best = sorted(relevance.values(), reverse=True)[:at]
    ideal = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best))
    return gained / ideal if ideal else 0.0


def recall(ranking: Sequence[str], relevance: Mapping[str, int], at: int = RECALL_AT) -> float:
    """Share of the relevant documents among the first `at`."""
    relevant = {doc for doc, grade in relevance.items() if grade > 0}
    return len(relevant.intersection(ranking[:at])) / len(relevant)


def evaluate_folder(
    folder: Path,
    qrels: Sequence[str],
    embedder: Embedder,
    config: SearchConfig,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[Mode, dict[str, float]]]:
    """Index the folder's documents in a scratch corpus and score every mode: judgements -> mode -> measure.

    Raises CorpusError naming the file that is missing or malformed.
    """
    judgements = {name: _judgements(folder / "qrels" / f"{name}.tsv") for name in qrels}
    queries = {str(row.id): row.text for row in _rows(folder, "queries")}
    unknown = sorted({query for judged in judgements.values() for query in judged} - set(queries))
    if unknown:
        raise CorpusError(f"{folder}: queries that are judged but not there: {', '.join(unknown[:5])}")
    with tempfile.TemporaryDirectory(prefix="arxplorer-evaluate-") as scratch:
        index = CorpusIndex(Path(scratch), embedder.manifest.name, embedder.dimensions, owner=True)
        with closing(SearchEngine(index, embedder, config)) as engine:
            index.papers.put([Paper(str(row.id), row.title or "", row.text) for row in _rows(folder, "corpus")])
            embed_missing(index, embedder, progress=progress)
            return {
                name: {mode: _score(engine, queries, judged, mode) for mode in MODES}
                for name, judged in judgements.items()
            }


def _score(engine: SearchEngine, queries: Mapping[str, str], judged: Judgements, mode: Mode) -> dict[str, float]:
    totals = {"ndcg@10": 0.0, "recall@100": 0.0}
    for query_id, relevance in judged.items():
        result = engine.search(SearchRequest(query=queries[query_id], mode=mode, max_results=RECALL_AT))
        ranking = [hit.paper.arxiv_id for hit in result.hits]
        totals["ndcg@10"] += ndcg(ranking, relevance)
        totals["recall@100"] += recall(ranking, relevance)
    return {name: round(total / len(judged), 4) for name, total in totals.items()}


def _judgements(path: Path) -> Judgements:
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                judged[row["query-id"]][row["corpus-id"]] = int(row["score"])
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise CorpusError(
            f"{path} cannot be read as judgements: {error}",
            hint="tab-separated, with the header query-id, corpus-id, score",
        ) from error
    relevant = {query: grades for query, grades in judged.items() if max(grades.values()) > 0}
    if not relevant:
        raise CorpusError(f"{path} judges no document relevant")
    return relevant


def _rows(folder: Path, name: str) -> list[_Row]:
    path = next(
        (p for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst") if (p := folder / f"{name}{suffix}").is_file()),
        None,
    )
    if path is None:
        raise CorpusError(f"{folder} holds no {name}.jsonl or {name}.jsonl.gz")
    rows: list[_Row] = []
    with open_lines(str(path)) as lines:
        for number, line in lines:
            if line == b"":
                continue
            try:
                rows.append(_decoder.decode(line or b""))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                place, reason = validation_place(str(error))
                raise CorpusError(f"{path} line {number}: {place + ': ' if place else ''}{reason}") from error
    return rows
