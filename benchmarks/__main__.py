"""`scripts/bench`: all parts, or those named."""

from collections.abc import Callable

import click

from benchmarks import (
    board,
    cloud,
    comparison,
    filters,
    idle,
    importing,
    keywords,
    kills,
    memory,
    packs,
    path,
    picture,
    relevance,
    start,
    throughput,
    updating,
    vectors,
)
from benchmarks.data import SHARED, SIZES
from benchmarks.glue import measuring as glue
from benchmarks.peers import environment
from benchmarks.peers.registry import ENGINES

PARTS = ("vectors", "path", "idle", "import", "import-vectors", "relevance")
OTHER_PARTS = (
    *("throughput", "memory", "filters", "keywords", "kills", "cloud", "offline", "arrival", "board", "start"),
    *("peers", "glue", "picture", "packs", "updating"),
)


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS + OTHER_PARTS))
@click.option("--size", type=click.Choice(SIZES), default="10k", show_default=True, help="Papers in the corpus.")
@click.option("--blocks", default=60, show_default=True, help="Interleaved blocks of the path.")
@click.option("--block", default=10, show_default=True, help="Questions in a block.")
@click.option("--papers", default=10_000, show_default=True, help="Papers that the import embeds, or that kills adds.")
@click.option("--seconds", default=30.0, show_default=True, help="How long the idle agent is watched.")
@click.option("--questions", default=200, show_default=True, help="Questions of the other parts.")
@click.option("--starts", default=5, show_default=True, help="Cold starts of each server; unpackings of a pack.")
@click.option("--limit", default=256, show_default=True, help="MiB that the board gives the agent.")
@click.option("--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)), help="Only these of the peers.")
@click.option("--with-peers", is_flag=True, help="Install the peers first, into .venv-bench.")
def bench(
    parts: tuple[str, ...],
    size: str,
    blocks: int,
    block: int,
    papers: int,
    seconds: float,
    questions: int,
    starts: int,
    limit: int,
    engines: tuple[str, ...],
    with_peers: bool,
) -> None:
    """Measure this machine. Without PARTS: vectors, path, idle, import, import-vectors, relevance.

    `peers` and `glue` need --with-peers once. `picture` draws docs/measurements.svg from what was measured last.
    """
    if not SHARED.is_dir():
        raise click.ClickException(
            f"the bench needs real papers, in {SHARED.name} of the shared folder beside the checkout"
        )
    if with_peers:
        environment.install()
    measures: dict[str, Callable[[], None]] = {
        "vectors": vectors.measure,
        "path": lambda: path.measure(size, blocks, block),
        "idle": lambda: idle.measure(size, seconds),
        "import": lambda: importing.measure_embedding(papers),
        "import-vectors": lambda: importing.measure_given_vectors(size),
        "relevance": relevance.measure,
        "throughput": lambda: throughput.measure(size, questions),
        "memory": lambda: memory.measure(questions),
        "filters": lambda: filters.measure(size, questions),
        "keywords": lambda: keywords.measure(size, questions),
        "kills": lambda: kills.measure(papers, 50),
        "cloud": lambda: cloud.measure(size, blocks, block),
        "offline": lambda: cloud.measure_offline(size, blocks, block),
        "arrival": lambda: cloud.measure_arrival(size),
        "board": lambda: board.measure(size, limit, blocks, block),
        "start": lambda: start.measure(size, starts),
        "glue": lambda: glue.measure(size, blocks, block, starts),
        "picture": picture.draw,
        "packs": lambda: packs.measure(size, starts),
        "updating": lambda: updating.measure(size, questions),
        "peers": lambda: comparison.measure(size, engines, questions),
    }
    for part in parts or PARTS:
        measures[part]()


if __name__ == "__main__":
    bench()
