"""`scripts/bench`: all parts, or those named."""

import click

from benchmarks import idle, importing, path, relevance, vectors
from benchmarks.data import SHARED, SIZES

PARTS = ("vectors", "path", "idle", "import", "import-vectors", "relevance")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--size", type=click.Choice(SIZES), default="10k", show_default=True, help="Papers in the corpus.")
@click.option("--blocks", default=60, show_default=True, help="Interleaved blocks of the path.")
@click.option("--block", default=10, show_default=True, help="Questions in a block.")
@click.option("--papers", default=10_000, show_default=True, help="Papers that the import embeds.")
@click.option("--seconds", default=30.0, show_default=True, help="How long the idle agent is watched.")
def bench(parts: tuple[str, ...], size: str, blocks: int, block: int, papers: int, seconds: float) -> None:
    """Measure this machine. PARTS: vectors, path, idle, import, import-vectors, relevance; default: all."""
    if not SHARED.is_dir():
        raise click.ClickException(
            f"the bench needs real papers, in {SHARED.name} of the shared folder beside the checkout"
        )
    measures = {
        "vectors": vectors.measure,
        "path": lambda: path.measure(size, blocks, block),
        "idle": lambda: idle.measure(size, seconds),
        "import": lambda: importing.measure_embedding(papers),
        "import-vectors": lambda: importing.measure_given_vectors(size),
        "relevance": relevance.measure,
    }
    for part in parts or PARTS:
        measures[part]()


if __name__ == "__main__":
    bench()
