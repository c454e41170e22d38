"""Load a checkpoint into a trainer's objects, proven before a single value of it is used: the trainer's side.

Carries out the launcher's plan, or alone the trainer's arguments: what is done with each component is decided, compared
and refused before anything is changed; the random number generators come last. Reads the checkpoint, its proof and the
plan; journals `resumed`. Try it: `load_resume_bundle(model, optimizer, ckpt_path="checkpoints/model_400.pt")`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..base.errors import InvalidFile, KitError
from ..base.imports import Any
from ..base.terminal import plain
from ..base.terms import ABSENT, FRESH, LOAD, NOT_TOLD, PARTIAL, REFIT, RESET, RESTARTED, SWAP, Check
from ..checkpoint.parameters import plain_optimizer_name
from ..policy import lr_scale, plan_file
from ..policy.lr_scale import SWAP_FACTOR, SWAP_STEPS, LrScale, Ramp
from ..policy.plan_file import PlanFile
from . import (
    checkpoint_content,
    decisions,
    fit_check,
    learning_rate,
    optimizer_state,
    rank_states,
    restart,
    resume_bundle,
    sharded_content,
    sharded_state,
    verification,
    weights,
)
from .checkpoint_content import OWN_KEYS, changed_versions, require_states, version_costs, versions
from .decisions import Wishes
from .fit_check import Matched
from .optimizer_state import LION, held_optimizers, is_state, match_optimizers, named_optimizers, unwrapped
from .proven_content import counters_of, read_proven
from .ranks import agreed, are_all, rank, world_size
from .resume_bundle import ResumeBundle
from .trainer_env import guard_output, journal_event, run_dir
from .verification import Loaded

# The kind of the warning that random numbers are restored in one of several ranks.
RNG_RANK_0_ONLY = "rng_rank_0_only"
_NOT_IN_EXTRA = frozenset(OWN_KEYS) - {"data_state"}


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
    ranks: str | None = None,
) -> ResumeBundle:
    """Load a checkpoint into model, optimizer and their kin, as the plan says; without one, as the arguments say.

    Args:
        model, scheduler, scaler, ema, swa: whatever has load_state_dict(), as newly made; None where there is none.
        optimizer: one optimizer, or a dict name -> optimizer. It keeps its own hyper-parameters; its learning rate
            comes from the checkpoint only with the scheduler's state.
        ckpt_path: the checkpoint, a file or a folder of `save_sharded`; None or '' for a fresh start.
        allow_partial_weights: load the weights that fit by name and shape, and leave the others as they are.
        optimizer_policy: 'load'; 'reset' (leave the new one as it is); 'swap_to_lion' (once: the old optimizer's state
            is left out, and the rate is 80 % for the first 1,000 steps). The trainer passes a Lion; or another one, and
            goes on with `bundle.optimizer`.
        schedule_policy: 'load', or 'reset': the old state is not loaded, the new schedule is placed at the kept step.
        restore_rng: set the random number generators back, last of all.
        new_params: 'module' (new parameters keep the initialisation of their module) or 'kaiming'.
        own_lr_scale: the trainer multiplies its learning rate by bundle.lr_scale_at(step) itself; else the kit does,
            around every optimizer.step.
        ranks: 'all' where every rank makes this call: nothing is loaded in any before all can, and at the first step
            the worst of their checks counts. Each takes its own random number generators and data_state, if all have
            saved together. None: each rank loads for itself.

    Of several ranks the first one reports.

    Returns:
        The counters, the trainer's own entries, and a report of what was done with each component.

    Raises:
        NoStableCheckpoint: the file is not whole or its bytes are not the proven ones; nothing was loaded.
        InvalidFile: its content does not fit the trainer's objects, or the plan is broken; nothing was loaded.
        KitError: an argument is unknown, contradicts the plan, or has no state_dict() and load_state_dict(); nothing
            was loaded.

    Source: protocol §4, §6, §7, §13.
    """
    guard_output()
    is_of_all, log_fn = are_all("load_resume_bundle", ranks), _plainly(log_fn)
    say = log_fn if rank() == 0 else _nothing
    wishes = Wishes(allow_partial_weights, optimizer_policy, schedule_policy, new_params, restore_rng)
    with agreed("the load", is_of_all=is_of_all) as alike:
        wishes.check()
        handed = {
            "model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "swa": swa,
        }  # fmt: skip
        require_states("load_resume_bundle", handed, ("state_dict", "load_state_dict"), several=handed)
        plan = planned = decisions.read_plan()
        if own := restart.newest_own(ckpt_path, planned):
            _tell_of_restart(restart.sentence(own, ckpt_path), say)
            # What the arguments change was changed when the run began; a swap holds, and happens once.
            wishes = Wishes(optimizer=optimizer_policy if optimizer_policy == "swap_to_lion" else "load")
            ckpt_path = own
        alike["checkpoint"] = Path(ckpt_path).name if ckpt_path else None
        if not ckpt_path:
            _refuse_fresh_start(plan)
            return ResumeBundle(optimizer=optimizer)
        path = Path(ckpt_path)
        is_planned = plan is not None and not own and plan_file.is_about(plan.checkpoint, path, run_dir())
        plan = plan if is_planned else None
        passed, optimizer, scheduler = optimizer, unwrapped(optimizer), unwrapped(scheduler)
        model = sharded_state.seen(model)
        is_spread = sharded_state.is_spread(model, named_optimizers(optimizer).values())
        content = _content(path, sharded_content.Live(model, optimizer, ema, swa), is_of_all=is_of_all)
        kept = sharded_content.kept(content, model) if is_spread or sharded_content.is_one(path) else None
        lion_wanted_by = _lion_wanted_by(content, wishes, planned if own else plan)
        # accelerate's wrapper goes on with what it was made around.
        can_stand_in = lion_wanted_by is not None and passed is optimizer
        lion = optimizer_state.lion_stand_in(optimizer, scheduler) if can_stand_in else None
        parts = {"optimizer": optimizer if lion is None else lion, "scheduler": scheduler, "scaler": scaler,
                 "ema": ema, "swa": swa}  # fmt: skip
        costs = version_costs(_saved_versions(content), versions()) + rank_states.position_costs(content)
        decided = decisions.decide(content, parts, wishes, plan, costs)
        counters = counters_of(content, decided["counters"].action, plan, path)
        alike["step"] = counters["global_step"]
        scale = _scale(content, decided, counters["global_step"], plan, path)
        found = fit_check.check(content, model, decided, parts, lion_wanted_by, path)
        _refuse_new_values(found, is_spread, plan.new_params if plan else new_params)
    with agreed("the load", is_of_all=is_of_all):  # one that fails half-way leaves no rank to train with the others
        if lion is not None:
            optimizer_state.take_over_as_lion(lion, optimizer, scheduler)
        _warn(content, found, scheduler, say)
        reinitialised = _load(
            content, model, found, parts, counters["global_step"], plan.new_params if plan else new_params
        )
        if not own_lr_scale:
            if parts["optimizer"] is None and not learning_rate.scale_is_one(scale, counters["global_step"]):
                say("[warn] the learning rate is to be scaled, and no optimizer was passed: multiply it by "
                    "bundle.lr_scale_at(step)")  # fmt: skip
            learning_rate.attach_scale(named_optimizers(parts["optimizer"]), scale, counters["global_step"])
        report = {name: str(decision) for name, decision in found.decisions.items()}
        report["rng"] = _restore_rng(content, found, say)
    rate_factor = _rate_factor(content, scale, counters["global_step"], own_lr_scale)
    loaded = Loaded(
        path=path, model=model, parts=parts, decided=decided, lion_wanted_by=lion_wanted_by, plan=plan,
        rate_factor=rate_factor, is_of_all=is_of_all, kept=kept,
    )  # fmt: skip
    own_factor = partial(scale.__call__, counters["global_step"]) if own_lr_scale else _one
    loaded = _refitted(loaded, content, found, own_factor)
    goes_on = passed if lion is None else lion
    bundle = _bundle(content, counters, found, reinitialised, scale, report, loaded, goes_on)
    first = next(iter(named_optimizers(parts["optimizer"])), None)
    is_saved_rate = found.decisions["scheduler"].action == LOAD
    _say(bundle, rate_factor(first) if is_saved_rate else bundle.lr_scale_at(bundle.global_step, first), say)
    resume_bundle.expect_skips(bundle.left_out)
    journal_event(
        "resumed", step=bundle.global_step, checkpoint=str(path), report=report,
        lr_scale=bundle.lr_scale_at(bundle.global_step), plan=None if plan is None else decisions.file_name(),
    )  # fmt: skip
    for swapped in _swaps(content, found, loaded.parts["optimizer"]):
        journal_event("swap", step=bundle.global_step, **swapped)
    verification.at_first_step(loaded, log_fn)
    return bundle


def _content(path: Path, live: sharded_content.Live, *, is_of_all: bool) -> dict[str, Any]:
    """Return the proven content, as this rank takes it: of tensors that are spread over ranks its own part."""
    if sharded_content.is_one(path):
        return rank_states.of_this_rank(sharded_content.read_proven(path, live, is_of_all=is_of_all))
    return rank_states.of_this_rank(sharded_state.spread(read_proven(path), live.model))


def _refuse_new_values(found: Matched, is_spread: bool, new_params: str) -> None:
    if is_spread and new_params == "kaiming" and found.decisions["weights"].action == PARTIAL:
        raise InvalidFile(
            "new_params='kaiming' is not supported for a model that is spread over ranks, and nothing was loaded: "
            "leave it out, new parameters keep the initialisation of their module"
        )


def _lion_wanted_by(content: dict[str, Any], wishes: Wishes, plan: PlanFile | None) -> str | None:
    """Return what wants a Lion in the place of the optimizer that the trainer makes; None where nothing does.

    A swap happens once, and holds: the next checkpoint has the Lion's state.
    """
    if wishes.optimizer == "swap_to_lion":
        return "optimizer_policy='swap_to_lion'"
    if plan is None or plain_optimizer_name(plan.optimizer or "") != LION:
        return None
    has_happened = any(LION in (one.kind or one.family or "").lower() for one in held_optimizers(content).values())
    is_planned = any(one.action == SWAP for one in plan.components.values())
    return f"the plan's optimizer '{plan.optimizer}'" if has_happened or is_planned else None


def _plainly(log_fn: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what prints printable lines: they name what lies in the checkpoint, which may be another user's."""
    return lambda line: log_fn(plain(line))


