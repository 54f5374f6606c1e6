"""What may vary in a search, and what is said of a wrong file."""

from typing import Any

import pytest
import yaml

from pipeline.config import read_yaml
from pipeline.shipped import shipped_config
from pipeline.tuning_space import Space, with_values
from schemas.config import Config
from schemas.errors import UsageError

CONFIG = Config.model_validate(
    {"ranking": {"learning_rate": 0.002, "hidden_units": [64]}}
)


def parse(text: str, which: str = "ranking", config: Config = CONFIG) -> Space:
    return Space.parse(yaml.safe_load(text) or {}, which, config, "space.yaml")


@pytest.mark.parametrize("which", ["ranking", "retrieval"])
def test_the_shipped_spaces_fit_and_hold_the_defaults(which: str) -> None:
    values = read_yaml(str(shipped_config(f"tuning/{which}")))
    space = Space.parse(values, which, Config(), which)
    # So that the first trial is the configuration as it stands.
    assert space.params_of(Config()).keys() == values.keys()


def test_distributions_are_those_of_the_fields_kinds() -> None:
    space = parse(
        "ranking.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        "ranking.dropout: {low: 0, high: 0.5, step: 0.1}\n"
        "ranking.batch_size: {low: 32, high: 128, step: 32}\n"
        "ranking.hidden_units: {choices: [[64], [128, 64]]}\n"
        "ranking.experts.number: {low: 2, high: 6}\n"
    )
    found = space.distributions()
    rate, dropout = found["ranking.learning_rate"], found["ranking.dropout"]
    assert (rate.low, rate.high, rate.log) == (1e-4, 1e-2, True)
    # Whole ends of a field of real numbers leave it one.
    assert type(dropout).__name__ == "FloatDistribution"
    assert (dropout.low, dropout.high, dropout.step) == (0.0, 0.5, 0.1)
    for name, wanted in (
        ("ranking.batch_size", (32, 128, 32)),
        ("ranking.experts.number", (2, 6, 1)),
    ):
        whole = found[name]
        assert type(whole).__name__ == "IntDistribution"
        assert (whole.low, whole.high, whole.step) == wanted
    assert found["ranking.hidden_units"].choices == ("[64]", "[128, 64]")


def test_a_configuration_is_made_of_what_they_give() -> None:
    space = parse(
        "ranking.experts.number: {low: 2, high: 6}\n"
        "ranking.hidden_units: {choices: [[64], [128, 64]]}\n"
        "ranking.wide: {choices: [[], [[user_device, surface]]]}\n"
    )
    config = space.config(
        CONFIG,
        {
            "ranking.experts.number": 3,
            "ranking.hidden_units": "[128, 64]",
            "ranking.wide": '[["user_device", "surface"]]',
        },
    )
    expected: dict[str, Any] = {
        "learning_rate": 0.002,
        "hidden_units": [128, 64],
        # Off before.
        "experts": {"number": 3},
        "wide": [["user_device", "surface"]],
    }
    assert config == Config.model_validate({"ranking": expected})


def test_the_configuration_as_it_stands_is_a_trial_as_far_as_it_goes() -> None:
    space = parse(
        "ranking.learning_rate: {low: 1e-3, high: 1e-2, log: true}\n"
        "ranking.table_learning_rate: {low: 0.01, high: 0.1}\n"
        "ranking.hidden_units: {choices: [[128, 64], [64]]}\n"
        "ranking.dropout: {choices: [.1, .2]}\n"
        "ranking.batch_size: {low: 256, high: 1024, step: 256}\n"
        "ranking.max_embedding_dim: {low: 5, high: 65, step: 5}\n"
    )
    # The tables' rate, 0.001, and the dropout, 0, are not in it; nor is a
    # dimension of 32, which is no multiple of 5.
    assert space.params_of(CONFIG) == {
        "ranking.learning_rate": 0.002,
        "ranking.hidden_units": "[64]",
        "ranking.batch_size": 512,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no field"),
        ("ranking.droput: {low: 0, high: 1}", "did you mean 'dropout'"),
        ("ranking.dropout: {low: 0, hihg: 1}", "high: Field required"),
        (
            "ranking.dropout: {low: .5, high: .1}",
            r"`low` \(0.5\) must be below",
        ),
        ("ranking.dropout: {low: 0, high: 1}", "less than 1"),
        ("ranking.dropout: 0.3", r"give a range, .*got 0.3"),
        ("ranking.dropout: {choices: [0.1]}", "at least 2 items"),
        ("ranking.dropout: {choices: [0, 0.0]}", r"twice, in \[0.0, 0.0\]"),
        ("ranking.dropout: {choices: [0, much]}", "valid number.*'much'"),
        (
            "ranking.learning_rate: {low: 0, high: 1, log: true}",
            "`low` above 0",
        ),
        ("ranking.batch_size: {low: 1.5, high: 3}", "whole number, got 1.5"),
        ("ranking.hidden_units: {low: 1, high: 3}", r"give \{choices"),
        ("ranking.epochs.x: {low: 1, high: 3}", "no such field"),
        ("retrieval.dropout: {low: 0, high: .5}", "section `ranking`"),
        ("ranking.tasks: {choices: [[a], [b]]}", "what the validation metric"),
        ("ranking.task_weights: {choices: [{}, {a: 1}]}", "validation metric"),
        (
            "ranking.experts: {choices: [null, {number: 2}]}\n"
            "ranking.experts.number: {low: 2, high: 4}",
            "a part of ranking.experts",
        ),
    ],
)
def test_a_wrong_space_is_explained(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(text)
    assert str(caught.value).startswith("space.yaml")


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="dropout"):
        with_values(CONFIG, {"ranking.dropout": 2})
