"""Settings are read strictly, and a mistake is one line that names its key."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penn_jax.config import Config, OptimConfig, PrepareConfig, to_json
from penn_jax.settings import parse_section
from penn_jax.types import InputError


def test_what_was_written_is_read_back():
    for section in (Config(), OptimConfig(learning_rate=1e-3), PrepareConfig(spacing=(1.0, 0.5))):
        assert parse_section(type(section), to_json(section), "x") == section


def test_whole_numbers_serve_as_real_ones_but_not_the_other_way_round():
    read = parse_section(OptimConfig, {"learning_rate": 1}, "x")
    assert read.learning_rate == 1.0
    assert isinstance(read.learning_rate, float)
    with pytest.raises(InputError, match="valid integer"):
        parse_section(Config, {"train": {"batch_size": 16.0}}, "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"batch_size": "16"}}, "train.batch_size = '16': input should be a valid int"),
        ({"train": {"batch_size": True}}, "train.batch_size = True: "),
        ({"train": {"batch_size": 0}}, "train.batch_size = 0: input should be greater than 0"),
        ({"patches": {"size": [96, None]}}, "patches.size.1 = None: "),
        ({"optim": {"learning_rate": float("nan")}}, "optim.learning_rate = nan: .*finite"),
        ({"optim": {"learning_rate": float("inf")}}, "optim.learning_rate = inf: .*finite"),
        ({"optim": {"learning_rate": 10**400}}, "optim.learning_rate = 1000.*….*finite"),
        ({"modle": {}}, "modle = {}: unexpected keyword argument"),
        ({"odd\nkey": 1}, r"odd\\nkey = 1: "),
        ({"k" * 5000: "v" * 5000}, "kkk… = 'vvv"),
        ({"train": 3}, "train = 3: "),
        ([], r"config = \[\]: "),
        (None, "config = None: "),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(values, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_section(Config, values, "config.json")
    assert str(caught.value).startswith("config.json: ")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_nesting_of_any_depth_is_refused():
    # Python's own reader of JSON takes nearly a thousand levels, its writer a few less.
    for depth in (10, 500, *range(960, 1000)):
        try:
            values = json.loads('{"name":' * depth + "1" + "}" * depth)
        except RecursionError:
            continue
        with pytest.raises(InputError):
            parse_section(Config, values, "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.dictionaries(st.sampled_from(sorted(to_json(Config()))), JSON))
def test_any_value_is_read_or_refused_in_one_line(values):
    try:
        config = parse_section(Config, values, "config.json")
    except InputError as error:
        lines = str(error).splitlines()
    else:
        lines = ["none"]
        assert parse_section(Config, to_json(config), "config.json") == config
    assert len(lines) == 1
