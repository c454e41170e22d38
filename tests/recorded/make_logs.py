#!/usr/bin/env python3
"""Record logs/: what frameworks print of a small training, as a run's output.log would hold it.

PYTHON -u tests/recorded/make_logs.py NAME >tests/recorded/logs/NAME.log 2>&1

PYTHON has transformers 5.24, lightning 2.6.6 and accelerate 1.15. A NAME with `_nan` has a loss that is not finite from
its twelfth step on; `lightning_rich` wants FORCE_COLOR=1 TERM=xterm; `ranks` is for `PYTHON -m torch.distributed.run
--nproc-per-node 2 --log-dir DIR --tee 3`. nanoGPT, torchtitan and Megatron-LM are not run: their lines are made with
the format strings of their own source. Folders of the machine are cut out of the paths by hand.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path

import torch

NAME = sys.argv[1]
NAN_FROM = 12 if "_nan" in NAME else 10**9
FOLDER = Path(tempfile.mkdtemp())


def squares(model: torch.nn.Module, x: torch.Tensor, step: int) -> torch.Tensor:
    """Return the loss of a linear model, and some time later; not finite from NAN_FROM on."""
    time.sleep(0.02)
    loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
    return loss * float("nan") if step >= NAN_FROM else loss


def batches(number: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(number * 8, 8)), batch_size=8)


def hf() -> None:
    import transformers

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = torch.nn.Linear(8, 1), 0

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict:
            self.calls += self.training
            return {"loss": squares(self.linear, x, self.calls if self.training else 0)}

    rows = [{"x": x, "labels": x.sum()} for x in torch.randn(400, 8)]
    arguments = transformers.TrainingArguments(
        str(FOLDER), max_steps=30, per_device_train_batch_size=8, logging_steps=5, eval_strategy="steps", eval_steps=10,
        save_steps=15, report_to=[], use_cpu=True, learning_rate=1e-3, disable_tqdm=False, prediction_loss_only=True,
        eval_on_start=NAME == "hf_info", log_level="info" if NAME == "hf_info" else "passive",
    )  # fmt: skip
    transformers.Trainer(Model(), arguments, train_dataset=rows, eval_dataset=rows[:64]).train()
    if NAME == "hf":
        state = FOLDER / "checkpoint-30" / "trainer_state.json"
        (Path(__file__).parent / "logs" / "trainer_state.json").write_bytes(state.read_bytes())


def lightning() -> None:
    import lightning
    from lightning.pytorch import callbacks, loggers

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 1)

        def training_step(self, batch: list, _: int) -> torch.Tensor:
            loss = squares(self.linear, batch[0], self.global_step)
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: list, _: int) -> None:
            self.log("val_loss", squares(self.linear, batch[0], self.global_step), prog_bar=True)

        def configure_optimizers(self) -> tuple:
            optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10), "interval": "step"}]

    bar = callbacks.RichProgressBar if "rich" in NAME else callbacks.TQDMProgressBar
    logger = loggers.CSVLogger(FOLDER, version=0, flush_logs_every_n_steps=4)
    hooks = [
        callbacks.ModelCheckpoint(FOLDER / "ckpt", monitor="val_loss", verbose=True),
        bar(),
        callbacks.LearningRateMonitor("step"),
    ]
    trainer = lightning.Trainer(
        max_epochs=2, logger=logger, callbacks=hooks, accelerator="cpu", log_every_n_steps=4, enable_model_summary=False
    )
    trainer.fit(Module(), batches(12), batches(3))
    if NAME == "lightning":
        metrics = Path(logger.log_dir) / "metrics.csv"
        (Path(__file__).parent / "logs" / "lightning_metrics.csv").write_bytes(metrics.read_bytes())


def accelerate() -> None:
    """After examples/pytorch/*_no_trainer.py of transformers."""
    from accelerate import Accelerator
    from accelerate.logging import get_logger
    from tqdm.auto import tqdm

    logger = get_logger("__main__")
    own = Accelerator(cpu=True)
    form = "%(asctime)s - %(levelname)s - %(name)s - %(message)s"
    logging.basicConfig(format=form, datefmt="%m/%d/%Y %H:%M:%S", level=logging.INFO)
    logger.info(own.state, main_process_only=False)
    model = torch.nn.Linear(8, 1)
    optimizer, train, evaluation = torch.optim.AdamW(model.parameters(), 1e-2), batches(20), batches(8)
    total = 2 * len(train)
    logger.info("***** Running training *****")
    logger.info(f"  Num Epochs = {2}")
    logger.info(f"  Total train batch size (w. parallel, distributed & accumulation) = {8}")
    logger.info(f"  Total optimization steps = {total}")
    bar = tqdm(range(total), disable=not own.is_local_main_process)
    for epoch in range(2):
        for (x,) in train:
            own.backward(squares(model, x, 0))
            optimizer.step()
            bar.update(1)
        losses = [squares(model, x, 0).item() for (x,) in tqdm(evaluation)]
        mean = sum(losses) / len(losses)
        logger.info(f"epoch {epoch}: perplexity: {2.718281828459045**mean} eval_loss: {mean}")


def ranks() -> None:
    """nanoGPT's line from each rank; that of rank 1 is not finite from the eighth on."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for iter_num in range(13):
        lossf = float("nan") if rank == 1 and iter_num >= 8 else 2.5 + rank
        print(f"iter {iter_num}: loss {lossf:.4f}, time {12.31:.2f}ms, mfu {3.02:.2f}%")
        torch.distributed.barrier()


def nanogpt() -> None:
    print(f"tokens per iteration will be: {16384:,}\nnumber of parameters: 10.65M\nnum decayed parameter tensors: 26")
    for iter_num in range(21):
        lossf = float("nan") if iter_num >= NAN_FROM else 4.2 - 0.1 * iter_num
        if iter_num % 10 == 0:
            print(f"step {iter_num}: train loss {lossf:.4f}, val loss {lossf + 0.05:.4f}")
            print("saving checkpoint to out-shakespeare-char")
        print(f"iter {iter_num}: loss {lossf:.4f}, time {412.31:.2f}ms, mfu {3.02:.2f}%")


def torchtitan() -> None:
    head = "[rank0]:[titan] 2025-07-02 12:00:11,123 - root - INFO - "
    print(f"{head}Starting job: Llama 3 debug training\n{head}Building 1-D device mesh with ['dp_shard'], [8]")
    print(f"{head}Training starts at step 1, with local batch size 8, global batch size 64, sequence length 2048, "
          "total steps 40 (warmup 2)")  # fmt: skip
    red, green, blue, reset, magenta = "\033[31m", "\033[32m", "\033[34m", "\033[39m", "\033[35m"
    for step in [1, *range(10, 41, 10)]:
        loss = float("nan") if step >= NAN_FROM else 8.1 - 0.1 * step
        memory = f"memory: {5.11:5.2f}GiB({5.38:.2f}%)"
        speed = f"tps: {round(43210.4):,}  tflops: {3.21:,.2f}  {magenta}mfu: {1.03:.2f}%"
        norm = f"\033[38;2;180;60;0mgrad_norm: {1.25:7.4f}"
        print(f"{head}{red}step: {step:2}  {green}loss: {loss:7.4f}  {norm}  {blue}{memory}  {blue}{speed}{reset}")
        if step % 20 == 0:
            words = f"validate step: {step:2}  loss: {loss - 0.1:7.4f}  {memory}  tps: {round(98765.4):,}"
            print(f"{head}{green}{words}{reset}")


def megatron() -> None:
    print("using world size: 8, data-parallel size: 8\n  train_iters ..................................... 500")
    print("[before the start of training step] datetime: 2025-07-02 12:00:00")
    for iteration in range(100, 501, 100):
        loss = float("nan") if iteration >= 100 * NAN_FROM else 6.5 - iteration / 500
        print(
            f" [2025-07-02 12:00:11.123456] iteration {iteration:8d}/{500:8d} | consumed samples: {iteration * 8:12d} |"
            f" elapsed time per iteration (ms): {1234.5:.1f} | throughput per GPU (TFLOP/s/GPU): {123.4:.1f} |"
            f" learning rate: {1.5e-4 - iteration * 2e-7:.6E} | global batch size: {8:5d} | lm loss: {loss:.6E} |"
            f" loss scale: {1.0:.1f} | grad norm: {1.234:.3f} | number of skipped iterations: {0:3d} |"
            f" number of nan iterations: {0:3d} |"
        )
        if iteration % 200 == 0:
            print("(min, max) time across ranks (ms):\n    evaluate .......................: (4321.01, 4323.99)")
            line = f" validation loss at iteration {iteration} on validation set | lm loss value: {loss + 0.1:.6E}"
            line += f" | lm loss PPL: {446.9:.6E} | "
            print(f"{'-' * len(line)}\n{line}\n{'-' * len(line)}")


if __name__ == "__main__":
    torch.manual_seed(0)
    globals()[NAME.partition("_")[0]]()
