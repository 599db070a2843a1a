"""The words for users name what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("gpt2cls", "tune_spaces", "cluster", "jobs", "recipes", "benchmarks", "docs")
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *ROOT.glob("docs/**/*.md"),
    ]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(rf"`((?:{'|'.join(ROOMS)}|tests)/[^`\s*<>]*)`")


def tree():
    """Every path of the README's file tree."""
    text = (ROOT / "README.md").read_text().split("## File tree")[1]
    folders, paths = [], []
    for line in text.split("```")[1].splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[depth:] = [name]
        paths.append("".join(folders))
        assert len(line.split()) > 1 or name.endswith("/"), f"{name}: says nothing"
    return paths


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_and_path_of_a_page_leads_somewhere(page):
    text = page.read_text()
    links = [link.split("#")[0] for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    # `jobs/ID/...` is in the state folder
    paths = [path for path in PATH.findall(text) if not path.startswith("jobs/ID")]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_the_file_tree_names_only_what_is_there():
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_the_file_tree_names_every_file():
    files = {
        str(file.relative_to(ROOT))
        for room in ROOMS
        for file in (ROOT / room).rglob("*")
        if file.suffix in (".py", ".yaml", ".j2", ".md") and file.name != "__init__.py"
    }
    measured = {file for file in files if re.fullmatch(r"benchmarks/.*\.md", file)}
    assert sorted(files - measured - set(tree())) == []


def test_no_line_is_there_twice():
    assert len(tree()) == len(set(tree()))
