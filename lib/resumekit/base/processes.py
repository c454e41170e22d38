"""Is this process really ours, is it alive, and a signal that cannot hit another process.

A process is known by host, boot id, pid, start time and the run token in its environment. A pid alone is nothing:
it is reused, and `kill -0` calls a zombie alive.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator

from . import process_details, run_ties, values
from .imports import Any, NamedTuple
from .run_ties import ALIVE as ALIVE
from .run_ties import DEAD as DEAD
from .run_ties import RUN_ID_VARIABLE, token_carried
from .run_ties import TOKEN_VARIABLE as TOKEN_VARIABLE
from .run_ties import UNKNOWN as UNKNOWN
from .run_ties import Ties as Ties
from .run_ties import environment_variable as environment_variable

# The largest pid that a kernel can be told to give out; more than that would not fit pidfd_open.
_pid = values.between(2, 1 << 22)
# The entries of an environment end with it, so that none can hold it.
_NO_TOKEN = "\0"


class Identity(NamedTuple):
    """One process, for good.

    Args:
        host: its host's name, as it was when it was asked for.
        boot_id: the kernel's id of the boot it runs in.
        pid: its process id.
        start_ticks: when it started, in clock ticks since boot (/proc/PID/stat, field 22).
        token: the run token in its environment; None where there is none (the launcher).
        ties: what else it is known by where its environment has been replaced; no part of a record.
    """

    host: str
    boot_id: str
    pid: int
    start_ticks: int
    token: str | None = None
    ties: Ties | None = None

    def as_fields(self) -> dict[str, Any]:
        fields = self._asdict()
        del fields["ties"]
        return fields


def identity_from(fields: object) -> Identity | None:
    """Read an identity back from JSON; None if anything in it has the wrong type (it came from a file)."""
    of = values.mapping(fields).get
    host, boot, pid = values.string(of("host")), values.string(of("boot_id")), _pid(of("pid"))
    ticks, token = values.kernel_number(of("start_ticks")), of("token")
    if host is None or boot is None or pid is None or ticks is None:
        return None
    return Identity(host, boot, pid, ticks, token) if token is None or values.string(token) is not None else None


def trainer_of(launched: object, output_log: str | os.PathLike[str]) -> Identity | None:
    """Return the trainer that a `launched` event or its fold names, known by its run's log and shim too.

    The shim gives every trainer a token. One without is no trainer that the kit has started: a journal of another
    user's could name any process of the caller's so. It gets a token that no process carries, and is never ALIVE.

    Returns:
        The trainer; None as `identity_from`.
    """
    if not isinstance(launched, dict) or (trainer := identity_from(launched.get("trainer"))) is None:
        return None
    if not trainer.token:
        return trainer._replace(token=_NO_TOKEN)
    shim = identity_from(launched.get("shim"))
    # A journal may name any process as the shim; the run's own carries the run's token.
    return trainer._replace(ties=Ties(os.fspath(output_log), shim and shim._replace(token=trainer.token)))


def identify(pid: int, token: str | None = None) -> Identity | None:
    """Return the identity of a process of this host, or None if there is none with that pid."""
    ticks = _stat(pid)
    return Identity(host_name(), boot_id(), pid, ticks[1], token) if ticks else None


def probe(identity: Identity | None) -> str:
    """Say whether a process still lives: ALIVE, DEAD, or UNKNOWN where that cannot be seen from here."""
    if identity is None:
        return UNKNOWN
    if identity.host != host_name() and not is_of_this_kernel(identity.boot_id):
        return UNKNOWN
    if identity.boot_id != boot_id():
        return DEAD
    found = _stat(identity.pid)
    if found is None and _is_hidden(identity.pid):
        return UNKNOWN
    if found is None or found[0] in "ZX" or found[1] != identity.start_ticks:
        return DEAD
    if identity.token is None:
        return ALIVE
    said = token_carried(identity.pid, identity.token)
    return ALIVE if said == UNKNOWN and _is_tied(identity.pid, identity.ties) else said


def is_stopped(identity: Identity | None) -> bool:
    """Whether a process of this host is there and suspended (SIGSTOP, Ctrl-Z): it does nothing until CONT."""
    if identity is None:
        return False
    found = _stat(identity.pid)  # what costs more is asked of a suspended one only
    is_it = found is not None and found[0] in "Tt" and found[1] == identity.start_ticks
    return is_it and probe(identity) == ALIVE


def stopped_in_group_of(identity: Identity) -> list[int]:
    """Return the pids of the suspended processes in the process group of this one; [] where it has ended."""
    try:
        group = os.getpgid(identity.pid)
        if probe(identity) != ALIVE:
            return []
    except OSError:
        return []
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.getpgid(int(entry)) == group and (known := _stat(int(entry))) and known[0] in "Tt":
                found.append(int(entry))
    return found


def _is_hidden(pid: int) -> bool:
    """Whether there is a process that /proc does not show (hidepid): it may be the one, or another."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return _stat(pid) is None


