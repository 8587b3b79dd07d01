"""Check that notebooks, modules and texts agree: `python tools/check.py`. Exits 1 where something does not.

Nothing in the checkout is written: exports and cleaning are tried in a temporary copy.
"""

import ast
import configparser
import filecmp
import json
import re
import shutil
import subprocess
import sys
import tempfile
from graphlib import CycleError
from pathlib import Path

from timet.viz.house import floors, imports

ROOT = Path(__file__).resolve().parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
LIMIT_KB, LIMIT_LINES, LIMIT_PARAMETERS = 500, 60, 8


def source(cell: dict) -> str:
    "The text of a cell."
    return "".join(cell["source"])


def directives(cell: dict) -> list[str]:
    "The `#|` lines of a cell, without the mark."
    return re.findall(r"^#\|\s*(.+?)\s*$", source(cell), re.M)


def code_cells(notebook: dict) -> list[dict]:
    "The code cells of a notebook that hold anything."
    return [c for c in notebook["cells"] if c["cell_type"] == "code" and source(c).strip()]


def wing(path: Path) -> str:
    "The folder of a notebook; empty on top."
    return path.parent.relative_to(ROOT / "nbs").as_posix().removeprefix(".")


def module_of(path: Path) -> str:
    "The module a notebook must export to by its place: `nbs/eval/01_kmeans.ipynb` to `eval.kmeans`."
    return ".".join(filter(None, (wing(path), re.sub(r"^\d+_", "", path.stem))))


def only_imports(code: str) -> bool | None:
    "True where a cell is imports alone, False where it mixes them, None where it has none (or is not plain Python)."
    try:
        body = ast.parse(re.sub(r"^\s*[%!].*$", "", code, flags=re.M)).body
    except SyntaxError:
        return None
    body = [
        n
        for node in body
        for n in (node.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) else [node])
    ]
    imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in body]
    return all(imports) if any(imports) else None


def check_cells(notebooks: dict[Path, dict]) -> list[str]:
    "Ids, directives, imports, sizes and recorded outputs."
    said = []
    seen: dict[str, Path] = {}
    for path, notebook in notebooks.items():
        for cell in notebook["cells"]:
            if seen.setdefault(cell.get("id", ""), path) != path or not cell.get("id"):
                said.append(f"{path.name}: cell id {cell.get('id')!r} is missing or used twice")
        ids = [c.get("id") for c in notebook["cells"]]
        said += [f"{path.name}: cell id {i} is used twice" for i in set(ids) if ids.count(i) > 1]
        cells = code_cells(notebook)
        for cell in cells:
            found = directives(cell)
            if "export" in found and len(found) > 1:
                said.append(f"{path.name}: an exported cell carries more than one directive: {found}")
            if only_imports(source(cell)) is False:
                said.append(f"{path.name}: cell {cell['id']} mixes imports and code")
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if output["output_type"] == "error":
                    said.append(f"{path.name}: cell {cell['id']} was recorded with an error in it")
                if WIDGET in data and not set(data) - {WIDGET, "text/plain"}:
                    said.append(f"{path.name}: cell {cell['id']} shows a widget without a picture")
        plain = [c for c in cells if not directives(c)]
        if plain and not any(c.get("outputs") for c in cells):
            said.append(f"{path.name}: nothing was recorded; run `python tools/run_nbs.py {path.relative_to(ROOT)}`")
        size = path.stat().st_size / 1024
        if size > LIMIT_KB:
            said.append(f"{path.name}: {size:.0f} kB, the limit is {LIMIT_KB}")
    return said


def exported(cell: dict) -> bool:
    "Is it an exported cell with more than imports?"
    return cell["cell_type"] == "code" and "export" in directives(cell) and only_imports(source(cell)) is not True


def check_sizes(notebooks: dict[Path, dict]) -> list[str]:
    "An exported cell is short, the next one comes after a sentence, and no function takes more than a hand can hold."
    said = []
    for path, notebook in notebooks.items():
        cells = [c for c in notebook["cells"] if source(c).strip()]
        for cell, following in zip(cells, [*cells[1:], {"cell_type": "", "source": ""}]):
            if not exported(cell):
                continue
            where, lines = f"{path.relative_to(ROOT)}: cell {cell['id']}", len(source(cell).splitlines()) - 1
            if lines > LIMIT_LINES:
                said.append(f"{where} exports {lines} lines, the limit is {LIMIT_LINES}")
            if exported(following):
                said.append(f"{where} is followed by another exported cell without a sentence between them")
            for node in ast.walk(ast.parse(source(cell))):
                if isinstance(node, ast.FunctionDef):
                    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    count = len([a for a in given if a.arg not in ("self", "cls")])
                    count += (node.args.vararg is not None) + (node.args.kwarg is not None)
                    if count > LIMIT_PARAMETERS:
                        said.append(f"{where}: {node.name} takes {count} parameters, the limit is {LIMIT_PARAMETERS}")
    return said


