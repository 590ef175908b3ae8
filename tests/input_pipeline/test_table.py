"""A table of records is the list it was made of."""

import pickle

import pytest

from input_pipeline.records import Record
from input_pipeline.sources import Mixture, Part, shared
from input_pipeline.stills import Folder, Numbered, Stills
from input_pipeline.table import Table

RECORDS = [
    Record("a/b.mp4", "/videos/a/b.mp4", 3),
    Record("\u00e9\n", "gs://videos/x", -1, b"encoded \x00", 12, 2),
    Record("stills", "s", 0, Stills((b"one", "two.png"), "a reason"), 2),
    Record("numbered", "n", 1, Numbered("n", "{}.png", 1, 9), 9),
    Record("folder", "f", 2, Folder("f")),
]


def test_a_table_gives_the_records_of_its_list() -> None:
    table = Table(RECORDS)
    assert len(table) == 5
    assert list(table) == table[:] == RECORDS
    assert [type(record.data) for record in table] == [type(record.data) for record in RECORDS]
    assert table[-1] == RECORDS[-1]
    assert table[1:4:2] == RECORDS[1:4:2]
    assert list(pickle.loads(pickle.dumps(table))) == RECORDS
    assert not Table([])
    for position in (5, -6):
        with pytest.raises(IndexError):
            table[position]


def test_lists_are_shared_and_lazy_sources_stay_as_they_are() -> None:
    lazy = Table(RECORDS)
    assert shared(lazy) is lazy
    mixture = Mixture((Part(0, 1.0, RECORDS, "first:"), Part(5, 2.0, lazy, "second:", 3)))
    again = shared(mixture)
    assert isinstance(again, Mixture)
    assert isinstance(again.parts[0].records, Table)
    assert again.parts[1] == mixture.parts[1]
    assert list(again) == list(mixture)
