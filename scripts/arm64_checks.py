"""What scripts/test-arm64 does inside the emulated root, with the package's own Python; and on x86-64, to compare with.

Of the project it imports the installed package only: this file alone is copied there.
"""

import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

QUERIES = 40
DOCUMENTS = 8
MODES = ("hybrid", "semantic", "keyword")
QUESTION = "heavy neutrinos and the lack of antimatter"
CONFIG = Path("/etc/arxplorer-agent/config.yaml")
UNIT = Path("/usr/lib/systemd/system/arxplorer-agent.service")  # on bookworm /lib is a link to /usr/lib
STATE = Path("/var/lib/arxplorer-agent")
RUNTIME = Path("/run/arxplorer-agent")
UNHURRIED_S = 300
"""Longest wait for what takes a moment on a processor: emulation is some hundred times slower."""


class FailedError(Exception):
    """A check that does not hold."""


def holds(fact: object, what: str) -> None:
    if not fact:
        raise FailedError(what)


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=UNHURRIED_S, check=False, **options)
    if check and done.returncode:
        raise FailedError(f"{' '.join(command)}: {done.returncode}: {done.stdout[-300:]}{done.stderr[-1000:]}")
    return done


# -- what is compared -------------------------------------------------------------------------------------------------


def measure(config: Any) -> dict[str, Any]:
    """Vectors and rankings, by the calls that the agent makes itself: of titles and first sentences of the sample."""
    from agent.corpus.records import parse_line
    from agent.corpus.sample import SAMPLE_PAPERS
    from agent.search import SearchAPI

    papers = [parse_line(line) for line in SAMPLE_PAPERS.read_bytes().splitlines()][: QUERIES + DOCUMENTS]
    queries = [paper.abstract.partition(". ")[0] if i % 2 else paper.title for i, paper in enumerate(papers[:QUERIES])]
    with SearchAPI(config) as api:
        api.open()
        documents = [paper.text for paper in papers[-DOCUMENTS:]]
        rankings = {}
        for mode in MODES:
            for query in queries:
                found = api.search_sync(query, {"mode": mode, "max_results": 10})["results"]
                rankings[f"{mode}: {query}"] = [(hit["arxiv_id"], hit["score"]) for hit in found]
        return {
            "vectors": [
                *(api.embedder.query(query).tolist() for query in queries),
                *api.embedder.documents(documents).tolist(),  # in batches
            ],
            "rankings": rankings,
        }


def reference(target: str) -> None:
    """The same on this machine, by the checkout's own environment."""
    from agent.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-m", "agent", "--data-dir", folder)
        run(*command, "corpus", "import", "--sample")
        config = load_config(environment={}, data_dir=Path(folder))
        Path(target).write_text(json.dumps(measure(config)), "utf-8")


# -- the checks, in this order ----------------------------------------------------------------------------------------


def site_packages() -> Path:
    return next(Path("/opt/arxplorer-agent/lib").glob("python3*/site-packages"))


def modules(site: Path) -> Iterator[str]:
    """Every package and module at the top, and every compiled module wherever it is."""
    for path in sorted(site.iterdir()):
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists()):
            yield path.stem
    for path in sorted(site.rglob("*.so")):
        suffix = next((end for end in EXTENSION_SUFFIXES if path.name.endswith(end)), None)
        if suffix and not path.name.startswith("lib"):  # else a library of a module's
            yield ".".join(path.relative_to(site).parts).removesuffix(suffix)


def every_module_is_imported() -> str:
    from agent.search.native import onnx_runtime

    onnx_runtime()  # before usearch: see there
    site = site_packages()
    names = list(dict.fromkeys(modules(site)))
    problems = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  whatever a library does when it cannot be imported
            problems.append(f"{name}: {type(error).__name__}: {error}")
    holds(not problems, "; ".join(problems))
    distributions = {one.name.lower() for one in importlib.metadata.distributions(path=[str(site)])}
    wanted = [line for line in importlib.metadata.requires("arxplorer-agent") or () if "extra ==" not in line]
    missing = [line for line in wanted if re.split(r"[^\w.-]", line.lower())[0] not in distributions]
    holds(wanted and not missing, f"not in the package: {missing}")
    return f"{len(names)} modules of {len(distributions)} distributions"


