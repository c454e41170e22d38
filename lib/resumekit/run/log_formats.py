"""What frameworks print of a training: a table, one row a framework, each with lines as it prints them.

`trainer.log_format` names a row; without it, and without `trainer.log_patterns`, the row is found by its `mark` in the
first lines of a log (`log_reader`). A mark is what only that framework prints: a bar alone is none. Data and nothing
else; every expression is searched in one clean line, without the rank that it may begin with.
Try it: `python -m pytest tests/test_log_formats.py`
"""

from __future__ import annotations

from ..base.imports import NamedTuple

AUTO, NONE = "auto", "none"

_VALUE = r"([0-9.]+)"
# A bar of tqdm, without a description: `  3%|▎         | 60/2000 [00:36<19:24,  1.67it/s]`.
_TQDM = r"[0-9]{1,3}%\|[^|]{0,400}\| *(?P<step>[0-9]+)/(?P<total>[0-9]+) \["
_TOTAL_STEPS = r"Total optimization steps = (?P<total>[0-9][0-9,]*)$"


class Format(NamedTuple):
    """How one framework prints.

    Args:
        name: the word of `trainer.log_format`.
        framework: its name for people.
        source: whose lines these are, with the version.
        mark: found in a line that only this framework prints.
        words: one of them stands in each line with the mark, colours or not: without any, none is looked for.
        begins: what each line of interest begins with, a bar of an evaluation too: it shows that the trainer goes on.
        step: as in `trainer.log_patterns`: the first group is the step of a line that has one.
        loss, lr: the same for these; on a line without a step they are of the step beside it.
        epoch: as a number, with a fraction or without.
        bar: a bar of the training: groups `step` and `total`, or for one that counts anew in each epoch `batch`,
            `batches` and `epoch`.
        total: a line that says how many steps there will be (group `total`).
        evaluation: a line of an evaluation, with a group `step` or without: then it is of the step beside it.
        metric: what such a line says: the first group is a metric's name, the second its value.
        best: a line that says which value is the best so far: groups `metric` and `score`.
        lost: a line whose loss is not finite, although it does not say so.
        has_redrawn_bar: behind a line with values the training's bar is drawn again, which has their step.
        total_is_of_run: whether the total behind a step is that of the whole run.
        examples: lines as they are printed, each with what it tells: step, loss, lr, metrics, or nothing.
    """

    name: str
    framework: str
    source: str
    mark: str
    words: tuple[str, ...]
    begins: str
    step: str = ""
    loss: str = ""
    lr: str = ""
    epoch: str = ""
    bar: str = ""
    total: str = ""
    evaluation: str = ""
    metric: str = ""
    best: str = ""
    lost: str = ""
    has_redrawn_bar: bool = False
    total_is_of_run: bool = False
    examples: tuple[str, ...] = ()


HF = Format(
    name="hf",
    framework="Hugging Face Trainer",
    source="transformers 5.24 (trainer_callback.ProgressCallback; values are text) and 4.x (values are numbers)",
    mark=r"^\{'loss': [^{}\n]{1,999}'learning_rate': [^{}\n]{1,999}'epoch': [^{}\n]{1,99}\}$"
    r"|^\{'eval_[^{}\n]{1,999}'eval_runtime': [^{}\n]{1,999}\}$"
    r"|^(?:\[transformers\]|\[INFO\|trainer\.py:[0-9]+\][^>]*>>) +Total optimization steps = ",
    words=("'learning_rate': ", "'eval_runtime': ", "Total optimization steps = "),
    begins=r"\{'|[^\n]{0,60} Total optimization| {0,3}[0-9]{1,3}%\|",
    loss=r"^\{'loss': '?(-?[0-9.]+)",
    lr=r"'learning_rate': '?" + _VALUE,
    epoch=r"'epoch': '?" + _VALUE,
    bar=r"^ {0,3}" + _TQDM,
    total=_TOTAL_STEPS,
    evaluation=r"^\{'eval_",
    metric=r"'(eval_\w+)': '?([^',}]+)",
    # By default (logging_nan_inf_filter) a NaN is left out of the mean that is printed, which is 0 then.
    lost=r"^\{'loss': '?0(?:\.0*)?'?, 'grad_norm': '?nan\b",
    has_redrawn_bar=True,
    total_is_of_run=True,
    examples=(
        "{'loss': '3.251', 'grad_norm': '5.376', 'learning_rate': '0.0008667', 'epoch': '0.1'}",
        "{'loss': 3.251, 'grad_norm': 5.376, 'learning_rate': 0.0008667, 'epoch': 0.1}",
        "{'eval_loss': '7.345', 'eval_runtime': '0.0068', 'eval_samples_per_second': '9418', 'epoch': '0.2'}",
        " 17%|█▋        | 5/30 [00:00<00:00, 44.22it/s]",
        "{'train_runtime': '0.7339', 'train_samples_per_second': '327', 'train_loss': '7.2', 'epoch': '0.6'}",
    ),
)

