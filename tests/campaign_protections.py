"""Take one protection out after another, and see that the suite turns red each time.

Each patch is one line of the kit made harmless; the tests named beside it must fail then, and pass without it. Works in
a copy of the tree. Try it: `python tests/campaign_protections.py --only claim`
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".venv", ".git", "runs", "runs-*", "__pycache__", "results", ".scratch", ".hypothesis"
)
LIMIT_S = 400


class Patch(NamedTuple):
    """One protection taken out.

    Args:
        name: of the protection.
        file: below lib/.
        old, new: the text, found exactly once, and what takes its place.
        tests: what must fail, as pytest takes it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


KIT = "resumekit"
RECOVERY = "tests/test_recovery.py::"
SAVING = "tests/test_saving.py::"
PATCHES = (
    Patch(
        "fsync of a checkpoint",
        "trainer/durable_file.py",
        "os.fsync(self._descriptor)",
        "pass",
        (SAVING + "test_a_save_that_fails_is_said_leaves_nothing_and_training_goes_on",),
    ),
    Patch(
        "fsync of the directory",
        "basics/files.py",
        "        os.fsync(descriptor)\n    finally:\n        os.close(descriptor)\n\n\ndef fsync_file",
        "        pass\n    finally:\n        os.close(descriptor)\n\n\ndef fsync_file",
        (SAVING + "test_a_save_that_fails_is_said_leaves_nothing_and_training_goes_on",),
    ),
    Patch(
        "the manifest comes last",
        "trainer/saving.py",
        "        file.publish()\n        try:\n            os.replace(manifest_temp, beside)",
        "        os.replace(manifest_temp, beside)\n        file.publish()\n        try:\n            pass",
        (SAVING + "test_b17_of_two_writers_of_one_step_one_wins_and_the_other_says_so",),
    ),
    Patch(
        "O_EXCL of a temp file",
        "trainer/durable_file.py",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC",
        "os.O_RDWR | os.O_CREAT | os.O_CLOEXEC",
        (SAVING + "test_b19_a_planted_link_under_the_temp_name_is_not_followed",),
    ),
    Patch(
        "signals wait for a save",
        "trainer/saving.py",
        "        with deferred_signals():\n",
        "        with contextlib.nullcontext():\n",
        (SAVING + "test_a3_a_signal_in_a_save_is_handed_on_after_it",),
    ),
    Patch(
        "the finite check of a save",
        "trainer/saving.py",
        "nonfinite = checkpoint_content.nonfinite(content, loss)",
        "nonfinite = ()",
        (SAVING + "test_d3_values_that_are_not_finite_are_found_named_and_kept_as_evidence",),
    ),
    Patch(
        "what is not finite is passed over",
        "proving/grades.py",
        "    if known.finite is False:",
        "    if False:",
        ("tests/test_checkpoints.py",),
    ),
    Patch(
        "two proven ones stay",
        "proving/pruning.py",
        "max(keep.last, MIN_PROVEN)",
        "keep.last",
        (SAVING + "test_two_proven_ones_always_stay",),
    ),
    Patch(
        "a pinned step is not pruned",
        "proving/pruning.py",
        " or step in pinned_steps(claims)",
        "",
        (SAVING + "test_pruning_keeps_the_newest_the_round_the_pinned_the_best_and_whatever_is_not_ours",),
    ),
    Patch(
        "the digest",
        "proving/proof.py",
        "same = sha256 == expected.sha256",
        "same = True",
        ("tests/test_checkpoints.py", "tests/test_loading.py"),
    ),
    Patch(
        "the size in the manifest",
        "proving/grades.py",
        "    if size > known.size:",
        "    if False:",
        ("tests/test_checkpoints.py", "tests/test_manifest.py", "tests/test_archive.py"),
    ),
    Patch(
        "plain data only",
        "proving/pickled.py",
        "raise UnreadableFile(f\"it holds '{module}.{name}', which is not plain data\")",
        "return None",
        ("tests/test_archive.py",),
    ),
    Patch(
        "the cap on opcodes",
        "proving/pickled.py",
        "MAX_OPCODES = 2_000_000",
        "MAX_OPCODES = 2_000_000_000",
        ("tests/test_archive.py",),
    ),
    Patch(
        "records lie apart",
        "proving/archive.py",
        "raise UnreadableFile(f\"record '{record.name}' overlaps another one\")",
        "pass",
        ("tests/test_archive.py",),
    ),
    Patch(
        "a regular file",
        "proving/grades.py",
        '            raise UnreadableFile(f"not a regular file ({name})")',
        "            pass",
        ("tests/test_checkpoints.py", "tests/test_archive.py"),
    ),
    Patch(
        "the step inside",
        "proving/grades.py",
        "    if outside is not None and outside != inside.step:",
        "    if False:",
        ("tests/test_checkpoints.py",),
    ),
    Patch(
        "the lock",
        "basics/claims.py",
        "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "        pass",
        ("tests/test_claims.py", "tests/test_sidecar.py", RECOVERY + "test_two_passes_at_once_are_one"),
    ),
    Patch(
        "the claim of a head",
        "basics/claims.py",
        "        if sentence := held_by_other(run, has_started):\n            raise Refused(sentence)\n        path",
        "        path",
        ("tests/test_claims.py",),
    ),
    Patch(
        "the claim looked at again at the start",
        "supervision/shim.py",
        "        if not claims.still_continues(parent, run_id):",
        "        if False:",
        ("tests/test_claims.py", "tests/test_shim.py"),
    ),
    Patch(
        "the start time of a process",
        "basics/processes.py",
        " or found[1] != identity.start_ticks:\n        return DEAD",
        ":\n        return DEAD",
        ("tests/test_processes.py",),
    ),
    Patch(
        "a zombie is dead",
        "basics/processes.py",
        'if found is None or found[0] in "ZX" or',
        "if found is None or",
        ("tests/test_processes.py",),
    ),
    Patch(
        "the run token",
        "basics/processes.py",
        "    return _has_token(identity.pid, identity.token)\n",
        "    return ALIVE\n",
        ("tests/test_processes.py",),
    ),
    Patch(
        "the boot",
        "basics/processes.py",
        "    if identity.boot_id != boot_id():\n        return DEAD\n",
        "",
        ("tests/test_processes.py", "tests/test_watch.py"),
    ),
    Patch(
        "another host is unknown",
        "basics/processes.py",
        "    if identity.host != host_name():\n        return UNKNOWN\n",
        "",
        ("tests/test_processes.py", "tests/test_watch.py"),
    ),
    Patch(
        "status whole or not at all",
        "run_folder/status.py",
        "    write_atomic(run.paths.status, to_json(status))",
        "    run.paths.status.write_bytes(to_json(status))",
        ("tests/test_status.py::test_a_reader_never_sees_half_a_status",),
    ),
    Patch(
        "what a person stopped stays so",
        "run_folder/status.py",
        '    if state.get("stopped"):\n        return "stopped"\n',
        "",
        (RECOVERY + "test_what_a_person_ends_is_not_taken_up", "tests/test_stopping.py"),
    ),
    Patch(
        "hands off a paused run",
        "basics/paths.py",
        'return self.run_dir / "paused"',
        'return self.run_dir / "never"',
        (RECOVERY + "test_hands_off_is_hands_off",),
    ),
    Patch(
        "a loss that heals",
        "supervision/bedside.py",
        "HEALS_S = 2.0",
        "HEALS_S = 0.0",
        (RECOVERY + "test_a_loss_that_is_not_finite_for_a_moment_is_not_stopped_for",),
    ),
    Patch(
        "the replay",
        "recovery/replay.py",
        "    limits = [first_bad_step - wanted, *_steps(run, table, first_bad_step)]",
        "    limits = [10**9]",
        (RECOVERY + "test_a_loss_that_is_not_finite_is_replayed_from_before_it_at_a_lower_rate",),
    ),
    Patch(
        "one cut for one incident",
        "recovery/recovering.py",
        'factor = run.setting("recover", "lr_factor") if hindrances.is_cut(run, found) and chosen else 1.0',
        'factor = run.setting("recover", "lr_factor") ** 2',
        (RECOVERY + "test_many_who_want_to_take_up_the_same_run_make_one_child_with_one_cut",),
    ),
    Patch(
        "a cut is inherited without a checkpoint",
        "planning/plan.py",
        "    if choice.relation == CONTINUE and parent is not None and candidate.run_id != parent.run_id:",
        "    if False:",
        (RECOVERY + "test_a_person_s_resume_keeps_the_cut_of_a_child_that_had_no_checkpoint",),
    ),
    Patch(
        "the budget",
        "recovery/hindrances.py",
        "(_never, _done, _budget, _own_rate,",
        "(_done, _own_rate,",
        (RECOVERY + "test_three_starts_without_a_step_are_enough_and_the_pauses_double",),
    ),
    Patch(
        "the pause that doubles",
        "recovery/recovering.py",
        "    if (left_s := _backoff_left_s(run, found)) > 0:",
        "    if (left_s := 0.0) > 0:",
        (RECOVERY + "test_three_starts_without_a_step_are_enough_and_the_pauses_double",),
    ),
    Patch(
        "the same code",
        "recovery/recovering.py",
        "    reason = hindrances.in_the_code(run, code) or ",
        "    reason = ",
        (RECOVERY + "test_the_night_at_three_in_a_lab_s_repository",),
    ),
    Patch(
        "the environment of the run",
        "watching/acting.py",
        '    return {"PATH": os.defpath, **environment,',
        "    return {**os.environ,",
        (RECOVERY + "test_the_watcher_takes_up_a_run_that_lost_everything_in_the_environment_that_it_had",),
    ),
    Patch(
        "orphans are ended first",
        "recovery/recovering.py",
        "    _end_orphans(run, state)\n    refuse",
        "    refuse",
        (RECOVERY + "test_what_a_dead_trainer_left_running_is_ended_before_the_next_one_starts",),
    ),
    Patch(
        "one pass at a time",
        "watching/acting.py",
        "        yield claims.try_lock(descriptor)",
        "        yield True",
        (RECOVERY + "test_two_passes_at_once_are_one",),
    ),
    Patch(
        "the second look",
        "watching/watch.py",
        "    if any(one.verdict == SICK for one in looks):",
        "    if False:",
        ("tests/test_watch.py",),
    ),
    Patch(
        "one event for one incident",
        "supervision/aborting.py",
        '        if known or state.get("stopped"):',
        '        if state.get("stopped"):',
        (RECOVERY + "test_many_who_want_to_take_up_the_same_run_make_one_child_with_one_cut",),
    ),
)


