"""The pages beside the README: their versions, links and numbers are those of the code."""

import re
import tomllib

import pytest
import yaml
from networks import ROOT

import alexnet_jax
from alexnet_jax.architectures import ARCHITECTURES
from alexnet_jax.config import from_words
from alexnet_jax.data.groceries import open_groceries
from alexnet_jax.layers import trace

PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "experiments/quickstart_card.md", "alexnet_jax/README.md")


def heading(line: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            found = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in map(heading, found), link


def test_the_version_is_one():
    """Of the package, of its citation, and of what is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    versions = {alexnet_jax.__version__, citation["version"], project.get("version", alexnet_jax.__version__)}
    assert versions == {alexnet_jax.__version__}
    assert f"## {alexnet_jax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == project["license"]


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["title"] == "ImageNet Classification with Deep Convolutional Neural Networks"
    assert [author["family-names"] for author in paper["authors"]] == ["Krizhevsky", "Sutskever", "Hinton"]
    assert not {"doi", "url", "repository-code"} & {*citation, *paper}


def test_the_model_card_is_of_the_quickstart_network():
    card = (ROOT / "experiments/quickstart_card.md").read_text()
    config = from_words([f"--flagfile={ROOT}/experiments/quickstart.cfg"])
    source = open_groceries()
    shapes = trace(ARCHITECTURES[config.architecture], config.crop, len(source.classes))
    assert f"| parameters | {sum(one.parameters for one in shapes):,} |" in card
    assert f"inputs of {config.crop} px" in card
    assert f"scaled to {config.image_size} px" in card
    assert ", ".join(source.classes) in " ".join(card.split())
    for split, examples in source.splits.items():
        assert re.search(rf"^\| {split} \| {len(examples)},", card, re.MULTILINE)


def test_the_model_card_has_the_errors_that_were_recorded():
    """Means and standard deviations over the seeds, from the table of every seed."""
    page, card = ((ROOT / "experiments" / name).read_text() for name in ("README.md", "quickstart_card.md"))
    rows = re.findall(r"^\| [012] \| (.*), (.*), .* \| (.*), (.*), .* \|$", page, re.MULTILINE)
    assert len(rows) == 3
    said = []
    for column in range(4):
        errors = [float(row[column]) for row in rows]
        mean = sum(errors) / 3
        spread = (sum((error - mean) ** 2 for error in errors) / 2) ** 0.5
        said.append(f"{mean:.1f} ± {spread:.1f}")
    assert f"| one view | {said[0]} | {said[1]} |" in card
    assert f"| ten views | {said[2]} | {said[3]} |" in card