LIGHTNING = Format(
    name="lightning",
    framework="Lightning",
    source="lightning 2.6.6 (TQDMProgressBar, RichProgressBar, ModelCheckpoint(verbose=True))",
    mark=r"^GPU available: .{1,40}, used: |^Epoch [0-9]+.{1,2000}[, ]v_num[=:]|^`Trainer\.fit` stopped: ",
    words=("GPU available: ", "v_num", "`Trainer.fit` stopped: "),
    begins=r"Epoch [0-9]|[^\n]{0,200}?\bEpoch [0-9]+, global step |Validation |Sanity Checking | {10,}(?:train_)?loss:",
    step=r"\bEpoch [0-9]+, global step ([0-9]+): '",
    loss=r"(?:[ ,]|^)(?:train(?:ing)?[_/])?loss(?:_step)?[=:] *(-?[0-9.]+)",
    bar=r"^Epoch (?P<epoch>[0-9]+)(?:: +(?:[0-9]{1,3}%)?\|[^|]{0,400}\| *|/-?[0-9]+ +(?:━|╸|╺| )*)"
    r"(?P<batch>[0-9]+)/(?P<batches>[0-9]+|\?|--) ",
    evaluation=r"\bEpoch [0-9]+, global step (?P<step>[0-9]+): '",
    metric=r"'((?:val|valid|validation|test|eval)\w*)' reached ([^ ,]+)",
    best=r"global step (?P<step>[0-9]+): '(?P<metric>[^']{1,80})' reached (?P<now>[^ ,]+) \(best (?P<score>[^ )]+)\)",
    examples=(
        "GPU available: False, used: False",
        "Epoch 0:  50%|█████     | 8/16 [00:00<00:00, 41.87it/s, v_num=0, train_loss=9.950]",
        "Epoch 2/2  ━━━━━━━━━━━━━━━━━ 16/16 0:00:00 • 0:00:00 41.87it/s v_num: 0.000 train_loss: 7.299",
        "Epoch 0, global step 16: 'val_loss' reached 3.91161 (best 3.91161), saving model to 'epoch=0-step=16.ckpt'",
        "Validation DataLoader 0:  75%|███████▌  | 3/4 [00:00<00:00, 1030.54it/s]",
    ),
)

ACCELERATE = Format(
    name="accelerate",
    framework="the loop of Accelerate's and diffusers' examples",
    source="accelerate 1.15, transformers 5.24 (examples/pytorch/*_no_trainer.py), diffusers (examples/*)",
    mark=r" - INFO - (?!transformers)[\w.]+ - (?:\[RANK [0-9]+\] )? *Total optimization steps = [0-9]",
    words=("Total optimization steps = ",),
    begins=r"[^\n]{0,120}(?: Total optimization|epoch [0-9]+: )"
    r"|(?:[A-Z][a-z]{2,9}(?: steps?)?: {0,3})? {0,3}[0-9]{1,3}%\|",
    loss=r"[ ,](?:step_|train_)?loss=(-?[0-9.]+)",
    lr=r"[ ,](?:lr|learning_rate)=" + _VALUE,
    bar=r"^(?:(?:Steps?|Train(?:ing)?(?: steps?)?|Progress): *)? {0,3}" + _TQDM,
    total=_TOTAL_STEPS,
    evaluation=r"epoch [0-9]+: (?:\{'|perplexity: |eval_loss: |[a-z_]*accuracy: )",
    metric=r"(?:'|\b)([a-z]\w*)'?: ([-+0-9.enaif]+)(?![\w])",
    total_is_of_run=True,
    examples=(
        "11/30/2026 16:58:14 - INFO - __main__ - [RANK 0]   Total optimization steps = 40",
        " 48%|████▊     | 19/40 [00:00<00:00, 44.37it/s]",
        "Steps:   1%|          | 5/500 [00:10<16:30,  2.00s/it, lr=1e-05, step_loss=0.122]",
        "11/30/2026 16:58:14 - INFO - __main__ - [RANK 0] epoch 0: perplexity: 325.49 eval_loss: 5.785",
    ),
)

