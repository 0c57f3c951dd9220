"""Project rules: layers of imports, forbidden calls, and documents that name existing things."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from launch.cli import COMMANDS

ROOT = Path(__file__).parent.parent
ROOMS = ("lm", "retrieval", "launch", "configs")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FORBIDDEN_IMPORTS = {
    "lm": {"retrieval", "launch", "tests"},
    "retrieval": {"launch", "configs", "tests"},
    "launch": {"configs", "tests"},
    "configs": {"tests"},
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "marshal.loads",
    "dill.load",
}
FORBIDDEN_ARGUMENTS = {"allow_pickle", "shell", "trust_remote_code"}


def name(path):
    return path.relative_to(ROOT).as_posix()


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(tree):
    """Calls and arguments in a syntax tree that no project file may use."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: {ast.unparse(node.func)}"
        for keyword in node.keywords:
            if keyword.arg in FORBIDDEN_ARGUMENTS and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                yield f"line {node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"


def test_no_room_imports_one_above_it():
    found = []
    for path in SOURCES:
        room = path.relative_to(ROOT).parts[0]
        above = FORBIDDEN_IMPORTS[room] | ({"configs"} if room == "lm" else set())
        modules = imports(ast.parse(path.read_text()))
        found += [f"{name(path)} imports {m}" for m in modules if m.split(".")[0] in above]
    assert not found


def packages(room):
    """Folders and files of a room, each with those of that room that it imports."""
    names = {p.stem for p in (ROOT / room).iterdir() if p.is_dir() or p.suffix == ".py"}
    graph = {name: set() for name in names - {"__init__", "__pycache__"}}
    for path in (ROOT / room).rglob("*.py"):
        own = path.relative_to(ROOT / room).parts[0].removesuffix(".py")
        for module in imports(ast.parse(path.read_text())):
            parts = module.split(".")
            if own in graph and parts[0] == room and len(parts) > 1 and parts[1] in graph:
                graph[own].add(parts[1])
    return {name: found - {name} for name, found in graph.items()}


@pytest.mark.parametrize("room", ["lm", "retrieval", "launch"])
def test_packages_of_a_room_import_each_other_in_a_circle(room):
    graph = packages(room)
    assert graph
    while free := {folder for folder, found in graph.items() if not found & set(graph)}:
        graph = {folder: found for folder, found in graph.items() if folder not in free}
    assert not graph, f"a circle among {graph}"


def test_nothing_runs_a_text_as_code_or_a_shell():
    assert not [f"{name(p)}: {use}" for p in SOURCES for use in forbidden(ast.parse(p.read_text()))]


def test_the_gate_itself_sees_what_it_should():
    bad = [
        "eval('1')",
        "pickle.load(f)",
        "np.load(f, allow_pickle=True)",
        "run(c, shell=True)",
        "f(trust_remote_code=x)",
        "yaml.load(f)",
    ]
    assert all(list(forbidden(ast.parse(line))) for line in bad)
    assert not list(
        forbidden(
            ast.parse("f(shell=False); ast.literal_eval(x); model.eval(); safetensors.load(f)")
        )
    )


def test_a_file_is_one_idea():
    """A file of more than 400 lines holds more than one."""
    lengths = {name(p): len(p.read_text().splitlines()) for p in SOURCES}
    assert len(lengths) > 100 and not {file: n for file, n in lengths.items() if n > 400}


def test_every_config_can_be_read():
    script = (
        "import importlib.util, inspect, pathlib, sys\n"
        "for path in sys.argv[1:]:\n"
        "    spec = importlib.util.spec_from_file_location('c', path); "
        "module = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
        "    if hasattr(module, 'get_config'): assert module.get_config() is not None and "
        "inspect.getdoc(module), path\n"
    )
    configs = [str(p) for p in (ROOT / "configs").rglob("*.py") if p.name != "__init__.py"]
    assert len(configs) > 2
    done = subprocess.run(
        [sys.executable, "-c", script, *configs], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_stage_of_the_quickstart_is_an_entry_point_that_knows_its_flags():
    from launch.stages import load_study

    study = load_study(str(ROOT / "configs/studies/quickstart.py"), samples="samples")
    made = set()
    for stage in study.stages:
        source = ROOT / f"{stage.module.replace('.', '/')}.py"
        assert source.is_file(), stage.module
        text = "".join(
            p.read_text()
            for p in (source, ROOT / "retrieval/cli.py", ROOT / "lm/evaluation/command_line.py")
        )
        for flag in (arg.partition("=")[0] for arg in stage.args):
            assert (
                flag.startswith("--config.")
                or f'"{flag}"' in text
                or f"{flag} " in text
                or f"{flag}=" in text
            ), f"{stage.name}: {flag}"
        unmade = [
            path
            for path in stage.inputs
            if not any(path == m or path.startswith(f"{m}/") for m in made)
        ]
        assert not unmade, f"{stage.name} reads {unmade}, which no earlier stage makes"
        made |= set(stage.outputs)


@pytest.mark.parametrize("file", ["requirements.lock", "requirements-test.lock"])
def test_every_locked_package_is_pinned_and_has_hashes_and_no_place_of_its_own(file):
    text = (ROOT / file).read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[a-z0-9_.-]+==[^\s;]+", entry) and "--hash=sha256:" in entry, entry[:80]
    assert not re.search(r"file:|https?:|--index|--find-links|^torch==|^nvidia", text, re.MULTILINE)


def test_the_lock_files_hold_every_dependency_and_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locks = [
        dict(re.findall(r"^([a-z0-9_.-]+)==(\S+)", (ROOT / f).read_text(), re.MULTILINE))
        for f in ("requirements.lock", "requirements-test.lock")
    ]
    extras = project["project"]["optional-dependencies"]
    names = lambda dependencies: {
        re.match(r"[A-Za-z0-9_.-]+", d)[0].lower().replace("_", "-") for d in dependencies
    }
    wanted, tested = (
        names(project["project"]["dependencies"]),
        names(extras["test"] + extras["explore"]),
    )
    assert not wanted - set(locks[0]) and not (wanted | tested) - {"torch", "openbook"} - set(
        locks[1]
    )
    assert locks[0].items() <= locks[1].items()


def test_the_commands_of_the_readme_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = re.findall(r"^    make ([a-z-]+)", readme, re.MULTILINE)
    assert targets[:2] == ["quickstart", "test"] and all(
        re.search(rf"^{t}:", makefile, re.MULTILINE) for t in targets
    )
    assert "make test" in (ROOT / ".ci/run").read_text()
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text()
        for command in re.findall(r"\bopenbook ([a-z-]+) ", text):
            assert command in COMMANDS, f"{name(document)}: openbook {command}"
        for module in re.findall(r"python -m ((?:lm|retrieval|launch)\.[a-z_.]+)", text):
            place = ROOT / module.rstrip(".").replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), (
                f"{name(document)}: {module}"
            )
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (document.parent / link).exists(), f"{name(document)} links to {link}"


def test_every_command_is_a_file():
    for command, (module, *_) in COMMANDS.items():
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), command


@pytest.mark.parametrize("command", ["train", "evaluate", "ask", "study", "run"])
def test_help_says_what_a_command_does_and_runs_nothing(command):
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "--" in done.stdout and "Traceback" not in done.stderr
