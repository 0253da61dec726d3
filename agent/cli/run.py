"""`run`: the agent in the foreground."""

import click

from agent.cli.context import State, pass_state


@click.command()
@click.option("--sample", is_flag=True, help="Begin with the sample papers where the corpus never held any.")
@pass_state
def run(state: State, sample: bool) -> None:
    """Run the agent: answer requests from the local broker until SIGTERM."""
    import asyncio
    import faulthandler
    import logging
    import os
    import sys

    from agent.logs import set_up_logging
    from agent.service import MQTTSearchService

    faulthandler.enable()  # a crash in native code, or systemd's watchdog, leaves every thread's place in the log
    set_up_logging(state.config.logging.level)
    asyncio.run(MQTTSearchService(state.config, sample=sample).run_forever())
    # Everything is stopped in order. Python would still wait for a thread in the middle of building an index.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