NANOGPT = Format(
    name="nanogpt",
    framework="nanoGPT",
    source="karpathy/nanoGPT, train.py of 2024-12",
    mark=r"^iter [0-9]+: loss \S+, time [0-9.]+ms, mfu -?[0-9.]+%$|^step [0-9]+: train loss \S+, val loss \S+$",
    words=("ms, mfu ", ", val loss "),
    begins=r"iter [0-9]+: loss|step [0-9]+: train loss",
    step=r"^iter ([0-9]+): loss ",
    loss=r"^iter [0-9]+: loss (-?[0-9.]+)",
    evaluation=r"^step (?P<step>[0-9]+): train loss \S+, val loss ",
    metric=r"(val loss) ([^ ,]+)",
    examples=(
        "iter 100: loss 2.3412, time 12.31ms, mfu 3.02%",
        "step 250: train loss 2.4123, val loss 2.4843",
    ),
)

TORCHTITAN = Format(
    name="torchtitan",
    framework="torchtitan",
    source="pytorch/torchtitan 0.2 (components/metrics.py); 0.1 has no grad_norm",
    mark=r"\bstep: +[0-9]+  loss: +\S+  (?:grad_norm: +\S+  )?memory: +\S+\(\S+\)  tps: ",
    words=("tps: ",),
    begins=r"[^\n]{0,120}?\bstep: +[0-9]+  loss: |[^\n]{0,240}, total steps [0-9]",
    step=r"(?<!validate )\bstep: +([0-9]+)  loss: ",
    loss=r"  loss: +(-?[0-9.]+)",
    total=r", total steps (?P<total>[0-9]+)\b",
    evaluation=r"\bvalidate step: +(?P<step>[0-9]+)  ",
    metric=r"  (loss): +(\S+)",
    total_is_of_run=True,
    examples=(
        "[titan] 2025-07-02 12:00:11,123 - root - INFO - step: 10  loss:  7.1234  grad_norm:  1.2345"
        "  memory:  5.11GiB(5.38%)  tps: 4,321  tflops: 3.21  mfu: 1.03%",
        "[titan] 2025-07-02 12:00:11,123 - root - INFO - validate step: 10  loss:  7.0987  memory:  5.11GiB(5.38%)"
        "  tps: 9,876",
        "[titan] 2025-07-02 12:00:01,000 - root - INFO - Training starts at step 1, with local batch size 8, global"
        " batch size 64, sequence length 2048, total steps 1000 (warmup 200)",
    ),
)

MEGATRON = Format(
    name="megatron",
    framework="Megatron-LM",
    source="NVIDIA/Megatron-LM core 0.13 (megatron/training/training.py: training_log; utils.print_rank_last)",
    mark=r"\biteration +[0-9]+/ *[0-9]+ \| consumed samples: +[0-9]+ \|",
    words=("consumed samples: ",),
    begins=r"[^\n]{0,60}?\biteration +[0-9]+/|[^\n]{0,60}?validation loss at iteration ",
    step=r"\biteration +([0-9]+)/ *[0-9]+ \| ",
    loss=r"\| (?:lm )?loss: +(-?[0-9.]+)",
    lr=r"\| learning rate: +" + _VALUE,
    evaluation=r"validation loss at iteration (?P<step>[0-9]+)\b",
    metric=r"\| ([A-Za-z][\w /-]{0,60}?)(?: value)?: +([-+0-9.eEnaif]+)",
    total_is_of_run=True,
    examples=(
        " [2025-07-02 12:00:11] iteration      100/     500 | consumed samples:          800 | elapsed time per"
        " iteration (ms): 1234.5 | learning rate: 1.500000E-04 | global batch size:     8 | lm loss: 6.123456E+00"
        " | loss scale: 1.0 | grad norm: 1.234 | number of skipped iterations:   0 | number of nan iterations:   0 |",
        " validation loss at iteration 100 on validation set | lm loss value: 6.012345E+00"
        " | lm loss PPL: 4.084402E+02 | ",
    ),
)

FORMATS = {one.name: one for one in (HF, LIGHTNING, ACCELERATE, NANOGPT, TORCHTITAN, MEGATRON)}
# A log that was taken for the first one shows itself as the second: both say how many steps there will be.
YIELDS = {ACCELERATE.name: HF.name}


def step_patterns(name: str) -> dict[str, str]:
    """Return what of a format is of the form of `trainer.log_patterns`; {} of no format."""
    if (one := FORMATS.get(name)) is None:
        return {}
    step = one.step or (one.bar if "(?P<step>" in one.bar else "")
    return {key: text for key, text in (("step", step), ("loss", one.loss), ("lr", one.lr)) if text and step}
