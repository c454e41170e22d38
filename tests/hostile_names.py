"""Sixty texts that are something else to a shell, a terminal, a path, make, YAML or a format string.

`CANARY` stands for a command that makes the file `pwned` in the current folder.
"""

CANARY = "touch pwned"

PAYLOADS = [
    f"$({CANARY})", f"`{CANARY}`", f"; {CANARY}", f"& {CANARY}", f"| {CANARY}", f"|| {CANARY}", f"&& {CANARY}",
    f"\n{CANARY}\n", f"' ; {CANARY} ; '", f'" ; {CANARY} ; "', f"'$({CANARY})'", f'"$({CANARY})"',
    f"${{x:=$({CANARY})}}",
    f"a[$({CANARY})]", f"x=$({CANARY})", f">({CANARY})", f"<({CANARY})", f"$(({CANARY}))", f"\\$({CANARY})",
    f"%$({CANARY})", f"$(shell {CANARY})", f"${{shell {CANARY}}}", f"$$({CANARY})", f"$(eval x:=$(shell {CANARY}))",
    f"-e {CANARY}", f"--eval=$({CANARY})", f"!{CANARY}", f"!!python/object/apply:os.system ['{CANARY}']",
    f"{{run_id.__class__}}{CANARY}", f"__import__('os').system('{CANARY}')",
    "-rf", "--", "--help", "-", "--fresh", "..", "../..", "../../etc/passwd", "/etc/passwd", ".", ".live", "~", "~root",
    "a/b", "a\\b", " ", "  lead and trail  ", "tab\there", "new\nline", "carriage\rreturn", "*", "?", "[a-z]*", "{a,b}",
    "'", '"', "\\", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202eright to left",
    "\u0660\u0661", "ä\u0308é", "\U0001f600", "x" * 255, "x" * 256, "%s%n%d", "NaN", "null", "#comment", ": colon",
]  # fmt: skip
