"""Taking secrets out of what is kept: of texts, and of the environment's variables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from . import slurm
from .imports import Any, NamedTuple
from .values import mapping, strings

MARK = b"[redacted]"

# Every repetition has an end, so that a line of a megabyte takes no longer than a thousand short ones.
_SECRET_NAME = rb"(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|credential)s?[\w-]{0,40}"

# Compiled at the first use: a start that has nothing to redact does not wait for them.
_PATTERNS = (
    # https://user:token@host
    rb"(?i)(?P<keep>[a-z0-9]://)[^\s/@:]{1,1024}(?::[^\s/@]{0,1024})?(?=@)",
    # private keys, from header to footer or as far as the text goes
    rb"(?s)(?P<keep>-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----).*?(?:(?=-----END)|\Z)",
    # tokens that can be told by their prefix (GitHub, GitLab, Hugging Face, OpenAI and kin, AWS, Slack, Google, npm)
    (
        rb"(?P<keep>)\b(?:gh[pousr]_[A-Za-z0-9]{16,1024}|github_pat_\w{16,1024}|glpat-[\w-]{16,1024}"
        rb"|hf_[A-Za-z0-9]{16,1024}|sk-[\w-]{16,1024}|A[KS]IA[A-Z0-9]{16}|xox[a-z]-[\w-]{10,1024}|AIza[\w-]{30,1024}"
        rb"|npm_[A-Za-z0-9]{30,1024}|eyJ[\w-]{10,1024}\.[\w-]{10,4096}\.[\w-]{10,1024})"
    ),
    # Authorization: Bearer ...
    rb"(?i)(?P<keep>\b(?:bearer|basic)\s)[\w.~+/=-]{16,4096}",
    # "password": "...", api_key = '...': a quoted value only, since `token = tokenizer.encode(text)` is no secret
    rb"(?i)(?P<keep>" + _SECRET_NAME + rb"[\"']?\s{0,8}[:=]\s{0,8}[\"'])[^\s\"']{8,4096}",
    # WANDB_API_KEY=..., as in a shell or an .env file
    rb"(?P<keep>(?:PASSW(?:OR)?D|SECRET|TOKEN|API_?KEY|ACCESS_?KEY)[A-Z0-9_]{0,40}=)[^\s\"'$(]{8,4096}",
    # --token ..., --api-key=...
    rb"(?i)(?P<keep>--[\w-]{0,40}?" + _SECRET_NAME + rb"[= ])[^\s\"'-][^\s\"']{7,4096}",
)


def redact(text: bytes) -> tuple[bytes, int]:
    """Return (text without what looks like a secret, how many were taken out)."""
    total = 0
    for pattern in _PATTERNS:
        text, count = re.subn(pattern, rb"\g<keep>" + MARK, text)
        total += count
    return text, total


# Of a patch known forms alone go: what only stands behind a telling name is code, `eos_token = '<|endoftext|>'`.
_KEYS = (
    rb"(?i)(?P<keep>[a-z0-9]://[^\s/@:{}$]{1,1024}:)[^\s/@{}$]{3,1024}(?=@)",
    rb"(?P<keep>-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:\\n|\s)*)[A-Za-z0-9+/][A-Za-z0-9+/=\\]{15,65536}",
    _PATTERNS[2],
    rb"(?i)(?P<keep>\bauthorization\b[\"']?\s{0,8}[:=]\s{0,8}[\"']?(?:bearer|basic)\s)[\w.~+/=-]{16,4096}",
)
_KEY_BEGINS = rb"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"
# A line of such a key: base64, or one of the two fields before it, perhaps as a piece of a string in code.
_KEY_LINE = rb"([ \t\"'(+]*)(?:[A-Za-z0-9+/=]{16,}|(?:Proc-Type|DEK-Info): [\w,-]{1,200})(?:\\n)?([\"'),+\\ \t\r]*)"
_HUNK = rb"@@ -([0-9]+)(?:,([0-9]+))? \+([0-9]+)(?:,([0-9]+))? @@"


class RedactedPatch(NamedTuple):
    """A patch without keys.

    Args:
        patch: line for line the same, but for what was taken out.
        places: where that was, '<file> line <number>'; of a removed line the number before the change.
        applies: nothing was taken out of what is compared with the commit, a removed line or one beside a change.
    """

    patch: bytes
    places: tuple[str, ...]
    applies: bool


def redact_patch(patch: bytes) -> RedactedPatch:
    """Take what has the form of a key out of a unified diff, and nothing that only stands behind a telling name."""
    lines = patch.split(b"\n")
    places, applies, name, is_key = [], True, "", False
    old = new = old_left = new_left = 0
    for at, line in enumerate(lines):
        if old_left <= 0 and new_left <= 0:  # between two hunks
            is_key = False
            if line.startswith((b"--- a/", b"+++ b/")):
                name = line[6:].rstrip(b"\t\r").decode("utf-8", "backslashreplace")
            elif hunk := re.match(_HUNK, line):
                old, new = int(hunk[1]), int(hunk[3])
                old_left, new_left = (1 if size is None else int(size) for size in (hunk[2], hunk[4]))
                lines[at] = _without_keys(line)  # a line of the code stands behind its numbers
            continue
        sign, body = line[:1], line[1:]
        kept, is_key = _without_key_lines(body, is_key)
        if kept != body:
            lines[at] = sign + kept
            places.append(f"{name} line {old if sign == b'-' else new}")
            applies = applies and sign == b"+"
        is_old, is_new = sign not in b"+\\" or not sign, sign not in b"-\\" or not sign
        old, old_left, new, new_left = old + is_old, old_left - is_old, new + is_new, new_left - is_new
    return RedactedPatch(b"\n".join(lines), tuple(places), applies)


def _without_key_lines(line: bytes, is_key: bool) -> tuple[bytes, bool]:
    """Return (a line without keys, whether the next line may be one of a private key that has begun)."""
    if is_key and not line.strip():
        return line, True
    if is_key and (match := re.fullmatch(_KEY_LINE, line)):
        return match[1] + MARK + match[2], True
    begins = re.search(_KEY_BEGINS, line) is not None and b"-----END" not in line
    return _without_keys(line), begins


def _without_keys(line: bytes) -> bytes:
    for pattern in _KEYS:
        line = re.sub(pattern, rb"\g<keep>" + MARK, line)
    return line


# `--api-key VALUE` and kin, for the words of a command line; not `--eos_token '</s>'`, `--max_tokens 100` or a path.
_SECRET_OPTION = (
    r"(?i)(?:.*[-_.])?(?:password|passwd|passphrase|secret|(?<!pad[-_])(?<!eos[-_])(?<!bos[-_])(?<!unk[-_])(?<!sep[-_])"
    r"(?<!cls[-_])(?<!mask[-_])token|api[-_]?key|access[-_]?key|secret[-_]?key|credentials?)"
)
_SECRET_VALUE = r"(?![0-9.eE+-]+$)[A-Za-z0-9][^\s]{7,}"
# The patterns that know a secret by its own shape, whatever stands around it.
_SHAPES = _PATTERNS[:4]


def redacted_text(text: str) -> str:
    """Return a text without what looks like a secret."""
    return redact(text.encode("utf-8", "surrogatepass"))[0].decode("utf-8", "surrogatepass")


def secret_line(text: bytes) -> int | None:
    """Return the line, from 1, of the first secret that is known by its own shape; None without one."""
    found = [match.start() for pattern in _SHAPES if (match := re.search(pattern, text))]
    return text.count(b"\n", 0, min(found)) + 1 if found else None


def secret_word(words: Sequence[str]) -> str | None:
    """Return the option, or the beginning of the word, that looks as if it carried a secret; None if none does.

    Args:
        words: of a command line.
    """
    has_shape = _has_shape("\n".join(words))  # of hundreds of words hardly one has: one look at all of them
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.lstrip("-").partition("=")
        if has_shape and _has_shape(word):
            return f"{name}=..." if equals else f"{word[:4]}..."
        is_option = bool(equals) or word.startswith("-")
        is_secret = is_option and re.fullmatch(_SECRET_OPTION, name)
        if is_secret and re.fullmatch(_SECRET_VALUE, value if equals else following):
            return word.partition("=")[0]
    return None


def _has_shape(text: str) -> bool:
    data = text.encode("utf-8", "replace")
    return any(re.search(pattern, data) for pattern in _SHAPES)


# Which variables of the environment a run's record keeps: where it ran, and no secret; nothing else is written
# down.
#
# The watcher sets them again when it takes a run up. Reads nothing. Try it: `grep -A40 '"environment"'
# runs/<run_id>/run.json`

NAMES = (
    "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "PYTHON", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SLURM_JOB_PARTITION",
    "VIRTUAL_ENV", "CONDA_PREFIX", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LANG", "TZ",
    "XDG_STATE_HOME", "RESUMEKIT_TRAINER_PYTHON", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE",
    "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE", "TRITON_CACHE_DIR",
)  # fmt: skip
# What changes how a trainer computes, talks and logs; a name of these that speaks of a secret is left out.
_PREFIXES = (
    "NCCL_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TORCHDYNAMO_", "CUDA_", "CUDNN_", "CUBLAS_", "HIP_", "ROCM_",
    "GLOO_", "UCX_", "FI_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "NUMEXPR_", "XLA_", "WANDB_", "MLFLOW_", "PYTHON",
    "LC_",
)  # fmt: skip
_SECRET = ("KEY", "TOKEN", "SECRET", "PASS", "CREDENTIAL", "AUTH", "COOKIE", "HEADER")

# Which variable a scheduler names its job with, the first that is set; Kubernetes names none.
_JOBS = {
    "slurm": "SLURM_JOB_ID", "pbs": "PBS_JOBID", "lsf": "LSB_JOBID", "flux": "FLUX_JOB_ID", "oar": "OAR_JOB_ID",
    "cobalt": "COBALT_JOBID", "condor": "_CONDOR_SLOT", "kubernetes": "KUBERNETES_SERVICE_HOST",
}  # fmt: skip
_GRID_ENGINE = ("SGE_TASK_ID", "JOB_ID")  # JOB_ID alone may be of any program
_MAX_JOB_CHARACTERS = 100
# What a scheduler, or the process manager of MPI, says of a job and of one process in it.
_OF_A_JOB = (
    "SLURM", "PMI", "OMPI_", "PBS_", "LSB_", "FLUX_", "OAR_", "COBALT_", "_CONDOR_", "SGE_", "KUBERNETES_",
)  # fmt: skip


def is_recorded_variable(name: str) -> bool:
    """Return whether a run's record keeps the value of a variable: of a known name, or with a known beginning."""
    return name in NAMES or (name.startswith(_PREFIXES) and not any(word in name.upper() for word in _SECRET))


def is_of_a_job(name: str) -> bool:
    """Return whether a variable says of which job a process is: recorded it is true, set again elsewhere it is not."""
    return name.startswith(_OF_A_JOB) or name in _GRID_ENGINE


def scheduler_variables(environment: Mapping[str, str]) -> dict[str, str | int | None] | None:
    """Return which scheduler's job this environment is of, as {name, job}; None outside of any.

    Of Slurm's also how often it was requeued before, and the cluster.
    """
    if own := slurm.allocation(environment):
        return own.as_fields()
    for name, variable in _JOBS.items():
        if job := environment.get(variable):
            return {"name": name, "job": None if name == "kubernetes" else job[:_MAX_JOB_CHARACTERS]}
    if all(environment.get(variable) for variable in _GRID_ENGINE):
        return {"name": "grid_engine", "job": environment["JOB_ID"][:_MAX_JOB_CHARACTERS]}
    return None


def passed_variables(recorded: Any) -> list[str]:
    """Return which variables of `trainer.env` a run had, from run.json's `environment`; their values are not kept."""
    return strings(mapping(recorded).get("passed"))