def main() -> int:
    """Try every patch; 0 if the suite turned red each time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="only the patches whose name has this word")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = [patch for patch in PATCHES if args.only in patch.name]
    began = time.monotonic()
    with ThreadPoolExecutor(args.jobs) as pool:
        reds = list(pool.map(_is_seen, chosen))
    print(f"{sum(reds)}/{len(reds)} protections are missed when they are gone, {time.monotonic() - began:.0f} s")
    return 0 if all(reds) else 1


def _is_seen(patch: Patch) -> bool:
    """Whether the tests of a protection fail without it."""
    with tempfile.TemporaryDirectory(prefix="protection-") as place:
        tree = Path(place) / "kit"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)
        file = tree / "lib" / KIT / patch.file
        text = file.read_text(encoding="utf-8")
        if text.count(patch.old) != 1:
            print(f"?  {patch.name}: its line is not there once, but {text.count(patch.old)} times", flush=True)
            return False
        file.write_text(text.replace(patch.old, patch.new), encoding="utf-8")
        there = [name for name in patch.tests if (tree / name.partition("::")[0]).exists()]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *there]
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=tree, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
            code, said = done.returncode, done.stdout.strip().splitlines()
        except subprocess.TimeoutExpired:
            code, said = None, ["FAILED: did not end"]
    failed = next((line.split(" - ")[0] for line in said if line.startswith(("FAILED", "ERROR"))), "")
    # Code 1: a test failed. Anything else (nothing collected, an error of pytest) shows nothing.
    print(f"{'ok' if code == 1 else 'NO'} {patch.name} ({time.monotonic() - began:.0f} s) {failed}", flush=True)
    return code == 1


if __name__ == "__main__":
    raise SystemExit(main())
