"""Kin stay on one side; the cases of each test are written out by hand."""

import pytest

from penn_jax.data.leaks import (
    identical,
    kin,
    listed,
    pretraining_pool,
    refuse_leaks,
    seeded_split,
    split_leaks,
)
from penn_jax.types import InputError


def record(subject: str, scan: str, labelled: bool = True, part: str = "train") -> dict:
    return {"subject": subject, "fingerprint": scan, "labelled": labelled, "part": part}


def split(train: str, validation: str) -> dict:
    return {"train": train.split(), "validation": validation.split()}


def test_seeded_split_is_by_subject_and_by_seed_alone():
    cases = {f"s{k // 2}_{k}": record(f"s{k // 2}", str(k)) for k in range(40)}
    cases |= {"u": record("u", "u", labelled=False), "t": record("t", "t", part="test")}
    found = seeded_split(cases, 0.25, 3)
    assert found == seeded_split(dict(reversed(cases.items())), 0.25, 3)
    assert len({str(seeded_split(cases, 0.25, seed)) for seed in range(10)}) > 5
    sides = [{cases[name]["subject"] for name in found[side]} for side in found]
    assert [len(side) for side in sides] == [15, 5]  # 20 subjects, a quarter held out
    assert not sides[0] & sides[1]
    assert len(found["train"]) + len(found["validation"]) == 40


def test_seeded_split_follows_chains_of_twins():
    # a shares a scan with b, b another one with c: all three belong together. So do d and e, by an
    # unlabelled scan of d that is filed under e too.
    scans = {"a1": "x", "b1": "x", "b2": "y", "c1": "y", "d1": "z", "e1": "w", "f1": "v"}
    cases = {name: record(name[0], scan) for name, scan in scans.items()}
    cases |= {name: record(name[0], "u", labelled=False) for name in ("d2", "e2")}
    assert kin(cases)["c1"] == "a"
    assert identical(cases) == [["a1", "b1"], ["b2", "c1"], ["d2", "e2"]]
    for seed in range(10):
        found = seeded_split(cases, 0.3, seed)
        for together in ({"a1", "b1", "b2", "c1"}, {"d1", "e1"}):
            assert together <= set(found["train"]) or together <= set(found["validation"])
        assert split_leaks(cases, [found]) == []
        assert len(found["train"]) + len(found["validation"]) == 7


@pytest.mark.parametrize(("groups", "held"), [(0, 0), (1, 0), (2, 1), (3, 1), (10, 2)])
def test_seeded_split_holds_out_at_least_one_and_never_all(groups, held):
    cases = {f"c{k}": record(f"c{k}", str(k)) for k in range(groups)}
    assert len(seeded_split(cases, 0.2, 0)["validation"]) == held


def test_leaks_name_cases_splits_and_why():
    cases = {
        "a": record("a", "1"),
        "b": record("b", "2"),
        "copy": record("copy", "1"),
        "s_1": record("s", "3"),
        "s_2": record("s", "4"),
        "s_3": record("s", "5"),
        "t": record("t", "2", labelled=False, part="test"),
        "t_2": record("b", "6", labelled=False, part="test"),
    }
    assert split_leaks(cases, [split("a copy", "s_1 s_2 s_3")]) == []
    assert split_leaks(cases, [split("a s_1 s_3", "copy s_2")]) == [
        "split 0 trains on a and validates on copy, the same scan",
        "split 0 trains on s_1, s_3 and validates on s_2, of one subject",
    ]
    # In two splits the test cases are told once.
    assert split_leaks(cases, [split("a", "b"), split("b", "a")]) == [
        "the splits use b and imagesTs has t, the same scan"
    ]
    del cases["t"]
    assert split_leaks(cases, [split("a", "b")]) == [
        "the splits use b and imagesTs has t_2, of one subject"
    ]
    # What no split uses harms none.
    assert split_leaks(cases, [split("a", "s_1")]) == []


def test_a_copy_ties_two_subjects():
    # The scan of b_1 is that of a_1, so a_2 and b_2 are of one person.
    scans = {"a_1": "x", "b_1": "x", "a_2": "y", "b_2": "z"}
    cases = {name: record(name[0], scan) for name, scan in scans.items()}
    assert split_leaks(cases, [split("a_2", "b_2")]) == [
        "split 0 trains on a_2 and validates on b_2, of one subject"
    ]


def test_an_error_tells_three_leaks_and_counts_the_rest(tmp_path):
    cases = {f"{side}{k}": record(f"{side}{k}", str(k)) for side in "ab" for k in range(5)}
    clean = [split("a0 b0", "a1 b1")]
    refuse_leaks(tmp_path, cases, clean)
    given = [split("a0 a1 a2 a3 a4", "b0 b1 b2 b3 b4")]
    with pytest.raises(
        InputError, match=r"5 leaks: split 0 trains on a0 and.*b2.*; and 2 more, ex"
    ):
        refuse_leaks(tmp_path, cases, given)


def test_pretraining_sees_nobody_who_is_measured():
    cases = {
        "a": record("a", "1"),
        "v": record("v", "2"),
        "t": record("t", "3", labelled=False, part="test"),
        "free": record("free", "4", labelled=False),
        "copy_of_v": record("w", "2", labelled=False),
        "same_person_as_copy": record("w", "5", labelled=False),
        "copy_of_t": record("x", "3", labelled=False),
        "second_visit_of_t": record("t", "6", labelled=False),
        "leak": record("v", "7"),
        "in_no_split": record("y", "8"),
    }
    pool, left_out = pretraining_pool(cases, split("a leak", "v"))
    assert pool == ["a", "free"]
    assert left_out == {
        "copy_of_v": "v",
        "same_person_as_copy": "v",
        "copy_of_t": "t",
        "second_visit_of_t": "t",
        "leak": "v",
    }
    # Where v is not measured, it and all its kin serve.
    pool, left_out = pretraining_pool(cases, split("v leak", "a"))
    assert pool == ["v", "free", "copy_of_v", "same_person_as_copy", "leak"]
    assert set(left_out) == {"copy_of_t", "second_visit_of_t"}


def test_long_lists_are_counted():
    assert listed("abcdef") == "a, b, c, d, e, f"
    assert listed("abcdefgh") == "a, b, c, d, e, f and 2 more"