def send(identity: Identity, number: int) -> bool:
    """Send a signal to exactly this process; True if it was delivered.

    The pidfd is opened first and the identity is checked on it after: the pid cannot be given to another in between.
    A kernel before 5.3 has no pidfds; there the signal follows the check by microseconds.
    """
    descriptor = _open_pidfd(identity.pid)
    try:
        if identity.pid == os.getpid() or probe(identity) != ALIVE:
            return False
        if descriptor is None:
            os.kill(identity.pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)
        return True
    except OSError:
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)


def may_signal(identity: Identity) -> bool:
    """Whether this user may signal the process; a process that is gone may be."""
    try:
        os.kill(identity.pid, 0)
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def wait_for_end(identity: Identity, timeout_s: float) -> bool:
    """Wait until the process has ended, at most `timeout_s` seconds; True if it has."""
    deadline = time.monotonic() + timeout_s
    with Alarm(identity) as alarm:
        while probe(identity) != DEAD:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            alarm.wait(min(left_s, 1.0))
    return True


class Alarm:
    """Sleeps, and wakes up the moment that a process ends."""

    def __init__(self, identity: Identity) -> None:
        self._descriptor = _open_pidfd(identity.pid)
        self._poll = select.poll()
        if self._descriptor is not None and probe(identity) != DEAD:
            self._poll.register(self._descriptor, select.POLLIN)

    def wait(self, timeout_s: float) -> None:
        """Sleep for `timeout_s` seconds, or until the process ends. Wakes up once: after that it sleeps through."""
        for descriptor, _ in self._poll.poll(timeout_s * 1000):
            self._poll.unregister(descriptor)

    def __enter__(self) -> Alarm:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def kill_session(leader: Identity, wait_s: float = 5.0) -> int:
    """KILL every process of the session that the trainer opened; return how many are left `wait_s` seconds later.

    Children of a killed trainer (data workers) leave its process tree but not its session. Repeated until none is
    left: a dying parent may still fork.
    """
    deadline = time.monotonic() + wait_s
    while members := session_members(leader):
        if time.monotonic() > deadline:
            break  # in uninterruptible sleep, or another user's
        for member in members:
            send(member, signal.SIGKILL)
        time.sleep(0.01)
    return len(members)


def session_members(leader: Identity) -> list[Identity]:
    """Return the live processes of the training that `leader` began: its session, and what is the run's in others.

    The session's id is the leader's pid. One of it that carries the run token proves that the session is ours, or one
    without any token that is tied to the run (its wrapper has replaced the environment); no pid is given out again
    while a session of that number exists: then the others are ours too. In another session (each rank of torchrun opens
    one) what carries the token is ours, and what carries none but is tied to the run (run_ties), if it is no
    older than the leader; the shim carries the token too.
    """
    if not leader.token or leader.boot_id != boot_id():
        return []
    if leader.host != host_name() and not is_of_this_kernel(leader.boot_id):
        return []
    holder = _stat(leader.pid)
    is_anothers = holder is not None and holder[1] != leader.start_ticks  # the pid, and with it the session
    members: list[Identity] = []
    elsewhere: list[Identity] = []
    others: dict[int, Identity] = {}
    parents: dict[int, int] = {}
    for one, parent in _all_live(leader):
        with contextlib.suppress(OSError):
            if leader.pid in (one.pid, os.getsid(one.pid)):
                members += [] if is_anothers else [one]
            elif _is_no_older(one, leader):
                if run_ties.environment_entry(leader.token) in run_ties.read_environment(one.pid):
                    elsewhere.append(one)
                else:
                    others[one.pid], parents[one.pid] = one, parent
    is_ours = any(_proves(member.pid, leader) for member in members)
    found = [*members, *elsewhere] if is_ours else elsewhere
    if leader.ties is None or not others:
        return found
    shim = leader.ties.shim
    roots = [one.pid for one in found] + ([shim.pid] if shim and probe(shim) == ALIVE else [])
    tied = run_ties.tied(roots, others, parents, leader.token, run_ties.log_of(leader.ties.output_log))
    return [*found, *(others[pid] for pid in sorted(tied))]