def _tell_of_restart(sentence: str, log_fn: Callable[[str], Any]) -> None:
    journal_event("warning", kind=RESTARTED, message=sentence)
    log_fn(f"[warn] {sentence}")


def _nothing(_line: str) -> None:
    """Say nothing, as a rank does that is not the first."""


def _refuse_fresh_start(plan: PlanFile | None) -> None:
    if plan is not None:
        raise KitError(
            f"the plan '{plan.path}' resumes at step {plan.step}, and load_resume_bundle got no ckpt_path: pass the "
            f"checkpoint on ({{checkpoint}} in trainer.resume_args), or start anew with bin/run.sh --fresh"
        )


def _scale(content: dict[str, Any], decided: dict[str, Any], step: int, plan: PlanFile | None, path: Path) -> LrScale:
    """Return what the rate is multiplied by from here on: the plan's, else inherited; a swap begins with a ramp."""
    if plan is not None and plan.lr_scale is not None:
        return plan.lr_scale
    try:
        inherited = lr_scale.from_fields(content.get("lr_scale"), content.get("lr_ramp"))
    except ValueError as error:
        raise InvalidFile(f"checkpoint '{path}': {error}") from error
    swaps = [name.partition(".")[2] for name, one in decided.items() if one.action == SWAP]
    if swaps:
        return inherited._replace(ramp=Ramp(step, SWAP_STEPS, SWAP_FACTOR, False, lr_scale.swapped(swaps)))
    return inherited


