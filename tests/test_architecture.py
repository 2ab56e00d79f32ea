"""Imports point one way: jobs -> {infra, manifests, time_ops}, and inside jobs from each layer to those below it."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "time_ops": {"jobs", "infra", "manifests", "ray", "boto3", "pyarrow"},
    "manifests": {"jobs", "infra", "time_ops", "ray", "torch", "boto3"},
    "infra": {"jobs", "manifests", "time_ops"},
}

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60

# Of `jobs`, from below. What stands in one line imports nothing else of that line. docs/architecture.md draws them.
LAYERS = [
    {"errors", "redact"},
    {"config", "report"},
    {"models"},
    {"images"},
    {"cluster"},
    {"runs"},
    {"auditing", "planning", "sinks"},
    {"editing", "evaluation", "exports"},
    {"worker", "doctor"},
    {"audit"},
    {"debias", "evaluate", "export", "scheduling"},
    {"cli"},
]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_package_imports_what_lies_above_or_beside_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): sorted(imported(f) & FORBIDDEN[package]) for f in files}
    assert {name: found for name, found in wrong.items() if found} == {}


def sources(package: str) -> dict[str, ast.Module]:
    """The modules of a package by their names; those that only hand on what others define are left out."""
    files = [path for path in sorted((ROOT / package).rglob("*.py")) if path.name != "__init__.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in zip(names, files, strict=True)}


def parts_imported(tree: ast.Module) -> set[str]:
    """Which modules and packages right below `jobs` are imported."""
    return {name.split(".")[1] for name in names_imported(tree) if name.startswith("jobs.")}


def names_imported(tree: ast.Module) -> set[str]:
    """Modules, and what is taken from them, by whole names: in functions too, but not under a `__main__` guard."""
    found = set()
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))]
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module whole"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_layers_are_those_of_the_tree_and_of_the_page_that_draws_them() -> None:
    there = {path.stem for path in (ROOT / "jobs").glob("*.py")} | {
        p.parent.name for p in (ROOT / "jobs").glob("*/*.py")
    }
    assert set().union(*LAYERS) == there - {"__init__"}
    assert sum(map(len, LAYERS)) == len(set().union(*LAYERS))
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = [set(re.findall(r"`(\w+)`", row.split("|")[2])) for row in page.splitlines() if re.match(r"\| \d+ \|", row)]
    assert drawn == LAYERS[::-1]


def test_every_import_inside_jobs_leads_to_a_layer_below() -> None:
    layer = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    upward = set()
    for name, tree in sources("jobs").items():
        own = name.split(".")[1]
        upward |= {f"{name} imports jobs.{o}" for o in parts_imported(tree) - {own} if layer[o] >= layer[own]}
    assert upward == set()


@pytest.mark.parametrize("package", ["infra", "jobs", "manifests", "time_ops"])
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    trees = sources(package)
    taken = {name: names_imported(tree) for name, tree in trees.items()}
    # A name is a module's, or of one.
    below = {name: {n if n in trees else n.rpartition(".")[0] for n in found} for name, found in taken.items()}
    TopologicalSorter({name: (found & trees.keys()) - {name} for name, found in below.items()}).prepare()


def test_an_upward_import_would_be_seen() -> None:
    code = """
def f():
    from jobs.cli.app import main
    from jobs import debias

if __name__ == "__main__":
    import jobs.audit
