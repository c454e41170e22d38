"""Load a checkpoint into a trainer's objects, proven before a single value of it is used: the trainer's side.

Opens the file once, proves its bytes (or waits for the launcher's proof of the very same file), checks every name and
shape, and only then loads; the random number generators last. Reads the checkpoint, its manifest and the run's proof;
journals `resumed`. Try it: `load_resume_bundle(model, optimizer, ckpt_path="checkpoints/hrm_arc_step_400.pt")`
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import archive, matching, proof, rng_state
from .checkpoint_content import OWN_KEYS
from .environment_versions import SCALER_DEPENDS_ON, changed, versions
from .errors import InvalidFile, KitError, NoStableCheckpoint
from .files import UnreadableFile, open_regular
from .output_guard import guard_output
from .paths import RunPaths
from .trainer_env import journal_event, run_dir

OPTIMIZER_POLICIES = ("load", "reset")
SCHEDULE_POLICIES = ("load", "reset")
_NOT_IN_EXTRA = frozenset(OWN_KEYS) - {"data_state"}


@dataclass(frozen=True)
class ResumeBundle:
    """What a trainer needs to go on.

    Args:
        global_step, start_epoch, best_val_loss, lr_scale: the counters; 0, 0, infinite and 1.0 where they are absent.
        missing, unexpected, reinitialised: parameter names; empty while partial loading is not there yet.
        extra: the trainer's own entries of the checkpoint, and 'data_state'.
        report: component -> what was done with it.
    """

    global_step: int = 0
    start_epoch: int = 0
    best_val_loss: float = math.inf
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    lr_scale: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict)
    report: dict[str, str] = field(default_factory=dict)


def load_resume_bundle(
    model: Any,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    ckpt_path: str | Path | None,
    allow_partial_weights: bool = False,
    optimizer_policy: str = "load",
    schedule_policy: str = "load",
    log_fn: Callable[[str], Any] = print,
    ema: Any = None,
    swa: Any = None,
    restore_rng: bool = True,
) -> ResumeBundle:
    """Load a checkpoint into model, optimizer and their kin.

    Args:
        model, scheduler, scaler, ema, swa: whatever has load_state_dict(); None where there is none.
        optimizer: one optimizer, or a dict name -> optimizer, as it was saved.
        ckpt_path: the checkpoint; None or '' for a fresh start.
        allow_partial_weights: not yet there; True is an error.
        optimizer_policy: 'load' or 'reset' (leave the new one as it is).
        schedule_policy: 'load' or 'reset'.
        restore_rng: set the random number generators back, last of all.

    Returns:
        The counters, the trainer's own entries, and a report of what was done with each component.

    Raises:
        NoStableCheckpoint: the file is not whole or its bytes are not the proven ones; nothing was loaded.
        InvalidFile: its content does not fit the model or optimizer; nothing was loaded.
        KitError: a policy that this version does not have.

    Source: protocol §4, §6, §13.
    """
    guard_output()
    _refuse_policies(allow_partial_weights, optimizer_policy, schedule_policy)
    if ckpt_path is None or str(ckpt_path) == "":
        return ResumeBundle()
    path = Path(ckpt_path)
    content = _read_proven(path)
    policies = {"optimizer": optimizer_policy, "scheduler": schedule_policy}
    parts = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "swa": swa}
    report = _plan(content, parts, policies)
    matching.check(content, model, report, parts, path)
    bundle = _bundle(content, report, log_fn)
    _load(content, model, report, parts)
    report["rng"] = _restore_rng(content, restore_rng)
    _say(bundle, content, optimizer, log_fn)
    journal_event("resumed", step=bundle.global_step, checkpoint=str(path), report=report)
    return bundle


def _refuse_policies(partial: bool, optimizer_policy: str, schedule_policy: str) -> None:
    if partial:
        raise KitError("allow_partial_weights=True comes with a later version; until then weights load whole or not")
    if optimizer_policy == "swap_to_lion":
        raise KitError("optimizer_policy='swap_to_lion' comes with a later version; 'load' and 'reset' are there")
    if optimizer_policy not in OPTIMIZER_POLICIES:
        raise KitError(f"unknown optimizer_policy '{optimizer_policy}': it is one of {', '.join(OPTIMIZER_POLICIES)}")
    if schedule_policy not in SCHEDULE_POLICIES:
        raise KitError(f"unknown schedule_policy '{schedule_policy}': it is one of {', '.join(SCHEDULE_POLICIES)}")


def _read_proven(path: Path) -> dict[str, Any]:
    """Return the content of the file, whose every byte was proven through the descriptor that it is loaded from."""
    try:
        descriptor = open_regular(path)
    except UnreadableFile as error:
        raise NoStableCheckpoint(f"checkpoint '{path}' can't be resumed from: {error}") from error
    try:
        # Bombs and code are looked for before torch sees the file.
        inside = archive.summarize(descriptor)
        if inside.unsafe:
            raise UnreadableFile(f"it holds '{inside.unsafe[0]}', which loading with weights_only=True refuses")
        before = os.fstat(descriptor)
        content = _load_beside_proof(descriptor, path)
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise UnreadableFile("it changed while it was loaded")
    except UnreadableFile as error:
        raise NoStableCheckpoint(f"checkpoint '{path}' can't be resumed from: {error}") from error
    finally:
        os.close(descriptor)
    if not isinstance(content, dict) or not isinstance(content.get("model_state_dict"), dict):
        raise InvalidFile(f"checkpoint '{path}' has no 'model_state_dict'")
    return content


def _load_beside_proof(descriptor: int, path: Path) -> Any:
    """Map the file with torch while a thread proves its bytes; nothing is handed out before the proof is good."""
    verdicts: list[proof.Proof] = []
    prover = threading.Thread(target=lambda: verdicts.append(_proof_of(descriptor, path)), name="resumekit-proof")
    prover.start()
    failure: Exception | None = None
    content = None
    try:
        content = _torch_load(descriptor)
    except Exception as error:  # torch raises many kinds for a bad file; the proof below says better what is wrong
        failure = error
    finally:
        prover.join()
    if not verdicts or not verdicts[0].is_good:
        raise UnreadableFile(verdicts[0].reason if verdicts else "its proof failed")
    if failure is not None:
        raise UnreadableFile(f"torch can't load it: {str(failure).splitlines()[0]}") from failure
    return content


def _torch_load(descriptor: int) -> Any:
    import torch  # the trainer has it already

    # mmap: only the pages that are used are read, and the optimizer's tensors need no copy.
    return torch.load(f"/proc/self/fd/{descriptor}", map_location="cpu", weights_only=True, mmap=True)


def _proof_of(descriptor: int, path: Path) -> proof.Proof:
    """Take the launcher's proof if it is of this very file; else compute one, and leave it a bad verdict."""
    folder = run_dir()
    target = RunPaths(folder).proof if folder else None
    found = proof.wait_for(target, descriptor) if target else None
    if found is None:
        found = proof.prove(descriptor, path)
        pending = proof.read(target) if target is not None else None
        is_ours = pending is None or os.path.realpath(pending.path) == os.path.realpath(path)
        if target is not None and not found.is_good and is_ours:
            with contextlib.suppress(OSError):  # the verdict holds all the same; the launcher computes its own
                proof.write(target, found)
    return found


