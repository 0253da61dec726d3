"""The operation `agent.restart`: done once the job is found by another run of the agent than the one that was told."""

import uuid
from collections.abc import Mapping
from typing import Any, Final

from agent.cloud.jobs import Job, RestartRequested

RUN: Final = uuid.uuid4().hex
"""Of this process, and of no other."""
RESTARTING: Final = "restarting"


def restart_agent(job: Job) -> Mapping[str, Any]:
    """Raises RestartRequested in the run that is to end."""
    asked_in = job.details.get("run")
    if job.details.get("step") == RESTARTING and asked_in and asked_in != RUN:
        return {"step": "restarted", "run": RUN}
    raise RestartRequested({"step": RESTARTING, "run": RUN})