def _all_live(leader: Identity) -> Iterator[tuple[Identity, int]]:
    """Yield (process, its parent's pid) of all that live on this host and can be seen."""
    for entry in os.listdir("/proc"):
        if entry.isascii() and entry.isdigit():
            found = _stat(int(entry))
            if found and found[0] not in "ZX":
                yield Identity(leader.host, leader.boot_id, int(entry), found[1]), found[2]


def _is_no_older(one: Identity, leader: Identity) -> bool:
    """Whether a process may be the leader's work: a wrapper begins another one within the same tick of the clock."""
    shim = leader.ties.shim if leader.ties else None
    if shim is None:
        return one.start_ticks > leader.start_ticks
    return one.start_ticks >= leader.start_ticks and one.pid != shim.pid


def _proves(pid: int, leader: Identity) -> bool:
    """Whether a process of a session of that number shows that the session is the leader's.

    One that was started to outlive the training (with the run's id, without its token) shows nothing.
    """
    said = token_carried(pid, str(leader.token))
    if said != UNKNOWN or not _is_tied(pid, leader.ties):
        return said == ALIVE
    return pid == leader.pid or environment_variable(pid, RUN_ID_VARIABLE) is None


def is_under_shim(pid: int, ties: Ties | None) -> bool:
    """Whether a process is a child of the run's live shim, which has no others than what the training leaves to it."""
    shim = ties.shim if ties else None
    return shim is not None and process_details.parent_of(pid) == shim.pid and probe(shim) == ALIVE


def _is_tied(pid: int, ties: Ties | None) -> bool:
    """Whether a process that may be looked at writes into the run's log, or is a child of the run's shim."""
    if ties is None or not run_ties.may_be_looked_at(pid):
        return False
    return is_under_shim(pid, ties) or run_ties.writes_into(pid, run_ties.log_of(ties.output_log))


def carriers(token: str) -> list[int]:
    """Return the live processes that can be seen from here with this run token in their environment, whatever they are.

    For a run of another container: its pids are other numbers here, its token is the same.
    """
    found = []
    for entry in os.listdir("/proc"):
        if entry.isascii() and entry.isdigit():
            with contextlib.suppress(OSError):
                seen = _stat(int(entry))
                if (
                    seen
                    and seen[0] not in "ZX"
                    and run_ties.environment_entry(token) in run_ties.read_environment(int(entry))
                ):
                    found.append(int(entry))
    return found


def live_tokens() -> set[str]:
    """Return the run tokens that live processes can be seen to carry; one look through /proc."""
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isascii() and entry.isdigit())
    return {token for pid in pids if (token := run_ties.environment_variable(pid, TOKEN_VARIABLE))}


def _open_pidfd(pid: int) -> int | None:
    """Return a descriptor for a process; None if it has none, or the kernel knows no such thing."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None


def host_name() -> str:
    return os.uname().nodename


def pid_namespace() -> str | None:
    """Return which numbering of processes this one lives in; in another container a pid means another process."""
    global _pid_namespace
    if _pid_namespace == "":
        try:
            _pid_namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            _pid_namespace = None
    return _pid_namespace


def machine_id() -> str | None:
    """Return the id of this installation, /etc/machine-id; None where there is none (many containers)."""
    try:
        with open("/etc/machine-id", "rb") as file:
            return file.read(64).decode("ascii", "replace").strip() or None
    except OSError:
        return None


def boot_id() -> str:
    global _boot_id
    if _boot_id is None:
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                _boot_id = file.read().strip()
        except OSError:
            _boot_id = _NO_BOOT_ID
    return _boot_id


def is_of_this_kernel(boot: object) -> bool:
    """Whether a boot id is this kernel's: then its host's name decides nothing, which may change while a run lives."""
    return boot == boot_id() and boot != _NO_BOOT_ID


_boot_id: str | None = None
_pid_namespace: str | None = ""  # not asked for yet
_NO_BOOT_ID = "unknown"


def _stat(pid: int) -> tuple[str, int, int] | None:
    """Return (state letter, start time in ticks, pid of the parent) of a process, or None."""
    fields = process_details.stat_fields(pid)
    return None if fields is None else (fields[0].decode(), int(fields[19]), int(fields[1]))
