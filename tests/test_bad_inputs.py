"""Every entry of the corpus of bad inputs, given to the commands in this process."""

import pytest
from bad_corpus import CORPUS, make_given
from bad_inputs import judge, snapshot

from penn_jax.cli import main


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_given(
        tmp_path_factory.mktemp("given"),
        lambda *words: main([str(word) for word in words]) and pytest.fail("what is right fails"),
    )


def test_the_corpus_has_no_entry_twice():
    assert len({entry.name for entry in CORPUS}) == len(CORPUS) >= 70


@pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
def test_it_is_refused_in_one_line_and_leaves_nothing(entry, given, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "work"
    folder.mkdir()
    command = [str(word) for word in entry.build(folder, given)]
    if command[:1] == ["prepare"]:
        command += ["--workers", "1"]  # processes take a second to start
    before = snapshot(folder, entry.leaves)
    capsys.readouterr()
    try:
        code = main(command)
    except SystemExit as end:  # argparse
        code = end.code
    said, error = capsys.readouterr()
    assert judge(entry, code, said, error) == []
    if entry.code:
        assert snapshot(folder, entry.leaves) == before
