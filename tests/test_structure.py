"""The house keeps its shape: which folder may import which, how long a module is, who touches torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

from support.places import ROOT

KIT = ROOT / "lib" / "resumekit"
# Each folder, and the ones that it may import from: arrows go one way.
ORDER = ("base", "config", "policy", "checkpoint", "run", "checks", "process", "start", "watch")
FOLDERS = {
    **{folder: set(ORDER[:place]) for place, folder in enumerate(ORDER)},
    "trainer": {"base", "policy", "checkpoint", "run", "checks"},
}


# Entry points of the version before, which a launcher of it that still runs may call.
OF_BEFORE = {"supervision/shim.py"}


def modules() -> list[Path]:
    return sorted(path for path in KIT.rglob("*.py") if str(path.relative_to(KIT)) not in OF_BEFORE)


def test_arrows_between_folders_go_one_way() -> None:
    assert {path.parent.name for path in modules() if path.parent != KIT} == set(FOLDERS)
    for module in modules():
        if module.parent != KIT:
            own = module.parent.name
            folders = {name.partition(".")[0] for name in modules_imported(module, ast.walk) if "." in name}
            assert folders <= FOLDERS[own] | {own}, module.relative_to(KIT)
    assert "base.paths" in set(modules_imported(KIT / "config" / "rules.py", ast.walk)), (
        "it sees `from ..base import paths`"
    )


def modules_imported(module: Path, nodes: Callable[[ast.AST], Iterator[ast.AST]] | None = None) -> Iterator[str]:
    """Yield what a module of the kit imports of the others, at whatever time: 'base.paths'.

    Args:
        nodes: which of its nodes count; None for those that are imported at run time.
    """
    package = module.parent.relative_to(KIT).parts
    for node in (nodes or at_run_time)(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("resumekit.")):
            own = package[: len(package) + 1 - node.level] if node.level else ()
            base = (*own, *(node.module or "").removeprefix("resumekit.").split("."))
            yield from (".".join(filter(None, path)) for path in (base, *((*base, one.name) for one in node.names)))


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {".".join(path.relative_to(KIT).with_suffix("").parts): path for path in modules()}
    graph = {name: set(modules_imported(path)) & set(names) for name, path in names.items()}
    assert "config.validate" in graph["config.schema"], "it sees what is imported"
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_no_module_is_too_long_for_one_noun() -> None:
    """A module has 450 lines at most: one subject in one file beats five files of sixty lines."""
    for module in modules():
        assert len(module.read_text(encoding="utf-8").splitlines()) <= 450, module.name


def modules_in_the_map() -> Iterator[str]:
    """Yield 'folder/module' of each row of the map in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folder = ""
    for line in page[page.index("## Which module answers") :].splitlines():
        cells = line.split("|")
        if begun := re.match(r"\| \*\*`(\w+)/`", line):
            folder = begun[1]
        elif len(cells) == 4:
            yield from (f"{folder}/{name}" for name in re.findall(r"`([a-z_]+)`", cells[2]))


def test_every_module_stands_in_the_map_below_its_folder_and_no_other_does() -> None:
    there = {f"{path.parent.name}/{path.stem}" for path in modules() if path.parent != KIT and path.stem != "__init__"}
    mapped = {name for name in modules_in_the_map() if not name.endswith("/commands")}
    assert mapped == there


def test_only_the_trainers_folder_imports_torch() -> None:
    for module in modules():
        if module.parent.name != "trainer":
            assert not re.search(r"^\s*(import torch|from torch)", module.read_text(encoding="utf-8"), re.MULTILINE)


def test_nothing_of_ours_says_torch_load_without_weights_only() -> None:
    for path in [*(ROOT / "lib").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "torch.load(" in line and not line.strip().startswith("#"):
                assert "weights_only=True" in line, f"{path.name}: {line}"


def test_no_line_is_kept_from_the_type_checker() -> None:
    for module in modules():
        assert "type: ignore" not in module.read_text(encoding="utf-8"), module.relative_to(KIT)


def test_the_type_checker_reads_the_whole_kit_strictly_with_every_lint() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "mypy.ini", encoding="utf-8")
    assert dict(settings["mypy"]) == {"strict": "True", "python_version": "3.10", "files": "lib/resumekit"}
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    assert "$(PY) -m mypy;" in recipe


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what stands in a module, but for what stands under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from at_run_time(ast.Module(node.orelse, []))
        else:
            yield node
            yield from at_run_time(node)


