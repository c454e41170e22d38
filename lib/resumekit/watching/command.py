"""The command line of bin/abort-watch.sh: what is to be looked at, how often, and what is said about it.

Reads the config for where the runs lie; writes to stdout what is found, to stderr what is said to people.
Try it: `bin/abort-watch.sh --observe --json`
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..basics.errors import DONE, STOPPED_BY_RULE, UsageError
from ..basics.files import utc_now
from ..basics.terminal import plain
from ..run_folder.lineage import parse_run_name
from . import watch
from .abort_rules import SICK

PROG = "abort-watch.sh"
MAX_EVERY_S = 86_400


class Asked(NamedTuple):
    """What stood on the command line.

    Args:
        wanted: experiments and run ids; none for all.
        every_s: seconds between two passes; None for one pass.
    """

    wanted: tuple[str, ...] = ()
    every_s: int | None = None
    is_json: bool = False
    runs: Path | None = None
    config: Path | None = None


def main(arguments: Sequence[str]) -> int:
    """Look once, or again and again; returns 0, or 8 where the last pass found somebody sick."""
    asked = parse(arguments)
    runs_dir = _runs_dir(asked)
    for name in watch.without_a_run(runs_dir, asked.wanted):
        print(f"{PROG}: there is no run of '{plain(name)}' in '{plain(str(runs_dir))}'", file=sys.stderr)
    while True:
        looks = watch.one_pass(runs_dir, asked.wanted)
        text = watch.as_json(looks) if asked.is_json else watch.as_text(looks)
        if text:
            sys.stdout.buffer.write(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace") + b"\n")
            sys.stdout.flush()
        print(f"{PROG}: {utc_now()[:19]}Z {watch.summary(looks)}", file=sys.stderr, flush=True)
        if asked.every_s is None:
            return STOPPED_BY_RULE if any(one.verdict == SICK for one in looks) else DONE
        time.sleep(asked.every_s)


def parse(arguments: Sequence[str]) -> Asked:
    """Read the words that bin/abort-watch.sh hands on: `--only=EXP`, `--every=N`, `--json`, ...

    Raises:
        UsageError: a word that means nothing here.
    """
    asked = Asked()
    for word in arguments:
        name, equals, value = word.partition("=")
        if name == "--only":
            if parse_run_name(value) is None:
                raise UsageError(f"'{plain(value[:100])}' is neither an experiment nor a run id")
            asked = asked._replace(wanted=(*asked.wanted, value))
        elif name == "--every":
            if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= MAX_EVERY_S and len(value) < 9):
                raise UsageError(f"--every takes seconds, 1 to {MAX_EVERY_S}, not '{plain(value[:100])}'")
            asked = asked._replace(every_s=int(value))
        elif name in ("--runs", "--config") and equals:
            if not value:
                raise UsageError(f"{name} is given with an empty name")
            asked = asked._replace(**{name[2:]: Path(value)})
        elif word == "--json":
            asked = asked._replace(is_json=True)
        elif word != "--observe":
            raise UsageError(f"unknown option '{plain(word[:100])}'")
    return asked


def _runs_dir(asked: Asked) -> Path:
    if asked.runs is not None:
        if not asked.runs.is_dir():
            raise UsageError(f"there is no runs folder '{asked.runs}' (given with --runs)")
        return asked.runs.absolute()
    from ..configuration.config import load_config, resolve  # with --runs nobody pays for them
    from ..planning.request import runs_folder

    file = load_config(asked.config)
    return runs_folder(resolve(file.document, schema=file.schema), file)
