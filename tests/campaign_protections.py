"""Take one protection out after another, and see that the suite turns red each time.

Each patch is one line of the kit, in Python or Bash, made harmless; the tests named beside it must fail then. They are
run once without any patch first: one that is red anyway shows nothing and is left out. Works in a copy of the tree.
Try it: `python tests/campaign_protections.py --only claim`
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from conftest import marked_pids

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".venv", ".git", "runs", "runs-*", "__pycache__", "results", ".scratch", ".hypothesis"
)
LIMIT_S = 400.0
BEFORE_S = 1800.0
CLEANING_S = 20.0
# What the tests start inherits it: of the kit's own names they are rid.
MARK = "PROTECTIONS_MARK"


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


RECOVERY = "tests/test_recovery.py::"
SAVING = "tests/test_saving.py::"
CODE = "tests/test_code_change.py::"
LAUNCHER = "tests/test_launcher.py::"
PROGRESS = "tests/test_progress.py::"
LOG_SOURCE = "tests/test_log_source.py::"
WAITS = "tests/test_bounded_waits.py::"
F_SIDECAR = "tests/faults/test_f_sidecar.py::"
H_SHELL = "tests/faults/test_h_shell.py::"
TRUST = "tests/test_trust.py::"
CUSTODY = "tests/test_custody.py::"
NOT_THE_CALLERS = "test_a_run_that_is_not_the_callers_is_neither_judged_nor_touched_and_the_line_says_why"
LIVENESS = "tests/test_liveness.py::"
PATCHES = (
    Patch(
        "a lock of the trainer's session",
        "resumekit/supervision/session_lock.py",
        "    _hand_on(descriptor)\n",
        "    os.close(descriptor)\n",
        (LIVENESS + "test_a_trainer_alone_in_another_container_is_seen_by_its_lock",),
    ),
    Patch(
        "another boot is dead only by proof",
        "resumekit/run_folder/liveness.py",
        "    if HELD in (seen.session_lock, seen.status_lock) or seen.is_fresh or seen.members:\n",
        "    if False:\n",
        (LIVENESS + "test_a_clone_of_this_machine_starts_no_second_trainer_and_stops_none",),
    ),
    Patch(
        "a process is a run's by its output",
        "resumekit/supervision/stopping.py",
        "    if sight.evidence.whose != OURS:\n",
        "    if False:\n",
        (LIVENESS + "test_a_copy_of_a_live_run_stops_and_starts_nothing_of_the_original",),
    ),
    Patch(
        "a link is no output of a run's own",
        "resumekit/run_folder/life_signs.py",
        "_identity(run.paths.output_log, _look_at_only_name)",
        "_identity(run.paths.output_log)",
        (LIVENESS + "test_a_link_under_the_logs_name_makes_no_other_run_ones_own",),
    ),
    Patch(
        "a trainer that comes back is fenced",
        "resumekit/trainer/fence.py",
        "    if not os.path.lexists(run.continuation):\n",
        "    if True:\n",
        (LIVENESS + "test_a_trainer_that_comes_back_saves_and_beats_nothing_more",),
    ),
    Patch(
        "an unaware trainer that comes back is stopped",
        "resumekit/supervision/stop_request.py",
        'state.get("stop_asked_by") or self._taken_over() or',
        'state.get("stop_asked_by") or',
        (LIVENESS + "test_a_run_whose_host_is_gone_is_gone_on_from_by_a_persons_word_and_fenced",),
    ),
    Patch(
        "a request names its trainer",
        "resumekit/supervision/stop_request.py",
        ' or request.get("trainer") != _of(state["launched"]["trainer"])',
        "",
        ("tests/test_stopping.py::test_a_request_about_another_trainer_counts_for_nothing",),
    ),
    Patch(
        "a growing file is a sign of life on another host",
        "resumekit/run_folder/liveness.py",
        '    if seen.is_fresh or seen.members:\n        return _alive("fresh"',
        '    if seen.members:\n        return _alive("fresh"',
        (LIVENESS + "test_never_dead_while_there_is_a_sign_of_life", LIVENESS + "test_the_table_of_the_rules"),
    ),
    Patch(
        "fsync of a checkpoint",
        "resumekit/trainer/durable_file.py",
        "os.fsync(self._descriptor)",
        "pass",
        (SAVING + "test_a_save_that_fails_is_said_leaves_nothing_and_training_goes_on",),
    ),
    Patch(
        "fsync of the directory",
        "resumekit/basics/files.py",
        "        os.fsync(descriptor)\n    finally:\n        os.close(descriptor)\n\n\ndef fsync_file",
        "        pass\n    finally:\n        os.close(descriptor)\n\n\ndef fsync_file",
        (SAVING + "test_a_save_that_fails_is_said_leaves_nothing_and_training_goes_on",),
    ),
    Patch(
        "the manifest comes last",
        "resumekit/trainer/saving.py",
        "        file.publish()\n        try:\n            os.replace(manifest_temp, beside)",
        "        os.replace(manifest_temp, beside)\n        file.publish()\n        try:\n            pass",
        (SAVING + "test_b17_of_two_writers_of_one_step_one_wins_and_the_other_says_so",),
    ),
    Patch(
        "O_EXCL of a temp file",
        "resumekit/trainer/durable_file.py",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC",
        "os.O_RDWR | os.O_CREAT | os.O_CLOEXEC",
        (SAVING + "test_b19_a_planted_link_under_the_temp_name_is_not_followed",),
    ),
    Patch(
        "signals wait for a save",
        "resumekit/trainer/saving.py",
        "        with deferred_signals():\n",
        "        with contextlib.nullcontext():\n",
        (SAVING + "test_a3_a_signal_in_a_save_is_handed_on_after_it",),
    ),
    Patch(
        "the finite check of a save",
        "resumekit/trainer/saving.py",
        "nonfinite = checkpoint_content.nonfinite(content, loss)",
        "nonfinite = ()",
        (SAVING + "test_d3_values_that_are_not_finite_are_found_named_and_kept_as_evidence",),
    ),
    Patch(
        "what is not finite is passed over",
        "resumekit/proving/grades.py",
        "    if known.finite is False:",
        "    if False:",
        ("tests/test_checkpoints.py",),
    ),
    Patch(
        "two proven ones stay",
        "resumekit/proving/pruning.py",
        "max(keep.last, MIN_PROVEN)",
        "keep.last",
        (SAVING + "test_two_proven_ones_always_stay",),
    ),
    Patch(
        "a pinned step is not pruned",
        "resumekit/proving/pruning.py",
        " or step in pinned_steps(claims)",
        "",
        (SAVING + "test_pruning_keeps_the_newest_the_round_the_pinned_the_best_and_whatever_is_not_ours",),
    ),
    Patch(
        "the digest",
        "resumekit/proving/proof.py",
        "same = sha256 == expected.sha256",
        "same = True",
        ("tests/test_checkpoints.py", "tests/test_loading.py"),
    ),
    Patch(
        "the size in the manifest",
        "resumekit/proving/grades.py",
        "    if size > known.size:",
        "    if False:",
        ("tests/test_checkpoints.py", "tests/test_manifest.py", "tests/test_archive.py"),
    ),
    Patch(
        "plain data only",
        "resumekit/proving/pickled.py",
        "raise UnreadableFile(f\"it holds '{module}.{name}', which is not plain data\")",
        "return None",
        ("tests/test_archive.py",),
    ),
    Patch(
        "the cap on opcodes",
        "resumekit/proving/pickled.py",
        "MAX_OPCODES = 2_000_000",
        "MAX_OPCODES = 2_000_000_000",
        ("tests/test_archive.py",),
    ),
    Patch(
        "records lie apart",
        "resumekit/proving/archive.py",
        "raise UnreadableFile(f\"record '{record.name}' overlaps another one\")",
        "pass",
        ("tests/test_archive.py",),
    ),
    Patch(
        "a regular file",
        "resumekit/proving/grades.py",
        '            raise UnreadableFile(f"not a regular file ({name})")',
        "            pass",
        ("tests/test_checkpoints.py", "tests/test_archive.py"),
    ),
    Patch(
        "the step inside",
        "resumekit/proving/grades.py",
        "    if outside is not None and outside != inside.step:",
        "    if False:",
        ("tests/test_checkpoints.py",),
    ),
    Patch(
        "the lock",
        "resumekit/basics/claims.py",
        "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "        pass",
        ("tests/test_claims.py", "tests/test_sidecar.py", RECOVERY + "test_two_passes_at_once_are_one"),
    ),
    Patch(
        "the claim of a head",
        "resumekit/basics/claims.py",
        "            raise Refused(sentence)\n        path",
        "            pass\n        path",
        ("tests/test_claims.py",),
    ),
    Patch(
        "the claim looked at again at the start",
        "resumekit/supervision/shim.py",
        "        if not claims.still_continues(parent, run_id):",
        "        if False:",
        ("tests/test_claims.py", "tests/test_shim.py"),
    ),
    Patch(
        "the start time of a process",
        "resumekit/basics/processes.py",
        " or found[1] != identity.start_ticks:\n        return DEAD",
        ":\n        return DEAD",
        ("tests/test_processes.py",),
    ),
    Patch(
        "a zombie is dead",
        "resumekit/basics/processes.py",
        'if found is None or found[0] in "ZX" or',
        "if found is None or",
        ("tests/test_processes.py",),
    ),
    Patch(
        "the run token",
        "resumekit/basics/processes.py",
        "    said = carried(identity.pid, identity.token)\n",
        "    said = ALIVE\n",
        ("tests/test_processes.py",),
    ),
    Patch(
        "the boot",
        "resumekit/basics/processes.py",
        "    if identity.boot_id != boot_id():\n        return DEAD\n",
        "",
        ("tests/test_processes.py", "tests/test_watch.py"),
    ),
    Patch(
        "another host is unknown",
        "resumekit/basics/processes.py",
        "    if identity.host != host_name() and not is_of_this_kernel(identity.boot_id):\n        return UNKNOWN\n",
        "",
        ("tests/test_processes.py", "tests/test_watch.py"),
    ),
    Patch(
        "status whole or not at all",
        "resumekit/run_folder/status.py",
        "    write_atomic(run.paths.status, to_json(status))",
        "    run.paths.status.write_bytes(to_json(status))",
        ("tests/test_status.py::test_a_reader_never_sees_half_a_status",),
    ),
    Patch(
        "what a person stopped stays so",
        "resumekit/run_folder/status.py",
        "    if asked := _asked_state(state):\n        return asked\n",
        "",
        (RECOVERY + "test_what_a_person_ends_is_not_taken_up", "tests/test_stopping.py"),
    ),
    Patch(
        "hands off a paused run",
        "resumekit/basics/paths.py",
        'return self.run_dir / "paused"',
        'return self.run_dir / "never"',
        (RECOVERY + "test_hands_off_is_hands_off",),
    ),
    Patch(
        "a loss that heals",
        "resumekit/supervision/bedside.py",
        "HEALS_S = 2.0",
        "HEALS_S = 0.0",
        ("tests/test_bedside.py::test_a_nan_that_stays_stops_the_run_two_seconds_after_the_first_and_with_the_second",),
    ),
    Patch(
        "the replay",
        "resumekit/recovery/replay.py",
        "    limits = [first_bad_step - wanted, *_steps(run, table, first_bad_step)]",
        "    limits = [10**9]",
        (RECOVERY + "test_a_loss_that_is_not_finite_is_replayed_from_before_it_at_a_lower_rate",),
    ),
    Patch(
        "one cut for one incident",
        "resumekit/recovery/recovering.py",
        'factor = run.setting("recover", "lr_factor") if hindrances.is_cut(run, found) and chosen else 1.0',
        'factor = run.setting("recover", "lr_factor") ** 2',
        (RECOVERY + "test_many_who_want_to_take_up_the_same_run_make_one_child_with_one_cut",),
    ),
    Patch(
        "a cut is inherited without a checkpoint",
        "resumekit/planning/plan.py",
        "    if choice.relation == CONTINUE and parent is not None and candidate.run_id != parent.run_id:",
        "    if False:",
        (RECOVERY + "test_a_person_s_resume_keeps_the_cut_of_a_child_that_had_no_checkpoint",),
    ),
    Patch(
        "the budget",
        "resumekit/recovery/hindrances.py",
        "        _never,\n        _code,\n        _done,\n        _budget,\n",
        "        _code,\n        _done,\n",
        (RECOVERY + "test_three_starts_without_a_step_are_enough_and_the_pauses_double",),
    ),
    Patch(
        "the pause that doubles",
        "resumekit/recovery/recovering.py",
        "    if (left_s := _backoff_left_s(run, found)) > 0:",
        "    if (left_s := 0.0) > 0:",
        (RECOVERY + "test_three_starts_without_a_step_are_enough_and_the_pauses_double",),
    ),
    Patch(
        "the same code",
        "resumekit/recovery/recovering.py",
        "    reason = hindrances.in_the_code(run, asked, code) or ",
        "    reason = ",
        (RECOVERY + "test_the_night_at_three_in_a_lab_s_repository",),
    ),
    Patch(
        "the code named by content",
        "resumekit/planning/code_change.py",
        "code_state.ask_changed(root, commit) if isinstance(commit, str) else None",
        'code_state.ask_changed(root, "HEAD") if commit else None',
        (CODE + "test_a_commit_to_a_file_that_the_command_does_not_name_is_seen",),
    ),
    Patch(
        "what a trainer cannot see is no code",
        "resumekit/planning/code_scope.py",
        '        if path.lower().endswith((".md", ".gitignore")):',
        "        if False:",
        (CODE + "test_an_edit_that_the_trainer_cannot_see_does_not_switch_a_recovery_off",),
    ),
    Patch(
        "code outside git",
        "resumekit/planning/code_change.py",
        "        return files  # there was nothing",
        "        return []  # there was nothing",
        (CODE + "test_without_git_the_script_is_compared",),
    ),
    Patch(
        "no delta of binary files",
        "resumekit/planning/code_state.py",
        "    text, binary = _without_binaries(diff.kept)",
        "    text, binary = diff.kept, []",
        ("tests/test_run_record.py::test_the_patch_applies_to_the_recorded_commit",),
    ),
    Patch(
        "a start that cannot succeed",
        "resumekit/recovery/recovering.py",
        "        if is_attended and (reason",
        "        if False and (reason",
        ("tests/test_first_start.py",),
    ),
    Patch(
        "the budget of an hour",
        "resumekit/recovery/budget.py",
        "    if per_hour is not None and len(lately) >= per_hour:",
        "    if False:",
        ("tests/test_budget.py::test_an_hour_s_budget_is_waited_for",),
    ),
    Patch(
        "room before a take-up",
        "resumekit/recovery/budget.py",
        "    if free < wanted:",
        "    if False:",
        ("tests/test_budget.py::test_a_take_up_wants_room_for_a_checkpoint",),
    ),
    Patch(
        "the GPUs are free",
        "resumekit/recovery/recovering.py",
        "    devices.require_free(run, state)\n",
        "",
        ("tests/test_devices.py",),
    ),
    Patch(
        "a checkpoint that does not load is left aside",
        "resumekit/recovery/suspicion.py",
        "    return Suspect(os.path.basename(checkpoint), step)",
        "    return None",
        ("tests/test_suspicion.py",),
    ),
    Patch(
        "no beginning at 0 over what was trained",
        "resumekit/recovery/replay.py",
        "    if stray := stray_checkpoints.newest(run):",
        "    if False:",
        ("tests/test_stray_checkpoints.py",),
    ),
    Patch(
        "still being written",
        "resumekit/proving/grades.py",
        '            raise UnreadableFile("it is still being written")',
        "            pass",
        ("tests/test_witness.py",),
    ),
    Patch(
        "a manifest of ours is renewed",
        "resumekit/supervision/witness.py",
        "    return known.writer == manifest.SIDECAR and (",
        "    return False and (",
        ("tests/test_witness.py",),
    ),
    Patch(
        "a torn manifest says nothing",
        "resumekit/proving/manifest.py",
        "    return str(error).startswith(_NOT_JSON)",
        "    return False",
        ("tests/test_witness.py",),
    ),
    Patch(
        "an interpreter without torch asks",
        "resumekit/planning/environment.py",
        '    if not isinstance(had, str) or here is not None or versions.get("python") is None:',
        "    if True:",
        ("tests/test_environment.py",),
    ),
    Patch(
        "the environment of the run",
        "resumekit/watching/acting.py",
        '    return {"PATH": os.defpath, **environment,',
        "    return {**os.environ,",
        (RECOVERY + "test_the_watcher_takes_up_a_run_that_lost_everything_in_the_environment_that_it_had",),
    ),
    Patch(
        "orphans are ended first",
        "resumekit/recovery/recovering.py",
        "    if sentence := leftovers.end(run, state):",
        "    if sentence := '':",
        (RECOVERY + "test_what_a_dead_trainer_left_running_is_ended_before_the_next_one_starts",),
    ),
    Patch(
        "one pass at a time",
        "resumekit/watching/acting.py",
        "        yield claims.try_lock(descriptor)",
        "        yield True",
        (
            RECOVERY + "test_two_passes_at_once_are_one",
            "tests/faults/test_g_watcher.py::test_of_two_passes_at_once_the_second_one_leaves_with_one_line",
        ),
    ),
    Patch(
        "the second look",
        "resumekit/watching/watch.py",
        "    if any(one.verdict == SICK for one in looks):",
        "    if False:",
        ("tests/test_watch.py",),
    ),
    Patch(
        "one event for one incident",
        "resumekit/supervision/aborting.py",
        '        if known or state.get("stopped"):',
        '        if state.get("stopped"):',
        (RECOVERY + "test_many_who_want_to_take_up_the_same_run_make_one_child_with_one_cut",),
    ),
    # Waits that have an end.
    Patch(
        "the wait for the last lines ends",
        "launcher.sh",
        '      sleep "$KIT_LAST_LINES_S" &\n',
        "      sleep 100000 &\n",
        (LAUNCHER + "test_a_sidecar_that_hangs_does_not_hold_the_launcher_for_ever",),
    ),
    Patch(
        "the look at a run ends",
        "resumekit/watching/watch.py",
        "    signal.setitimer(signal.ITIMER_REAL, limit_s, 0.5)\n",
        "",
        (WAITS + "test_a_look_that_takes_too_long_is_given_up",),
    ),
    Patch(
        "the wait for a lock ends",
        "resumekit/basics/claims.py",
        "            if time.monotonic() > deadline:\n                raise Busy",
        "            if False:\n                raise Busy",
        (WAITS + "test_a_lock_that_nobody_lets_go_is_given_up",),
    ),
    Patch(
        "the killing of a session ends",
        "resumekit/basics/processes.py",
        "        if time.monotonic() > deadline:\n            break",
        "        if False:\n            break",
        (WAITS + "test_a_session_that_no_kill_ends_is_given_up",),
    ),
    Patch(
        "the wait for a process ends",
        "resumekit/basics/processes.py",
        "            if left_s <= 0:\n                return False\n            alarm.wait(min(left_s, 1.0))",
        "            alarm.wait(1.0)",
        (WAITS + "test_a_process_that_does_not_end_is_waited_for_no_longer_than_was_said",),
    ),
    Patch(
        "the wait for what a trainer leaves behind ends",
        "resumekit/supervision/stopping.py",
        "    while members and time.monotonic() < deadline:",
        "    while members:",
        (WAITS + "test_what_a_trainer_leaves_behind_has_until_the_end_of_the_grace",),
    ),
    Patch(
        "the wait for whoever is told ends",
        "resumekit/recovery/attention.py",
        "timeout=NOTIFY_S,",
        "timeout=None,",
        (WAITS + "test_whoever_is_told_of_a_run_and_never_answers_is_given_up",),
    ),
    # The launcher's own.
    Patch(
        "signals are held until the first run is there",
        "launcher.sh",
        "  trap 'KIT_HELD+=(TERM)' TERM\n",
        "  trap 'kit_on_signal TERM' TERM\n",
        ("tests/faults/test_a_trainer.py::test_term_is_heard_from_the_first_command_on_that_can_hear_it",),
    ),
    Patch(
        "signals that were held are handed on",
        "launcher.sh",
        '    if [[ -n $name ]]; then kit_on_signal "$name"; fi\n',
        "    :\n",
        (
            "tests/faults/test_a_trainer.py::test_term_is_heard_from_the_first_command_on_that_can_hear_it",
            LAUNCHER + "test_a_signal_while_the_trainer_is_just_starting_is_not_lost",
        ),
    ),
    Patch(
        "the terminal may go",
        "launcher.sh",
        "  trap 'kit_on_hangup' HUP\n",
        "",
        (LAUNCHER + "test_closing_the_terminal_stops_nothing",),
    ),
    Patch(
        "a reader may go",
        "launcher.sh",
        "  trap '' PIPE #",
        "  : #",
        (
            LAUNCHER + "test_a_reader_that_leaves_ends_nothing",
            LAUNCHER + "test_nobody_to_talk_to_does_not_end_the_launcher",
        ),
    ),
    Patch(
        "what nobody hears is not said for ever",
        "launcher.sh",
        "  trap kit_end_sayers EXIT\n",
        "",
        (LAUNCHER + "test_a_pipe_that_nobody_reads_keeps_no_process",),
    ),
    Patch(
        "nobody waits for a terminal to be read",
        "launcher.sh",
        '  kit_say "$words" &\n',
        '  kit_say "$words"; : &\n',
        (LAUNCHER + "test_a_terminal_that_nobody_reads_stops_nothing",),
    ),
    Patch(
        "a keeper that was killed is followed by another one",
        "launcher.sh",
        "    kit_hold_signals\n    kit_keep_sidecar &\n    keeper=$!\n    kit_let_signals\n  done",
        "    break\n  done",
        (F_SIDECAR + "test_a_run_without_a_sidecar_under_a_living_launcher_is_written_down_at_its_end",),
    ),
    Patch(
        "the keeper starts a sidecar again",
        "launcher.sh",
        "    if ((pause_s < 32)); then pause_s=$((pause_s * 2)); fi\n",
        "    return 0\n",
        ("tests/test_sidecar.py::test_the_status_goes_on_where_a_killed_sidecar_left_it",),
    ),
    Patch(
        "a detached launcher holds no descriptor",
        "launcher.sh",
        "os.closerange(3, 1024)\n",
        "",
        (LAUNCHER + "test_detached_it_keeps_no_descriptor_of_its_caller",),
    ),
    Patch(
        "a detached launcher has a session of its own",
        "launcher.sh",
        "os.setsid()\n",
        "",
        (LAUNCHER + "test_detached_it_has_left_the_terminal",),
    ),
    Patch(
        "a detached launcher hears INT",
        "launcher.sh",
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n",
        "",
        (LAUNCHER + "test_a_detached_launcher_passes_signals_on",),
    ),
    Patch(
        "after a signal it is waited again",
        "launcher.sh",
        '    kit_job_runs "$1" && continue\n',
        "",
        (
            "tests/test_stopping.py::"
            "test_through_three_signals_the_trainers_end_is_waited_for_and_its_code_is_the_launchers",
        ),
    ),
    Patch(
        "the code of a child that ended in a trap",
        "launcher.sh",
        '    wait "$1" 2>/dev/null || again=$?\n',
        "    again=127\n",
        (LAUNCHER + "test_a_child_that_ends_while_a_trap_runs_keeps_its_code",),
    ),
    Patch(
        "nothing is everybody's to change",
        "command_line.sh",
        "  umask o-w #",
        "  : #",
        (
            LAUNCHER + "test_under_an_open_umask_nothing_is_everybody_s_to_change",
            H_SHELL + "test_h19_a_run_has_the_modes_that_the_umask_says_and_is_never_everybody_s_to_write",
        ),
    ),
    Patch(
        "a shim may still start its trainer",
        "resumekit/watching/acting.py",
        " and not _may_start(run, look):",
        ":",
        (CUSTODY + "test_the_marker_of_a_run_whose_shim_may_still_start_its_trainer_stays",),
    ),
    Patch(
        "the owner of a run folder, where the watcher acts",
        "resumekit/watching/acting.py",
        "    if reason := custody.of_marked_run(run.paths):\n        yield",
        "    if reason := None:\n        yield",
        (CUSTODY + NOT_THE_CALLERS,),
    ),
    Patch(
        "the owner of a run folder, where the watcher looks",
        "resumekit/watching/watch.py",
        "if reason := custody.of_marked_run(RunPaths(runs_dir / run_id)):",
        "if reason := None:",
        (CUSTODY + NOT_THE_CALLERS,),
    ),
    Patch(
        "the owner of a run, before its recorded environment is set",
        "resumekit/recovery/command.py",
        "    if reason := custody.of_marked_run(RunPaths(run_dir)):",
        "    if reason := None:",
        (CUSTODY + "test_a_recorded_path_and_python_choose_no_program_for_a_run_that_is_not_the_callers",),
    ),
    Patch(
        "a run folder that is a link",
        "resumekit/watching/custody.py",
        "    if stat.S_ISLNK(found.st_mode):\n        return",
        "    if stat.S_ISLNK(found.st_mode) and (found := os.stat(path)) is None:\n        return",
        (CUSTODY + NOT_THE_CALLERS,),
    ),
    Patch(
        "a stop by name does not go through a link",
        "resumekit/watching/acting.py",
        "meant = [name for name in run_ids if name not in links]",
        "meant, links = list(run_ids), {}",
        (CUSTODY + "test_a_stop_by_name_does_not_go_through_a_link",),
    ),
    Patch(
        "a folder for live markers belongs to its user",
        "resumekit/run_folder/live_marker.py",
        "    if uid != own_uid:",
        "    if False:",
        (CUSTODY + "test_a_folder_for_markers_that_is_not_the_callers_is_refused_with_its_own_name",),
    ),
    Patch(
        "a live marker for its user alone",
        "resumekit/run_folder/live_marker.py",
        "os.O_CLOEXEC | flags, 0o600,",
        "os.O_CLOEXEC | flags, 0o666,",
        (CUSTODY + "test_a_marker_can_be_locked_by_its_own_user_alone",),
    ),
    Patch(
        "the watcher's log is no link",
        "resumekit/watching/watcher_files.py",
        "os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_APPEND | os.O_NONBLOCK",
        ("tests/test_watch_log.py::test_nothing_is_written_through_what_another_user_could_have_put_there",),
    ),
    Patch(
        "the watcher's log has one name",
        "resumekit/watching/watcher_files.py",
        "    if found.st_nlink > 1:",
        "    if False:",
        ("tests/test_watch_log.py::test_nothing_is_written_through_what_another_user_could_have_put_there",),
    ),
    Patch(
        "a warning is not repeated every minute",
        "resumekit/watching/watch_log.py",
        "        if self._memory.said.get(key) == value or self._write(sentence):",
        "        if self._write(sentence):",
        ("tests/test_watch_log.py::test_a_finding_is_said_when_it_is_new_when_its_kind_changes_and_when_it_is_over",),
    ),
    Patch(
        "a person is told of a run that stays stuck",
        "resumekit/watching/acting.py",
        "    if is_due and wait.passes",
        "    if False and wait.passes",
        ("tests/test_suspended.py::test_ten_passes_and_ten_minutes_have_to_go_by",),
    ),
    Patch(
        "a copy of a run is no head",
        "resumekit/run_folder/runs.py",
        "if run.copy_of is None and run.has_started]",
        "if run.has_started]",
        ("tests/test_copies.py::test_a_copy_of_a_run_beside_it_is_no_head_and_is_said_to_be_a_copy",),
    ),
    Patch(
        "a manifest of another run's is not swept",
        "resumekit/proving/pruning.py",
        "if is_gone and known.run_id == run_id and",
        "if is_gone and",
        ("tests/test_copies.py::test_a_manifest_whose_checkpoint_is_gone_is_swept_and_no_file_of_another_hand",),
    ),
    Patch(
        "UTF-8 in any locale",
        "launcher.sh",
        '  export PYTHONUTF8="${PYTHONUTF8:-1}"\n',
        "",
        (LAUNCHER + "test_a_python_trainer_is_in_utf8_mode_whatever_the_locale_is",),
    ),
    Patch(
        "a damaged checkpoint is asked for before the next start",
        "launcher.sh",
        '    ((KIT_IS_RECOVERY)) || exec "$KIT_COMMAND" "${KIT_ARGUMENTS[@]}"\n',
        "",
        ("tests/test_resume.py::test_a_checkpoint_that_fails_its_proof_is_quarantined_and_the_next_one_taken",),
    ),
    Patch(
        "a seal is held against the records",
        "resumekit/run_folder/trust.py",
        "        if digest != seal.sha256.get(name):",
        "        if False:",
        (TRUST + "test_a_run_is_sealed_as_long_as_every_record_is_as_the_launcher_wrote_it",),
    ),
    Patch(
        "a copy of a run has no seal",
        "resumekit/run_folder/trust.py",
        "_not_recorded(run, folder) or _newer_than_seals(folder)",
        "_not_recorded(run, folder)",
        (TRUST + "test_a_run_that_was_written_after_the_first_seal_needs_one",),
    ),
    Patch(
        "words of another user's run are asked for",
        "resumekit/planning/executed_words.py",
        "    if standing.kind == SEALED:\n",
        "    if True:\n",
        (TRUST + "test_what_another_users_run_says_is_executed_only_with_consent",),
    ),
    Patch(
        "nothing of another user's is started before consent",
        "resumekit/planning/preflight.py",
        "    if choice.consents and not (request.is_accepted and not request.is_dry_run):",
        "    if False:",
        (TRUST + "test_what_another_users_run_says_is_executed_only_with_consent",),
    ),
    Patch(
        "a take-up needs the caller's own word",
        "resumekit/recovery/recovering.py",
        '        return f"{examined.standing.reason}; nothing in it is executed without a person (docs/security.md)"',
        "        pass",
        (TRUST + "test_a_record_that_was_edited_while_the_run_lived_is_not_taken_up_and_a_person_is_told",),
    ),
    Patch(
        "the environment of another user's record",
        "resumekit/recovery/command.py",
        "    if not examined.standing.is_callers:\n",
        "    if False:\n",
        (TRUST + "test_the_environment_of_a_record_that_was_edited_is_not_used",),
    ),
    Patch(
        "a checkpoint of another user's is plain data",
        "resumekit/planning/checkpoint_trust.py",
        "    if whose is None:",
        "    if True:",
        (TRUST + "test_a_checkpoint_of_another_users_is_loaded_by_a_trainer_of_its_own_only_if_it_is_plain_data",),
    ),
    Patch(
        "a checkpoint in a copied run is plain data",
        "resumekit/planning/checkpoint_trust.py",
        "        if reason := trust.against_checkpoint(run, path):",
        '        if reason := "":',
        (TRUST + "test_a_checkpoint_in_a_run_that_was_copied_is_unpickled_only_with_consent",),
    ),
    Patch(
        "a name in another form than it is saved",
        "resumekit/proving/torch_names.py",
        "    if not condition:",
        "    if False:",
        ("tests/test_pickle_forms.py::test_c13_a_known_name_in_another_form_than_it_is_saved_is_refused",),
    ),
    Patch(
        "one archive in a file",
        "resumekit/proving/archive.py",
        '    if len({record.name.partition("/")[0] for record in found}) > 1:',
        "    if False:",
        (TRUST + "test_an_archive_that_torch_would_read_otherwise_than_the_kit_is_no_checkpoint",),
    ),
    Patch(
        "another project's run is no head",
        "resumekit/planning/project.py",
        "        if here == first:",
        "        if True:",
        (TRUST + "test_two_projects_in_one_runs_folder_do_not_go_on_from_each_other",),
    ),
    Patch(
        "the extractor is no part of the run",
        "resumekit/supervision/extraction.py",
        ' if not name.startswith("RESUMEKIT_")}',
        "}",
        ("tests/test_best_artifacts.py::test_the_process_that_extracts_is_no_part_of_the_run",),
    ),
    Patch(
        "an observer that is behind knows no age",
        "resumekit/watching/abort_rules.py",
        "        sight = sight._replace(now_s=None)\n",
        "        pass\n",
        (PROGRESS + "test_nothing_that_goes_by_an_age_is_said_while_the_observer_is_behind",),
    ),
    Patch(
        "an observer says that it is behind",
        "resumekit/run_folder/observer.py",
        "    if not is_behind:\n",
        "    if True:\n",
        (PROGRESS + "test_when_an_observer_is_behind",),
    ),
    Patch(
        "a checkpoint is progress for the observer",
        "resumekit/supervision/new_checkpoints.py",
        "            self._saved_s = now\n",
        "            pass\n",
        (PROGRESS + "test_a_checkpoint_that_is_new_or_renewed_is_progress",),
    ),
    Patch(
        "starts that leave newer checkpoints for the observer",
        "resumekit/watching/sighting.py",
        "        if one.saved > max([one.begun, *saved]) + one.further:\n",
        "        if False:\n",
        (PROGRESS + "test_starts_that_leave_newer_checkpoints_are_not_fruitless",),
    ),
    Patch(
        "a process group of the observer's own",
        "resumekit/supervision/sidecar.py",
        "        os.setpgid(0, 0)\n",
        "        pass\n",
        (PROGRESS + "test_a_launcher_that_is_stopped_at_its_terminal_leaves_the_sidecar_at_work",),
    ),
    Patch(
        "an observer that its terminal does not stop",
        "resumekit/supervision/sidecar.py",
        ", signal.SIGTTOU, signal.SIGTTIN)",
        ")",
        (PROGRESS + "test_a_launcher_that_is_stopped_at_its_terminal_leaves_the_sidecar_at_work",),
    ),
    Patch(
        "the step of a bar for the observer",
        "resumekit/supervision/log_follower.py",
        "        steps += self._steps_of_bar()\n",
        "",
        (PROGRESS + "test_the_step_of_a_line_without_its_end_is_read",),
    ),
    Patch(
        "a number that has come in part is none for the observer",
        "resumekit/supervision/train_log.py",
        "is_whole, self._unfinished = last == self._unfinished, last",
        "is_whole, self._unfinished = True, last",
        (PROGRESS + "test_a_number_that_has_come_in_part_is_no_step",),
    ),
    Patch(
        "a log that is cut is observed from its beginning",
        "resumekit/supervision/log_source.py",
        "        if size < self.offset:\n",
        "        if False:\n",
        (LOG_SOURCE + "test_a_log_that_is_cut_is_read_from_its_beginning",),
    ),
    Patch(
        "a log that was cut and has grown is observed from its beginning",
        "resumekit/supervision/log_source.py",
        "            elif self._mark is not None and self.mark_at(self.offset) != self._mark:\n",
        "            elif False:\n",
        (LOG_SOURCE + "test_a_log_that_was_cut_and_has_grown_since_is_known_by_what_stood_before",),
    ),
    Patch(
        "the trainer's own file is observed, not the name",
        "resumekit/supervision/log_source.py",
        "        descriptor = _of_trainer(self._trainer_pid(), self._wanted)\n",
        "        descriptor = -1\n",
        (LOG_SOURCE + "test_a_successor_finds_what_the_trainer_writes_by_the_trainer_itself",),
    ),
    Patch(
        "a number is observed as a whole",
        "resumekit/run_folder/log_patterns.py",
        "        end = max(start + len(number), form.match(line, start).end())\n",
        "        end = start + len(number)\n",
        ("tests/test_log_numbers.py::test_a_number_is_read_as_a_whole_or_not_at_all",),
    ),
    Patch(
        "a burst that is observed is one telling",
        "resumekit/run_folder/pace.py",
        "    if interval_s < MIN_INTERVAL_S:\n",
        "    if False:\n",
        ("tests/test_pace.py::test_a_block_of_lines_is_one_telling",),
    ),
    Patch(
        "what is observed for the first time is no best",
        "resumekit/run_folder/symptoms.py",
        " if told > STEADY else smooth\n",
        "\n",
        ("tests/test_pace.py::test_a_first_loss_that_happens_to_be_small_is_no_best",),
    ),
    Patch(
        "a launcher within a run is no part of it",
        "command_line.sh",
        "  unset RESUMEKIT_RUN_TOKEN\n",
        "",
        ("tests/test_stops.py::test_a_launcher_that_is_started_from_within_a_run_is_no_part_of_it",),
    ),
    Patch(
        "a stop reaches what a wrapper wraps",
        "resumekit/supervision/session_end.py",
        "        self._survivors.tell(self._number(), self._members)\n",
        "        pass\n",
        ("tests/test_wrapped.py::test_a_stop_reaches_what_a_wrapper_wraps_once_and_its_end_is_waited_for[plain-TERM]",),
    ),
    Patch(
        "the end waits for what the first process has left",
        "resumekit/supervision/shim.py",
        "    if not is_left and not _may_mean",
        "    is_left = False\n    if not is_left and not _may_mean",
        ("tests/test_wrapped.py::test_a_stop_reaches_what_a_wrapper_wraps_once_and_its_end_is_waited_for[plain-TERM]",),
    ),
    Patch(
        "a reader of a pipe is not told",
        "resumekit/supervision/survivors.py",
        " and not process_details.reads_from(member.pid, pids)",
        "",
        ("tests/test_wrapped.py::test_a_stop_reaches_what_a_wrapper_wraps_once_and_its_end_is_waited_for[tee-TERM]",),
    ),
    Patch(
        "what a wrapper has handed on is not sent again",
        "resumekit/supervision/session_end.py",
        "        if self._was_job or has_handled_it:\n",
        "        if self._was_job:\n",
        (
            "tests/test_wrapped.py::test_a_stop_reaches_what_a_wrapper_wraps_once_and_its_end_is_waited_for[forwards-TERM]",
        ),
    ),
    Patch(
        "a shell gets TERM for INT",
        "resumekit/supervision/survivors.py",
        "process_details.is_shell(pid) or ",
        "",
        ("tests/test_shell_stops.py::test_a_shell_gets_term_for_int_before_any_step_is_seen_and_with_a_trap",),
    ),
    Patch(
        "a signal to the whole job is not sent again",
        "resumekit/supervision/stopping.py",
        "has_heard = is_launcher_s and trainer is not None and _was_sent_to_the_job(run, signal_name)",
        "has_heard = False",
        ("tests/test_launcher.py::test_a_signal_to_every_process_of_the_job_is_one_stop",),
    ),
    Patch(
        "one stop at a time",
        "resumekit/supervision/stopping.py",
        "        while not claims.try_lock(descriptor):\n",
        "        while False:\n",
        ("tests/test_launcher.py::test_term_once_and_twice_to_the_launcher",),
    ),
    Patch(
        "a Ctrl-C that bounces is one",
        "launcher.sh",
        "      if kit_is_again; then\n",
        "      if ((KIT_SIGNALS)); then\n",
        ("tests/test_launcher.py::test_a_ctrl_c_that_bounces_is_one",),
    ),
    Patch(
        "USR1 is a stop",
        "launcher.sh",
        "  trap 'kit_on_signal USR1' USR1\n",
        "",
        ("tests/test_launcher.py::test_a_scheduler_s_warning_is_a_stop_that_is_said",),
    ),
    Patch(
        "a stop from elsewhere is no incident",
        "resumekit/run_folder/status.py",
        'by = None if view.end.get("code") in incident_codes else run_end.stopped_by(view.end)',
        "by = None",
        ("tests/test_stops.py::test_a_signal_to_one_s_own_trainer_is_a_stop_and_nothing_takes_it_up",),
    ),
    Patch(
        "a stop in a save is handed on once",
        "resumekit/trainer/deferred_signals.py",
        " and not (number in _STOPS and _STOPS & set(pending))",
        "",
        ("tests/test_saving.py::test_a_stop_that_comes_more_than_once_in_a_save_is_handed_on_once_when_it_is_done",),
    ),
    Patch(
        "nothing is read behind a script",
        "watch_installer.sh",
        "  exit\n}\n",
        "}\n",
        ("tests/test_scripts.py::test_nothing_is_read_behind_what_a_script_does",),
    ),
    Patch(
        "a full disk does not hold a command",
        "resumekit/supervision/sidecar.py",
        "        if not is_concluded:\n",
        "        if not is_concluded and not self._try_to_conclude(end, CATCH_UP_S):\n",
        ("tests/test_full_disk.py::test_a_command_on_a_full_disk_returns_and_its_reader_too",),
    ),
    Patch(
        "what is shown is printable",
        "resumekit/basics/terminal.py",
        "    return text if text.isprintable() else",
        "    return text if True else",
        ("tests/test_shown_text.py::test_a_canary_in_the_names_of_files_is_shown_as_text",),
    ),
    Patch(
        "another user's journal is read up to a bound",
        "resumekit/basics/journal.py",
        "            if not is_own and (count > MAX_FOREIGN_BYTES or",
        "            if not is_own and (",
        ("tests/test_journal.py::test_of_another_users_journal_no_more_than_a_bound_is_read_at_once",),
    ),
    Patch(
        "of another user's journal a stretch without an event is bounded",
        "resumekit/basics/journal.py",
        " or count - event_at > MAX_FOREIGN_GAP_BYTES):\n",
        "):\n",
        ("tests/test_journal.py::test_of_another_users_journal_a_long_stretch_without_an_event_is_not_read",),
    ),
    Patch(
        "holes of a journal are passed over",
        "resumekit/basics/journal.py",
        "        return os.lseek(descriptor, offset, os.SEEK_DATA)\n",
        "        return offset\n",
        ("tests/test_journal.py::test_a_hole_in_a_journal_costs_no_time_and_what_lies_behind_it_is_read",),
    ),
    Patch(
        "a folder is known by its inode",
        "resumekit/basics/made_folder.py",
        "        return (found.st_dev, found.st_ino) == (self.device, self.inode)\n",
        "        return True\n",
        ("tests/test_shim.py", "tests/test_trust.py", "tests/test_launch.py"),
    ),
    Patch(
        "a folder that is exchanged right before the exec gets no trainer",
        "resumekit/supervision/shim.py",
        "            made_folder.refuse_exchanged(run.run_dir, made)\n",
        "",
        ("tests/test_shim.py::test_a_folder_that_is_exchanged_right_before_the_exec_gets_no_trainer",),
    ),
    Patch(
        "a sidecar takes nothing from records that were edited",
        "resumekit/supervision/sidecar.py",
        "    if standing.is_callers or (made is None and",
        "    if True or (made is None and",
        ("tests/test_sidecar.py::test_a_sidecar_takes_nothing_from_records_that_were_edited_since_the_launch",),
    ),
    Patch(
        "an error is a printable line",
        "resumekit/basics/errors.py",
        "        return plain(super().__str__())\n",
        "        return super().__str__()\n",
        ("tests/test_shown_text.py::test_what_an_error_says_is_one_printable_line_wherever_it_is_printed",),
    ),
    Patch(
        "what the launcher says is printable",
        "command_line.sh",
        "  if [[ $text == *[![:print:]]* ]]; then\n",
        "  if false; then\n",
        ("tests/test_shown_text.py::test_what_the_launcher_itself_says_is_one_printable_line",),
    ),
    Patch(
        "a record has one zip64 field at most",
        "resumekit/proving/archive.py",
        "    if position != len(extra) or [len(field) for field in fields] != ([8 * full] if full else []):\n",
        "    if len(fields) < (full > 0):\n",
        ("tests/test_archive.py::test_a_record_for_which_two_readers_find_two_places_is_refused",),
    ),
    Patch(
        "only the records that torch.save writes",
        "resumekit/proving/archive.py",
        "        _refuse_odd_name(name)\n",
        "",
        ("tests/test_archive.py::test_a_record_that_torch_save_does_not_write_is_refused",),
    ),
    Patch(
        "a link of another user's stands for no folder of a run",
        "resumekit/run_folder/runs.py",
        "            if stat.S_ISLNK(found.st_mode) and found.st_uid != os.geteuid():\n",
        "            if False:\n",
        ("tests/test_trust.py::test_a_run_in_which_another_user_has_put_a_link_for_a_folder_is_none_of_ours",),
    ),
    Patch(
        "a status is no hidden file",
        "resumekit/run_folder/runs.py",
        '    return last.endswith(".json") and not last.startswith(".")\n',
        "    return True\n",
        ("tests/test_trust.py::test_a_record_does_not_say_that_a_status_is_written_over_another_file",),
    ),
    Patch(
        "a trainer carries the token of its run's record",
        "resumekit/run_folder/runs.py",
        "        return None if told and isinstance(own, str) and told != own else trainer\n",
        "        return trainer\n",
        ("tests/test_leftovers.py::test_a_line_of_another_run_in_its_journal_has_nothing_of_that_run_killed",),
    ),
    Patch(
        "a copy is made of no link",
        "resumekit/planning/preflight.py",
        "        if path.parent != Path(os.path.realpath(chosen.parent)):\n",
        "        if False:\n",
        ("tests/test_launch.py::test_a_link_that_has_come_into_the_place_of_a_checkpoint_is_not_copied_from",),
    ),
    Patch(
        "a link to a run leads to its owner's",
        "resumekit/run_folder/runs.py",
        "        return owner in (0, os.geteuid(), os.stat(link).st_uid)\n",
        "        return True\n",
        ("tests/test_trust.py::test_another_users_link_to_a_run_of_the_callers_is_no_run_of_this_folder",),
    ),
)


def main() -> int:
    """Try every patch; 0 if the suite turned red each time, and was green before."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="only patches whose name has one of these"
    )
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="N", help="only from the Nth patch on")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = [patch for patch in PATCHES[args.first - 1 :] if any(word in patch.name for word in args.only)]
    began = time.monotonic()
    red = red_anyway(chosen, args.jobs)
    print(f"{len(red)} tests are red without any patch, {time.monotonic() - began:.0f} s", *red, sep="\n  ", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        seen = list(pool.map(lambda patch: is_seen(patch, red), chosen))
    print(f"{sum(seen)}/{len(seen)} protections are missed when they are gone, {time.monotonic() - began:.0f} s")
    return 0 if all(seen) and not red else 1


def red_anyway(patches: list[Patch], jobs: int) -> list[str]:
    """Return the tests of these patches that fail though nothing was taken out."""
    tests = sorted({test for patch in patches for test in patch.tests})
    with tempfile.TemporaryDirectory(prefix="protection-") as place:
        code, failed = run_tests(_copy(place), ["-n", str(jobs), "--dist", "worksteal", *tests], BEFORE_S)
    if code not in (0, 1):
        raise SystemExit(f"the tests cannot be run at all: pytest ended with {code}; {failed}")
    return failed


def is_seen(patch: Patch, red: list[str]) -> bool:
    """Whether the tests of a protection, but those that are red anyway, fail without it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="protection-") as place:
        tree = _copy(place)
        file = tree / "lib" / patch.file
        text = file.read_text(encoding="utf-8")
        if text.count(patch.old) != 1:
            print(f"?  {patch.name}: its line is not there once, but {text.count(patch.old)} times", flush=True)
            return False
        file.write_text(text.replace(patch.old, patch.new), encoding="utf-8")
        left_out = [f"--deselect={test}" for test in red]
        code, failed = run_tests(tree, ["-x", *left_out, *patch.tests], LIMIT_S)
    # A test failed, or did not end any more. Anything else (nothing collected, an error of pytest) shows nothing.
    has_failed = code in (1, None)
    print(
        f"{'ok' if has_failed else 'NO'} {patch.name} ({time.monotonic() - began:.0f} s) {''.join(failed[:1])}",
        flush=True,
    )
    return has_failed


def _copy(place: str) -> Path:
    tree = Path(place) / "kit"
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)
    return tree


def run_tests(tree: Path, args: list[str], limit_s: float) -> tuple[int | None, list[str]]:
    """Run tests in a tree; returns pytest's code, None if it did not end, and what failed."""
    # Cases that are too long for `make test` may be the ones that see it.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-m",
        "not campaign",
        *args,
    ]
    mark = secrets.token_hex(8)
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", MARK: mark}
    # A file, not a pipe: what a test has left running would hold a pipe open.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=tree, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            has_ended = _ends(process, limit_s)
        finally:
            _end_marked(f"{MARK}={mark}")
            process.wait()
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").splitlines()
    if not has_ended:
        return None, ["did not end"]
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return process.returncode, [line.split(" ", 1)[1].split(" - ")[0] for line in failed]


def _ends(process: subprocess.Popen, limit_s: float) -> bool:
    """Whether pytest ends within a limit; behind it the fixtures have CLEANING_S to end what their tests started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)
        return True
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(CLEANING_S)
    return False


def _end_marked(entry: str) -> None:
    """KILL every process that carries this entry in its environment, whatever session it is in."""
    for _ in range(100):
        pids = list(marked_pids(entry))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    raise SystemExit(main())
