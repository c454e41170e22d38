"""Load a checkpoint into a trainer's objects, proven before a single value of it is used: the trainer's side.

Carries out the launcher's plan, or alone the trainer's arguments: what is done with each component is decided, compared
and refused before anything is changed; the random number generators come last. Reads the checkpoint, its proof and the
plan; journals `resumed`. Try it: `load_resume_bundle(model, optimizer, ckpt_path="checkpoints/hrm_arc_step_400.pt")`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..basics import lr_scale
from ..basics.actions import ABSENT, FRESH, LOAD, PARTIAL, REFIT, RESET, SWAP
from ..basics.errors import InvalidFile, KitError
from ..basics.lr_scale import LrScale, Ramp
from ..basics.terminal import plain
from . import (
    averages,
    decisions,
    left_out,
    lion_swap,
    lr_hook,
    matching,
    optimizer_state,
    partial_weights,
    rng_state,
    schedule_refit,
    trainer_plan,
    verification,
)
from .checkpoint_content import OWN_KEYS
from .counters import counters_of
from .decisions import Wishes
from .environment_versions import SCALER_DEPENDS_ON, changed, versions
from .left_out import LeftOut
from .matching import Matched
from .output_guard import guard_output
from .proven_content import read_proven
from .resume_bundle import ResumeBundle
from .saved_optimizers import is_state, match, named
from .trainer_env import journal_event
from .trainer_plan import TrainerPlan
from .verification import Loaded

_NOT_IN_EXTRA = frozenset(OWN_KEYS) - {"data_state"}
# Protocol §7: 80 % of the prior rate for the first 1-2k steps; without a plan there is no config to say otherwise.
SWAP_LR_FACTOR, SWAP_LR_STEPS = 0.8, 1000


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
    new_params: str = "module",
    own_lr_scale: bool = False,
) -> ResumeBundle:
    """Load a checkpoint into model, optimizer and their kin, as the plan says; without one, as the arguments say.

    Args:
        model, scheduler, scaler, ema, swa: whatever has load_state_dict(), as newly made; None where there is none.
        optimizer: one optimizer, or a dict name -> optimizer. It keeps its own hyper-parameters; its learning rate
            comes from the checkpoint only with the scheduler's state.
        ckpt_path: the checkpoint; None or '' for a fresh start.
        allow_partial_weights: load the weights that fit by name and shape, and leave the others as they are.
        optimizer_policy: 'load'; 'reset' (leave the new one as it is); 'swap_to_lion' (once: the old optimizer's state
            is left out, and the rate is 80 % for the first 1,000 steps). The trainer passes a Lion; or another one, and
            goes on with `bundle.optimizer`.
        schedule_policy: 'load', or 'reset': the old state is not loaded, the new schedule is placed at the kept step.
        restore_rng: set the random number generators back, last of all.
        new_params: 'module' (new parameters keep the initialisation of their module) or 'kaiming'.
        own_lr_scale: the trainer multiplies its learning rate by bundle.lr_scale_at(step) itself; else the kit does,
            around every optimizer.step.

    Returns:
        The counters, the trainer's own entries, and a report of what was done with each component.

    Raises:
        NoStableCheckpoint: the file is not whole or its bytes are not the proven ones; nothing was loaded.
        InvalidFile: its content does not fit the trainer's objects, or the plan is broken; nothing was loaded.
        KitError: an argument is unknown, or contradicts the plan; nothing was loaded.

    Source: protocol §4, §6, §7, §13.
    """
    guard_output()
    log_fn = _plainly(log_fn)
    wishes = Wishes(allow_partial_weights, optimizer_policy, schedule_policy, new_params, restore_rng)
    wishes.check()
    plan = trainer_plan.read()
    if not ckpt_path:
        _refuse_fresh_start(plan)
        return ResumeBundle(optimizer=optimizer)
    path = Path(ckpt_path)
    plan = plan if plan is not None and plan.is_about(path) else None
    content = read_proven(path)
    lion_is_wished = optimizer_policy == "swap_to_lion"
    lion = lion_swap.stand_in(optimizer, scheduler) if lion_is_wished else None
    parts = {"optimizer": optimizer if lion is None else lion, "scheduler": scheduler, "scaler": scaler, "ema": ema,
             "swa": swa}  # fmt: skip
    changes = changed(_saved_versions(content), versions(), SCALER_DEPENDS_ON)
    decided = decisions.decide(content, parts, wishes, plan, changes)
    counters = counters_of(content, decided["counters"].action, plan, path)
    scale = _scale(content, decided, counters["global_step"], plan, path)
    found = matching.check(content, model, decided, parts, lion_is_wished, path)
    if lion is not None:
        lion_swap.take_over(lion, optimizer, scheduler)
    _warn(content, found, scheduler, log_fn)
    reinitialised = _load(
        content, model, found, parts, counters["global_step"], plan.new_params if plan else new_params
    )
    if not own_lr_scale:
        if parts["optimizer"] is None and not lr_hook.is_one(scale, counters["global_step"]):
            log_fn("[warn] the learning rate is to be scaled, and no optimizer was passed: multiply it by "
                   "bundle.lr_scale_at(step)")  # fmt: skip
        lr_hook.attach(named(parts["optimizer"]).values(), scale, counters["global_step"])
    report = {name: str(decision) for name, decision in found.decisions.items()}
    report["rng"] = _restore_rng(content, found)
    loaded = Loaded(path, model, parts, decided, lion_is_wished, plan)
    bundle = _bundle(content, counters, found, reinitialised, scale, report, loaded)
    is_scaled = own_lr_scale and found.decisions["scheduler"].action == LOAD
    _say(bundle, 1.0 if is_scaled else bundle.lr_scale_at(bundle.global_step), log_fn)
    left_out.expect(bundle.left_out)
    journal_event(
        "resumed", step=bundle.global_step, checkpoint=str(path), report=report,
        lr_scale=bundle.lr_scale_at(bundle.global_step),
    )  # fmt: skip
    for swapped in _swaps(content, found, loaded.parts["optimizer"]):
        journal_event("swap", step=bundle.global_step, **swapped)
    verification.at_first_step(loaded, log_fn)
    return bundle


def _plainly(log_fn: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what prints printable lines: they name what lies in the checkpoint, which may be another user's."""
    return lambda line: log_fn(plain(line))