def the_model_passes_its_self_test() -> str:
    found = json.loads(run("arxplorer-agent", "model", "verify", "--json").stdout)["self_test"]
    return f"cosine to fp32 {found['worst']:.4f} at worst, alone to in a batch {found['worst_in_batch']:.6f}"


def a_32_bit_system_is_refused() -> str:
    with tempfile.TemporaryDirectory() as folder:
        run("dpkg-deb", "--control", "/root/this.deb", f"{folder}/control")
        dpkg = Path(folder) / "dpkg"
        dpkg.write_text("#!/bin/sh\necho armhf\n")
        dpkg.chmod(0o755)
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        done = run("sh", f"{folder}/control/preinst", "install", check=False, env=environment)
    holds(done.returncode == 1 and "64-bit system is needed" in done.stderr, done.stderr)
    return "a 64-bit system is needed"


def the_agent_answers_and_ends() -> str:
    run("install", "-d", "-o", "mosquitto", "-g", "mosquitto", "/run/mosquitto")  # as its unit does
    with started("/usr/sbin/mosquitto", "-c", "/etc/mosquitto/mosquitto.conf") as broker:
        unit = UNIT.read_text("utf-8")
        command = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0].split()
        run("install", "-d", "-o", "arxplorer", "-g", "arxplorer", "-m", "755", str(RUNTIME))
        # As the unit starts it, but for the confinement.
        environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^Environment=(.*)$", unit, re.MULTILINE))))
        environment |= {"STATE_DIRECTORY": str(STATE), "RUNTIME_DIRECTORY": str(RUNTIME)}
        with started(
            *command,
            user="arxplorer",
            group="arxplorer",
            extra_groups=(),
            umask=0o007,
            env={**os.environ, **environment},
        ) as agent:
            begun = time.monotonic()
            while True:
                holds(broker.poll() is None, "mosquitto ended")
                holds(agent.poll() is None, "the agent ended")
                asked = run("arxplorer-agent", "ask", QUESTION, "--json", "--timeout", "60", check=False)
                if not asked.returncode:
                    break
                holds(time.monotonic() - begun < UNHURRIED_S, f"no answer: {asked.stdout[-300:]}{asked.stderr[-300:]}")
            direct = json.loads(run("arxplorer-agent", "search", QUESTION, "--json").stdout)["results"]
            results = json.loads(asked.stdout)["results"]
            holds(results and results == direct, f"the agent found {results}, a search {direct}")
            run("arxplorer-agent", "health")
            agent.send_signal(signal.SIGTERM)
            code = agent.wait(UNHURRIED_S)
            holds(code == 0, f"ended with {code} after SIGTERM")
    return f"{len(results)} results as of a search, healthy, ended with 0 after SIGTERM"


@contextmanager
def started(*command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=sys.stderr, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


CHECKS: tuple[Callable[[], str], ...] = (
    every_module_is_imported,
    the_model_passes_its_self_test,
    a_32_bit_system_is_refused,
    the_agent_answers_and_ends,
)


def inside(target: str) -> None:
    from agent.config import load_config

    os.umask(0o002)  # as the command does, since the agent's files are looked at by several users
    begun = time.monotonic()
    found: dict[str, Any] = {"checks": {}}
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            found["checks"][name] = ["yes", check()]
        except (FailedError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            found["checks"][name] = ["NO", re.sub(r"\s+", " ", str(error))[-600:]]
        print(name, *found["checks"][name], f"({time.monotonic() - begun:.0f} s)", flush=True)
    found |= measure(load_config(CONFIG, environment={}))
    found["took_s"] = time.monotonic() - begun
    Path(target).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    {"reference": reference, "inside": inside}[sys.argv[1]](sys.argv[2])
