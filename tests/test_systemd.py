"""What the service manager and the broker get from us is right, and as tight as we say."""

import re
import shutil
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import paho.mqtt.client as paho
import pytest
import trustme
from conftest import COMMAND, Client, wait_until

from agent.config import Config
from agent.local_cloud.mosquitto import free_port
from agent.mqtt.options import MAX_PACKET_BYTES
from agent.paths import APP, SYSTEM_CONFIG, SYSTEM_DATA_DIR, SYSTEM_RUNTIME_DIR

SYSTEMD = Path(__file__).parents[1] / "systemd"
UNIT = SYSTEMD / f"{APP}.service"
MAX_EXPOSURE = 1.5

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def settings(file: Path) -> dict[str, list[str]]:
    found = defaultdict(list)
    for line in file.read_text("utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            found[name].append(value)
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with the checkout's command, since the package's is not installed."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text("utf-8").replace(f"/usr/bin/{APP}", COMMAND)
    copy.write_text(text.replace(f"/usr/lib/{APP}/restart-delay", str(SYSTEMD / "restart-delay")), "utf-8")
    return copy


@needs_systemd
@pytest.mark.parametrize("drop_in", [None, "tpm.conf.example"])
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path, drop_in: str | None) -> None:
    if drop_in:
        folder = unit.with_name(f"{unit.name}.d")
        folder.mkdir()
        shutil.copy(SYSTEMD / folder.name / drop_in, folder / drop_in.removesuffix(".example"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, said) == (0, [])


@needs_systemd
def test_the_unit_is_exposed_as_little_as_a_service_on_the_network_can_be(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    exposure = re.search(r"Overall exposure level.*?: ([0-9.]+)", done.stdout)
    assert exposure, done.stderr
    assert float(exposure[1]) <= MAX_EXPOSURE


def test_unit_and_program_agree_where_things_lie() -> None:
    service = settings(UNIT)
    assert service["ExecStart"] == [f"/usr/bin/{APP} --config {SYSTEM_CONFIG} run"]
    assert service["ExecStartPre"] == [f"-/usr/lib/{APP}/restart-delay before"]
    assert service["ExecStopPost"] == [f"-/usr/lib/{APP}/restart-delay after"]
    assert Path("/var/lib", *service["StateDirectory"]) == SYSTEM_DATA_DIR
    assert Path("/run", *service["RuntimeDirectory"]) == SYSTEM_RUNTIME_DIR
    folders = [line.split() for line in (SYSTEMD / "tmpfiles.d" / f"{APP}.conf").read_text("utf-8").splitlines()]
    folders = [fields for fields in folders if fields[0] == "d"]
    assert folders[0][1:5] == [
        str(SYSTEM_DATA_DIR),
        *service["StateDirectoryMode"],
        *service["User"],
        *service["Group"],
    ]
    assert folders[1][1] == str(SYSTEM_CONFIG.parent / "certs")
    user = (SYSTEMD / "sysusers.d" / f"{APP}.conf").read_text("utf-8").split()
    assert (user[1], str(SYSTEM_DATA_DIR) in user) == (service["User"][0], True)


# -- starts after failures --------------------------------------------------------------------------------------------


class Starts:
    """`restart-delay` as the unit calls it, with a `sleep` that only says for how long."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "failures"
        (folder / "sleep").write_text('#!/bin/sh\necho "slept $1"\n')
        (folder / "sleep").chmod(0o755)
        self.environment = {"PATH": f"{folder}:/usr/bin:/bin", "RUNTIME_DIRECTORY": str(folder)}

    def call(self, when: str, result: str = "") -> str:
        command = ["sh", str(SYSTEMD / "restart-delay"), when]
        environment = self.environment | {"SERVICE_RESULT": result}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def delay(self) -> int:
        return int(self.call("before").rpartition("slept ")[2])


@pytest.fixture
def starts(tmp_path: Path) -> Starts:
    return Starts(tmp_path)


def test_an_agent_that_fails_at_each_start_is_started_ever_more_seldom(starts: Starts) -> None:
    delays = []
    for _ in range(13):
        delays.append(starts.delay())
        starts.call("after", "exit-code")
    assert delays == [0, 0, 0, 0, 2, 4, 8, 16, 32, 64, 120, 120, 120]
    assert "failed 13 times in a row" in starts.call("before")


@pytest.mark.parametrize(("ran_s", "delay"), [(100, 8), (120, 0)])
def test_an_agent_that_ran_for_two_minutes_is_started_at_once(starts: Starts, ran_s: int, delay: int) -> None:
    uptime = int(float(Path("/proc/uptime").read_text().split()[0]))
    starts.file.write_text(f"5 {uptime - ran_s}\n")
    starts.call("after", "watchdog")
    assert starts.delay() == delay


def test_an_agent_that_was_stopped_by_hand_is_started_at_once(starts: Starts) -> None:
    starts.file.write_text("9 0\n")
    starts.call("after", "success")
    assert (starts.file.exists(), starts.delay()) == (False, 0)


# -- the broker -------------------------------------------------------------------------------------------------------


def broker_settings(name: str) -> list[list[str]]:
    lines = (SYSTEMD / "mosquitto" / name).read_text("utf-8").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


@contextmanager
def running(name: str, folder: Path, port: int, replaced: dict[str, str]) -> Iterator[str]:
    """A broker with one of our files, included as Debian's mosquitto.conf does; gives the name of its log."""
    text = (SYSTEMD / "mosquitto" / name).read_text("utf-8")
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "arxplorer.conf").write_text(text, "utf-8")
    main = folder / "mosquitto.conf"
    main.write_text(f"user root\npersistence true\npersistence_location {folder}/\ninclude_dir {folder}/conf.d\n")
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    with (folder / "log").open("wb") as log, subprocess.Popen([program, "-c", str(main)], stderr=log) as process:
        try:
            wait_until(lambda: process.poll() is not None or listens(port))
            yield (folder / "log").read_text("utf-8")
        finally:
            process.terminate()


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_the_broker_takes_our_file_and_serves_where_the_agent_looks(tmp_path: Path) -> None:
    values = broker_settings("arxplorer.conf")
    assert ["listener", str(Config().local_broker.port), Config().local_broker.host] in values
    assert ["max_packet_size", str(MAX_PACKET_BYTES)] in values
    port = free_port()
    with running("arxplorer.conf", tmp_path, port, {"listener 1883": f"listener {port}"}) as log:
        Client(port).close()
        assert "Error" not in log


def test_clients_elsewhere_need_tls_and_a_password(tmp_path: Path) -> None:
    ca = trustme.CA()
    files = {name: tmp_path / name for name in ("ca.crt", "arxplorer.crt", "arxplorer.key", "passwords")}
    ca.cert_pem.write_to_path(files["ca.crt"])
    certificate = ca.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(files["arxplorer.crt"])
    certificate.private_key_pem.write_to_path(files["arxplorer.key"])
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(files["passwords"]), "reader", "secret"], check=True)
    local, lan = free_port(), free_port()
    replaced = {
        "listener 1883": f"listener {local}",
        "listener 8883": f"listener {lan}",
        "/etc/mosquitto/ca_certificates/ca.crt": str(files["ca.crt"]),
        "/etc/mosquitto/certs/arxplorer.crt": str(files["arxplorer.crt"]),
        "/etc/mosquitto/certs/arxplorer.key": str(files["arxplorer.key"]),
        "password_file /etc/mosquitto/arxplorer.passwd": f"password_file {files['passwords']}",
    }
    with running("arxplorer-lan.conf.example", tmp_path, lan, replaced):
        Client(local).close()
        assert connected(lan, files["ca.crt"], "secret") == 0
        assert connected(lan, files["ca.crt"], "wrong") != 0
        assert connected(lan, files["ca.crt"], None) != 0


def connected(port: int, ca: Path, password: str | None) -> int:
    """The broker's reason code for a TLS connection with that password."""
    codes: list[int] = []
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False)
    client.tls_set(str(ca))
    if password:
        client.username_pw_set("reader", password)
    client.on_connect = lambda *arguments: codes.append(arguments[3].value)
    client.connect("localhost", port)
    client.loop_start()
    wait_until(lambda: codes)
    client.disconnect()
    client.loop_stop()
    return codes[0]
