"""What a start or a resume would do: begin anew, continue a head or branch, from which checkpoint, with which config.

Reads the config, run folders and checkpoints; writes nothing. `launch` makes it so.
Try it: `bin/resume.sh EXP-01 --dry-run`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import config, status
from .changes import Change, changes
from .checkpoints import Candidate, CheckpointFolder, Selection, select
from .config import ConfigFile
from .errors import NoStableCheckpoint, Refused, UsageError
from .lineage import check_experiment, check_name
from .quarantine import quarantined_names
from .runs import Run, RunTable, open_run

FRESH = "fresh"
CONTINUE = "continue"
BRANCH = "branch"

# All that a resume may change for now: what costs nothing, or only a new position in the data.
_ALLOWED_ACTIONS = ({}, {"data_position": "rederive"})


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; see bin/run.sh and bin/resume.sh."""

    experiment: str
    config_file: ConfigFile
    runs_dir: Path | None = None
    settings: Sequence[str] = ()
    name: str | None = None
    notes: str | None = None
    extra_args: Sequence[str] | None = None
    fresh: bool = False
    step: int | None = None
    best: bool = False
    checkpoint: Path | None = None
    from_run: str | None = None
    reresolve: bool = False
    is_dry_run: bool = False

    @property
    def goes_back(self) -> bool:
        """Whether a place to start from is named: that makes it a branch."""
        return self.step is not None or self.best or self.checkpoint is not None or self.from_run is not None


@dataclass(frozen=True)
class Choice:
    """What will be done.

    Args:
        relation: FRESH, CONTINUE or BRANCH.
        experiment, name: of the new run.
        config: its resolved config.
        runs_dir: where its folder goes.
        parent: the run it comes from; None for a fresh one, or a checkpoint that lies in no run.
        step: the optimizer step it starts from.
        candidate: the checkpoint.
        candidates: every checkpoint that was thought of, newest first.
        changed: config keys that differ from the parent's.
        said: sentences for the person.
    """

    relation: str
    experiment: str
    name: str | None
    config: dict[str, Any]
    runs_dir: Path
    parent: Run | None = None
    step: int | None = None
    candidate: Candidate | None = None
    candidates: tuple[Candidate, ...] = ()
    changed: Sequence[Change] = ()
    said: list[str] = field(default_factory=list)


def choose_start(request: Request) -> Choice:
    """Decide for `run.sh`: continue what is unfinished, else begin anew.

    Raises:
        KitError: see `choose_resume`; a finished run is not continued.
    """
    if request.checkpoint is not None:
        return choose_resume(request)
    table, head = _head(request)
    if not request.fresh and head is not None and _has_checkpoints(table, head):
        choice = choose_resume(request)
        choice.said.insert(0, f"'{head.run_id}' has checkpoints: resuming it (--fresh begins anew)")
        return choice
    experiment = head.experiment if head is not None else check_experiment(request.experiment)
    resolved = _resolve_anew(request, experiment)
    name = request.name or config.get(resolved, "experiment.run_name")
    said = [] if head is None or request.fresh else [f"'{head.run_id}' has no checkpoint: beginning anew"]
    return Choice(FRESH, experiment, name and check_name(name), resolved, table.runs_dir, said=said)


def choose_resume(request: Request) -> Choice:
    """Decide for `resume.sh`: which head, which checkpoint, which config.

    Raises:
        UsageError: the experiment or run is not there.
        NoStableCheckpoint: none was found, or none is stable.
        Refused: another head is alive, the run is finished, or a change is asked for that cannot be made.
        InvalidFile: the config is not valid.
    """
    table, head = _head(request)
    said: list[str] = []
    if request.checkpoint is not None:
        holder = _run_around(table, request.checkpoint)
        head = holder or head
    if head is None and request.checkpoint is None:
        raise UsageError(
            f"there is no run of '{request.experiment}' in '{table.runs_dir}' to resume (run.sh starts one)"
        )
    selection = _select(request, table, head)
    candidate = selection.chosen
    if candidate is None and request.step is not None and request.from_run is None:
        head, selection = _on_another_branch(request, table, head, selection)
        candidate = selection.chosen
    if candidate is None:
        raise _nothing_stable(request, table, head, selection)
    parent = _parent(request, table, head, candidate)
    experiment = _experiment_of(request, head)
    resolved, changed = _config(request, experiment, parent, said)
    name = request.name or (parent.name if parent else config.get(resolved, "experiment.run_name"))
    relation = _relation(request, parent, resolved, name)
    said += _passed_over(selection)
    _refuse_forbidden(changed, request)
    if relation == CONTINUE:
        _refuse_busy(parent)
    return Choice(
        relation, experiment, name and check_name(name), resolved, table.runs_dir, parent, candidate.step, candidate,
        selection.candidates, changed, said,
    )  # fmt: skip