def imports_of_typing(tree: ast.AST) -> Iterator[str]:
    """Yield what of typing is imported at run time."""
    for node in at_run_time(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "typing":
            yield from (f"from typing import {one.name}" for one in node.names)
        elif isinstance(node, ast.Import):
            yield from (f"import {one.name}" for one in node.names if one.name == "typing")


def test_no_module_beside_the_trainers_imports_typing() -> None:
    """It costs each process of a start 2 ms (decision 22)."""
    for module in modules():
        if module.parent.name != "trainer":
            assert not [*imports_of_typing(ast.parse(module.read_text(encoding="utf-8")))], module.relative_to(KIT)
    text = "if TYPE_CHECKING:\n    from typing import IO\nelse:\n    import typing\ndef f():\n    import typing"
    assert [*imports_of_typing(ast.parse(text))] == ["import typing"] * 2, "it sees them where they are"


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{one.name}" for one in node.names)


def test_what_tests_share_stands_in_support_and_not_in_another_test() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for name in imported_modules(path):
            parts = name.split(".")
            assert not [part for part in parts if part.startswith(("test_", "conftest"))], f"{path.name}: {name}"


def test_a_conftest_holds_fixtures_and_hooks_alone() -> None:
    for path in (ROOT / "tests").rglob("conftest.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert not isinstance(node, ast.ClassDef), node.name
            if isinstance(node, ast.FunctionDef) and not node.name.startswith(("pytest_", "_")):
                assert any("fixture" in ast.unparse(one) for one in node.decorator_list), node.name


# What reads, changes or removes a file by its path.
FILE_CALLS = frozenset({
    "chmod", "copy", "copyfile", "copyfileobj", "file_at", "fsync_file", "getmtime", "getsize", "hardlink_to",
    "identity_at", "link", "lstat", "open", "open_regular", "read_bounded", "read_bytes", "read_end", "remove",
    "rename", "replace", "samefile", "stat", "symlink", "truncate", "unlink", "write_bytes",
})  # fmt: skip
# Names that only a checkpoint's path has.
OF_A_CHECKPOINT = re.compile(r"\b(_?best|best_path|checkpoint|checkpoint_path|candidate|chosen)\b")
# What a checkpoint is on disk, and how it comes into another folder.
LAYOUT = {"checkpoint/layout.py", "checkpoint/transfer.py"}
# The modules in which any path may be a checkpoint's, with each of their calls that is none on a checkpoint.
HOLDERS = {
    **{name: () for path in (KIT / "checkpoint").glob("*.py") if (name := f"checkpoint/{path.name}") not in LAYOUT},
    "checkpoint/links.py": ("os.lstat(place)",),
    "checkpoint/manifest.py": ("temp.replace()", "os.lstat(manifest_path(checkpoint))"),
    "checkpoint/pruning.py": (  # temp files of dead writers, and manifests
        "path.unlink()", "os.lstat(path)", "manifest_path(path).unlink()", "(folder / name).unlink()",
        "os.lstat(folder / name)",
    ),
    "checkpoint/weights_file.py": ("open(out, 'xb')", "target.open(entry, 'w', force_zip64=True)"),
    "start/preflight.py": (),
    "watch/budget.py": (),
    "run/quarantine.py": (),
    "run/stray_checkpoints.py": ("os.lstat(run.paths.session_lock)",),
    "process/best_artifacts.py": (
        "os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)", "identity_at(manifest_path(self._best))",
        "(job.temp / artifact_folder.SAID).unlink()", "artifact_folder.remove(temp)",
        "read_bounded(source, MAX_CONFIG_BYTES, follow_links=False)",
    ),
    "process/sidecar_warnings.py": (),
    "checkpoint/weights_extract.py": ("open(out, 'rb')", "open('/proc/self/oom_score_adj', 'w', encoding='ascii')"),
    "process/attest.py": ("identity_at(manifest_path(path), os.lstat)", "os.stat(folder)"),
    "trainer/save_file.py": ("identity_at(self.target, os.lstat)", "os.unlink(self.target)"),  # it writes one
    "trainer/proven_content.py": (),
    "trainer/saving.py": (  # its manifest
        "beside.replace()", "beside.target.unlink(missing_ok=True)", "manifest_path(target).unlink()",
    ),
}  # fmt: skip


def file_calls(text: str) -> Iterator[tuple[str, str]]:
    """Yield (the call, what it is called on and with) of each call in FILE_CALLS that does not go through `layout`."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        is_of_text = name == "replace" and isinstance(node.args[0] if node.args else None, ast.Constant)
        if name in FILE_CALLS and not is_of_text and not (isinstance(owner, ast.Name) and owner.id == "layout"):
            yield ast.unparse(node), " ".join(map(ast.unparse, [*filter(None, [owner]), *node.args]))


def calls_on_checkpoints(module: str, text: str) -> list[str]:
    """Return the calls of a module that reach for a checkpoint's file beside `layout`."""
    allowed = HOLDERS.get(module)
    if allowed is not None:
        return [call for call, _ in file_calls(text) if call not in allowed]
    return [call for call, operands in file_calls(text) if OF_A_CHECKPOINT.search(operands)]


def test_what_a_checkpoint_is_on_disk_only_the_layout_knows() -> None:
    """No other module looks at, opens, links, copies or removes one by its path: a second kind has one place to go."""
    for path in modules():
        module = str(path.relative_to(KIT))
        if module not in LAYOUT:
            assert calls_on_checkpoints(module, path.read_text(encoding="utf-8")) == [], module


def test_a_call_on_a_checkpoint_beside_the_layout_is_seen() -> None:
    assert calls_on_checkpoints("watch/inspection.py", "size = os.stat(candidate.path).st_size") != []
    assert calls_on_checkpoints("start/plan.py", "found = choice.checkpoint.read_bytes()") != []
    assert calls_on_checkpoints("checkpoint/pruning.py", "os.unlink(path)") == ["os.unlink(path)"]
    assert calls_on_checkpoints("watch/inspection.py", "layout.identity(candidate.path); os.stat(runs_dir)") == []


def test_what_is_let_through_beside_the_layout_is_still_there() -> None:
    for module, allowed in HOLDERS.items():
        calls = {call for call, _ in file_calls((KIT / module).read_text(encoding="utf-8"))}
        assert set(allowed) <= calls, module


# Of `processes`: what ends or wakes a process, and what asks whether one lives; with the modules and folders that may.
SIGNALS = r"\bprocesses\.(?:send|kill_session)\("
ENDED_IN = {"process/stopping.py", "process/survivors.py"}
PROBES = r"\bprocesses\.(?:probe|session_members|carriers|live_tokens|is_under_shim|is_stopped|stopped_in_group_of)\("
PROBED_IN = {"base", "run", "process"}


def test_a_trainer_is_started_seen_and_ended_in_few_places() -> None:
    """Outside of them a caller asks `status`, `life_signs` or `suspended`, and ends a run by `stopping`."""
    texts = {str(path.relative_to(KIT)): path.read_text(encoding="utf-8") for path in modules()}
    assert {name for name, text in texts.items() if re.search(SIGNALS, text)} == ENDED_IN
    assert {name.partition("/")[0] for name, text in texts.items() if re.search(PROBES, text)} == PROBED_IN
    assert {name for name, text in texts.items() if "os.execvp(" in text} == {"process/shim.py"}


# Where files are made under a name that nothing has, and named; and where it is told which file one is.
MADE_IN = {"base/files.py", "checkpoint/transfer.py", "run/live_marker.py"}
NAMED_IN = {"base/files.py", *LAYOUT, "process/artifact_folder.py"}  # the last one: a folder
TOLD_IN = {"base/file_identity.py", "base/kit_version.py", "run/live_marker.py"}  # it holds its own inode


def test_there_is_one_writer_of_temp_files_and_one_identity_of_a_file() -> None:
    texts = {str(path.relative_to(KIT)): path.read_text(encoding="utf-8") for path in modules()}
    for form, places in (
        (r"\bO_EXCL\b", MADE_IN),
        (r"\bos\.(?:replace|rename|link)\(", NAMED_IN),
        (r"\bst_ino\b", TOLD_IN),
    ):
        assert {name for name, text in texts.items() if re.search(form, text)} == places, form
    assert {name for name, text in texts.items() if "live_marker.unlink(" in text} == {"run/live_marker.py"}
