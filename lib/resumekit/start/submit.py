"""`bin/submit.sh`: a job of Slurm's that runs `run.sh EXP`, from frozen code, with the consents given now.

The plan is made here as run.sh makes it, so what is refused, missing or needs `--accept` is said before anything waits
in a queue. Then the job's folder is made (`run/job_folder`): the copy of the code, job.json, job.sh; and job.sh goes to
sbatch, whose job ids are printed. Try it: `bin/submit.sh EXP-01 --dry-run`
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import DONE, KitError, ToolMissing, UsageError
from ..base.files import utc_now
from ..base.imports import Any, NamedTuple
from ..base.paths import KIT_ROOT, find_program, jobs_folder
from ..base.terminal import plain, say, show_text
from ..run import job_folder
from ..run.job_folder import JobFolder
from ..run.run_names import RunName
from . import frozen_code, job_script, pipeline, plan_report, preflight, torchrun
from .choice import choose_start
from .command_files import named_files
from .frozen_code import Frozen, Source
from .job_script import Script, Task
from .pipeline import Planned
from .request import Options, Request, parse

PROG = "submit.sh"
# A controller that is busy may let sbatch wait; it tries again by itself.
SBATCH_S = 120.0
MAX_TASKS = 1000
MAX_CHAIN = 100
_VALUES = ("time", "nodes", "partition", "chain", "array-set")
_SWITCHES = ("unfrozen",)


class Asked(NamedTuple):
    """What the command line asks for.

    Args:
        options: the part of it that run.sh knows too.
        sbatch: what it says of `job_script.OPTIONS`.
        given: what stood behind the first `--`, for sbatch.
        array_set: of a sweep; None where the job is one run.
        chain: how many jobs follow each other; None where one job is requeued.
        is_unfrozen: the job runs from the checkout.
    """

    options: Options
    sbatch: dict[str, str]
    given: tuple[str, ...]
    array_set: str | None
    chain: int | None
    is_unfrozen: bool


class Submission(NamedTuple):
    """What is submitted.

    Args:
        asked: the command line.
        typed: its words.
        request: the part of it that run.sh knows too, without what each task of a sweep has of its own.
        plans: one for each task of a sweep, else one; what is decided about a start now.
        tasks: of a sweep; none else.
    """

    asked: Asked
    typed: Sequence[str]
    request: Request
    plans: tuple[Planned, ...]
    tasks: tuple[Task, ...]

    @property
    def consents(self) -> tuple[str, ...]:
        """Everything that a user has agreed to, once each."""
        found = [one for planned in self.plans for one in planned.consents]
        return tuple(dict.fromkeys(found))


def main(arguments: Sequence[str]) -> int:
    """Plan and submit, or with --dry-run show the plan and job.sh; returns the exit code."""
    with torchrun.nodes_to_come():
        return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    asked = read(arguments)
    request = asked.options.request()
    tasks = _tasks(asked, request)
    plans = [pipeline.decide(one, choose_start, pipeline.of_a_user(one)) for one in _requests(request, tasks)]
    submission = Submission(asked, arguments, request, tuple(plans), tasks)
    if not asked.is_unfrozen:
        frozen_code.require(_source(submission), plans[0].choice.config["paths"]["root"])
    if request.is_dry_run:
        return _show(submission)
    if find_program("sbatch") is None:
        raise ToolMissing("sbatch is not on the PATH: submit where Slurm's commands are; --dry-run shows the job")
    _say_what_is_decided(submission)
    name = str(RunName(plans[0].choice.experiment, request.name or plans[0].choice.name))
    os.umask(os.umask(0o077) | 0o022)  # what a job executes is not the group's to change
    folder = job_folder.make(request.runs_dir, f"{name}_{time.strftime('%Y%m%d-%H%M')}")
    try:
        frozen = None if asked.is_unfrozen else frozen_code.freeze(_source(submission), folder)
        folder.script.write_text(
            job_script.text(_script(submission, folder, frozen)), encoding="utf-8", errors="surrogateescape"
        )
        folder.script.chmod(0o755)
        fields = _fields(submission, frozen)
        folder.write(fields)
        jobs = _submitted(asked, folder)
    except BaseException as error:
        frozen_code.remove(_source(submission), folder)
        if isinstance(error, OSError):
            raise KitError(f"the job's folder '{folder.path}' cannot be written: {error.strerror}") from error
        raise
    folder.write({**fields, "jobs": jobs})
    say(PROG, f"job {' '.join(jobs)}: {folder.script}")
    if frozen is not None:
        say(PROG, f"frozen: {frozen.words}")
    show_text("\n".join(jobs))
    return DONE


def read(arguments: Sequence[str]) -> Asked:
    """Take the command line apart: what stands behind the first `--` is sbatch's, behind a second one the trainer's.

    Raises:
        UsageError: as request.parse; a value that an option does not take.
    """
    at = arguments.index("--") if "--" in arguments else len(arguments)
    behind = list(arguments[at + 1 :])
    second = behind.index("--") if "--" in behind else len(behind)
    own: dict[str, str] = {}
    switches, others = set(), []
    for word in arguments[:at]:
        name, equals, value = word.removeprefix("--").partition("=")
        if equals and name in _VALUES:
            if name in own:
                raise UsageError(f"--{name} is given twice: '{plain(own[name])}' and '{plain(value)}'")
            own[name] = value
        elif not equals and name in _SWITCHES:
            switches.add(name)
        else:
            others.append(word)
    asked = Asked(
        options=parse([*others, *behind[second:]]),
        sbatch={name: value for name, value in own.items() if name in job_script.OPTIONS},
        given=tuple(behind[:second]),
        array_set=own.get("array-set"),
        chain=_chain(own.get("chain")),
        is_unfrozen="unfrozen" in switches,
    )
    if (nodes := own.get("nodes")) is not None and not re.fullmatch(
        "[1-9][0-9]{0,6}(-[1-9][0-9]{0,6})?", nodes, re.ASCII
    ):
        raise UsageError(f"--nodes takes a number of nodes, or a range of it (2-4), not '{plain(nodes)}'")
    if asked.chain is not None and asked.array_set is not None:
        raise UsageError("--chain and --array-set exclude each other: submit one chain for each value")
    return asked


def _chain(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 2 <= int(text) <= MAX_CHAIN):
        raise UsageError(f"--chain takes how many jobs follow each other, 2 to {MAX_CHAIN}, not '{plain(text)}'")
    return int(text)


def _tasks(asked: Asked, request: Request) -> tuple[Task, ...]:
    if asked.array_set is None:
        return ()
    if request.experiment not in request.config_file.experiments:
        raise UsageError(
            f"--array-set begins a lineage for each value: name an experiment, not '{plain(request.experiment)}'"
        )
    tasks = job_script.tasks(asked.array_set, request.name)
    if len(tasks) > MAX_TASKS:
        raise UsageError(f"--array-set has {len(tasks):,} values, more than {MAX_TASKS:,}")
    return tuple(tasks)


def _requests(request: Request, tasks: Sequence[Task]) -> list[Request]:
    if not tasks:
        return [request]
    return [request._replace(name=task.name, settings=(*request.settings, task.setting)) for task in tasks]


def _source(submission: Submission) -> Source:
    """Return what is frozen: all that the commands of the plans name."""
    files: dict[str, str] = {}
    root = submission.request.root
    for planned in submission.plans:
        if planned.ready is not None:
            root = planned.ready.root
            argv = preflight.trainer_argv(planned.choice, preflight.run_paths(planned.choice, "RUN_ID"), planned.ready)
            files |= named_files(argv, planned.ready.cwd, root, submission.request.runs_dir)
    request = submission.request
    return Source(root, request.config_file.path.absolute(), request.runs_dir.absolute(), tuple(files))


def _show(submission: Submission) -> int:
    """Print the plan of each start, then job.sh; return what run.sh --dry-run would."""
    codes = []
    for planned, task in zip(submission.plans, submission.tasks or (None,), strict=True):
        if task is not None:
            show_text(f"{task.name}:")
        codes.append(plan_report.print_report(planned, is_json=False))
    folder = JobFolder(jobs_folder(submission.request.runs_dir.absolute()) / "JOB")
    frozen = None
    if not submission.asked.is_unfrozen:
        frozen = frozen_code.foretold(_source(submission), folder)
    show_text(f"\n{folder.script}:\n{job_script.text(_script(submission, folder, frozen))}")
    return max(codes)


def _say_what_is_decided(submission: Submission) -> None:
    for planned in submission.plans:
        choice, plan = planned.choice, planned.plan
        said = (*choice.said, *(f"accepted: {sentence}" for sentence in planned.consents), choice.headline)
        for sentence in (*said, *(plan.said if plan else ())):
            say(PROG, sentence)


def _script(submission: Submission, folder: JobFolder, frozen: Frozen | None) -> Script:
    asked, request = submission.asked, submission.request
    choice = submission.plans[0].choice
    cluster = _cluster(request, choice.experiment)
    name = str(RunName(choice.experiment, request.name or (None if submission.tasks else choice.name)))
    ids = "%A_%a" if submission.tasks else "%j"
    own = [
        f"--job-name={name}",
        f"--output={JobFolder(Path(str(folder.path).replace('%', '%%'))).output(ids)}",
        "--open-mode=append",
        "--no-requeue" if asked.chain else "--requeue",
        f"--signal=B:USR1@{cluster.get('signal_s', 60):.0f}",
    ]
    if submission.tasks:
        own.append(f"--array=0-{len(submission.tasks) - 1}")
    kit = KIT_ROOT if frozen is None else frozen.kit
    config_file = request.config_file.path.absolute() if frozen is None else frozen.config_file
    said = [f"Written by submit.sh, {utc_now()[:16].replace('T', ' ')} UTC; sbatch {folder.script} submits it again."]
    if frozen is None:
        said.append("The code is the checkout's, as it is at each start (--unfrozen).")
    else:
        said.append(f"The code is a copy of the checkout: {frozen.words}")
    return Script(
        options=job_script.options(asked.sbatch, cluster, asked.given, own),
        run_sh=kit / "bin" / "run.sh",
        words=_words(submission, folder, config_file),
        tasks=submission.tasks,
        trainer_args=asked.options.extra_args,
        said=said,
    )


def _cluster(request: Request, experiment: str) -> dict[str, Any]:
    """Return the section `cluster` as the config has it now; of an experiment that has left it, the base's."""
    try:
        return dict(request.resolved(experiment)["cluster"])
    except KitError:
        return dict(request.base["cluster"])