def _plan(content: dict[str, Any], parts: dict[str, Any], policies: dict[str, str]) -> dict[str, str]:
    """Say for each component what will be done with it."""
    report = {"weights": "load"}
    for name, component in parts.items():
        state = content.get(f"{name}_state_dict")
        if component is None:
            report[name] = "not used here, left in the checkpoint" if state else "none"
        elif policies.get(name) == "reset":
            report[name] = "reset"
        elif not state:
            report[name] = "absent in the checkpoint: starts fresh"
        else:
            report[name] = "load"
    changes = changed(_saved_versions(content), versions(), SCALER_DEPENDS_ON)
    if report["scaler"] == "load" and changes:
        report["scaler"] = f"reset: {'; '.join(changes)}"
    absent = [key for key in ("global_step", "epoch", "best_val_loss") if content.get(key) is None]
    report["counters"] = f"load, but for {', '.join(absent)}: absent" if absent else "load"
    report["data_position"] = "load" if content.get("data_state") is not None else "absent in the checkpoint"
    return report


def _load(content: dict[str, Any], model: Any, report: dict[str, str], parts: dict[str, Any]) -> None:
    model.load_state_dict(content["model_state_dict"])
    for name, component in parts.items():
        if report[name] != "load":
            continue
        state = content[f"{name}_state_dict"]
        if isinstance(component, dict):
            for one, member in component.items():
                member.load_state_dict(state[one])
        else:
            component.load_state_dict(state)


def _restore_rng(content: dict[str, Any], restore: bool) -> str:
    state = content.get("rng_state")
    if not restore:
        return "left as it is"
    if state is None:
        return "absent in the checkpoint: continues from the seed"
    if not rng_state.is_known(state):
        return "not restored: it is not in the form that save_checkpoint writes"
    world = changed(_saved_versions(content), versions(), ("world_size",))
    return f"not restored: {world[0]}" if world else rng_state.restore(state)


def _bundle(content: dict[str, Any], report: dict[str, str], log_fn: Callable[[str], Any]) -> ResumeBundle:
    for name in ("global_step", "epoch", "best_val_loss", "lr_scale"):
        if not isinstance(content.get(name), (int, float, type(None))):
            raise InvalidFile(f"the checkpoint's '{name}' is a {type(content[name]).__name__}, not a number")
    for line in changed(_saved_versions(content), versions(), ("threads", "torch", "world_size")):
        log_fn(f"[warn] {line}: the resumed run may differ in its last bits")
    return ResumeBundle(
        global_step=int(content.get("global_step") or 0),
        start_epoch=int(content.get("epoch") or 0),
        best_val_loss=float(math.inf if content.get("best_val_loss") is None else content["best_val_loss"]),
        lr_scale=float(1.0 if content.get("lr_scale") is None else content["lr_scale"]),
        extra={name: value for name, value in content.items() if name not in _NOT_IN_EXTRA},
        report=report,
    )


def _say(bundle: ResumeBundle, content: dict[str, Any], optimizer: Any, log_fn: Callable[[str], Any]) -> None:
    """Print the lines of protocol §4 and §6."""
    first = next(iter(optimizer.values()), None) if isinstance(optimizer, dict) else optimizer
    lr = f"{float(first.param_groups[0]['lr']):g}" if first is not None else "none"
    log_fn(
        f"Loaded checkpoint @step={bundle.global_step}, epoch={bundle.start_epoch}, "
        f"best_val={bundle.best_val_loss:.2f}, lr={lr}"
    )
    for name, action in bundle.report.items():
        if action not in ("load", "none"):
            log_fn(f"[resume] {name}: {action}")
    log_fn(f"[resume] step={bundle.global_step} epoch={bundle.start_epoch} best_val={bundle.best_val_loss:.4f}")


def _saved_versions(content: dict[str, Any]) -> dict[str, Any]:
    saved = content.get("versions")
    return saved if isinstance(saved, dict) else {}
