"""The command line: one module per group of commands. Heavy imports happen inside commands."""

from pathlib import Path

import click

from agent import __version__
from agent.cli.cloud import cloud
from agent.cli.context import State
from agent.cli.corpus import corpus
from agent.cli.health import health
from agent.cli.local_cloud import local_cloud
from agent.cli.model import embed, model
from agent.cli.outbox import outbox
from agent.cli.run import run
from agent.cli.search import ask, evaluate, search
from agent.cli.settings import config


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Configuration file. Default: ./config.yaml, else /etc/arxplorer-agent/config.yaml, else built-in values.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of corpus and models.")
@click.version_option(__version__, prog_name="arxplorer-agent")
@click.pass_context
def cli(context: click.Context, config_file: Path | None, data_dir: Path | None) -> None:
    """Search arXiv by meaning and by keyword, over MQTT or right here, offline first."""
    context.obj = State(config_file, data_dir)


for command in (run, health, search, ask, corpus, model, embed, evaluate, outbox, config, cloud, local_cloud):
    cli.add_command(command)