def _rate_factor(content: dict[str, Any], scale: LrScale, step: int, own_lr_scale: bool) -> Callable[[Any], float]:
    """Return what makes of a saved rate, by its optimizer's name, the one that the next step uses.

    What a trainer scales by itself is in the rate that it saves; what the kit scales is not.
    """
    held = lr_scale.from_fields(content.get("lr_scale"), content.get("lr_ramp")) if own_lr_scale else LrScale()
    saved_at = content.get("global_step", step)
    return lambda name: scale(step, name) / held(saved_at, name)


def _one(_name: str) -> float:
    return 1.0


def _refitted(
    loaded: Loaded, content: dict[str, Any], found: Matched, own_factor: Callable[[str], float]
) -> Loaded:  # fmt: skip
    """Return the load with what tells a refitted schedule from the old one; no error of it stops the load."""
    if found.decisions["scheduler"].action != REFIT:
        return loaded
    try:
        differs = learning_rate.schedule_differences(content.get("scheduler_state_dict"), loaded.parts["scheduler"])
        saved = match_optimizers(content, loaded.parts["optimizer"])
        outdated = verification.outdated_rates(loaded, saved, own_factor)
    except Exception:  # a state of another form, or groups without a rate: nothing tells the two apart
        return loaded
    return replace(loaded, refitted=tuple(differs), outdated=outdated)