def check_names(notebooks: dict[Path, dict]) -> list[str]:
    "`nbs/WING/NN_name.ipynb` exports to `timet/WING/name.py`, an index opens a folder, and nothing else is there."
    said, numbers = [], {}
    for path, notebook in notebooks.items():
        shown = path.relative_to(ROOT)
        if len(path.relative_to(ROOT / "nbs").parts) > 2 or not re.fullmatch(r"\d\d_\w+|index", path.stem):
            said.append(f"{shown}: a notebook is called nbs/NN_name.ipynb or nbs/WING/NN_name.ipynb")
            continue
        if path.stem == "index":
            continue
        if numbers.setdefault((wing(path), path.stem[:2]), path) != path:
            said.append(f"{shown}: the number {path.stem[:2]} is taken by {numbers[wing(path), path.stem[:2]].name}")
        named = [d.split()[1] for c in code_cells(notebook) for d in directives(c) if d.startswith("default_exp")]
        if named and named != [module_of(path)]:
            said.append(f"{shown}: exports to {named}, its place says {module_of(path)!r}")
    said += [
        f"nbs/{name}: a wing opens with index.ipynb or with a lesson 00"
        for name in sorted({wing(p) for p in notebooks} - {""})
        if not any(wing(p) == name and (p.stem == "index" or p.stem.startswith("00_")) for p in notebooks)
    ]
    exported = {module_of(p) for p, nb in notebooks.items() if any("default_exp" in source(c) for c in code_cells(nb))}
    for file in (ROOT / "timet").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT / "timet").with_suffix("").parts)
        if file.name == "__main__.py" and len([x for x in file.read_text().splitlines() if x.strip()]) > 2:
            said.append(f"timet/{name}: more than an import and a call")
        elif file.name not in ("__init__.py", "__main__.py", "_modidx.py") and name not in exported:
            said.append(f"{file.relative_to(ROOT)}: no notebook exports it")
    return said


def check_links(notebooks: dict[Path, dict]) -> list[str]:
    "A link from one notebook to another leads somewhere."
    said = []
    for path, notebook in notebooks.items():
        for cell in notebook["cells"]:
            found = re.findall(r"\]\(([\w./]+\.ipynb)", source(cell)) if cell["cell_type"] == "markdown" else []
            said += [f"{path.relative_to(ROOT)}: links to {x}" for x in found if not (path.parent / x).exists()]
    return said


def check_arrows(notebooks: dict[Path, dict]) -> list[str]:
    "A room imports only lower numbers of its own folder; between the rooms on top and the wings there is no circle."
    said, number = [], {module_of(p): int(p.stem[:2]) for p in notebooks if p.stem != "index"}
    rooms = imports(ROOT / "timet")
    for room, others in rooms.items():
        for other in others:
            if other not in rooms:
                said.append(f"timet.{room}: imports timet.{other}, which no notebook exports")
            elif room.rpartition(".")[0] == other.rpartition(".")[0] and number[other] >= number[room]:
                said.append(f"timet.{room}: imports timet.{other}, which has a higher number")
    try:
        floors(rooms)
    except CycleError as error:
        said.append(f"a circle between rooms and wings: {' <- '.join(error.args[1])}")
    return said


def same(left: Path, right: Path) -> list[str]:
    "The files of two folders that differ or are in one alone."
    compared = filecmp.dircmp(left, right, ignore=["__pycache__", ".ipynb_checkpoints"])
    found = [*compared.left_only, *compared.right_only]
    found += [n for n in compared.common_files if (left / n).read_bytes() != (right / n).read_bytes()]
    for name in compared.common_dirs:
        found += [f"{name}/{n}" for n in same(left / name, right / name)]
    return found


def check_drift() -> list[str]:
    "What `nbdev_export` and `nbdev_clean` would change, tried in a copy."
    said = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("nbs", "timet"):
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
        for name in ("settings.ini", "setup.py"):
            shutil.copy(ROOT / name, copy / name)
        for command in ("nbdev_export", "nbdev_clean"):
            tool = Path(sys.executable).parent / command
            done = subprocess.run([tool], cwd=copy, capture_output=True, text=True)
            if done.returncode:
                said.append(f"{command} failed: {done.stderr.strip()[-400:]}")
        said += [
            f"timet/{n}: not what its notebook exports; run `nbdev_export`"
            for n in same(ROOT / "timet", copy / "timet")
        ]
        said += [f"nbs/{n}: not clean; run `nbdev_clean`" for n in same(ROOT / "nbs", copy / "nbs")]
    return said


def check_texts() -> list[str]:
    "The README is the index, and `constraints.txt` says what `settings.ini` says."
    said = []
    done = subprocess.run([sys.executable, ROOT / "tools/readme.py", "--check"], capture_output=True, text=True)
    if done.returncode:
        said.append(done.stderr.strip().splitlines()[-1])
    config = configparser.ConfigParser(interpolation=None, delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = " ".join(config["DEFAULT"][k] for k in ("requirements", "lab_requirements", "dev_requirements")).split()
    for line in (ROOT / "constraints.txt").read_text().split("\n"):
        name = re.match(r"[\w-]+", line)
        if name and not any(re.match(r"[\w-]+", w).group() == name.group() for w in wanted):
            said.append(f"constraints.txt: {line} bounds something that settings.ini does not ask for")
    return said


def check_style() -> list[str]:
    "Ruff, both as linter and as formatter."
    said = []
    for words in (["check", "-q", "."], ["format", "--check", "-q", "."]):
        done = subprocess.run([sys.executable, "-m", "ruff", *words], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            said.append(
                f"ruff {words[0]}: {(done.stdout + done.stderr).strip()[-2000:] or 'some files are not formatted'}"
            )
    return said


if __name__ == "__main__":
    notebooks = {p: json.loads(p.read_text(encoding="utf-8")) for p in sorted((ROOT / "nbs").rglob("*.ipynb"))}
    notebooks = {p: nb for p, nb in notebooks.items() if ".ipynb_checkpoints" not in p.parts}
    findings = (
        check_cells(notebooks)
        + check_sizes(notebooks)
        + check_names(notebooks)
        + check_arrows(notebooks)
        + check_links(notebooks)
        + check_drift()
        + check_texts()
        + check_style()
    )
    print("\n".join(findings) or f"{len(notebooks)} notebooks, their modules and texts agree")
    sys.exit(bool(findings))
