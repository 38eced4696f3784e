"""A process has no more memory than the machine, and no more than its control groups allow."""

import os
import sys
from pathlib import Path

import pytest

from gpt2 import memory
from gpt2.model.kv_cache import KVCache

MIB = 2**20


def system(root: Path, groups: str, files: dict[str, object], available: int = 9000 * MIB) -> Path:
    """The files that Linux tells about memory."""
    files |= {"proc/self/cgroup": groups, "proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {available // 1024} kB\n"}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    return root


def test_the_narrowest_group_counts_and_files_in_memory_give_way(tmp_path: Path) -> None:
    v2 = "sys/fs/cgroup"
    root = system(
        tmp_path,
        "1:cpu:/elsewhere\n0::/slice/job\n",
        {
            f"{v2}/slice/job/memory.max": "max\n",
            f"{v2}/slice/job/memory.current": 100 * MIB,
            f"{v2}/slice/memory.max": 400 * MIB,
            f"{v2}/slice/memory.current": 300 * MIB,
            f"{v2}/slice/memory.stat": f"anon 5\ninactive_file {50 * MIB}\nactive_file {30 * MIB}\n",
        },
    )
    assert memory.whole(root) == 400 * MIB
    assert memory.free(root) == (400 - 300 + 50 + 30) * MIB


def test_version_1_has_a_limit_too_also_where_a_container_does_not_see_its_path(tmp_path: Path) -> None:
    v1 = "sys/fs/cgroup/memory"
    root = system(
        tmp_path,
        "4:memory:/docker/abc\n0::/\n",
        {
            f"{v1}/memory.limit_in_bytes": 300 * MIB,
            f"{v1}/memory.usage_in_bytes": 120 * MIB,
            f"{v1}/memory.stat": f"active_file 1\ntotal_active_file {20 * MIB}\n",
        },
    )
    assert (memory.whole(root), memory.free(root)) == (300 * MIB, 200 * MIB)


def test_without_a_limit_the_machine_counts_and_without_files_its_whole_memory(tmp_path: Path) -> None:
    unlimited = {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": MIB}
    root = system(tmp_path, "0::/\n", unlimited, available=50 * MIB)
    assert memory.free(root) == 50 * MIB
    assert memory.free(tmp_path / "nowhere") == memory.whole(tmp_path / "nowhere") == memory.whole(root) > 50 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="told by Linux")
def test_a_cache_has_the_memory_of_all_its_rows_before_the_first_is_used() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    cache = KVCache(n_layer=2, n_head=4, head_size=64, capacity=1024, batch=64)
    assert resident() - before > 0.8 * 2 * cache.keys.numel() * 4  # of 256 MiB; some may have been free already
