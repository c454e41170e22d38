"""The verbs that the shell asks for: start, resume, runs, watch, sidecar, prove and the rest at the end of this file.

Answers for Bash go to stdout (`start/launcher_answer`), everything for people to stderr. Imports are late: each
verb pays only for what it needs, and the launcher waits for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .base import slurm, terminal
from .base.errors import DONE, FAILED, USAGE, InvalidFile, KitError, NeedsAccept, UsageError, report
from .base.imports import Any
from .base.terminal import say, show_json, show_text, stdout_width


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (see errors.py)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in _VERBS:
        say("resumekit_cli.py", f"the first argument is one of {', '.join(_VERBS)}")
        return USAGE
    verb, prog = _VERBS[arguments[0]]
    return report(lambda: _in_one_sentence(verb, arguments[1:]), prog)


def _in_one_sentence(verb: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a verb; whatever ends it becomes one sentence."""
    try:
        return verb(arguments)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f" ('{os.fsdecode(error.filename)}')" if error.filename else ""
        raise KitError(f"{(error.strerror or str(error)).lower()}{where}") from error
    except ValueError as error:
        if "null byte" not in str(error) and "null character" not in str(error):
            raise
        raise InvalidFile("a path in the config holds a NUL character") from error


def _start(arguments: list[str]) -> int:
    from .start.choice import choose_start

    return _launch(arguments, choose_start, "run.sh")


def _resume(arguments: list[str]) -> int:
    from .start.choice import choose_resume

    return _launch(arguments, choose_resume, "resume.sh")


def _launch(arguments: list[str], choose: Callable[[Any], Any], prog: str) -> int:
    from .start.request import parse

    options = parse(arguments)
    request = options.request()
    terminal.progress = lambda sentence: say(prog, sentence)
    if own := slurm.allocation():
        from .start import in_job  # late: outside of a job nothing of it counts

        choose = in_job.chooser(choose, own)
    if request.is_dry_run:
        from .start import pipeline, plan_report

        planned = pipeline.decide(request, choose, pipeline.of_a_user(request))
        return plan_report.print_report(planned, is_json="json" in options.switches)
    from .start import launcher_answer, make_folder

    try:
        run = make_folder.start(request, choose, prog, options.launcher_pid, [prog, *options.typed])
    except NeedsAccept as error:
        if request.job is not None:
            from .watch import held_job

            held_job.tell(request, request.job, error)
        raise
    launcher_answer.write(run, by_position=options.is_answered_by_position)
    return DONE


def _submit(arguments: list[str]) -> int:
    from .start import submit

    terminal.progress = lambda sentence: say("submit.sh", sentence)
    return submit.main(arguments)


def _runs(arguments: list[str]) -> int:
    from .config.config import load_config, resolve
    from .run import listing
    from .run.run_table import RunTable
    from .start.request import parse, runs_folder

    options = parse(arguments)
    runs_dir = options.runs
    experiments: tuple[str, ...] = ()
    if runs_dir is None:
        file = load_config(options.config)
        runs_dir, experiments = runs_folder(resolve(file.document, schema=file.schema), file), file.experiments
    elif not runs_dir.is_dir():
        raise UsageError(f"there is no runs folder '{runs_dir}' (given with --runs)")
    if "watch" in options.switches:
        from .run import live_view  # it alone draws

        if "json" in options.switches:
            raise UsageError("--watch draws for people, --json is for programs: one of them")
        return live_view.main(runs_dir.absolute(), options.values.get("experiment"))
    terminal.progress = lambda sentence: say("runs.sh", sentence)
    table, wanted = RunTable(runs_dir.absolute(), experiments=experiments), options.values.get("experiment")
    if "json" in options.switches:
        show_json(listing.as_json(listing.choose(table, wanted)))
    else:
        show_text(listing.show(table, wanted, stdout_width()))
    return DONE


def _watch(arguments: list[str]) -> int:
    from .watch import command

    return command.main(arguments)


def _watch_own(arguments: list[str]) -> int:
    from .watch import own_watcher

    return own_watcher.main(arguments)


def _install_watch(arguments: list[str]) -> int:
    from .watch import install

    return install.main(arguments)


def _sidecar(arguments: list[str]) -> int:
    from .process import sidecar

    return sidecar.main(Path(arguments[0]), has_echo="--echo" in arguments[1:], made=_made(arguments))


def _prove(arguments: list[str]) -> int:
    from .checkpoint.proof import prove_for_run
    from .run.run_folder import open_run

    run_dir = Path(arguments[0])
    return prove_for_run(run_dir, Path(arguments[1]), _made(arguments), open_run(run_dir).max_read_mb_per_s)


def _quarantine_damaged(arguments: list[str]) -> int:
    """0 if the run's checkpoint failed its proof; it is in quarantine then. 1 if it did not, or cannot be put there."""
    from .run.quarantine import quarantine_damaged

    return DONE if quarantine_damaged(Path(arguments[0]), Path(arguments[1]), _made(arguments)) else FAILED


def _made(arguments: list[str]) -> Any:
    """Return by what a launcher knows the folder that it has made (`--made=`); None where nothing was handed on."""
    from .base import ownership

    handed = (word.partition("=")[2] for word in arguments[1:] if word.startswith("--made="))
    return ownership.made_folder_from_text(next(handed, ""))


def _recover(arguments: list[str]) -> int:
    from .watch import recover_command

    return recover_command.main(arguments)


def _code_changed(arguments: list[str]) -> int:
    """Print which code has changed since a run began; nothing where none has, or where git does not say."""
    from .run import trust
    from .start import code_change

    os.nice(10)  # beside a training

    examined = trust.examine(Path(arguments[0]))
    if not examined.standing.is_callers:
        return DONE  # git is asked in no folder that another user's record names
    names = code_change.answer(code_change.ask(examined.run))
    if names:
        show_text(code_change.sentence(names))
    return DONE


def _take_up(arguments: list[str]) -> int:
    from .watch import recover_command

    return recover_command.take_up(Path(arguments[0]))


def _escalate(arguments: list[str]) -> int:
    from .watch import recover_command

    return recover_command.escalate(Path(arguments[0]), arguments[1])


def _stop(arguments: list[str]) -> int:
    from .process import stopping

    how = arguments[2:]
    return stopping.stop(
        Path(arguments[0]), arguments[1], is_now="--now" in how, is_aborted="--aborted" in how,
        is_launcher_s="--launcher" in how,
    )  # fmt: skip


def _job_end(arguments: list[str]) -> int:
    from .watch import requeue

    return requeue.after_the_last_run(Path(arguments[0]), int(arguments[1]))


def _version(arguments: list[str]) -> int:
    from .base import kit_version

    show_text(f"{arguments[0]} resumekit {kit_version.version()} (digest {kit_version.digest()[:12]})")
    return DONE


_VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "start": (_start, "run.sh"),
    "resume": (_resume, "resume.sh"),
    "submit": (_submit, "submit.sh"),
    "runs": (_runs, "runs.sh"),
    "watch": (_watch, "abort-watch.sh"),
    "watch-own": (_watch_own, "watch-own"),
    "install-watch": (_install_watch, "watch_installer.sh"),
    "sidecar": (_sidecar, "sidecar"),
    "prove": (_prove, "prove"),
    "quarantine-damaged": (_quarantine_damaged, "quarantine-damaged"),
    "stop": (_stop, "stop"),
    "recover": (_recover, "recover"),
    "code-changed": (_code_changed, "code-changed"),
    "version": (_version, "version"),
    "take-up": (_take_up, "take-up"),
    "escalate": (_escalate, "escalate"),
    "job-end": (_job_end, "job-end"),
}
