"""The command behind `lib/config_resolver.py`: resolve a config and write down what a run used.

Reads the config and the schemas; writes resolved_config.yaml, resolved_config.json and a copy of the config, comments
and all, into a folder that it makes. Its answer, the last line on stdout, is `config hash: <64 hex digits>`.
Try it: `python lib/config_resolver.py --config config.yaml --logdir /tmp/look --set training.batch_size=8`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import USAGE, KitError, UsageError, report
from ..base.imports import TYPE_CHECKING
from ..base.terminal import say, show_text
from . import config, rules
from .yaml_scalars import show

if TYPE_CHECKING:
    from typing import NoReturn

PROG = "config_resolver.py"
_EPILOG = """\
A later --set wins. A bare key means the one key of that name (or alias): grad_accum_steps=5.

Example:
  python lib/config_resolver.py --config config.yaml --logdir runs/EXP-01_try --experiment EXP-01 \\
    --set training.batch_size=8 --set grad_accum_steps=5 --set eval_frequency=2000

Exit status:
  0  done; the last line on stdout is 'config hash: <64 hex digits>'
  1  the folder or a file in it cannot be written
  2  wrong usage, or an experiment that the config does not have
  4  the config, the schema or a setting is invalid
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        say(PROG, message)
        self.print_usage(sys.stderr)
        raise SystemExit(USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: what stands behind the command's name; None for the process's own.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(argv)
    return report(lambda: _resolve(options), PROG)


def _resolve(options: argparse.Namespace) -> int:
    if (options.logdir / "run.json").exists():
        raise UsageError(
            f"{show(str(options.logdir), 400)} (--logdir) is a run's folder (run.json), and its config stays as it is; "
            "name another one"
        )
    file = config.load_config(options.config, options.lab_schema)
    resolved = config.resolve(file.document, options.experiment, options.set, schema=file.schema)
    try:
        options.logdir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KitError(f"the folder {show(str(options.logdir), 400)} (--logdir) cannot be made: {reason}") from None
    config.write_resolved(options.logdir, resolved, file)
    for sentence in (*rules.doubtful(resolved), *rules.unchecked(resolved, file.schema)):
        say(PROG, f"warning: {sentence}")
    show_text(f"config hash: {config.config_hash(resolved, file.schema)}")
    return 0


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is given with an empty name")
    return Path(text)


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROG,
        description="Resolve a config (base <- experiment <- --set), check it, and write it into a run's folder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=_path, metavar="FILE", help="the config (default: the kit's own config.yaml)")
    parser.add_argument(
        "--logdir", type=_path, metavar="DIR", required=True, help="the run's folder; made if it is not there"
    )
    parser.add_argument("--experiment", metavar="EXP", help="an entry of experiments (default: the base alone)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a key; may be repeated")
    parser.add_argument(
        "--lab-schema", type=_path, metavar="FILE", help="a lab's own keys (default: schemas/lab.schema.json)"
    )
    return parser
