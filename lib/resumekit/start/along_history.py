"""Which checkpoint along a run's history is taken: for a user's command, and for a recovery.

A user's command that goes on from a dead run attests what that run left, as a recovery does; a dry run counts it as
attested. Reads checkpoints; writes manifests, and nothing in a dry run. Try it: `bin/resume.sh EXP-01 --dry-run`
"""

from __future__ import annotations

from ..base.errors import Refused
from ..base.imports import Any
from ..base.values import mapping
from ..checkpoint.grades import ATTESTED, WEIGHTS
from ..checkpoint.selection import Selection, select
from ..run import held, quarantine
from ..run.run_folder import Run
from ..run.run_table import RunTable
from .request import Request

# A sidecar that is at work on a dead run attests its checkpoints itself, many GB perhaps.
SIDECAR_WAIT_S = 60.0

History = list[tuple[Run, int | None]]


def search_stable(run: Run, table: RunTable, max_step: int | None) -> Selection:
    """Return the newest checkpoint along a run's history that may be taken without a person: proven, else attested.

    Args:
        max_step: none above this step; None for any.
    """
    history = [(one, _lower(limit, max_step)) for one, limit in table.history(run)]
    return _select(history, mapping(run.config.get("trainer")), is_dry_run=False, minimum=ATTESTED)


def for_request(request: Request, head: Run | None, history: History) -> Selection:
    """Return the checkpoint that a request comes to: the one that it names, else the newest stable one.

    Args:
        head: the run that is gone on from; None where there is none.
        history: its runs, newest first, each with the step at which the history left it.

    Raises:
        Refused: a run of the history is a link of another user's.
    """
    asked: dict[str, Any] = {"step": request.step, "best": request.best, "path": request.checkpoint}
    trainer = _trainer(request, head)
    how: dict[str, Any] = {"is_dry_run": request.is_dry_run, "follow_links": request.follows_links}
    if any(asked.values()) or request.step is not None:
        return _select(history, trainer, **how, **asked)
    would_be = _attested_first(head, is_dry_run=request.is_dry_run)
    if trainer.get("loads_with_kit"):
        return _select(history, trainer, **how, would_be=would_be)
    # What the kit loads is finite by its manifest; here the journal alone knows what was saved after a NaN.
    bad = quarantine.after_nan_along(history)
    kept = quarantine.without_after_nan(history, bad)
    selection = _select(kept, trainer, **how, would_be=would_be)
    return quarantine.with_after_nan(selection, history, bad) if bad else selection


def _attested_first(head: Run | None, *, is_dry_run: bool) -> str | None:
    """Attest what a dead run of the caller's left without a manifest; return its id where a dry run leaves that out."""
    from ..run import unattested  # late: a first start goes on from no run

    if head is None or not unattested.may_be_attested(head):
        return None
    if is_dry_run:
        return head.run_id
    from ..process import attest

    attest.attest_what_is_left(head, wait_s=SIDECAR_WAIT_S)
    return None


def _select(
    history: History, trainer: dict[str, Any], *, is_dry_run: bool, follow_links: bool = False,
    would_be: str | None = None, **asked: Any,
) -> Selection:  # fmt: skip
    # A trainer with the kit's helpers proves the digest as it loads, beside its own start; others cannot. What theirs
    # need to find in a checkpoint, and how they load it, is their own business.
    with_kit = bool(trainer.get("loads_with_kit"))
    needs = frozenset({*WEIGHTS, "optimizer_state_dict"} if with_kit else ())
    if (run := next((run for run, _ in history if run.foreign_link), None)) is not None and not asked.get("path"):
        raise Refused(
            f"'{run.run_id}' is not resumed from: its '{run.foreign_link}' is a link of another user's, which may lead "
            "to files that are yours alone; resume.sh --checkpoint PATH goes on from a file, run.sh --fresh begins anew"
        )
    folders = held.folders_along(history, follow_links=follow_links, would_attest=would_be)
    rate = history[0][0].max_read_mb_per_s if history else None
    proves = is_dry_run or not with_kit
    return select(folders, needs=needs, prove=proves, weights_only=with_kit, mb_per_s=rate, **asked)


def _trainer(request: Request, head: Run | None) -> dict[str, Any]:
    if head is not None and head.config and not request.reresolve:
        return mapping(head.config.get("trainer"))
    own: dict[str, Any] = request.base["trainer"]
    return own


def _lower(limit: int | None, other: int | None) -> int | None:
    return min((one for one in (limit, other) if one is not None), default=None)
