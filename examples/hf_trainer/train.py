"""A small GPT-2 on made-up text with the Trainer of transformers, whose arguments are those of TrainingArguments."""

from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

VOCAB_SIZE, BLOCK_SIZE = 64, 16


class MadeUpText(Dataset):
    """Sequences in which each token follows from the one before, but for one in ten."""

    def __init__(self, seed: int, size: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        follower = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
        tokens = [torch.randint(VOCAB_SIZE, (size,), generator=generator)]
        for _ in range(BLOCK_SIZE - 1):
            is_odd = torch.rand(size, generator=generator) < 0.1
            odd = torch.randint(VOCAB_SIZE, (size,), generator=generator)
            tokens.append(torch.where(is_odd, odd, follower[tokens[-1]]))
        self.tokens = torch.stack(tokens, 1)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


@dataclass
class ScriptArguments:
    seal: bool = field(default=False, metadata={"help": "prove each checkpoint with the kit, under which this runs"})


class Seal(TrainerCallback):
    """Proves each checkpoint right behind its save."""

    def on_save(self, args, state, control, **kwargs) -> None:
        import resume_helper as kit

        kit.seal_checkpoint(f"{args.output_dir}/checkpoint-{state.global_step}", state.global_step)


class TakeRate(TrainerCallback):
    """Takes the rate of the command line at a resume, not the one that the scheduler has loaded."""

    def on_train_begin(self, args, state, control, optimizer, lr_scheduler, **kwargs) -> None:
        lr_scheduler.base_lrs = [args.learning_rate] * len(lr_scheduler.base_lrs)
        for group, share in zip(optimizer.param_groups, lr_scheduler.lr_lambdas, strict=True):
            group["lr"] = args.learning_rate * share(lr_scheduler.last_epoch)
        lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def main() -> None:
    script_args, training_args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    torch.set_num_threads(1)
    set_seed(training_args.seed)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=BLOCK_SIZE, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=training_args,
        train_dataset=MadeUpText(seed=1, size=640),
        eval_dataset=MadeUpText(seed=2, size=64),
        callbacks=[TakeRate(), Seal()] if script_args.seal else [TakeRate()],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)


if __name__ == "__main__":
    main()