def _refuse_fresh_start(plan: TrainerPlan | None) -> None:
    if plan is not None:
        raise KitError(
            f"the plan '{plan.path}' resumes at step {plan.step}, and load_resume_bundle got no ckpt_path: pass the "
            f"checkpoint on ({{checkpoint}} in trainer.resume_args), or start anew with bin/run.sh --fresh"
        )


def _scale(
    content: dict[str, Any], decided: dict[str, Any], step: int, plan: TrainerPlan | None, path: Path
) -> LrScale:
    """Return what the rate is multiplied by from here on: the plan's, else inherited; a swap begins with a ramp."""
    if plan is not None and plan.lr_scale is not None:
        return plan.lr_scale
    try:
        inherited = lr_scale.from_fields(content.get("lr_scale"), content.get("lr_ramp"))
    except ValueError as error:
        raise InvalidFile(f"checkpoint '{path}': {error}") from error
    if any(one.action == SWAP for one in decided.values()):
        return inherited._replace(ramp=Ramp(step, SWAP_LR_STEPS, SWAP_LR_FACTOR))
    return inherited


def _load(
    content: dict[str, Any], model: Any, found: Matched, parts: dict[str, Any], step: int, new_params: str
) -> tuple[str, ...]:
    """Load everything but the random numbers; returns the names of the parameters that were initialised anew."""
    done, new = found.decisions, ()
    if done["scheduler"].action == REFIT:
        # First, because it may fail, and because it starts from the rates that the optimizer was made with.
        place = schedule_refit.refit(parts["scheduler"], content.get("scheduler_state_dict"), step)
        done["scheduler"] = done["scheduler"]._replace(why=f"placed at step {place}, {done['scheduler'].why}")
    if done["weights"].action in (LOAD, PARTIAL):
        partial_weights.load(model, content["model_state_dict"], found.weights)
        new = partial_weights.initialise(model, found.weights) if new_params == "kaiming" else ()
    for key, refitted in found.optimizers.items():
        one = named(parts["optimizer"])[key]
        if done["scheduler"].action == REFIT:
            optimizer_state.keep_rates(refitted.state, one)
        one.load_state_dict(refitted.state)
    if done["scheduler"].action == LOAD:
        for key, saved in match(content, parts["optimizer"]).items():
            if key not in found.optimizers and saved is not None and is_state(saved.state):
                optimizer_state.take_rates(saved.state, named(parts["optimizer"])[key])
    for name in ("scheduler", "scaler"):
        if done[name].action == LOAD:
            _load_one(parts[name], content[f"{name}_state_dict"])
    for name in ("ema", "swa"):
        if done[name].action in (FRESH, RESET):
            parts[name].load_state_dict(averages.current(parts[name], model))
        elif done[name].action in (LOAD, PARTIAL):
            averages.load(parts[name], content[f"{name}_state_dict"], model)
    return new