def _words(submission: Submission, folder: JobFolder, config_file: Path) -> list[str]:
    """Return what run.sh is called with, but for what each task of a sweep has of its own."""
    request, values = submission.request, submission.asked.options.values
    words = [request.experiment]
    words += ["--fresh"] if "fresh" in submission.asked.options.switches else []
    for name in ("resume", "init-from"):
        words += [f"--{name}", os.path.abspath(values[name])] if name in values else []
    words += ["--name", request.name] if request.name is not None and not submission.tasks else []
    for setting in request.settings:
        words += ["--set", setting]
    words += ["--notes", request.notes] if request.notes is not None else []
    words += ["--take-over"] if request.take_over else []
    words += ["--config", str(config_file), "--runs", str(request.runs_dir.absolute()), "--job", str(folder.path)]
    return words + (["--agreed", job_folder.digest_of(submission.consents)] if submission.consents else [])


def _fields(submission: Submission, frozen: Frozen | None) -> dict[str, Any]:
    """Return job.json's content, before the job has an id."""
    request = submission.request
    return {
        "experiment": submission.plans[0].choice.experiment,
        "name": request.name,
        "tasks": [task._asdict() for task in submission.tasks],
        "created_at": utc_now(),
        "command": [PROG, *submission.typed],
        "config_file": str(request.config_file.path.absolute()),
        "code": frozen.as_fields() if frozen else None,
        "consents": list(submission.consents),
        "jobs": [],
    }