def _load(
    content: dict[str, Any], model: Any, found: Matched, parts: dict[str, Any], step: int, new_params: str
) -> tuple[str, ...]:
    """Load everything but the random numbers; returns the names of the parameters that were initialised anew."""
    done = found.decisions
    new: tuple[str, ...] = ()
    if done["scheduler"].action == REFIT:
        # First, because it may fail, and because it starts from the rates that the optimizer was made with.
        place = learning_rate.refit_schedule(parts["scheduler"], content.get("scheduler_state_dict"), step)
        done["scheduler"] = done["scheduler"]._replace(why=f"placed at step {place}, {done['scheduler'].why}")
    if done["weights"].action in (LOAD, PARTIAL):
        weights.load_weights(model, content["model_state_dict"], found.weights)
        new = weights.initialise_weights(model, found.weights) if new_params == "kaiming" else ()
    for key, refitted in found.optimizers.items():
        one = named_optimizers(parts["optimizer"])[key]
        if done["scheduler"].action == REFIT:
            optimizer_state.keep_rates(refitted.kept, one)
        sharded_state.load_optimizer(one, model, refitted.kept)
    if done["scheduler"].action == LOAD:
        for key, saved in match_optimizers(content, parts["optimizer"]).items():
            if key not in found.optimizers and saved is not None and is_state(saved.state):
                optimizer_state.take_rates(saved.state, named_optimizers(parts["optimizer"])[key])
    for name in ("scheduler", "scaler"):
        if done[name].action == LOAD:
            _load_one(parts[name], content[f"{name}_state_dict"])
    for name in ("ema", "swa"):
        if done[name].action in (FRESH, RESET):
            parts[name].load_state_dict(weights.current_average(parts[name], model))
        elif done[name].action in (LOAD, PARTIAL):
            weights.load_average(parts[name], content[f"{name}_state_dict"], model)
    return new


def _swaps(content: dict[str, Any], found: Matched, optimizer: Any) -> Iterator[dict[str, Any]]:
    """Yield for each optimizer that took over from another one its name among several, and both classes."""
    for key, saved in match_optimizers(content, optimizer).items():
        if found.decisions[f"optimizer.{key}" if key else "optimizer"].action == SWAP:
            yield {
                "name": key,
                "old": saved.kind if saved else None,
                "new": type(named_optimizers(optimizer)[key]).__name__,
            }


def _load_one(component: Any, state: Any) -> None:
    if isinstance(component, dict):
        for name, member in component.items():
            member.load_state_dict(state[name])
    else:
        component.load_state_dict(state)


