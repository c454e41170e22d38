"""The verbs that the shell asks for: start, resume, runs, sidecar, prove, quarantine-damaged, stop.

Answers for Bash go to stdout as NUL-separated fields, everything for people to stderr. Imports are late: each verb
pays only for what it needs, and the launcher waits for it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import DONE, FAILED, USAGE, UsageError, report


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (see errors.py)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in _VERBS:
        print(f"resumekit_cli.py: the first argument is one of {', '.join(_VERBS)}", file=sys.stderr)
        return USAGE
    verb, prog = _VERBS[arguments[0]]
    return report(lambda: verb(arguments[1:]), prog)


def _start(arguments: list[str]) -> int:
    from .choice import choose_start

    return _launch(arguments, choose_start, "run.sh")


def _resume(arguments: list[str]) -> int:
    from .choice import choose_resume

    return _launch(arguments, choose_resume, "resume.sh")


def _launch(arguments: list[str], choose: Callable[[Any], Any], prog: str) -> int:
    from . import launch, page

    options, request = _request(arguments, prog)
    choice = choose(request)
    if request.is_dry_run:
        print(page.as_json(choice) if options.json else page.as_text(choice))
        return DONE
    for sentence in choice.said:
        _say(prog, sentence)
    _say(prog, page.headline(choice))
    ready = launch.prepare(choice, request, options.launcher_pid, arguments)
    _say(prog, f"run {ready.run_id}")
    # Paths are bytes to the shell: what Python could not decode goes out as it came in.
    sys.stdout.buffer.write(b"".join(os.fsencode(field) + b"\0" for field in ready.answer()))
    sys.stdout.flush()
    return DONE


def _request(arguments: list[str], prog: str) -> tuple[argparse.Namespace, Any]:
    from .choice import Request
    from .config import load_config

    own, extra = _split(arguments)
    options = _options(prog).parse_args(own)
    request = Request(
        experiment=options.experiment,
        config_file=load_config(options.config and Path(options.config)),
        runs_dir=options.runs and Path(options.runs).absolute(),
        settings=options.set,
        name=options.name,
        notes=options.notes,
        extra_args=extra,
        fresh=options.fresh,
        step=_step(options.step),
        best=options.best,
        checkpoint=_checkpoint(options.checkpoint or options.resume),
        from_run=options.from_run,
        reresolve=options.reresolve,
        is_dry_run=options.dry_run,
    )
    _check_exclusive(options)
    return options, request


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one sentence, exit 2."""

    def error(self, message: str) -> Any:
        raise UsageError(message)


def _options(prog: str) -> argparse.ArgumentParser:
    """All options of the commands in bin/; each command lets its own through."""
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    for name in ("config", "runs", "name", "notes", "step", "checkpoint", "resume"):
        parser.add_argument(f"--{name}")
    for name in ("fresh", "best", "reresolve", "dry-run", "json"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--from", dest="from_run")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--experiment")
    parser.add_argument("--launcher-pid", type=int, default=0)
    return parser


def _split(arguments: list[str]) -> tuple[list[str], list[str] | None]:
    """Return (our options, what stood behind `--` or None): behind it everything belongs to the trainer."""
    if "--" not in arguments:
        return arguments, None
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _step(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise UsageError(f"--step takes a number of optimizer steps, not '{text}'")
    return int(text)


def _checkpoint(text: str | None) -> Path | None:
    if text is None:
        return None
    path = Path(text)
    if not text or not os.path.lexists(path):
        raise UsageError(f"there is no checkpoint '{text}'")
    return path


def _check_exclusive(options: argparse.Namespace) -> None:
    named = [n for n in ("step", "best", "checkpoint") if getattr(options, n) not in (None, False)]
    if options.fresh and options.resume is not None:
        raise UsageError("--fresh and --resume exclude each other: one begins anew, the other from a checkpoint")
    if len(named) > 1:
        raise UsageError(f"--{named[0]} and --{named[1]} exclude each other: each names the checkpoint")
    if options.json and not options.dry_run:
        raise UsageError("--json goes with --dry-run")


def _runs(arguments: list[str]) -> int:
    from . import listing
    from .choice import root_of
    from .config import load_config, resolve
    from .runs import RunTable

    options = _options("runs.sh").parse_args(arguments)
    if options.runs:
        runs_dir = Path(options.runs).absolute()
        if not runs_dir.is_dir():
            raise UsageError(f"there is no runs folder '{options.runs}' (given with --runs)")
    else:
        file = load_config(options.config and Path(options.config))
        base = resolve(file.document, schema=file.schema)
        runs_dir = root_of(base, file) / base["paths"]["runs"]
    table = RunTable(runs_dir)
    found = listing.choose(table, options.experiment)
    if options.json:
        print(json.dumps([status for _, status in found], indent=2))
    else:
        print(listing.as_text(table, found))
    return DONE


def _sidecar(arguments: list[str]) -> int:
    from . import sidecar

    return sidecar.main(Path(arguments[0]), has_echo="--echo" in arguments[1:])


def _prove(arguments: list[str]) -> int:
    from .proof import prove_for_run

    return prove_for_run(Path(arguments[0]), Path(arguments[1]))


def _quarantine_damaged(arguments: list[str]) -> int:
    """0 if the run's checkpoint failed its proof; it is in quarantine then. 1 if it did not."""
    from . import proof
    from .quarantine import put_in_quarantine
    from .runs import open_run

    run_dir, checkpoint = Path(arguments[0]), Path(arguments[1])
    verdict = proof.read(open_run(run_dir).paths.proof)
    if verdict is None or verdict.verdict not in (proof.DIFFERS, proof.UNREADABLE):
        return FAILED
    put_in_quarantine(open_run(checkpoint.parent.parent).paths, checkpoint.name, verdict.reason or verdict.verdict)
    return DONE


def _stop(arguments: list[str]) -> int:
    from . import stopping

    return stopping.stop(Path(arguments[0]), arguments[1], is_now="--now" in arguments[2:])


def _say(prog: str, sentence: str) -> None:
    print(f"{prog}: {sentence}", file=sys.stderr)


_VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "start": (_start, "run.sh"),
    "resume": (_resume, "resume.sh"),
    "runs": (_runs, "runs.sh"),
    "sidecar": (_sidecar, "sidecar"),
    "prove": (_prove, "prove"),
    "quarantine-damaged": (_quarantine_damaged, "quarantine-damaged"),
    "stop": (_stop, "stop"),
}
