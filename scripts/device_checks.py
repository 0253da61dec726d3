"""What scripts/test-device does inside the booted container, and the page it makes of the results.

Runs there with Debian's own Python, so it imports nothing else.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from device_tools import (
    ASKING,
    ASKS,
    ASKS_A_SECOND,
    CONFIG,
    DATA,
    DROP_IN,
    FLOODS,
    HANGS,
    LINES,
    LOCAL_CLOUD,
    MANY,
    PAPERS,
    PROGRAM,
    UNIT,
    agent,
    answers,
    files,
    holds,
    hooked,
    journal,
    listens,
    run,
    seconds,
    show,
    starved,
    tried,
    until,
)

WATCHDOG_S = 4
STOP_S = 5

results: list[dict[str, str]] = []
found_before: set[str] = set()


# -- the checks, in this order ----------------------------------------------------------------------------------------


def the_same_commit_gives_the_same_package() -> str:
    run("cmp", "/root/this.deb", "/root/again.deb")
    return "two builds, at different times in different folders, are equal byte for byte"


def installed_it_runs_and_answers() -> str:
    found_before.update(files())
    started = time.monotonic()
    run("apt-get", "install", "-y", "/root/this.deb")
    took = time.monotonic() - started
    holds(show("ActiveState") == "active", show("ActiveState"))
    answered = until(answers, 5, "an answer")
    begun, ready = (int(show(f"{name}TimestampMonotonic")) / 1e6 for name in ("ExecMainStart", "ActiveEnter"))
    return (
        f"apt took {seconds(took)}, the agent was ready {ready - begun:.2f} s after its start, a question was answered "
        f"in {seconds(answered)}"
    )


def without_a_corpus_it_stays_up() -> str:
    agent("corpus", "remove", "--sample")
    until(lambda: not answers(), 10, "the end of the sample")
    run("systemctl", "stop", UNIT)
    run("rm", "-rf", f"{DATA}/current", f"{DATA}/generations")
    run("/var/lib/dpkg/info/arxplorer-agent.postinst", "configure", "0.0")  # as an upgrade does: no sample comes back
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)
    time.sleep(3 * WATCHDOG_S)
    holds(show("NRestarts") == "0", "it was started anew")
    holds("no papers" in show("StatusText"), show("StatusText"))
    agent("health")
    return f"{3 * WATCHDOG_S} s under a watchdog of {WATCHDOG_S} s, status `{show('StatusText')}`, healthy"


def papers_that_root_imports_are_found() -> str:
    agent("corpus", "import", "--sample")
    return f"answered {seconds(until(answers, 10, 'an answer'))} after the import"


def a_member_of_the_group_uses_the_same_corpus() -> str:
    run("useradd", "-G", "arxplorer", "member")
    record = json.dumps({"id": "2401.00001", "title": "Zebra crossings of the lattice", "abstract": "Zebras."})
    run("runuser", "-u", "member", "--", "arxplorer-agent", "corpus", "add", record)
    search = ("runuser", "-u", "member", "--", "arxplorer-agent", "search", "zebra crossings")
    until(lambda: "Zebra crossings" in run(*search), 10, "the new paper")
    run("runuser", "-u", "member", "--", "arxplorer-agent", "health")
    foreign = run("find", str(DATA), "!", "-group", "arxplorer")
    holds(not foreign, foreign)
    others = run("runuser", "-u", "nobody", "--", "ls", str(DATA), check=False)
    holds("Permission denied" in others, "others can look in")
    return "adds, searches, sees its health; others see nothing"


def who_is_not_in_the_group_is_told() -> str:
    run("useradd", "-m", "stranger")
    stranger = ("runuser", "-u", "stranger", "--", "arxplorer-agent")
    for command in (["search", "neutrinos"], ["corpus", "stats"], ["health"], ["corpus", "import", "--sample"]):
        said = run(*stranger, *command, check=False)
        holds("root and the group arxplorer" in said, f"{' '.join(command)}: {said}")
    holds('"arxiv_id"' in run(*stranger, "ask", "neutrinos", "--json"), "no answer")
    run("userdel", "-r", "stranger", check=False)
    return "of whom it is for, where they need the corpus; may ask over MQTT"


def killed_it_answers_again() -> str:
    run("systemctl", "kill", "-s", "KILL", UNIT)
    took = until(answers, 5, "an answer after kill -9")
    return f"answered {seconds(took)} after kill -9"


def a_hung_worker_is_noticed() -> str:
    with hooked(HANGS):
        run("systemctl", "restart", UNIT)
        until(answers, 5, "an answer")
        before = int(show("NRestarts"))
        Path("/run/arxplorer-agent/hang").touch()
        took = until(lambda: int(show("NRestarts")) > before, 4 * WATCHDOG_S, "a new start")
        Path("/run/arxplorer-agent/hang").unlink()
        again = until(answers, 5, "an answer")
    run("systemctl", "restart", UNIT)
    holds("in hanging" in journal(), "the journal does not say where it hung")
    return f"started anew after {seconds(took)} (watchdog {WATCHDOG_S} s), answered {seconds(again)} later"


def what_fails_at_each_start_is_started_ever_more_seldom() -> str:
    watched_s, shipped = 40, CONFIG.read_text()
    CONFIG.write_text(f"serach: {{}}\n{shipped}")
    lines = len(journal().splitlines())
    run("systemctl", "restart", UNIT, check=False)
    time.sleep(watched_s)
    starts, lines = int(show("NRestarts")), len(journal().splitlines()) - lines
    holds(starts <= 8, f"{starts} starts")  # noqa: PLR2004  in a second each there would be 20 or more
    holds(lines <= 100, f"{lines} lines in the journal")  # noqa: PLR2004
    holds("serach: unknown key" in journal("-p", "err"), "the journal does not say what is wrong")
    holds("failed 5 times in a row" in journal("-p", "warning"), "the journal does not say that it waits")
    CONFIG.write_text(shipped)
    run("systemctl", "restart", UNIT)
    again = until(answers, 5, "an answer")
    return (
        f"{starts} starts and {lines} lines in {watched_s} s; repaired and restarted it answered {seconds(again)} later"
    )


def a_flood_of_lines_does_not_fill_the_journal() -> str:
    with hooked(FLOODS):
        run("systemctl", "restart", UNIT)
        until(answers, 5, "an answer")
    run("systemctl", "restart", UNIT)
    kept = journal().count("flood")
    holds(0 < kept < LINES / 2, f"{kept} of {LINES} lines were kept")
    return f"{kept} of {LINES} lines kept"


def while_it_rebuilds_it_stays_up_and_answers() -> str:
    run("/opt/arxplorer-agent/bin/python3", "-I", "-c", MANY)
    run("systemctl", "stop", UNIT)
    agent("corpus", "import", "/root/many.jsonl", "--vectors", "/root/many.npy")
    for cache in ("vectors", "keywords"):
        run("rm", "-rf", str(DATA / "current" / cache))
    started = time.monotonic()
    run("systemctl", "start", UNIT)
    ready = time.monotonic() - started
    took = until(answers, 30, "an answer")
    built = until(lambda: show("StatusText") == "answering", 120, "the end of the rebuild")
    holds(show("NRestarts") == "0", "it was started anew")
    return f"{PAPERS} papers, no index: ready in {seconds(ready)}, answer {took:.1f} s later, whole {built:.1f} s later"


def while_it_gets_hardly_any_time_it_stays_up() -> str:
    share, limit_s = 0.05, 240
    run("systemctl", "stop", UNIT)
    for cache in ("vectors", "keywords"):
        run("rm", "-rf", str(DATA / "current" / cache))
    started = time.monotonic()
    with starved(share):
        run("systemctl", "start", UNIT, timeout=limit_s)
        ready = time.monotonic() - started
        built = until(lambda: show("StatusText") == "answering", limit_s, "the end of the rebuild")
        time.sleep(3 * WATCHDOG_S)
    holds(built > 3 * WATCHDOG_S, f"the rebuild took {built:.1f} s only")
    holds(show("NRestarts") == "0", "it was started anew")
    return f"with {share:.0%} of the time: ready in {seconds(ready)}, rebuilt {built:.1f} s later, no new start"


def the_cloud_link_stands_in_the_sandbox() -> str:
    program = (f"{PROGRAM}/bin/python3", "-I", "-c", LOCAL_CLOUD, "local-cloud", "--dir", "/root/cloud")
    shipped, certificates, thing = CONFIG.read_text(), CONFIG.parent / "certs", Path("/root/cloud/things/device-1")
    with subprocess.Popen([*program, "--thing", "device-1", "--client", "app"], stdout=subprocess.PIPE) as cloud:
        try:
            holds(cloud.stdout and b"ready" in cloud.stdout.readline(), "the local cloud did not start")
            for source, name, mode in (
                (Path("/root/cloud/ca.pem"), "AmazonRootCA1.pem", "644"),
                (thing / "certificate.pem", "device-certificate.pem.crt", "644"),
                (thing / "private.key", "device-private.pem.key", "600"),
            ):
                owner = ("install", "-o", "arxplorer", "-g", "arxplorer")
                run(*owner, "-m", mode, str(source), str(certificates / name))
            text = shipped.replace("enabled: false", "enabled: true", 1)
            text = text.replace("thing_name: ''", "thing_name: device-1", 1)
            CONFIG.write_text(text.replace("endpoint: ''", "endpoint: localhost", 1))
            agent("config", "validate")
            run("systemctl", "restart", UNIT)
            asking = ("--config", "/root/cloud/things/app/config.yaml", "ask", "neutrinos", "--json")
            took = until(lambda: '"arxiv_id"' in agent(*asking, check=False), 20, "an answer through the cloud")
            holds("connected to localhost:8883 as device-1" in journal(), "the link is not in the journal")
            until(answers, 5, "an answer through the local broker")
            holds(show("StatusText") == "answering", show("StatusText"))
        finally:
            cloud.terminate()
            CONFIG.write_text(shipped)
            run("systemctl", "restart", UNIT)
    return f"mutual TLS to `localhost`, answered {seconds(took)} after the restart; the local broker answers as well"


def it_stops_in_time() -> str:
    load = [subprocess.Popen(["arxplorer-agent", "ask", "zebra"], stdout=subprocess.DEVNULL) for _ in range(4)]
    started = time.monotonic()
    run("systemctl", "stop", UNIT)
    took = time.monotonic() - started
    for client in load:
        client.kill()
        client.wait()
    holds(took < STOP_S, seconds(took))
    holds(show("Result") == "success", show("Result"))
    run("systemctl", "start", UNIT)
    return seconds(took)


def an_upgrade_keeps_what_is_there() -> str:
    until(answers, 10, "an answer")
    before = json.loads(agent("corpus", "stats", "--json"))["papers"]
    CONFIG.write_text(CONFIG.read_text() + "# changed by hand\n")
    # A client that the upgrade does not change under its feet.
    run("cp", "-a", str(PROGRAM), "/root/client")
    command = ["/root/client/bin/python3", "-I", "-c", ASKING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
        started = time.monotonic()
        run("apt-get", "install", "-y", "/root/next.deb")
        took = time.monotonic() - started
        waits = json.loads(asking.communicate()[0])
    unanswered = [wait for wait in waits if not isinstance(wait, float)]
    holds(len(waits) == ASKS and not unanswered, f"{len(unanswered)} unanswered: {unanswered[:1]}")
    holds(took < ASKS / ASKS_A_SECOND, f"the upgrade outlasted the questions: {took:.1f} s")
    after = json.loads(agent("corpus", "stats", "--json"))["papers"]
    holds(before == after > PAPERS, f"{before} papers became {after}")
    holds("changed by hand" in CONFIG.read_text(), "the configuration was replaced")
    return (
        f"{after} papers before and after, the changed configuration kept; {ASKS} questions asked meanwhile, each "
        f"answered, after {seconds(max(waits))} at the latest"
    )


def removing_keeps_and_purging_leaves_nothing() -> str:
    holds(not listens("::1"), "mosquitto does not run with our file")
    run("apt-get", "remove", "-y", "arxplorer-agent")
    holds((DATA / "current" / "papers.db").exists(), "the corpus went with the program")
    holds(not PROGRAM.exists(), f"{PROGRAM} was left")
    DROP_IN.unlink()
    DROP_IN.parent.rmdir()
    run("userdel", "-r", "member", check=False)
    run("apt-get", "purge", "-y", "arxplorer-agent")
    left = sorted(files() - found_before)
    users = run("getent", "passwd", "arxplorer", check=False) + run("getent", "group", "arxplorer", check=False)
    holds(not left and not users, f"{left[:5]} {users}")
    gone = sorted(found_before - files() - {"/opt"})  # dpkg removes it with the last that was in it
    holds(not gone, f"what others had is gone: {gone[:5]}")
    until(lambda: listens("::1"), 5, "mosquitto with its own configuration, which listens on ::1 as well")
    return "no file, user or group; mosquitto runs as before"


def a_broker_set_up_before_is_left_alone() -> str:
    own = Path("/etc/mosquitto/conf.d/own.conf")
    own.write_text("listener 1883 127.0.0.1\nallow_anonymous true\n")
    said = run("dpkg", "-i", "/root/this.deb")
    run("systemctl", "restart", "mosquitto")
    agent("corpus", "import", "--sample")
    until(answers, 10, "an answer")
    holds("listeners already" in said and not own.with_name("arxplorer.conf").exists(), said)
    run("dpkg", "-P", "arxplorer-agent")
    left = sorted(path.name for path in own.parent.iterdir())
    holds(left == ["README", "own.conf"], str(left))
    return "ours was put aside, and is gone after purge"


CHECKS = (
    *([the_same_commit_gives_the_same_package] if Path("/root/again.deb").exists() else []),
    installed_it_runs_and_answers,
    without_a_corpus_it_stays_up,
    papers_that_root_imports_are_found,
    a_member_of_the_group_uses_the_same_corpus,
    who_is_not_in_the_group_is_told,
    killed_it_answers_again,
    a_hung_worker_is_noticed,
    what_fails_at_each_start_is_started_ever_more_seldom,
    the_cloud_link_stands_in_the_sandbox,
    while_it_rebuilds_it_stays_up_and_answers,
    a_flood_of_lines_does_not_fill_the_journal,
    while_it_gets_hardly_any_time_it_stays_up,
    it_stops_in_time,
    an_upgrade_keeps_what_is_there,
    removing_keeps_and_purging_leaves_nothing,
    a_broker_set_up_before_is_left_alone,
)


def main() -> None:
    version = run("dpkg-deb", "-f", "/root/this.deb", "Version").strip()
    for outcome in tried(CHECKS):
        results.append(outcome)
        if outcome["result"] != "yes":
            print(run("journalctl", "-u", UNIT, "-b", "--no-pager", "-n", "40", check=False))
        print(outcome)
    system = run("systemctl", "--version").split()[1]
    Path("/root/results.json").write_text(json.dumps({"version": version, "systemd": system, "checks": results}))


def report(file: str, suite: str, arch: str) -> None:
    """Put the results of this suite into the page, and exit 1 if a check failed."""
    from check_report import write_checks  # beside this file, but not in the container

    found = json.loads(Path(file).read_text("utf-8"))
    facts = f"package {found['version']}, systemd {found['systemd']}"
    sys.exit(not write_checks(f"{suite} {arch}", facts, found["checks"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--report"]:
        report(*sys.argv[2:])
    else:
        main()
