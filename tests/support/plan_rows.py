"""The table of changes and what the plan makes of each: name, change, components, verdict."""

from __future__ import annotations

READY, CONSENT, REFUSED = "ready", "needs consent", "refused"
NOTHING: dict[str, str] = {}
EDIT = {"weights": "partial", "optimizer": "partial", "ema": "partial"}
SWAP = {"optimizer": "swap", "scheduler": "refit"}
REFIT = {"scheduler": "refit"}
REDERIVE = {"data_position": "rederive"}
# (what changes, --set of the new run, components that are not simply loaded, verdict)
CONFIG_ROWS: list[tuple[str, str, dict[str, str], str]] = [
    # protocol §2: cadence of validation and checkpoints, gradient noise
    ("fast eval cadence", "validation.fast_eval_every=1000", NOTHING, READY),
    ("full eval cadence", "validation.full_eval_every=5000", NOTHING, READY),
    ("the gate of full evals", "validation.gate_full_eval_on_fast_improvement=false", NOTHING, READY),
    ("the fast subset", "validation.fast_fraction=0.01", NOTHING, READY),
    ("another metric of the best", "validation.best_metric=loss", NOTHING, CONSENT),
    ("checkpoint cadence", "checkpoint.every=250", NOTHING, READY),
    ("checkpoints kept", "checkpoint.keep_last=9", NOTHING, READY),
    ("checkpoints kept for good", "checkpoint.keep_every=10000", NOTHING, READY),
    ("heartbeat", "status.interval_s=30", NOTHING, READY),
    ("gradient noise", "training.grad_noise_sigma=0.01", NOTHING, READY),
    ("log lines", "training.log_every=50", NOTHING, READY),
    ("threads", "training.threads=4", NOTHING, READY),
    # protocol §2: small tweaks of weight decay and clipping
    ("weight decay times 1.5", "optimizer.weight_decay=0.015", NOTHING, READY),
    ("weight decay times 2", "optimizer.weight_decay=0.02", NOTHING, READY),
    ("weight decay halved", "optimizer.weight_decay=0.005", NOTHING, READY),
    ("weight decay times 5", "optimizer.weight_decay=0.05", NOTHING, CONSENT),
    ("weight decay off", "optimizer.weight_decay=0", NOTHING, CONSENT),
    ("puzzle weight decay times 1.5", "optimizer.puzzle_weight_decay=0.15", NOTHING, READY),
    ("clip halved", "training.grad_clip=0.5", NOTHING, READY),
    ("clip to a tenth", "training.grad_clip=0.1", NOTHING, CONSENT),
    ("clip off", "training.grad_clip=null", NOTHING, CONSENT),
    # protocol §2: batch size and accumulation
    ("batch size", "training.batch_size=64", REDERIVE, READY),
    ("accumulation", "training.grad_accum_steps=4", REDERIVE, READY),
    ("both", "training.batch_size=16 training.grad_accum_steps=2", REDERIVE, READY),
    # protocol §1: schedule logic
    ("warm-up", "schedule.warmup_steps=4000", REFIT, READY),
    ("base rate", "optimizer.lr=5e-5", REFIT, READY),
    ("puzzle rate", "optimizer.puzzle_lr=5e-3", REFIT, READY),
    ("longer", "training.max_steps=200000", REFIT, READY),
    ("shorter", "training.max_steps=60000", REFIT, READY),
    ("the floor", "schedule.min_lr_ratio=0.01", REFIT, READY),
    ("a tail", "schedule.tail=cyclic", REFIT, READY),
    ("another kind of schedule", "schedule.name=linear", {"scheduler": "refit", "optimizer": "reset"}, READY),
    ("longer, larger batch", "training.max_steps=200000 training.batch_size=64", REFIT | REDERIVE, READY),
    # protocol §7: the swap (the checkpoint is of step 40000 and holds AdamW)
    ("another optimizer", "optimizer.name=lion", SWAP, READY),
    ("a swap step that is reached", "optimizer.swap_at=40000", SWAP, READY),
    ("a swap step long past", "optimizer.swap_at=30000", SWAP, READY),
    ("a swap step to come", "optimizer.swap_at=40001", NOTHING, READY),
    ("another successor without a swap step", "optimizer.swap_to=sgd", NOTHING, READY),
    ("the ramp's factor, no swap", "optimizer.swap_lr_factor=0.5", NOTHING, READY),
    ("the ramp's length, no swap", "optimizer.swap_lr_steps=2000", NOTHING, READY),
    ("betas", "optimizer.betas=[0.9,0.99]", NOTHING, CONSENT),
    # protocol §0, §2: architecture edits
    ("DropPath", "model.droppath_h=0..0.2", EDIT, READY),
    ("auxiliary head", "model.aux_rule_head=true", EDIT, READY),
    ("both edits", "model.droppath_h=0..0.2 model.aux_rule_head=true", EDIT, READY),
    ("an edit and a longer schedule", "model.aux_rule_head=true training.max_steps=200000", EDIT | REFIT, READY),
    ("an edit and a swap", "model.aux_rule_head=true optimizer.name=lion", EDIT | SWAP, READY),
    # protocol §8, §9
    ("EMA off", "ema.enabled=false", {"ema": "absent"}, READY),
    ("EMA's window", "ema.decay=0.99", NOTHING, CONSENT),
    ("SWA on", "swa.enabled=true", {"swa": "fresh"}, READY),
    ("SWA's start, before it was ever on", "swa.start_step=60000", NOTHING, READY),
    ("SWA's rate", "swa.lr=1e-5", REFIT, READY),
    # data and seed
    ("data moved", "data.path=..", NOTHING, READY),
    ("seed", "training.seed=7", NOTHING, CONSENT),
    ("other data", "data.name=other", NOTHING, CONSENT),
    ("fewer tasks", "data.subset=10", NOTHING, CONSENT),
    ("no augmentation", "data.augment=false", NOTHING, CONSENT),
    ("workers", "data.workers=2", NOTHING, READY),
    # shapes and meaning of the weights
    ("hidden size", "model.hidden_size=256", NOTHING, REFUSED),
    ("layers", "model.layers=4", NOTHING, REFUSED),
    ("expansion", "model.expansion=2.0", NOTHING, REFUSED),
    ("puzzle embedding", "model.puzzle_emb_dim=64", NOTHING, REFUSED),
    ("another model", "model.name=trm", NOTHING, REFUSED),
    ("heads", "model.heads=8", NOTHING, CONSENT),
    ("cycles", "model.h_cycles=3", NOTHING, CONSENT),
    ("dropout", "model.dropout=0.1", NOTHING, CONSENT),
    # names and places
    ("notes", "experiment.notes=again", NOTHING, READY),
    ("the trainer's arguments", "trainer.extra_args=[--compile]", NOTHING, CONSENT),
    ("the trainer's command", "trainer.command=[python,other.py]", NOTHING, CONSENT),
    # the person's own word: `resume:` wins over the automatic choice
    ("optimizer reset alone", "resume.optimizer=reset", {"optimizer": "reset"}, REFUSED),
    ("optimizer and schedule reset", "resume.optimizer=reset resume.scheduler=reset",
     {"optimizer": "reset", "scheduler": "reset"}, READY),
    ("schedule refit", "resume.scheduler=refit", REFIT, READY),
    ("schedule kept against a longer run", "resume.scheduler=load training.max_steps=200000", NOTHING, READY),
    ("EMA reset", "resume.ema=reset", {"ema": "reset"}, READY),
    ("generators reset", "resume.rng=reset", {"rng": "reset"}, READY),
    ("counters reset", "resume.counters=reset", {"counters": "reset"}, READY),
    ("data from the start", "resume.data_position=reset", {"data_position": "reset"}, READY),
    ("weights by name", "resume.weights=partial", {"weights": "partial", "ema": "partial"}, READY),
    ("a swap by hand", "resume.optimizer=swap_to_lion", SWAP, READY),
    ("one optimizer's state for another", "resume.optimizer=load optimizer.name=lion", NOTHING, REFUSED),
    ("new weights under old moments", "resume.weights=reset", {"weights": "reset"}, REFUSED),
    ("a control from scratch",
     "resume.weights=reset resume.optimizer=reset resume.scheduler=reset resume.ema=reset resume.counters=reset",
     {"weights": "reset", "optimizer": "reset", "scheduler": "reset", "ema": "reset", "counters": "reset"}, READY),
]  # fmt: skip
