"""The verbs that the shell asks for: start, resume, runs, watch, sidecar, prove and the rest at the end of this file.

Answers for Bash go to stdout as NUL-separated fields, everything for people to stderr. Imports are late: each verb
pays only for what it needs, and the launcher waits for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .basics.errors import DONE, FAILED, NEEDS_ACCEPT, REFUSED, USAGE, InvalidFile, KitError, UsageError, report
from .basics.terminal import say, show_json, show_text


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
    from .planning.choice import choose_start

    return _launch(arguments, choose_start, "run.sh")


def _resume(arguments: list[str]) -> int:
    from .planning.choice import choose_resume

    return _launch(arguments, choose_resume, "resume.sh")


def _launch(arguments: list[str], choose: Callable[[Any], Any], prog: str) -> int:
    from .planning.request import parse

    options = parse(arguments)
    request = options.request()
    from .planning import code_state
    from .supervision import launch

    snapshot = code_state.start_snapshot(request.root)  # git looks while we choose
    if request.is_dry_run:
        return _show(*_planned(request, choose, snapshot)[:2], is_json="json" in options.switches)
    with launch.one_start_at_a_time(request):
        choice, plan, ready, code = _planned(request, choose, snapshot)
        if plan is not None:
            plan.require(request.is_accepted)
        agreed = plan.consents if plan is not None else choice.consents  # what --accept was said to stands on record
        said = (*choice.said, *(f"accepted: {sentence}" for sentence in agreed), choice.headline)
        for sentence in (*said, *(plan.said if plan else ())):
            say(prog, sentence)
        fields = plan.as_fields() if plan else None
        run = launch.prepare(choice, request, ready, code, fields, options.launcher_pid, [prog, *_typed(arguments)])
    unsealed = f"its records could not be sealed ({run.unsealed}): nothing takes it up by itself"
    for sentence in (*code.said, *([unsealed] if run.unsealed else ()), f"run {run.run_id}"):
        say(prog, sentence)
    # Paths are bytes to the shell: what Python could not decode goes out as it came in.
    sys.stdout.buffer.write(b"".join(os.fsencode(field) + b"\0" for field in run.answer()))
    sys.stdout.flush()
    return DONE


def _planned(request: Any, choose: Callable[[Any], Any], snapshot: Any) -> tuple[Any, Any, Any, Any]:
    """Return (choice, plan, ready, code); the plan is None where nothing is resumed, or nothing could be planned.

    What another user's record says is asked about first: whether it could be started here is of no interest before.
    """
    from .planning import preflight
    from .planning.choice import require_consent

    choice = choose(request)
    if not request.is_dry_run:
        require_consent(choice.consents, is_accepted=request.is_accepted)
    try:
        ready = preflight.check(choice, request)
    except KitError:
        if not choice.consents or request.is_accepted:
            raise
        return choice, None, None, None
    code = preflight.code_of(choice, ready, snapshot) if ready.may_start else None
    if choice.candidate is None:
        return choice, None, ready, code
    from .planning import plan as plans  # a fresh start need not pay for it

    return choice, plans.make(choice, request.config_file.schema, ready, code), ready, code


def _show(choice: Any, plan: Any, *, is_json: bool) -> int:
    from .planning import page

    if is_json:
        show_json(page.as_json(choice, plan))
    else:
        show_text(page.as_text(choice, plan))
    if plan is None:
        return NEEDS_ACCEPT if choice.consents else DONE
    return REFUSED if plan.refusals else NEEDS_ACCEPT if plan.consents else DONE


def _typed(arguments: list[str]) -> list[str]:
    """Return the arguments as the person gave them, without what the launcher adds."""
    return [word for word in arguments if not word.startswith("--launcher-pid=")]


def _runs(arguments: list[str]) -> int:
    from .configuration.config import load_config, resolve
    from .planning.request import parse, runs_folder
    from .run_folder import listing
    from .run_folder.runs import RunTable

    options = parse(arguments)
    runs_dir = options.runs
    if runs_dir is None:
        file = load_config(options.config)
        runs_dir = runs_folder(resolve(file.document, schema=file.schema), file)
    elif not runs_dir.is_dir():
        raise UsageError(f"there is no runs folder '{runs_dir}' (given with --runs)")
    if "watch" in options.switches:
        from .run_folder import live_view  # it alone draws

        if "json" in options.switches:
            raise UsageError("--watch draws for people, --json is for programs: one of them")
        return live_view.main(runs_dir.absolute(), options.values.get("experiment"))
    table = RunTable(runs_dir.absolute())
    rows = listing.choose(table, options.values.get("experiment"))
    if "json" in options.switches:
        show_json(listing.as_json(rows))
    else:
        show_text(listing.as_text(table, rows))
    return DONE


def _watch(arguments: list[str]) -> int:
    from .watching import command

    return command.main(arguments)


def _install_watch(arguments: list[str]) -> int:
    from .watching import installing

    return installing.main(arguments)


def _sidecar(arguments: list[str]) -> int:
    from .supervision import sidecar

    return sidecar.main(Path(arguments[0]), has_echo="--echo" in arguments[1:], made=_made(arguments))


def _prove(arguments: list[str]) -> int:
    from .proving.proof import prove_for_run

    return prove_for_run(Path(arguments[0]), Path(arguments[1]), _made(arguments))


def _quarantine_damaged(arguments: list[str]) -> int:
    """0 if the run's checkpoint failed its proof; it is in quarantine then. 1 if it did not, or cannot be put there."""
    from .run_folder.quarantine import quarantine_damaged

    return DONE if quarantine_damaged(Path(arguments[0]), Path(arguments[1]), _made(arguments)) else FAILED


