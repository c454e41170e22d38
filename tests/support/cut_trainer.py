"""The example's trainer with a cut: it signals itself at one named place in a step, an evaluation, a save or a load.

`CUT=<SIGNAL>:<stage>:<k>` in the environment: at the k-th passage through the stage the process sends itself KILL,
TERM or INT (`INT2`: twice in a row). `LEAVE_OUT=<item>`: one item of the checkpoint keeps its fresh value at a load.
`FRESH_LR_SCALE=<x>`: a run that starts from nothing starts with this lr_scale and RAMP. Nothing else is changed;
without these it is the plain trainer.

Try it: `CUT=KILL:optimizer:5 python tests/support/cut_trainer.py --max_steps 9; echo $?`
"""

from __future__ import annotations

import copy
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hrm_arc"
RAMP = {"from_step": 8, "steps": 3, "factor": 0.5, "warm_restart": False}  # as after a swap
WRITE_OF_A_SAVE = 10  # torch.save calls write some forty times for a model of this size


def install() -> None:
    """Patch the trainer as the environment says; costs the import of torch."""
    if os.environ.get("CUT"):
        cut = Cut(os.environ["CUT"])
        for patch in (patch_step, patch_eval, patch_save, patch_load):
            patch(cut)
        if not cut.stage_is_known:
            raise SystemExit(f"cut_trainer.py: unknown stage in CUT='{os.environ['CUT']}'")
    if os.environ.get("LEAVE_OUT") or os.environ.get("FRESH_LR_SCALE"):
        patch_state(os.environ.get("LEAVE_OUT"), os.environ.get("FRESH_LR_SCALE"))


class Cut:
    """A signal at the k-th passage through one stage."""

    def __init__(self, text: str) -> None:
        name, self.stage, count = text.rsplit(":", 2)
        self.times = 2 if name.endswith("2") else 1
        self.number = signal.Signals[f"SIG{name.rstrip('2')}"]
        self.left, self.stage_is_known = int(count), False

    def reach(self, stage: str) -> None:
        """Pass through a stage; the process may end here."""
        if stage != self.stage:
            return
        self.left -= 1
        for _ in range(self.times if self.left == 0 else 0):
            os.kill(os.getpid(), self.number)

    def before(self, owner: Any, name: str, stage: str) -> None:
        """Let `owner.name` pass through `stage` first."""
        self._wrap(owner, name, stage, lambda original: _in_turn(lambda: self.reach(stage), original))

    def after(self, owner: Any, name: str, stage: str) -> None:
        """Let `owner.name` pass through `stage` when it has done its work."""

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                self.reach(stage)
                return result

            return wrapped

        self._wrap(owner, name, stage, wrap)

    def _wrap(self, owner: Any, name: str, stage: str, wrap: Callable[..., Any]) -> None:
        if stage == self.stage:
            self.stage_is_known = True
            original = getattr(owner, name)
            setattr(owner, name, functools.wraps(original)(wrap(original)))


