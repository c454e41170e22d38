"""A person's word that a run is dead which cannot be told dead from here: written down in that run, with what was seen.

The claim comes before it, and is the fence: should the trainer come back, its next save, beat or its sidecar finds it.
Try it: `bin/resume.sh EXP-01 --take-over`
"""

from __future__ import annotations

from ..basics import journal, processes
from ..basics.errors import KitError, Refused
from ..run_folder import life_signs, status
from ..run_folder.runs import Run
from .stop_request import caller


def write_down(parent: Run, child_run_id: str) -> None:
    """Journal `taken_over` in a run that has just been claimed, where it is not seen to be dead.

    Raises:
        Refused: it has shown a sign of life meanwhile.
        KitError: it cannot be written. The caller takes its claim back.
    """
    sight = life_signs.examine(parent, status.read_state(parent), is_thorough=True)
    if sight.verdict.what == processes.DEAD:
        return  # no word was needed
    if not sight.verdict.can_take_over:
        raise Refused(f"'{parent.run_id}' has shown a sign of life just now: {sight.verdict.words}")
    sign = life_signs.last_sign(parent, is_of_trainer=True)
    try:
        journal.append(
            parent.paths.journal, "taken_over", parent.run_id, by=caller(), host=processes.host_name(),
            child_run_id=child_run_id, evidence=f"{sight.verdict.words}; {life_signs.age_words(sight, parent)}",
            last_sign_s=sign.at_s if sign else None, session_lock=sight.evidence.session_lock,
        )  # fmt: skip
    except OSError as error:
        raise KitError(f"that '{parent.run_id}' is taken over cannot be written down: {error.strerror}") from error