def _made(arguments: list[str]) -> Any:
    """Return by what a launcher knows the folder that it has made (`--made=`); None where nothing was handed on."""
    from .basics import made_folder

    handed = (word.partition("=")[2] for word in arguments[1:] if word.startswith("--made="))
    return made_folder.from_text(next(handed, ""))


def _recover(arguments: list[str]) -> int:
    from .recovery import command

    return command.main(arguments)


def _code_changed(arguments: list[str]) -> int:
    """Print which code has changed since a run began; nothing where none has, or where git does not say."""
    from .planning import code_change
    from .run_folder import trust

    os.nice(10)  # beside a training

    examined = trust.examine(Path(arguments[0]))
    if not examined.standing.is_callers:
        return DONE  # git is asked in no folder that another user's record names
    names = code_change.answer(code_change.ask(examined.run))
    if names:
        show_text(code_change.sentence(names))
    return DONE


def _take_up(arguments: list[str]) -> int:
    from .recovery import command

    return command.take_up(Path(arguments[0]))


def _escalate(arguments: list[str]) -> int:
    from .recovery import command

    return command.escalate(Path(arguments[0]), arguments[1])


def _tell(arguments: list[str]) -> int:
    from .recovery import command

    return command.tell(Path(arguments[0]), *arguments[1:3])


def _stop(arguments: list[str]) -> int:
    from .supervision import stopping

    how = arguments[2:]
    return stopping.stop(
        Path(arguments[0]), arguments[1], is_now="--now" in how, is_aborted="--aborted" in how,
        is_launcher_s="--launcher" in how,
    )  # fmt: skip


def _version(arguments: list[str]) -> int:
    from .basics import kit_version

    show_text(f"{arguments[0]} resumekit {kit_version.version()} (digest {kit_version.digest()[:12]})")
    return DONE


_VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "start": (_start, "run.sh"),
    "resume": (_resume, "resume.sh"),
    "runs": (_runs, "runs.sh"),
    "watch": (_watch, "abort-watch.sh"),
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
    "tell": (_tell, "tell"),
}
