"""Of which type a file system is, by the kernel's table of mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumekit.base import file_systems

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /proc rw - proc proc rw
40 22 0:40 / /home rw,relatime shared:2 master:3 - nfs4 server:/home rw,vers=4.2
41 40 8:17 / /home/lab/fast rw - xfs /dev/sdb1 rw
42 22 0:42 / /mnt/two\040words rw - fuse.sshfs me@host: rw
43 22 0:43 / /scratch rw - ext4 /dev/sdc1 rw
44 43 0:44 / /scratch rw - lustre mds@tcp:/scratch rw
45 22 0:45 / /mnt/mirror rw - fuse.bindfs /home rw
torn
"""


@pytest.mark.parametrize(
    ("path", "kind", "is_network"),
    [
        ("/home/lab/runs", "nfs4", True),
        ("/home", "nfs4", True),
        ("/homes/lab", "ext4", False),
        ("/home/lab/fast/runs", "xfs", False),
        ("/mnt/two words/runs", "fuse.sshfs", True),
        ("/mnt/mirror/runs", "fuse.bindfs", False),
        ("/scratch/runs", "lustre", True),
        ("/runs", "ext4", False),
    ],
)
def test_the_nearest_mount_and_of_two_on_one_place_the_later_one_counts(
    path: str, kind: str, is_network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_systems.type_in(MOUNTS, path) == kind
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(file_systems, "_MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(file_systems.os.path, "realpath", lambda given: str(given))
    assert file_systems.network_type(Path(path)) == (kind if is_network else None)


def test_the_kernels_own_table_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert file_systems.type_in(Path("/proc/self/mountinfo").read_text(), "/proc/self") == "proc"
    monkeypatch.setattr(file_systems, "_MOUNTS", tmp_path / "none")
    assert file_systems.network_type(tmp_path) is None, "what cannot be told is not refused"
