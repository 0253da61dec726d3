"""What scripts/test-container does with the image that it built: look into it, run it hard, write down what it saw."""

import datetime as dt
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from check_report import write_checks
from device_tools import HANGS, holds, run, seconds, tried, until

from agent import __version__
from agent.local_cloud.mosquitto import Mosquitto

arch, base, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
cpuinfo = sys.argv[5] if sys.argv[4:5] == ["--emulated"] else ""
IMAGE = "localhost/arxplorer-agent"
DATA = "/var/lib/arxplorer-agent"
DOCKERFILE = Path(__file__).parents[1] / "Dockerfile.arm64"
PYTHON = re.findall(r"^ARG PYTHON_MINOR=(.*)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)[0]
SITE = f"/opt/arxplorer-agent/lib/python{PYTHON}/site-packages"
COST = """
import resource, subprocess
subprocess.run(["arxplorer-agent", "health"], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
LAYERS = ("model", "libraries", "agent", "data folder")
MAX_MB = 220
STOP_S = 5
# An emulator needs memory of its own, and a hundred times the time.
MEMORY = "2g" if cpuinfo else "256m"
PATIENCE = 20 if cpuinfo else 1
USER = 12345
WATCHDOG_S = 4 * PATIENCE
QUESTION = "heavy neutrinos and the lack of antimatter"
HARD = (
    *("--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--memory", MEMORY, "--memory-swap", MEMORY, "--pids-limit", "128", "--network", "host"),
    # podman would raise these above what the machine may allow.
    *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"),
)
UNWANTED = re.compile(
    r"(^|/)(gcc|g\+\+|cc|c\+\+|ld|as|make|cargo|rustc|pip3?|uv|strip|\.cache|lists|tests?|\.git|\.venv)$"
    r"|\.(a|h|pxd|pyi|whl|deb|key)$"
)
broker = Mosquitto(folder / "broker")


def podman(*arguments: str, check: bool = True, timeout: float = 60) -> str:
    store = ("--root", str(folder / "store"), "--runroot", str(folder / "run"))
    return run("podman", *store, *arguments, check=check, timeout=timeout * PATIENCE)


def start(name: str, *options: str, command: tuple[str, ...] = ("run", "--sample")) -> None:
    podman("rm", "-f", "-t", "0", "-i", name)
    emulated = ("-e", "QEMU_CPU=cortex-a72", "-v", f"{cpuinfo}:/proc/cpuinfo:ro") if cpuinfo else ()
    port = ("-e", f"ARXPLORER__LOCAL_BROKER__PORT={broker.port}", "-e", f"ARXPLORER__AWS_IOT__THING_NAME={name}")
    podman("run", "-d", "--name", name, *HARD, *port, *emulated, *options, IMAGE, *command)


def own_folder(name: str, user: int = USER) -> Path:
    made = folder / name
    made.mkdir(exist_ok=True)
    os.chown(made, user, user)
    return made


def agent(name: str, *arguments: str, check: bool = True) -> str:
    return podman("exec", name, "arxplorer-agent", *arguments, check=check)


def answers(name: str) -> bool:
    # What is asked before the agent listens is lost, and waited for in vain.
    if "connected to" not in podman("logs", name):
        return False
    return f'"processed_by": "{name}"' in agent(name, "ask", QUESTION, "--json", "--max-results", "1", check=False)


def state(name: str, what: str) -> str:
    return podman("inspect", "-f", "{{.State." + what + "}}", name).strip()


def entries(image: str) -> dict[str, os.stat_result]:
    """What lies in an image, by path from its root."""
    root = Path(podman("image", "mount", image).strip())
    try:
        found = {}
        for top, folders, files in os.walk(root):
            for name in (*folders, *files):
                path = Path(top, name)
                found[str(path.relative_to(root))] = path.lstat()
        return found
    finally:
        podman("image", "unmount", image)


# -- the checks, in this order ----------------------------------------------------------------------------------------


def its_layers_are_small() -> str:
    steps, before = (json.loads(podman("history", "--format", "json", image)) for image in (IMAGE, base))
    # The newest comes first; a step that adds no files is no layer.
    own_layers = [layer["size"] / 1e6 for layer in steps[: -len(before)] if layer["size"]]
    holds(len(own_layers) == len(LAYERS), f"layers of {own_layers} MB")
    sizes = dict(zip(LAYERS, reversed(own_layers), strict=True))
    own = sizes["libraries"] + sizes["agent"]
    holds(own <= MAX_MB, f"{own:.0f} MB")
    return f"libraries {sizes['libraries']:.1f} MB, agent {sizes['agent']:.1f} MB, model {sizes['model']:.1f} MB"


def nothing_is_left_in_it_from_the_build() -> str:
    before, after = entries(base), entries(IMAGE)
    added = {path: facts for path, facts in after.items() if path not in before}
    unwanted = [path for path in added if UNWANTED.search(path)]
    holds(not unwanted, f"{unwanted[:5]}")
    open_to_all = [
        path
        for path, facts in added.items()
        if not stat.S_ISLNK(facts.st_mode) and (facts.st_uid or facts.st_mode & 0o022) and path != DATA.strip("/")
    ]
    holds(not open_to_all, f"not root's alone: {open_to_all[:5]}")
    changed = [path for path, facts in before.items() if path in after and facts.st_mode != after[path].st_mode]
    holds(not changed, f"other modes than in the base: {changed[:5]}")
    show_space(added)
    return f"{len(added)} files and folders, all but the data folder root's and written by nobody else"


def show_space(added: dict[str, os.stat_result]) -> None:
    """Print the table of docs/container.md."""
    sums: Counter[str] = Counter()
    for path, facts in added.items():
        if stat.S_ISREG(facts.st_mode):
            inside = path.removeprefix(f"{SITE.strip('/')}/")
            what = inside.split("/")[0].removesuffix(".libs") if inside != path else path.split("/")[0]
            what = "model" if "/models/" in path else what.removeprefix("_").split(".")[0]
            sums["compiled Python" if path.endswith(".pyc") else what] += facts.st_size
    print("| | MB |\n|---|---|")
    for what, size in sums.most_common(14):
        print(f"| {what} | {size / 1e6:.1f} |")
    print(f"| the rest | {sum(size for _, size in sums.most_common()[14:]) / 1e6:.1f} |")
    print(f"| all | {sums.total() / 1e6:.1f} |")


def it_says_what_it_is() -> str:
    labels = json.loads(podman("inspect", "-f", "{{json .Config.Labels}}", IMAGE))
    found = {name.rpartition(".")[2]: value for name, value in labels.items() if name.startswith("org.opencontainers.")}
    holds(found.get("version") == __version__ and found.get("licenses") == "Apache-2.0", str(found))
    holds(found.get("title") and re.fullmatch("[0-9a-f]{40}", found.get("revision", "")), str(found))
    is_for = podman("inspect", "-f", "{{.Architecture}} {{.Config.User}}", IMAGE).strip()
    holds(is_for == f"{arch} 65532:0", is_for)
    return f"{found['title']} {found['version']}, {arch}, user 65532"


def the_first_question_is_answered_from_a_read_only_root() -> str:
    start("plain")
    took = until(lambda: answers("plain"), 30 * PATIENCE, "an answer")
    holds(podman("exec", "plain", "id", "-u").strip() == "65532", "another user")
    written = podman("exec", "plain", "sh", "-c", "touch /opt/x /tmp/x /etc/x; id >/usr/x", check=False)
    holds(written.count("Read-only file system") == 4, written)  # noqa: PLR2004
    podman("rm", "-f", "-v", "plain")
    return f"{seconds(took)} after the start, a new volume and the sample papers"


def any_user_runs_it_without_privileges() -> str:
    start("own", "--user", f"{USER}:{USER}", "-v", f"{own_folder('data')}:{DATA}")
    took = until(lambda: answers("own"), 30 * PATIENCE, "an answer")
    status = podman("exec", "own", "cat", "/proc/1/status")
    holds(re.search(r"CapBnd:\s+0+\n", status) and re.search(r"NoNewPrivs:\s+1\n", status), status)
    for _ in range(2 if cpuinfo else 20):
        holds(answers("own"), "no answer")
    holds(state("own", "OOMKilled") == "false", "killed for want of memory")
    peak = int(re.search(r"VmHWM:\s+(\d+)", podman("exec", "own", "cat", "/proc/1/status"))[1]) / 1024
    memory = "" if cpuinfo else f", at most {peak:.0f} MiB resident"
    return f"user {USER}, no capabilities, {MEMORY} of memory: answered after {seconds(took)}{memory}"


def the_health_check_is_cheap_and_says_healthy() -> str:
    until(lambda: "alive" in agent("own", "health", check=False), 30 * PATIENCE, "a sign of life")
    podman("healthcheck", "run", "own")
    holds(state("own", "Health.Status") == "healthy", state("own", "Health.Status"))
    used = podman("exec", "own", "/opt/arxplorer-agent/bin/python3", "-I", "-c", COST).split()
    if cpuinfo:
        return "healthy"
    return f"healthy; {float(used[0]):.2f} s of processor time, {int(used[1]) / 1024:.0f} MiB, every 30 s"


def it_stops_in_time() -> str:
    started = dt.datetime.now(dt.UTC)
    podman("stop", "-t", "60", "own")
    took = (dt.datetime.now(dt.UTC) - started).total_seconds()
    holds(state("own", "ExitCode") == "0", f"exit code {state('own', 'ExitCode')}")
    holds("stopped" in podman("logs", "own"), "it did not stop in order")
    holds(took < STOP_S * (PATIENCE if cpuinfo else 1), seconds(took))
    return f"{seconds(took)} after SIGTERM to process 1, exit code 0"


def a_new_container_finds_the_corpus() -> str:
    podman("start", "own")
    until(lambda: answers("own"), 30 * PATIENCE, "an answer")
    record = json.dumps({"id": "2401.00001", "title": "Zebra crossings of the lattice", "abstract": "Zebras."})
    agent("own", "corpus", "add", record)
    start("own", "--user", f"{USER}:{USER}", "-v", f"{folder / 'data'}:{DATA}")
    until(lambda: answers("own"), 30 * PATIENCE, "an answer")
    found = agent("own", "ask", "zebra crossings", "--json", "--max-results", "1")
    holds("2401.00001" in found, found)
    papers = json.loads(agent("own", "corpus", "stats", "--json"))["papers"]
    holds(papers == 150, f"{papers} papers")  # noqa: PLR2004
    return f"{papers} papers after kill -9, removal and a start with the same folder"


def a_hung_worker_makes_it_unhealthy() -> str:
    switch = own_folder("switch")
    (folder / "hanging.py").write_text(HANGS.replace("/run/arxplorer-agent/hang", "/switch/hang"), "utf-8")
    (folder / "hanging.pth").write_text("import hanging\n", "utf-8")
    hooks = [f"{folder / name}:{SITE}/{name}:ro" for name in ("hanging.py", "hanging.pth")]
    mounts = [option for hook in (*hooks, f"{switch}:/switch:ro") for option in ("-v", hook)]
    # How often it proves that it lives; a minute without proof would be long for a test.
    pace = ("-e", f"WATCHDOG_USEC={WATCHDOG_S}000000")
    podman("rm", "-f", "-t", "0", "own")  # it would answer as well
    start("hung", "--user", f"{USER}:{USER}", *pace, *mounts, "-v", f"{own_folder('hung-data')}:{DATA}")
    until(lambda: answers("hung"), 30 * PATIENCE, "an answer")
    until(lambda: "alive" in agent("hung", "health", check=False), 30 * PATIENCE, "a sign of life")
    podman("healthcheck", "run", "hung")
    (switch / "hang").touch()

    def unhealthy() -> bool:
        # Not the state: podman counts no failure in the time that is allowed for the start.
        return "unhealthy" in podman("healthcheck", "run", "hung", check=False)

    took = until(unhealthy, 10 * WATCHDOG_S, "unhealthy")
    holds(state("hung", "Running") == "true", "it ended")
    (switch / "hang").unlink()
    podman("rm", "-f", "-t", "0", "hung")
    return f"unhealthy {seconds(took)} after the hang, where signs of life are good for {WATCHDOG_S} s"


def a_folder_that_is_not_its_own_is_named() -> str:
    start("denied", "--user", f"{USER}:{USER}", "-v", f"{own_folder('foreign', 0)}:{DATA}")
    until(lambda: state("denied", "Running") == "false", 30 * PATIENCE, "its end")
    said = podman("logs", "denied")
    holds(DATA in said and "Traceback" not in said, said)
    return f"`{said.strip().splitlines()[0]}`"


CHECKS: tuple[Callable[[], str], ...] = (
    its_layers_are_small,
    nothing_is_left_in_it_from_the_build,
    it_says_what_it_is,
    the_first_question_is_answered_from_a_read_only_root,
    any_user_runs_it_without_privileges,
    the_health_check_is_cheap_and_says_healthy,
    it_stops_in_time,
    a_new_container_finds_the_corpus,
    a_hung_worker_makes_it_unhealthy,
    a_folder_that_is_not_its_own_is_named,
)


def main() -> None:
    folder.chmod(0o755)  # the container's user goes through it
    results = []
    with broker:
        for outcome in tried(CHECKS):
            results.append(outcome)
            print(outcome, file=sys.stderr)
    said = f"image {__version__} by `scripts/test-container`, podman {podman('--version').split()[-1]}"
    if cpuinfo:
        emulator = run("qemu-aarch64-static", "--version").split()[2]
        said += f", emulated by QEMU {emulator} as a Cortex-A72: times say nothing"
    said += "; a root file system of Debian stood in for the official Python image"
    sys.exit(not write_checks(f"container {arch}", said, results))


if __name__ == "__main__":
    main()