def _head(request: Request) -> tuple[RunTable, Run | None]:
    """Return (the runs, the head that the request is about)."""
    table = RunTable(request.runs_dir or _runs_dir(request))
    if request.from_run is not None:
        run = table.get(request.from_run)
        if run is None:
            raise UsageError(f"there is no run '{request.from_run}' in '{table.runs_dir}' (given with --from)")
        return table, run
    if "_" in request.experiment:
        run = table.get(request.experiment)
        if run is None:
            raise UsageError(f"there is no run '{request.experiment}' in '{table.runs_dir}'")
        return table, run
    heads = table.heads(check_experiment(request.experiment))
    return table, heads[0] if heads else None


def _runs_dir(request: Request) -> Path:
    base = config.resolve(request.config_file.document, schema=request.config_file.schema)
    return root_of(base, request.config_file) / base["paths"]["runs"]


def root_of(resolved: dict[str, Any], config_file: ConfigFile) -> Path:
    """Return the folder that relative paths of a config begin at: `paths.root`, relative to the config file."""
    return (config_file.path.absolute().parent / resolved["paths"]["root"]).resolve()


def _experiment_of(request: Request, head: Run | None) -> str:
    if "_" in request.experiment and head is not None and head.experiment:
        return head.experiment
    return check_experiment(request.experiment)


def _resolve_anew(request: Request, experiment: str) -> dict[str, Any]:
    file = request.config_file
    resolved = config.resolve(file.document, experiment, request.settings, schema=file.schema)
    if request.extra_args is not None:
        resolved["trainer"]["extra_args"] = list(request.extra_args)
    return resolved


def _has_checkpoints(table: RunTable, head: Run) -> bool:
    return bool(select(_folders(table, head), prove=False).candidates)


def _folders(table: RunTable, head: Run) -> list[CheckpointFolder]:
    return [
        CheckpointFolder(
            run.paths.checkpoints, run.run_id, run.step_pattern, run.best_pattern, limit, quarantined_names(run.paths)
        )
        for run, limit in table.history(head)
    ]


def _select(request: Request, table: RunTable, head: Run | None) -> Selection:
    trainer = _trainer(request, head)
    # A trainer with the kit's helpers proves the digest as it loads, beside its own start; others cannot.
    must_prove = request.is_dry_run or not trainer.get("loads_with_kit")
    needs = frozenset({"model_state_dict", "optimizer_state_dict"} if trainer.get("loads_with_kit") else ())
    return select(
        _folders(table, head) if head else [],
        step=request.step,
        best=request.best,
        path=request.checkpoint,
        needs=needs,
        prove=must_prove,
    )


def _trainer(request: Request, head: Run | None) -> dict[str, Any]:
    if head is not None and head.config and not request.reresolve:
        return head.config.get("trainer") or {}
    return config.resolve(request.config_file.document, schema=request.config_file.schema)["trainer"]


def _on_another_branch(
    request: Request, table: RunTable, head: Run | None, selection: Selection
) -> tuple[Run | None, Selection]:
    """Look for an explicit step on the experiment's other branches; take it if it is there once."""
    found = [
        (other, there)
        for other in table.heads(_experiment_of(request, head))
        if other is not head and (there := _select(request, table, other)).chosen
    ]
    holders = {there.chosen.path for _, there in found}
    if len(holders) > 1:
        listed = ", ".join(f"'{other.run_id}'" for other, _ in found)
        raise UsageError(f"step {request.step} is on several branches: name one of {listed} with --from")
    return found[0] if found else (head, selection)


def _parent(request: Request, table: RunTable, head: Run | None, candidate: Candidate) -> Run | None:
    """Return the run that the new one descends from: the head, or whoever holds the step that was named."""
    if request.step is None and not request.best and request.checkpoint is None:
        return head
    return table.get(candidate.run_id) if candidate.run_id and head is not None else head


