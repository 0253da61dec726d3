"""The agent, with one more operation: `test.count` writes a line for each file `go-N` that it finds in its data folder.

It stands for what takes long, like fetching a pack: it goes on from its details, and a test says how far it may go.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.__main__ import main
from agent.cloud.jobs import Job
from agent.errors import AgentError
from agent.service import MQTTSearchService

WORK = "work.txt"


class Service(MQTTSearchService):
    def _operations(self) -> Any:
        return super()._operations() | {"test.count": self._count}

    def _count(self, job: Job) -> Mapping[str, Any]:
        folder = self.config.data_dir
        for number in range(int(job.details.get("done", 0)), job.document["to"]):
            while not (folder / f"go-{number}").exists():
                if job.cancelled():
                    _note(folder, f"{job.id} told to end")
                    raise AgentError("told to end")
                time.sleep(0.01)
            _note(folder, f"{job.id} {number}")
            job.report({"done": number + 1})
        return {"counted": job.document["to"]}


def _note(folder: Path, line: str) -> None:
    with (folder / WORK).open("a") as work:
        work.write(line + "\n")


if __name__ == "__main__":
    import agent.cloud.jobs
    import agent.service

    agent.cloud.jobs.REPORT_EVERY_S = 0.05  # type: ignore[misc]
    agent.service.MQTTSearchService = Service  # type: ignore[misc]
    main()
