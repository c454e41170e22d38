"""A hundred texts that are something else to a shell, a terminal, a path, make, YAML, a template or a format string.

`CANARY` stands for a command that makes the file `pwned` in the current folder.
"""

import contextlib
import io
from pathlib import Path

from resumekit.commands import main
from support.commands import Kit
from support.places import ROOT

CANARY = "touch pwned"

PAYLOADS = [
    f"$({CANARY})", f"`{CANARY}`", f"; {CANARY}", f"& {CANARY}", f"| {CANARY}", f"|| {CANARY}", f"&& {CANARY}",
    f"\n{CANARY}\n", f"' ; {CANARY} ; '", f'" ; {CANARY} ; "', f"'$({CANARY})'", f'"$({CANARY})"',
    f"${{x:=$({CANARY})}}", f"a[$({CANARY})]", f"x=$({CANARY})", f">({CANARY})", f"<({CANARY})", f"$(({CANARY}))",
    f"\\$({CANARY})", f"%$({CANARY})", f"$(shell {CANARY})", f"${{shell {CANARY}}}", f"$$({CANARY})",
    f"$(eval x:=$(shell {CANARY}))", f"-e {CANARY}", f"--eval=$({CANARY})", f"!{CANARY}",
    f"!!python/object/apply:os.system ['{CANARY}']", f"{{run_id.__class__}}{CANARY}",
    f"__import__('os').system('{CANARY}')", "-rf", "--", "--help", "-", "--fresh", "..", "../..", "../../etc/passwd",
    "/etc/passwd", ".", ".live", "~", "~root", "a/b", "a\\b", " ", "  lead and trail  ", "tab\there", "new\nline",
    "carriage\rreturn", "*", "?", "[a-z]*", "{a,b}", "'", '"', "\\", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07",
    "\u202eright to left", "\u0660\u0661", "ä\u0308é", "\U0001f600", "x" * 255, "x" * 256, "%s%n%d", "NaN", "null",
    "#comment", ": colon", f"$'\\x24({CANARY})'", f"`{CANARY.replace(' ', '${IFS}')}`",
    f"$({CANARY.replace(' ', '$IFS')})", f"{{{CANARY.replace(' ', ',')}}}", f"x; {CANARY} #", f"x\n{CANARY} #",
    f"$(({CANARY} ))", f"a[0$({CANARY})]=1", f"x[$({CANARY})]", f"1+a[`{CANARY}`]", f"() {{ :;}}; {CANARY}",
    f"@{CANARY}", f"+{CANARY}", f"\t{CANARY}", f"|{CANARY}|", f"=cmd|' /C {CANARY}'!A0", f"--upload-pack={CANARY}",
    f"-oProxyCommand={CANARY}", "--output=pwned", "--log-file=pwned", "-o pwned",
    f"ext::sh -c {CANARY.replace(' ', '% ')}", f"s/x/{CANARY}/e", f"-exec {CANARY} ;", f"e {CANARY}",
    "$(file >pwned,x)", f"$(call shell,{CANARY})", f"$(guile (system \"{CANARY}\"))",
    f"\"; import os; os.system('{CANARY}') #", f"'+__import__('os').system('{CANARY}')+'",
    f"%(__import__('os').system('{CANARY}'))s", f"{{{{''.__class__.__mro__[1].__subclasses__()}}}}{CANARY}",
    f"{{__import__('os').system('{CANARY}')}}", f"exec(\"import os\\nos.system('{CANARY}')\")",
    f"!!python/object/new:os.system ['{CANARY}']", f"!!python/name:os.system {CANARY}", f"&a [*a, '$({CANARY})']",
    f"cposix\nsystem\n(S'{CANARY}'\ntR.", f"<script>{CANARY}</script>", f"';{CANARY};'", f"\";{CANARY};\"",
    f"`{CANARY}` 1", f"$({CANARY}) 12.5", f"1e-4;{CANARY}", f"nan$({CANARY})",
]  # fmt: skip

# Those that make the canary's file if anything runs them, or takes them for an option or a file name.
COMMANDS = [payload for payload in PAYLOADS if "pwned" in payload or CANARY.replace(" ", "") in payload]


def canaries(kit: Kit) -> list[Path]:
    return [*kit.folder.rglob("pwned"), *ROOT.glob("pwned"), *Path.cwd().glob("pwned")]


def plan(kit: Kit, *words: str) -> tuple[int, str]:
    """Run the planning half in this process; return (exit code, what was said)."""
    said, out = io.StringIO(), io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        code = main(["start", "--dry-run", f"--config={kit.config_file}", f"--runs={kit.runs}", *words])
    out.flush()
    return code, said.getvalue() + out.buffer.getvalue().decode()