def _run_around(table: RunTable, checkpoint: Path) -> Run | None:
    """Return the run whose checkpoint folder a file lies in, if it is one of this runs folder."""
    run_dir = checkpoint.absolute().parent.parent
    if run_dir.parent.resolve() == table.runs_dir.resolve():
        return table.get(run_dir.name)
    return open_run(run_dir) if (run_dir / "run.json").is_file() else None


def _config(
    request: Request, experiment: str, parent: Run | None, said: list[str]
) -> tuple[dict[str, Any], Sequence[Change]]:
    """Return (the new run's config, what differs from its parent's)."""
    file = request.config_file
    if parent is None or not parent.config:
        said.append(f"the base run has no resolved config: '{file.path.name}' as it is now is used")
        return _resolve_anew(request, experiment), ()
    if parent.experiment != experiment or request.reresolve:
        resolved = _resolve_anew(request, experiment)
    else:
        resolved = config.override(parent.config, request.settings, file.schema)
        if request.extra_args is not None:
            resolved["trainer"]["extra_args"] = list(request.extra_args)
        _say_if_outdated(request, experiment, parent, said)
    return resolved, changes(parent.config, resolved, file.schema)


def _say_if_outdated(request: Request, experiment: str, parent: Run, said: list[str]) -> None:
    """Say which keys config.yaml has otherwise by now; the copy in the run folder rules."""
    file = request.config_file
    if parent.record.get("config_sha256") == file.sha256:
        return
    try:
        now = config.resolve(file.document, experiment, schema=file.schema)
    except UsageError:
        return  # the experiment has left the file
    keys = [change.key for change in changes(parent.config, now, file.schema)]
    if keys:
        shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
        said.append(
            f"'{file.path.name}' says otherwise by now ({shown}): the run's own config is used; --reresolve takes it"
        )


def _relation(request: Request, parent: Run | None, resolved: dict[str, Any], name: str | None) -> str:
    if parent is None or request.goes_back or parent.name != name:
        return BRANCH
    same_hash = parent.record.get("config_hash") == config.config_hash(resolved, request.config_file.schema)
    return CONTINUE if same_hash else BRANCH


def _passed_over(selection: Selection) -> list[str]:
    return [f"passed over '{c.path.name}': {c.reason}" for c in selection.candidates if c.verdict == "passed"][:10]


def _refuse_forbidden(changed: Sequence[Change], request: Request) -> None:
    for change in changed:
        why = change.refuse or change.consent
        if why is None and change.actions in _ALLOWED_ACTIONS:
            continue
        cost = why or ", ".join(f"{component}: {action}" for component, action in change.actions.items())
        raise Refused(
            f"changing {change.key} from {change.old!r} to {change.new!r} on a resume is not possible yet ({cost}); "
            "this version resumes with changes that cost nothing or only derive the data position anew"
        )


def _refuse_busy(parent: Run) -> None:
    """Refuse to continue a run that is alive, or that has reached its end."""
    seen = status.current(parent)
    if seen["state"] in status.LIVE:
        where = f"pid {seen['pid']} on {seen['host']}" if seen["pid"] else "it is starting"
        raise Refused(f"'{parent.run_id}' is alive ({seen['state']}, {where}): stop it, or branch with --step")
    if seen["state"] == "finished":
        raise Refused(
            f"'{parent.run_id}' has finished at step {seen['global_step']}: "
            "run.sh --fresh begins anew, --step branches from one of its steps"
        )


def _nothing_stable(request: Request, table: RunTable, head: Run | None, selection: Selection) -> NoStableCheckpoint:
    where = f"along the history of '{head.run_id}'" if head else f"at '{request.checkpoint}'"
    if request.step is not None:
        where = f"of step {request.step} {where}"
    if not selection.candidates:
        others = [r.run_id for r in table.heads(head.experiment) if r is not head] if head and head.experiment else []
        hint = f"; other branches, for --from: {', '.join(others[:5])}" if others else ""
        return NoStableCheckpoint(f"no checkpoint found {where}{hint}")
    reasons = "; ".join(f"{c.path.name}: {c.reason}" for c in selection.candidates[:3])
    more = f" and {len(selection.candidates) - 3} more" if len(selection.candidates) > 3 else ""
    return NoStableCheckpoint(f"no stable checkpoint {where}: {reasons}{more}")
