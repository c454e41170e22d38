"""A log that a test writes as a trainer does, with a follower that reads it."""

from __future__ import annotations

from pathlib import Path

from resumekit.base.paths import RunPaths
from resumekit.process.train_log import LogFollower
from resumekit.run.run_folder import Run

HASH = "9a537e838edae8969d5e43d9d1d5d4db83d5e2f706a4fa80b53b24d93cd38708"


class Lab:
    """A follower of a log that a test writes as a trainer would: in append mode, through a descriptor that it keeps."""

    def __init__(self, folder: Path) -> None:
        self.paths = RunPaths(folder)
        self.paths.logs.mkdir(parents=True)
        self.paths.resolved_json.write_text('{"trainer": {"log_patterns": {"step": "^step ([0-9]+)"}}}')
        self.run = Run(self.paths, {"config_hash": HASH, "run_id": folder.name})
        self.trainer = open(self.paths.output_log, "ab", buffering=0)  # noqa: SIM115
        self.pid: int | None = None
        self.log = self.follower({})

    def follower(self, saved: dict) -> LogFollower:
        return LogFollower(self.run, saved, lambda: self.pid)

    def prints(self, text: bytes) -> None:
        self.trainer.write(text)

    def steps(self) -> list[int]:
        return [one["step"] for one in self.log.pump(1)]

    @property
    def train_log(self) -> list[bytes]:
        return [line[13:] for line in self.paths.train_log.read_bytes().splitlines() if b"resumekit: " not in line]
