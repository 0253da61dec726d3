"""How much of the machine the agent takes."""

import os
from pathlib import Path

import pytest

from agent.config import load_config
from agent.errors import ConfigError
from agent.footprint import MIB, MODEL_MIB, UNKNOWN_MIB, Footprint, allowed_mib, choose, footprint
from agent.search import SearchAPI
from agent.store.papers import PaperStore

V1 = "9:memory:{}\n1:name=systemd:/x\n"
V2 = "0::{}\n"


def machine(root: Path, cgroup: str = "", total_kib: int = 4_000_000, **limits: object) -> Path:
    """A root file system that says so; `limits` are files below /sys/fs/cgroup, their `__` a slash."""
    files = {"proc/meminfo": f"MemTotal:  {total_kib} kB\nMemFree: 1 kB\n", "proc/self/cgroup": cgroup}
    files |= {f"sys/fs/cgroup/{name.replace('__', '/')}": str(v) for name, v in limits.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


NO_LIMIT_V1 = 9223372036854771712
ABOVE = {"memory__memory.limit_in_bytes": NO_LIMIT_V1}


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("", {}, 3906),
        (V2.format("/"), {}, 3906),
        (V2.format("/"), {"memory.max": "max"}, 3906),
        (V2.format("/"), {"memory.max": 256 * MIB}, 256),
        (V2.format("/a/b"), {"a__b__memory.max": 300 * MIB, "a__memory.max": 200 * MIB}, 200),
        (V2.format("/a/b"), {"a__b__memory.max": 300 * MIB, "a__b__memory.high": 250 * MIB}, 250),
        (V2.format("/a"), {"a__memory.max": 64_000 * MIB}, 3906),
        (V1.format("/"), ABOVE, 3906),
        (V1.format("/a"), ABOVE | {"memory__a__memory.limit_in_bytes": 256 * MIB}, 256),
        # In a container the group is named as the host sees it, and mounted at the root.
        (V1.format("/docker/0123"), {"memory__memory.limit_in_bytes": 128 * MIB}, 128),
        (V2.format("/../../outside"), {"memory.max": 128 * MIB}, 128),
        ("nonsense\n", {"memory.max": 128 * MIB}, 3906),
        (V2.format("/"), {"memory.max": "nonsense"}, 3906),
    ],
)
def test_the_least_of_machine_and_control_groups_is_allowed(
    tmp_path: Path, cgroup: str, limits: dict, expected: int
) -> None:
    assert allowed_mib(machine(tmp_path, cgroup, **limits)) == expected


def test_a_system_that_says_nothing_is_taken_for_a_middling_one(tmp_path: Path) -> None:
    assert allowed_mib(tmp_path) == UNKNOWN_MIB


def test_what_this_system_says_is_understood() -> None:
    machine_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    assert 16 < allowed_mib() <= machine_mib


@pytest.mark.parametrize(
    ("memory_mib", "cores", "workers", "segment_rows", "model"),
    [
        (64, 1, 1, 8_192, False),
        (MODEL_MIB, 1, 1, 8_192, True),
        (256, 4, 2, 16_384, True),
        (416, 4, 2, 26_624, True),  # a board of 512 MB, less what its video memory takes
        (921, 4, 2, 58_944, True),
        (1_846, 4, 4, 118_144, True),
        (7_900, 16, 4, 200_000, True),
    ],
)
def test_values_suit_the_memory(memory_mib: int, cores: int, workers: int, segment_rows: int, model: bool) -> None:
    chosen = choose(memory_mib, cores)
    assert (chosen.workers, chosen.segment_rows, chosen.model) == (workers, segment_rows, model)


def test_what_is_configured_wins() -> None:
    assert footprint(memory_mib=300, workers=7) == Footprint(memory_mib=300, workers=7, segment_rows=19_200, model=True)
    with pytest.raises(ConfigError, match=r"limits\.memory_mb"):
        load_config(environment={"ARXPLORER__LIMITS__MEMORY_MB": "-1"})


def test_a_database_is_mapped_only_where_it_fits_twice(sample_data_dir: Path) -> None:
    file = sample_data_dir / "current" / "papers.db"
    size = file.stat().st_size
    for memory_mib, mapped in ((8 * size // MIB + 1, True), (size // MIB, False)):
        store = PaperStore(file, read_only=True, mapped_bytes=choose(memory_mib, 1).mapped_bytes)
        assert (store.db.execute("PRAGMA mmap_size").fetchone()[0] > 0) is mapped
        assert store.count() > 0
        store.close()


def test_an_agent_without_room_for_the_model_answers_by_keyword_and_says_why(sample_data_dir: Path) -> None:
    config = load_config(environment={"ARXPLORER__LIMITS__MEMORY_MB": "64"}, data_dir=sample_data_dir)
    with SearchAPI(config) as api:
        api.open()
        answer = api.search_sync("neutrino")
        assert answer["results"]
        assert answer["metadata"]["mode"] == "keyword"
        assert any(f"needs {MODEL_MIB} MiB and 64 are allowed: keyword search only" in p for p in api.problems)