def _restore_rng(content: dict[str, Any], found: Matched, log_fn: Callable[[str], Any]) -> str:
    decision = found.decisions["rng"]
    state: Any = content.get("rng_state")
    if decision.action != LOAD:
        return f"reset: left as it is, {decision.why}" if decision.action == RESET else str(decision)
    if not checkpoint_content.is_known_rng_state(state):
        return "absent: not in the form that save_checkpoint writes, left as it is"
    if world_size() == 1 or rank_states.has_own(content):
        return checkpoint_content.restore_rng(state)
    return _restore_rng_of_rank_0(state, log_fn)


def _restore_rng_of_rank_0(state: dict[str, Any], log_fn: Callable[[str], Any]) -> str:
    """Restore the generators where they are from: in any other rank they would make its numbers those of rank 0.

    Where every rank saves with ranks='all', each has its own in the checkpoint.
    """
    if (own := rank()) != 0:
        return f"{checkpoint_content.RANK_0_ONLY}: left as it is in rank {own}"
    done = checkpoint_content.restore_rng(state)
    why = (
        "the checkpoint holds the random number generators of rank 0 (save_checkpoint with ranks='all' in every rank "
        "holds those of each); every other rank keeps its new ones"
    )
    message = f"rng: {checkpoint_content.RANK_0_ONLY}: {why}, so the resume is not exact"
    log_fn(f"[warn] {message}")
    journal_event("warning", kind=RNG_RANK_0_ONLY, message=message)
    journal_event("check", **Check("rng", NOT_TOLD, why=why).as_fields())
    return checkpoint_content.RANK_0_ONLY if done == LOAD else f"{checkpoint_content.RANK_0_ONLY}: {done}"


def _bundle(
    content: dict[str, Any], counters: dict[str, Any], found: Matched, new: tuple[str, ...], scale: LrScale,
    report: dict[str, str], loaded: Loaded, optimizer: Any,
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
        left_out=decisions.skips_by(loaded.plan),
        optimizer=optimizer,
        loaded=loaded,
        saved_rng=content.get("rng_state"),
    )


def _warn(content: dict[str, Any], found: Matched, scheduler: Any, log_fn: Callable[[str], Any]) -> None:
    """Print the protocol's lines about weights that do not fit (§6), and what else the curves may show."""
    for line in changed_versions(_saved_versions(content), versions(), ("threads", "torch", "world_size")):
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
        for line in learning_rate.schedule_differences(content["scheduler_state_dict"], scheduler):
            log_fn(
                f"[warn] the schedule goes on as in the checkpoint, {line}: schedule_policy='reset' takes the new one"
            )


def _say(bundle: ResumeBundle, scale: float, log_fn: Callable[[str], Any]) -> None:
    """Print the lines of protocol §4 and §6.

    Args:
        scale: what the first group's rate is still to be multiplied by.
    """
    first = next(iter(named_optimizers(bundle.optimizer).values()), None)
    lr = f"{float(first.param_groups[0]['lr']) * scale:g}" if first is not None else "none"
    log_fn(
        f"Loaded checkpoint @step={bundle.global_step}, epoch={bundle.start_epoch}, "
        f"best_val={bundle.best_val_loss:.2f}, lr={lr}"
    )
    for name, action in bundle.report.items():
        if action not in (LOAD, f"{ABSENT}: {decisions.NOT_USED}"):
            log_fn(f"[resume] {name}: {action}")
    if bundle.left_out.data_steps:
        log_fn(f"[resume] the data of the next {bundle.left_out.data_steps} steps are to be left out (skip_data_steps)")
    if bundle.left_out.eval_step is not None:
        log_fn(f"[resume] the evaluation of step {bundle.left_out.eval_step} is to be left out (skip_eval_step)")
    log_fn(f"[resume] step={bundle.global_step} epoch={bundle.start_epoch} best_val={bundle.best_val_loss:.4f}")


def _saved_versions(content: dict[str, Any]) -> dict[str, Any]:
    saved = content.get("versions")
    return saved if isinstance(saved, dict) else {}
