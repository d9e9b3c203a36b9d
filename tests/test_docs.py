"""The documents: links lead somewhere, tests that are named exist, code to copy runs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PEERS = ROOT / "docs" / "decoupled_filter.md"

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return FENCE.sub("", text)


def section(document: Path, heading: str) -> str:
    """What stands below a heading of the second level."""
    _, found, rest = document.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    assert found, heading
    return rest.partition("\n## ")[0]


def anchors(document: Path) -> set[str]:
    """The names that a link can use for the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(document.read_text(encoding="utf-8")), re.M)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_to_files(document: Path) -> None:
    for link in LINK.findall(without_code(document.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", link):
            continue  # another site
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def named_tests(text: str) -> list[tuple[str, str]]:
    """(file, function) for each test that is named, which is after the link to its file."""
    found = []
    file = None
    for link, name in re.findall(r"\]\(\.\./(tests/[\w/]+\.py)\)|`(test_\w+)`", text):
        if link:
            file = link
        else:
            assert file is not None, f"{name} has no link before it"
            found.append((file, name))
    return found


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def tables_of_tests() -> list[tuple[str, str]]:
    """(first cell, row) of the tables whose last column names tests."""
    rows: list[tuple[str, str]] = []
    header = ""
    for line in section(PEERS, "Compared with other implementations").splitlines():
        if not line.startswith("|"):
            header = ""
        elif not header:
            header = line
        elif not line.startswith("|---") and "test" in header.rsplit("|", 2)[1]:
            rows.append((line.split("|")[1].strip(), line))
    return rows


ROWS = tables_of_tests()


@pytest.mark.parametrize("row", [row for _, row in ROWS], ids=[name for name, _ in ROWS])
def test_each_row_about_peers_names_tests_that_exist(row: str) -> None:
    tests = named_tests(row.rsplit("|", 2)[1])
    assert tests
    for file, name in tests:
        assert name in functions(file), f"{file} has no {name}"


def test_tables_about_peers_are_found() -> None:
    assert len(ROWS) > 30
    assert {row.count("|") for _, row in ROWS} == {12, 4}  # 11 and 3 columns: no cell is missing


def test_tests_named_for_those_who_move_exist() -> None:
    paragraphs = section(PEERS, "Moving to kpnops").split("\n\n")
    tests = [test for paragraph in paragraphs for test in named_tests(paragraph)]
    for file, name in tests:
        assert name in functions(file), f"{file} has no {name}"
    migration = "tests/kpnops/test_migration.py"
    named = {name for file, name in tests if file == migration}
    assert named == {name for name in functions(migration) if name.startswith("test_")}


BLOCKS = [
    (part.partition("\n")[0], code)
    for part in section(PEERS, "Moving to kpnops").split("\n### ")
    for language, code in FENCE.findall(part)
    if language == "python"
]


@pytest.mark.parametrize("code", [code for _, code in BLOCKS], ids=[title for title, _ in BLOCKS])
def test_code_for_those_who_move_runs(code: str) -> None:
    exec(compile(code, str(PEERS), "exec"), {})


def test_each_way_to_move_has_code() -> None:
    titles = [title for title, _ in BLOCKS]
    names = ["DDF", "CARAFE", "involution", "an unfold loop", "NATTEN"]
    assert titles == [f"From {name}" for name in names]
