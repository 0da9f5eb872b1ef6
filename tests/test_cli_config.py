"""Any TOML gives a clear error or a configuration that is right."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapjax.cli._config import _KEYS, Config, read_config
from mapjax.cli._errors import UsageError

GOOD = {
    "output": '"run"',
    "evaluator": '"a.b:c"',
    "base": '"base.npz"',
    "experts": '{ mnist = "a.npz", usps = "b.npz" }',
    "num_coefficients": "2",
    "separator": '"."',
    "transform": '{ name = "dare", density = 0.5 }',
    "driver": '"map"',
    "seed": "3",
    "budget": "9",
    "bounds": "[0.0, [1.0, 2]]",
    "directions": '["maximize", "minimize"]',
    "task_names": '["mnist", "usps"]',
    "verify": "0",
    "surrogate": '"quadratic"',
    "link": '"sigmoid"',
    "link_bounds": "[0, 1]",
    "ridge": '"auto"',
    "num_points": "10",
    "num_generations": "4",
    "design": '"sobol"',
    "tolerance": "0.01",
    "rounds": "2",
}
HERE = Path("somewhere")


def text_of(keys):
    return "\n".join(f"{name} = {value}" for name, value in keys.items())


def test_a_whole_configuration():
    config = read_config(text_of(GOOD), HERE)
    assert config.output == HERE / "run"
    assert config.base == HERE / "base.npz"
    assert config.experts == {"mnist": HERE / "a.npz", "usps": HERE / "b.npz"}
    assert (config.driver, config.seed, config.separator) == ("map", 3, ".")
    assert config.rule == ("dare", {"density": 0.5, "seed": 3})
    assert config.options["bounds"] == [0.0, [1.0, 2]]
    assert set(config.options) == set(list(GOOD)[9:])
    mixed = read_config(text_of(GOOD | {"bounds": '"simplex"'}), HERE)
    assert mixed.options["bounds"] == "simplex"
    several = read_config(text_of(GOOD | {"experts": '["a.npz", "b.npz"]'}), HERE)
    assert list(several.experts) == ["expert_0", "expert_1"]
    absolute = read_config(text_of(GOOD | {"output": '"/run"'}), HERE)
    assert absolute.output == Path("/run")


def test_paths_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = {"output": '"~/run"', "base": '"~/b.npz"', "experts": '["~/a.npz", "~/b.npz"]'}
    config = read_config(text_of(GOOD | paths), HERE)
    assert (config.output, config.base) == (tmp_path / "run", tmp_path / "b.npz")
    assert list(config.experts.values()) == [tmp_path / "a.npz", tmp_path / "b.npz"]


def test_every_option_is_an_argument_of_its_drivers():
    import inspect

    import mapjax as mj
    from mapjax.cli._config import _OPTIONS

    drivers = {
        "map": mj.map_front,
        "bayesian": mj.bayesian_front,
        "nested": mj.nested_front,
    }
    own = {"evaluate", "key", "num_coefficients", "save_to", "throw", "progress"}
    for name, driver in drivers.items():
        takes = set(inspect.signature(driver).parameters) - own
        offered = {n for n, option in _OPTIONS.items() if name in option.drivers}
        assert offered <= takes


WRONG = [
    ("output", '""', "`output` is '', but must be the path of the run folder"),
    ("output", "3", "`output` is 3, but must be"),
    ("evaluator", '"a.b"', '"package.module:function"'),
    ("evaluator", '"a:b c"', '"package.module:function"'),
    ("experts", "{}", "`experts` is {}, but must be a table from names to paths"),
    ("experts", '["a", 3]', "a table from names to paths"),
    ("experts", '["a", "b", "c"]', "`num_coefficients` is 2, but there are 3 `experts`"),
    ("num_coefficients", "0", "a whole number, at least 1"),
    ("num_coefficients", "true", "a whole number, at least 1"),
    ("transform", "{ density = 0.5 }", "the name of a rule, or a table"),
    ("transform", '{ name = "dare", rate = 0.5 }', "no option 'rate'; it takes density"),
    ("transform", '"magic"', "The rule is 'magic'; choose from linear"),
    ("driver", '"maps"', "one of 'map', 'bayesian', 'nested'"),
    ("driver", '"nested"', "`num_generations` is no option of the driver 'nested'"),
    (
        "driver",
        '"bayesian"',
        "`rounds` is no option of the driver 'bayesian', but of 'map'",
    ),
    ("seed", "-1", "a whole number, at least 0"),
    ("budget", "1.5", "a whole number, at least 1"),
    ("bounds", "[0, 1, 2]", "two numbers, or two lists of numbers"),
    ("bounds", "[nan, 1]", "two numbers, or two lists of numbers"),
    ("ridge", "-1", 'a number, at least 0, or "auto"'),
    ("surrogate", "1979-05-27", "one of 'outputs', 'quadratic', 'gradient'"),
    ("colour", "3", "unknown key 'colour'; the known ones are output, evaluator, base"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_values_are_named(name, value, message):
    with pytest.raises(UsageError) as info:
        read_config(text_of(GOOD | {name: value}), HERE)
    assert message in str(info.value)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["output"], "lacks `output`: the path of the run folder"),
        (["evaluator"], "lacks `evaluator`"),
        (["base"], "Say both `base` and `experts`, or neither"),
        (["experts"], "Say both `base` and `experts`, or neither"),
        (["base", "experts"], "`transform` edits task vectors"),
        (["base", "experts", "num_coefficients"], "lacks `base` and `experts`, or"),
        (["budget"], "lacks `budget`: how many merges"),
    ],
)
def test_missing_keys_are_named(gone, message):
    with pytest.raises(UsageError) as info:
        read_config(text_of({n: v for n, v in GOOD.items() if n not in gone}), HERE)
    assert message in str(info.value)


@pytest.mark.parametrize(
    "text", ["a = ", "a = 1\na = 2", "\x00", "a = " + "9" * 5000, "[" * 9999]
)
def test_what_is_no_toml_is_refused(text):
    with pytest.raises(UsageError, match="The configuration is no TOML"):
        read_config(text, HERE)


SCALARS = st.one_of(
    st.integers(),
    st.booleans(),
    st.floats().map(lambda x: repr(x)),
    st.sampled_from(sorted(GOOD.values())),
    st.text(max_size=8).map(lambda s: '"' + s.replace("\\", "").replace('"', "") + '"'),
    st.just("1979-05-27T07:32:00Z"),
).map(lambda x: str(x).lower() if isinstance(x, bool) else str(x))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda xs: f"[{', '.join(xs)}]"),
        st.dictionaries(
            st.sampled_from(["name", "density", "mnist"]), inner, max_size=2
        ).map(lambda d: "{" + ", ".join(f"{k} = {v}" for k, v in d.items()) + "}"),
    ),
    max_leaves=4,
)


def is_right(text):
    """Whether a configuration is read as TOML has it, or refused with a clear sentence."""
    message = ""
    try:
        config = read_config(text, HERE)
    except UsageError as found:
        config, message = None, str(found)
    if config is None:
        assert message.endswith(".") or "must be" in message, message
        assert len(message) < 2000
        return False
    assert isinstance(config, Config)
    whole = tomllib.loads(text)
    assert set(whole) <= set(_KEYS)
    assert config.evaluator == whole["evaluator"]
    assert config.options == {n: v for n, v in whole.items() if n in config.options}
    assert set(config.experts) == set(whole.get("experts", {})) or isinstance(
        whole["experts"], list
    )
    return True


@given(st.dictionaries(st.sampled_from([*GOOD, "colour"]), VALUES, min_size=1, max_size=2))
def test_any_values(changes):
    is_right(text_of(GOOD | changes))


@given(st.integers(0, 10_000), st.text(max_size=3))
def test_any_damage(place, text):
    whole = text_of(GOOD)
    at = place % len(whole)
    is_right(whole[:at] + text + whole[at + len(text) + place % 3 :])


@given(st.text(max_size=60))
def test_any_text(text):
    assert not is_right(text)