def _swaps(content: dict[str, Any], found: Matched, optimizer: Any) -> Iterator[dict[str, Any]]:
    """Yield for each optimizer that took over from another one its name among several, and both classes."""
    for key, saved in match(content, optimizer).items():
        if found.decisions[f"optimizer.{key}" if key else "optimizer"].action == SWAP:
            yield {"name": key, "old": saved.kind if saved else None, "new": type(named(optimizer)[key]).__name__}


def _load_one(component: Any, state: Any) -> None:
    if isinstance(component, dict):
        for name, member in component.items():
            member.load_state_dict(state[name])
    else:
        component.load_state_dict(state)


def _restore_rng(content: dict[str, Any], found: Matched) -> str:
    decision, state = found.decisions["rng"], content.get("rng_state")
    if decision.action != LOAD:
        return "reset: left as it is" if decision.action == RESET else str(decision)
    if not rng_state.is_known(state):
        return "absent: not in the form that save_checkpoint writes, left as it is"
    world = changed(_saved_versions(content), versions(), ("world_size",))
    return f"reset: left as it is, {world[0]}" if world else rng_state.restore(state)


def _bundle(
    content: dict[str, Any], counters: dict[str, Any], found: Matched, new: tuple[str, ...], scale: LrScale,
    report: dict[str, str], loaded: Loaded,
) -> ResumeBundle:  # fmt: skip
    extra = {name: value for name, value in content.items() if name not in _NOT_IN_EXTRA}
    if "data_state" in extra and found.decisions["data_position"].action in (RESET, ABSENT):
        extra["data_state"] = None
    fit = found.weights if found.decisions["weights"].action == PARTIAL else None
    return ResumeBundle(
        **counters,
        missing=fit.missing if fit else (),
        unexpected=fit.unexpected if fit else (),
        reinitialised=new,
        lr_scale=scale.factor,
        extra=extra,
        report=report,
        reshaped=tuple(fit.reshaped) if fit else (),
        lr_ramp=scale.as_fields()["ramp"],
        left_out=loaded.plan.left_out if loaded.plan else LeftOut(),
        optimizer=loaded.parts["optimizer"],
        loaded=loaded,
        saved_rng=content.get("rng_state"),
    )


def _warn(content: dict[str, Any], found: Matched, scheduler: Any, log_fn: Callable[[str], Any]) -> None:
    """Print the protocol's lines about weights that do not fit (§6), and what else the curves may show."""
    for line in changed(_saved_versions(content), versions(), ("threads", "torch", "world_size")):
        log_fn(f"[warn] {line}: the resumed run may differ in its last bits")
    if found.decisions["weights"].action == PARTIAL:
        fit = found.weights
        if fit.missing:
            log_fn(f"[warn] missing params: {len(fit.missing)} (new layers?)")
        if fit.unexpected:
            log_fn(f"[warn] unexpected params in ckpt: {len(fit.unexpected)}")
        if fit.reshaped:
            log_fn(f"[warn] params of another shape in ckpt: {len(fit.reshaped)} (taken as new)")
    if found.decisions["scheduler"].action == LOAD:
        for line in schedule_refit.differences(content["scheduler_state_dict"], scheduler):
            log_fn(
                f"[warn] the schedule goes on as in the checkpoint, {line}: schedule_policy='reset' takes the new one"
            )


def _say(bundle: ResumeBundle, scale: float, log_fn: Callable[[str], Any]) -> None:
    """Print the lines of protocol §4 and §6.

    Args:
        scale: what the groups' rate is still to be multiplied by; 1 where a trainer's own schedule was loaded with it.
    """
    first = next(iter(named(bundle.optimizer).values()), None)
    lr = f"{float(first.param_groups[0]['lr']) * scale:g}" if first is not None else "none"
    log_fn(
        f"Loaded checkpoint @step={bundle.global_step}, epoch={bundle.start_epoch}, "
        f"best_val={bundle.best_val_loss:.2f}, lr={lr}"
    )
    for name, action in bundle.report.items():
        if action not in (LOAD, str(decisions.UNUSED)):
            log_fn(f"[resume] {name}: {action}")
    if bundle.left_out.data_steps:
        log_fn(f"[resume] the data of the next {bundle.left_out.data_steps} steps are to be left out (skip_data_steps)")
    if bundle.left_out.eval_step is not None:
        log_fn(f"[resume] the evaluation of step {bundle.left_out.eval_step} is to be left out (skip_eval_step)")
    log_fn(f"[resume] step={bundle.global_step} epoch={bundle.start_epoch} best_val={bundle.best_val_loss:.4f}")


def _saved_versions(content: dict[str, Any]) -> dict[str, Any]:
    saved = content.get("versions")
    return saved if isinstance(saved, dict) else {}
