"""From a request to a decided start, for a user's command and for a recovery alike.

The steps, in this order: choose, consent, preflight, the code's state, the plan, what the plan needs. Then
`start/make_folder` makes the run folder; before, nothing is touched but what `along_history` attests. A user's command
and a recovery differ in how they choose and in what may stand against the start; both are arguments.
Try it: `bin/resume.sh EXP-01 --dry-run`
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..base import claims
from ..base.errors import KitError
from ..base.imports import TYPE_CHECKING, NamedTuple
from . import code_state, preflight
from .choice import Choice, require_consent
from .code_state import Code
from .preflight import Ready
from .request import Request

if TYPE_CHECKING:
    from .plan import Plan

# Fifty commands at once take a tenth of a second each.
START_WAIT_S = 60.0


class Planned(NamedTuple):
    """What is decided about a start, before anything is touched.

    Args:
        request: what was asked for.
        choice: relation, checkpoint and config.
        ready: what preflight found; None where a dry run of another user's words could not look.
        code: the state of the lab's code; None where a dry run has not asked git about another user's folder.
        plan: what happens to each component; None where the run loads no checkpoint, or `ready` is None.
    """

    request: Request
    choice: Choice
    ready: Ready | None
    code: Code | None
    plan: Plan | None

    @property
    def consents(self) -> tuple[str, ...]:
        """What a person must agree to before it is started."""
        return tuple(self.plan.consents if self.plan is not None else self.choice.consents)

    @property
    def startable(self) -> tuple[Ready, Code]:
        """What a start needs beside choice and plan. Raises KitError for what a dry run has decided."""
        if self.ready is None or self.code is None:
            raise KitError(f"'{self.choice.experiment}' was looked at by a dry run alone: it is not started from there")
        return self.ready, self.code


class Objections(NamedTuple):
    """What may stand against a start, at three places of the pipeline; each raises a KitError where something does.

    Args:
        to_choice: before anything of the choice is looked at on this machine.
        to_code: when the code and the interpreter's versions are known, before the plan is made of them.
        to_plan: when the plan is made; not called where there is none.
    """

    to_choice: Callable[[Choice], None] = lambda _choice: None
    to_code: Callable[[Ready, Code], None] = lambda _ready, _code: None
    to_plan: Callable[[Plan], None] = lambda _plan: None


def of_a_user(request: Request) -> Objections:
    """Return the objections to a user's start: what `--accept` is needed for, and what the plan refuses.

    A dry run has none: it shows what a start would say. What another user's record says is asked about before anything
    else, since whether that could be started here is of no interest before.
    """
    if request.is_dry_run:
        return Objections()
    return Objections(
        to_choice=lambda choice: require_consent(choice.consents, is_accepted=request.is_agreed(choice.consents)),
        to_plan=lambda plan: plan.require(request.is_agreed(plan.consents)),
    )


def decide(request: Request, choose: Callable[[Request], Choice], objections: Objections) -> Planned:
    """Take a request through every step up to the plan.

    Args:
        choose: which run, checkpoint and config it comes to; may raise any KitError.
        objections: what may stand against the start.

    Raises:
        KitError: it cannot be chosen, started or planned, or an objection stands.
    """
    snapshot = code_state.start_snapshot(request.root)  # git looks while the checkpoint is chosen
    choice = choose(request)
    objections.to_choice(choice)
    if choice.candidate is not None:
        from . import holding  # late, as in `_plan`

        choice = choice._replace(said=(*choice.said, *holding.said(choice)))
    try:
        ready = preflight.check(choice, request)
    except KitError:
        if not _is_asked_about(choice, request):
            raise
        return Planned(request, choice, ready=None, code=None, plan=None)
    is_looked_into = ready.may_start or not request.is_dry_run
    code = preflight.code_of(choice, ready, snapshot) if is_looked_into else None
    if code is not None:
        objections.to_code(ready, code)
    plan = _plan(request, choice, ready, code)
    if plan is not None:
        objections.to_plan(plan)
    return Planned(request, choice, ready, code, plan)


def _is_asked_about(choice: Choice, request: Request) -> bool:
    """Whether a dry run shows the question for consent instead of what stands against the start on this machine."""
    return request.is_dry_run and bool(choice.consents) and not request.is_agreed(choice.consents)


def _plan(request: Request, choice: Choice, ready: Ready, code: Code | None) -> Plan | None:
    if choice.candidate is None and choice.init is None:
        return None
    from . import plan  # late: a fresh start need not pay for it

    if choice.init is not None:
        return plan.with_weights_alone(choice, choice.init, request.config_file.schema, ready)
    return plan.make(choice, request.config_file.schema, ready, code)


@contextlib.contextmanager
def one_start_at_a_time(request: Request) -> Iterator[None]:
    """Let one command choose and make its folder at a time, where it may begin anew without being told to.

    Two `run.sh EXP` at once, a person's and cron's, must not both find nothing and both begin.
    """
    if request.fresh or request.goes_back:
        yield
        return
    # The config file is locked: it is there, and nothing has to be made before it is known that a run will be. A job's
    # own is a copy, which no other job locks.
    path = (request.job.config_file if request.job else None) or request.config_file.path
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks
            stack.enter_context(claims.held(_open_to_lock(path), path, START_WAIT_S))
        with contextlib.suppress(OSError):  # and a folder, which NFS does not lock; two checkouts may share it
            folder = next(one for one in (request.runs_dir, *request.runs_dir.parents) if one.is_dir())
            stack.enter_context(claims.held(os.open(folder, os.O_RDONLY | os.O_CLOEXEC), folder, START_WAIT_S))
        yield


def _open_to_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS locks nothing for a writer that may not write
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