def _in_turn(first: Callable[[], None], then: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        first()
        return then(*args, **kwargs)

    return both


def patch_step(cut: Cut) -> None:
    """Stages of an optimizer step, in their order; `micro`, `forward` and `backward` pass once per micro-batch."""
    import arc_training
    import hrm_optim
    import resume_helper
    import train_arc_full_nova as trainer

    cut.before(arc_training.Training, "step", "between")
    cut.after(arc_training, "refill", "forward")
    cut.after(arc_training, "segment_loss", "micro")
    cut.before(arc_training, "clip_grad_norm_", "clip")
    cut.before(hrm_optim.SignSgd, "step", "optimizer")  # AdamW has moved its weights by then
    cut.before(arc_training.Schedule, "step", "schedule")
    cut.before(arc_training.AveragedModel, "update_parameters", "ema")
    cut.before(arc_training, "evals_due", "counted")
    cut.before(trainer, "farewell", "end")
    if cut.stage == "backward":
        cut.stage_is_known = True
        forward = arc_training.segment_loss

        def with_hook(model: Any, *args: Any, **kwargs: Any) -> Any:
            def pass_through(_: Any) -> None:  # called in the middle of backward(), while it does the slow module
                hook.remove()
                cut.reach("backward")

            hook = next(model.slow.parameters()).register_hook(pass_through)
            return forward(model, *args, **kwargs)

        arc_training.segment_loss = with_hook
    if cut.stage.startswith("journal."):
        cut.stage_is_known = True
        journal = resume_helper.journal_event

        def journal_event(event: str, /, **fields: Any) -> None:
            cut.reach(f"journal.{event}")
            journal(event, **fields)

        resume_helper.journal_event = journal_event


def patch_eval(cut: Cut) -> None:
    """`eval`: inside an evaluation, after one of its batches."""
    import arc_eval

    cut.after(arc_eval, "_solve", "eval")


def patch_save(cut: Cut) -> None:
    """Stages of a save, in their order."""
    from resumekit.checkpoint import layout, pruning
    from resumekit.trainer import save_file, saving

    cut.before(saving.checkpoint_content, "collect", "save.collect")
    if cut.stage == "save.write":
        cut.stage_is_known = True
        write = save_file.DurableFile.write

        def counted_write(file: Any, data: bytes) -> int:
            file.calls = getattr(file, "calls", 0) + 1
            if file.calls == WRITE_OF_A_SAVE:
                cut.reach("save.write")
            return write(file, data)

        save_file.DurableFile.write = counted_write
    cut.before(save_file.DurableFile, "finish", "save.fsync")
    cut.before(save_file.DurableFile, "publish", "save.rename")
    cut.before(save_file, "fsync_directory", "save.renamed")
    cut.after(save_file.DurableFile, "publish", "save.manifest")
    cut.before(saving, "_link_best", "save.best")
    cut.after(layout, "pin", "save.best.linked")
    cut.after(layout, "rename", "save.best.manifest")  # the best has its name, and its manifest not yet
    cut.before(saving, "_succeeded", "save.synced")
    cut.before(saving.pruning, "prune", "save.prune")
    cut.before(pruning, "manifest_path", "save.pruned")


def patch_load(cut: Cut) -> None:
    """`start`: before a load or a fresh start; `load`, `load.rng`, `loaded`: during and after a load, in that order."""
    import arc_training
    from resumekit.trainer import loading

    cut.before(arc_training.Training, "load", "start")
    cut.before(loading, "_load", "load")
    cut.before(loading.checkpoint_content, "restore_rng", "load.rng")
    cut.after(arc_training.Training, "load", "loaded")


# Each puts one item back to its value in a process that has loaded nothing: (job, that process's values).
FORGET: dict[str, Callable[[Any, SimpleNamespace], None]] = {
    "weights": lambda job, fresh: job.model.load_state_dict(fresh.weights),
    "puzzle embeddings": lambda job, fresh: job.model.puzzles.load_state_dict(fresh.puzzles),
    "optimizer: moments and step": lambda job, fresh: job.optimizers["model"].state.clear(),
    "optimizer: step": lambda job, fresh: [state["step"].zero_() for state in job.optimizers["model"].state.values()],
    "puzzles' optimizer: place in its schedule": lambda job, fresh: forget_place(job, fresh, "puzzles"),
    "scheduler": lambda job, fresh: [forget_place(job, fresh, name) for name in job.optimizers],
    "ema: weights": lambda job, fresh: job.ema.module.load_state_dict(fresh.weights),
    "ema: count": lambda job, fresh: job.ema.n_averaged.zero_(),
    "torch random numbers": lambda job, fresh: fresh.torch.set_rng_state(fresh.random_state),
    "carry": lambda job, fresh: vars(job).update(carries=fresh.carries),
    "step": lambda job, fresh: vars(job.progress).update(step=0),
    "evaluations pending": lambda job, fresh: vars(job.progress).update(evals_pending=[]),
    "best so far": lambda job, fresh: vars(job.progress).update(best_score=None, best_step=None, best_weights=None),
    "best validation loss": lambda job, fresh: vars(job.progress).update(best_val_loss=float("inf")),
    "best fast evaluation": lambda job, fresh: vars(job.progress).update(fast_best=None),
    "lr_scale": lambda job, fresh: set_lr_scale(job, 1.0, RAMP),
    "lr_scale: ramp": lambda job, fresh: set_lr_scale(job, job.lr_scale, None),
    "data position": lambda job, fresh: forget_position(job),
}
# The same for what a run with every switch on has beside that.
FORGET_SWITCHES: dict[str, Callable[[Any, SimpleNamespace], None]] = {
    "optimizer: lion's momentum": lambda job, fresh: job.optimizers["model"].state.clear(),
    "scaler": lambda job, fresh: job.scaler.load_state_dict(fresh.scaler),
    "rule head": lambda job, fresh: job.model.rule_head.load_state_dict(fresh.rule_head),
    "swa: weights": lambda job, fresh: job.swa.module.load_state_dict(fresh.weights),
    "swa: count": lambda job, fresh: job.swa.n_averaged.zero_(),
    "swa: beginning": lambda job, fresh: forget_tail(job),
    "fast evaluations stalled": lambda job, fresh: vars(job.progress).update(fast_stalled=0),
    "torch random numbers": FORGET["torch random numbers"],
    "step": FORGET["step"],
}


def forget_place(job: Any, fresh: SimpleNamespace, name: str) -> None:
    """Put one optimizer's learning rate and its schedule to their beginning."""
    job.schedule._parts[name].load_state_dict(fresh.schedules[name])
    for group, rate in zip(job.optimizers[name].param_groups, fresh.rates[name], strict=True):
        group["lr"] = rate


def forget_tail(job: Any) -> None:
    """Forget that an SWA tail has begun, and with it the place in its cycle."""
    job.progress.swa_from_step = None
    job._place_rates()


def set_lr_scale(job: Any, scale: float, ramp: dict[str, Any] | None) -> None:
    """Set the factor on every learning rate and its ramp, for the coming step too."""
    from resume_helper import ResumeBundle

    job.take_lr_scale(ResumeBundle(lr_scale=scale, lr_ramp=ramp))
    job.schedule.refit(job.progress.step)


def forget_position(job: Any) -> None:
    """Let the data begin at its first example again."""
    take, begun_at = job.batches.take, job.progress.step
    job.batches.take = lambda step, micro, slots: take(step - begun_at, micro, slots)


def patch_state(item: str | None, lr_scale: str | None) -> None:
    """Leave `item` out of every load from a checkpoint; give a fresh start this `lr_scale`."""
    import torch

    import arc_training

    load = arc_training.Training.load

    def load_without(job: Any, kit: Any, path: str | None, **policies: Any) -> None:
        fresh = SimpleNamespace(
            torch=torch,
            weights=copy.deepcopy(job.model.state_dict()),
            puzzles=copy.deepcopy(job.model.puzzles.state_dict()),
            schedules=copy.deepcopy({name: part.state_dict() for name, part in job.schedule._parts.items()}),
            rates={name: [group["lr"] for group in one.param_groups] for name, one in job.optimizers.items()},
            random_state=torch.get_rng_state(),
            scaler=job.scaler and job.scaler.state_dict(),
            rule_head=job.model.rule_head and copy.deepcopy(job.model.rule_head.state_dict()),
            carries=job.carries,
        )
        load(job, kit, path, **policies)
        if path and item:
            (FORGET_SWITCHES if item in FORGET_SWITCHES else FORGET)[item](job, fresh)
        if not path and lr_scale:
            set_lr_scale(job, float(lr_scale), RAMP)

    arc_training.Training.load = load_without


def main(argv: list[str] | None = None) -> int:
    """Train as the trainer does, with what the environment says on top."""
    import train_arc_full_nova as trainer

    install()
    return trainer.main(argv)


if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLE))
    raise SystemExit(main())