def _submitted(asked: Asked, folder: JobFolder) -> list[str]:
    """Give job.sh to sbatch, as often as the chain has links; return the ids.

    Raises:
        KitError: sbatch does not take it; the links before are cancelled.
    """
    from ..base import slurm  # late: a dry run asks no Slurm

    jobs: list[str] = []
    try:
        for _ in range(asked.chain or 1):
            after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
            jobs.append(_sbatch([*after, str(folder.script)]))
    except BaseException:
        for job in jobs:
            slurm.cancel(job)
        raise
    return jobs


def _environment() -> dict[str, str]:
    """Return what sbatch hands on to the job: no word of another job around this command, nor of nodes to come."""
    left_out = {"SLURM_RESTART_COUNT"} | {n for n, value in os.environ.items() if value == torchrun.NODES_TO_COME}
    return {name: value for name, value in os.environ.items() if name not in left_out}


def _sbatch(words: Sequence[str]) -> str:
    import subprocess  # late: a dry run starts nothing

    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *words],
            env=_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SBATCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise KitError(
            f"sbatch has not answered within {SBATCH_S:.0f} s: look with squeue whether the job is there"
        ) from None
    except OSError as error:
        raise ToolMissing(f"sbatch cannot be started: {error.strerror}") from error
    job = done.stdout.strip().partition(";")[0]
    if done.returncode != 0 or not re.fullmatch("[0-9]+", job):
        raise KitError(f"sbatch does not take the job: {plain(done.stderr.strip() or done.stdout.strip())}")
    return job
