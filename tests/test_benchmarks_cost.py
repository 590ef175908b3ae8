"""The table of costs: near what was published or explained, complete, and the one in the docs."""

import pathlib

import pytest

from benchmarks import cost
from mvm import masking

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def lines():
    return [[cost.measure(row) for row in rows] for rows in (cost.PRETRAIN, cost.FINETUNE)]


def test_every_row_is_within_one_percent_or_says_why_not(lines):
    for line in [*lines[0], *lines[1]]:
        if line.difference is None or abs(line.difference) > cost.TOLERANCE:
            assert line.row.note, line
        elif not line.row.note:
            assert abs(line.difference) < 0.5, line


def test_every_figure_has_a_source_and_no_other_row_has_one(lines):
    for line in [*lines[0], *lines[1]]:
        assert bool(line.row.gmac) == bool(line.row.source)
        assert not line.row.source or line.row.source in cost.SOURCES


def test_every_strategy_and_size_is_there(lines):
    names = {cost.config_of(line.row).mask.name for line in lines[0]}
    assert names == set(masking.names())
    assert {line.size for line in lines[0]} == {line.size for line in lines[1]} == set("SBLHg")


def test_the_papers_counts(lines):
    found = {(x.row.recipe, *x.row.changes.values()): x for x in lines[0]}
    everest, wider = found[("everest_ucf101",)], found[("everest_k400:B", 0.4)]
    assert (everest.visible, everest.target) == (156, 314)
    assert (wider.visible, wider.target) == (156, 471)
    assert (found[("adamae_k400",)].visible, found[("adamae_k400",)].target) == (78, 1490)
    giant = found[("videomaev2_hybrid:g",)]
    assert (giant.visible, giant.target) == (208, 1024)
    assert giant.parameters / 1e6 == pytest.approx(1026.31, abs=0.01)


def test_the_page_is_the_one_in_the_docs(lines):
    assert cost.page(*lines) == (ROOT / "docs" / "cost.md").read_text(), cost.COMMAND


def test_the_terminal_shows_what_the_page_shows(lines):
    shown = cost.text(lines[1]).splitlines()
    assert len(shown) == 1 + 2 * len(lines[1])
    for line, row, said in zip(lines[1], shown[1::2], shown[2::2]):
        assert f"{line.model_gmac:.2f}" in row
        assert line.row.source in said
        assert line.row.note in said
