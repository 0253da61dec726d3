"""Every crash point of the code, and what is tried at it."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from agent.crash_points import VARIABLE

POINTS: dict[str, list[str]] = {
    "installing.apply:applied": ["take-increment"],
    "installing.make:unpacked": ["take", "take-increment"],
    "installing.make:complete": ["take", "take-increment", "sync"],
    "installing.install:switched": ["take", "take-increment"],
    "agent_db.compact:before-checkpoint": ["outbox"],
    "agent_db.put_aside:renamed": ["damaged"],
    "agent_db.write:after-commit": ["outbox", "outbox:4", "outbox:7", "outbox:8"],
    "agent_db.write:before-commit": ["outbox", "outbox:4", "outbox:7", "outbox:8"],
    "bridge.done:before-acknowledge": ["question"],
    "bridge.serve:update-stored": ["update"],
    "connection.open:empty-file": ["first", "outbox"],
    "corpus_index.close:still-marked": ["new"],
    "corpus_index.open:marked": ["first", "new"],
    "delivery.drain:before-remove": ["deliver"],
    "device_files.move:before-sync": ["keys"],
    "device_files.replace:after-rename": ["keys", "keys:3"],
    "device_files.replace:before-rename": ["keys", "keys:2", "keys:3"],
    "device_files.replace:before-sync": ["keys", "keys:2"],
    "device_files.write:old-kept": ["keys"],
    "download.add:synced": ["fetch", "fetch:2"],
    "download.begin:former-manifest": ["fetch"],
    "download.fetch:after-rename": ["fetch"],
    "download.fetch:before-rename": ["fetch", "sync"],
    "generations.activate:after-rename": ["first", "heal", "switch", "rollback"],
    "generations.activate:before-rename": ["first", "heal", "switch", "rollback"],
    "generations.ensure:no-link": ["first"],
    "generations.numbered:empty-folder": ["switch"],
    "generations.numbered:renamed": ["switch"],
    "generations.sweep:one-gone": ["switch"],
    "generations.sweep:renamed": ["switch"],
    "generations.sweep:unfinished-gone": ["forget"],
    "harvest.run:applied": ["harvest", "harvest:2"],
    "harvest.run:list-done": ["harvest"],
    "harvest.run:position-kept": ["harvest"],
    "harvest.take:half-a-page": ["harvest"],
    "healing.heal:empty-folder": ["heal"],
    "healing.heal:marked": ["heal"],
    "healing.heal:salvaged": ["heal"],
    "healing.keep:log-left": ["heal"],
    "healing.sweep:damaged-moved": ["heal"],
    "healing.sweep:old-gone": ["heal"],
    "heartbeat.beat:after-rename": ["beat"],
    "heartbeat.beat:before-rename": ["beat"],
    "increments.apply:batch-done": ["increment"],
    "increments.copy:done": ["increment"],
    "increments.copy:no-papers": ["increment"],
    "inspection.salvage:before-commit": ["salvage", "heal"],
    "install.swap:before-rename": ["install", "replace"],
    "install.swap:before-sync": ["install", "replace"],
    "install.swap:scratch-left": ["install", "replace"],
    "keys.new:before-rename": ["make", "make:3", "rotate"],
    "keys.root:no-copy": ["make", "rotate"],
    "keys.rotate:key-alone": ["rotate"],
    "keywords.apply:before-commit": ["first", "new:2", "remove"],
    "keywords.apply:before-merge": ["new", "remove"],
    "keywords.apply:before-state": ["first", "new:2", "remove", "rebuild"],
    "keywords.start_anew:empty-folder": ["first", "rebuild"],
    "keywords.start_anew:moved-away": ["rebuild"],
    "packing.begin:marked": ["pack"],
    "packing.pack:no-manifest": ["pack"],
    "packing.pack:scratch-left": ["pack"],
    "packing.parts:part-done": ["pack", "pack:5"],
    "packing.whole:papers-made": ["pack"],
    "packing.whole:segment-made": ["pack"],
    "packs.unpack:before-sync": ["unpack", "unpack:5"],
    "packs.unpack:no-manifest": ["unpack"],
    "packs.unpack:part-done": ["unpack", "unpack:5"],
    "papers.put_vectors:between-vectors": ["first:25", "new:7"],
    "papers.remove:row-still-there": ["remove:5"],
    "papers.supersede:old-row-gone": ["new:25"],
    "papers.transaction:after-commit": ["first", "new:2", "new:5", "remove"],
    "papers.transaction:before-commit": ["first:4", "new:2", "remove"],
    "paths.write_file:after-rename": ["first", "new:5", "publish:3", "pack:3"],
    "paths.write_file:before-rename": ["first", "first:4", "publish:4", "rotate:4", "pack:3"],
    "paths.write_file:before-sync": ["first:4", "new", "pack:3"],
    "paths.write_file:done": ["first", "rebuild", "pack:3"],
    "publishing.commit:no-new-root": ["begin", "publish", "rotate", "withdraw"],
    "publishing.commit:no-timestamp": ["begin", "publish", "rotate", "withdraw"],
    "publishing.commit:targets-alone": ["begin", "publish", "rotate", "withdraw"],
    "publishing.copy:before-rename": ["begin", "publish"],
    "publishing.publish:manifest-alone": ["begin", "publish"],
    "publishing.publish:parts-alone": ["begin", "publish"],
    "publishing.roots:between": ["begin", "rotate"],
    "publishing.withdraw:files-left": ["withdraw"],
    "replay.replay:between-batches": ["switch", "switch:2", "rollback"],
    "schema.agent:before-vacuum": ["outbox"],
    "schema.agent:between-tables": ["outbox"],
    "schema.agent:no-remembered": ["outbox"],
    "schema.ensure:before-version": ["first", "outbox"],
    "schema.papers:between-tables": ["first"],
    "segments.build:before-sync": ["new"],
    "segments.build:graph-alone": ["first", "rebuild"],
    "switching.activate:before-swap": ["switch", "rollback"],
    "switching.activate:swapped": ["switch", "rollback", "sync"],
    "switching.activate:tested": ["switch", "rollback"],
    "switching.mark:previous": ["switch", "rollback"],
    "switching.mark:trial": ["switch", "rollback"],
    "switching.roll_back:held-back": ["rollback"],
    "switching.roll_back:switched": ["rollback"],
    "trials.begin:counted": ["start"],
    "trials.end_trial:unlinked": ["stop"],
    "updates.apply_update:journalled": ["own"],
    "upkeep.salvage:after-rename": ["salvage"],
    "upkeep.salvage:before-link": ["salvage"],
    "upkeep.salvage:before-rename": ["salvage"],
    "upkeep.salvage:linked": ["salvage"],
    "upkeep.salvage:log-renamed": ["salvage", "salvage:2"],
    "vectors.commit:before-state": ["first", "new:2"],
    "vectors.drop:no-state": ["rebuild"],
    "vectors.sweep:between-files": ["new:2", "rebuild"],
}
"""Of each point what passes it (the command or worker; `heal` is in test_damage.py), and where that matters, which passing: `NAME:N`."""


def cases(*scenarios: str) -> list[Any]:
    found = []
    for point, passings in POINTS.items():
        for passing in passings:
            scenario, _, number = passing.partition(":")
            if scenario in scenarios:
                found.append(pytest.param(scenario, f"{point}:{number or 1}", id=f"{point}-{passing}"))
    return found


def killed_at(point: str, *command: str) -> str:
    """Run a command that dies at a point; what it had said by then."""
    environment = {**os.environ, VARIABLE: point}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, f"did not come to {point}: {done.stdout}{done.stderr}"
    return done.stdout
