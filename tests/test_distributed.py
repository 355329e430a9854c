"""Whom a process looks for, and what it refuses; that they meet is tested in test_hosts.py."""

import pytest

from penn_jax import cli, distributed
from penn_jax.types import InputError


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("host:1", 2, None), "some are given and some are not"),
        ((None, 2, None), "some are given and some are not"),
        ((None, None, 0), "some are given and some are not"),
        (("host", 2, 0), "--coordinator: host, expected host:port"),
        (("host:70000", 2, 0), "expected host:port"),
        (("host:1", 2, 2), "--process: 2, expected 0 to 1"),
        (("host:1", 2, -1), "--process: -1, expected 0 to 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(given, said):
    with pytest.raises(InputError, match=said), distributed.joined(*given):
        pass


@pytest.mark.parametrize(
    ("environment", "arguments", "met"),
    [
        ({}, (), []),
        ({"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}, (), [None]),
        ({"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}, (None, 1), []),
        # jax would show a task alone one GPU of its node.
        ({"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "1"}, (), []),
        # A shell within an allocation is no task of it.
        ({"SLURM_NTASKS": "2"}, (), []),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, (), [None]),
    ],
)
def test_company_is_looked_for_where_a_launcher_started_several(
    monkeypatch, environment, arguments, met
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked = []
    monkeypatch.setattr(distributed, "_meet", asked.append)
    with distributed.joined(*arguments):
        pass
    assert asked == met


def test_a_command_for_one_process_says_so(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == (
        "penn: error: this command: was started 4 times at once, expected one process; penn "
        "train, pretrain and study are for several; start one task\n"
    )
