"""A small classifier on made-up data with Lightning's Trainer."""

import argparse
import math
import os

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    """Two layers, AdamW, a cosine."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.layers(inputs), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        inputs, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self.layers(inputs), labels), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        steps = self.trainer.max_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Take the rate of the command line, not the one that the scheduler has loaded."""
        scheduler = self.lr_schedulers()
        scheduler.base_lrs = [self.hparams.lr]
        share = scheduler.lr_lambdas[0](scheduler.last_epoch)
        scheduler.optimizer.param_groups[0]["lr"] = self.hparams.lr * share


class SealingIO(TorchCheckpointIO):
    """Proves each checkpoint of a step right behind its save."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        import resume_helper as kit

        super().save_checkpoint(checkpoint, path, storage_options)
        if os.path.basename(path).startswith("epoch="):
            kit.seal_checkpoint(path, checkpoint["global_step"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="checkpoints")
    parser.add_argument("--logs", default="logs")
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--seal", action="store_true", help="prove each checkpoint with the kit, under which this runs")
    args = parser.parse_args()

    L.seed_everything(0)
    torch.set_num_threads(1)
    inputs = torch.randn(3712, 32)
    labels = (inputs @ torch.randn(32, 10)).argmax(1)
    train, val = TensorDataset(inputs[:3200], labels[:3200]), TensorDataset(inputs[3200:], labels[3200:])
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=args.max_steps,
        val_check_interval=25,
        log_every_n_steps=5,
        plugins=[SealingIO()] if args.seal else None,
        logger=CSVLogger(args.logs, flush_logs_every_n_steps=5),
        callbacks=[
            ModelCheckpoint(args.out, monitor="val_loss", save_top_k=3, save_last=True, every_n_train_steps=25),
            LearningRateMonitor("step"),
        ],
    )
    loaders = DataLoader(train, 64, shuffle=True), DataLoader(val, 256)
    trainer.fit(Classifier(args.lr), *loaders, ckpt_path=args.ckpt_path, weights_only=True)


if __name__ == "__main__":
    main()