"""
    assert parts_imported(ast.parse(code)) == {"cli", "debias"}


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("jobs.cli", "torch transformers diffusers ray scipy pandas inflect"),
        (
            "jobs.debias, jobs.audit, jobs.evaluate, jobs.scheduling.job, jobs.export",
            "transformers diffusers pandas inflect",
        ),
        ("jobs.worker.worker", "pandas inflect"),
    ],
    ids=["a command", "a driver", "a worker"],
)
def test_what_takes_seconds_to_import_is_imported_where_it_is_used(modules: str, without: str) -> None:
    code = f"import sys, {modules}; print(*sorted(set({without.split()}) & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.split() == []


def test_results_are_fetched_where_lost_ones_are_made_again() -> None:
    """A result that is lost with its node has to be asked for again, which only the pool can."""
    uses = {
        name for name, tree in sources("jobs").items() if any(n.split(".")[0] == "ray" for n in names_imported(tree))
    }
    # The doctor asks whether there is a cluster, and gives it no work.
    assert {name for name in uses if not name.startswith("jobs.cluster.")} == {"jobs.doctor.cluster"}


PRODUCT = [
    path for package in ("infra", "jobs", "manifests", "time_ops") for path in sorted((ROOT / package).rglob("*.py"))
]


def test_no_file_and_no_function_is_too_long_to_be_read_at_once() -> None:
    long = []
    for path in PRODUCT:
        name, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
        if text.count("\n") > MOST_LINES:
            long.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long.append(f"{name}: {node.name} has {lines} lines")
    assert long == []


SECTION = re.compile(r"( *)(Args|Attributes|Returns|Raises|Yields):")
ENTRY = re.compile(r" *[*\w, .]+: (.+)")
# As a sentence begins; names (SDXL, CPUs, MLflow), symbols (P, W) and Python's own words are written as ever.
CAPITAL = re.compile(r"(?!(True|False|None|Ray|Parquet)\b)([A-Z][a-z]+|A(?=\s))(?![A-Za-z])")


def layout_faults(docstring: str) -> list[str]:
    """How a docstring with sections differs from the one layout; ruff holds the rest of it."""
    lines, faults, inside = docstring.split("\n"), [], None
    for line in lines:
        if section := SECTION.fullmatch(line):
            inside = section
        elif inside is not None and line.strip():
            depth = len(line) - len(line.lstrip()) - len(inside[1])
            inside = inside if depth > 0 else None
            # What is returned is told in sentences, and what is raised or given in entries.
            if inside is not None and depth == 4 and inside[2] not in ("Returns", "Yields"):
                entry = ENTRY.fullmatch(line)
                if entry is None:
                    faults.append(f"no entry: {line.strip()}")
                elif CAPITAL.match(entry[1]):
                    faults.append(f"a capital: {line.strip()}")
    if any(map(SECTION.fullmatch, lines)) and len(lines) > 1 and not lines[-2].strip():
        faults.append("a blank line before the closing quotes")
    return faults


def test_docstrings_with_sections_have_one_layout() -> None:
    """Entries in lower case, and no blank line behind the last of them, which ruff can only ask for (D413)."""
    faults = []
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                told = layout_faults(ast.get_docstring(node, clean=False) or "")
                faults += [f"{path.relative_to(ROOT)}: {getattr(node, 'name', '')}: {fault}" for fault in told]
    assert faults == []


@pytest.mark.parametrize(
    ("docstring", "faults"),
    [
        (
            "Do it.\n\n    Args:\n        x: what; A\n            Then.\n        y: SDXL's.\n        z: W, wide.\n    ",
            0,
        ),
        ("Do it.\n\n    Returns:\n        The whole.\n    ", 0),
        ("Do it.\n\n    Args:\n        x: What.\n        y: A thing.\n    ", 2),
        ("Do it.\n\n    Raises:\n        As `solve`.\n    ", 1),
        ("Do it.\n\n    Args:\n        x: what.\n\n    ", 1),
        ("Do it.\n\n    Thus.\n\n    ", 0),
    ],
)
def test_another_layout_is_told(docstring: str, faults: int) -> None:
    assert len(layout_faults(docstring)) == faults


def test_no_pickled_weights_and_no_remote_code() -> None:
    assert not [p for p in ROOT.rglob("*.bin") if ".venv" not in p.parts and ".evenhand" not in p.parts]
    sources = [p for name in ("infra", "jobs", "manifests", "time_ops") for p in (ROOT / name).rglob("*.py")]
    for source in sources:
        text = source.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text, source
        assert "torch.load(" not in text, source
        assert "import pickle" not in text, source
