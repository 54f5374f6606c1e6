"""What a search varies: fields of a model's section, their ranges or choices.

In: a YAML file such as

    retrieval.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
    retrieval.hidden_units: {choices: [[256], [512, 256]]}

Out: Optuna's distributions, and configurations of what these give. Whatever is
wrong with the file is said before any training starts.
"""

import dataclasses
import difflib
import json
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.config import explain
from schemas.config import Config
from schemas.errors import UsageError
from schemas.section import Section

# They decide what the validation metric is, or have no part in it: trials
# that differ by them cannot be compared.
_FIXED = {
    "retrieval": (
        *("selection_metric", "refit_epochs", "warm_start_rate_share"),
        "checkpoint_every",
    ),
    "ranking": (
        *("objective", "tasks", "task_weights", "watch_time_unit_s"),
        *("score_weights", "checkpoint_every"),
    ),
}


_Kind = TypeVar("_Kind", bound=Section)


class Range(Section):
    """Numbers from `low` to `high`, both among them."""

    low: float
    high: float
    # Equal chances for equal factors, such as of learning rates.
    log: bool = False
    # Only low, low + step, low + 2 step ...
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"`low` ({self.low}) must be below `high`")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("`log` needs a `low` above 0, and no `step`")
        return self


class Choices(Section):
    """Any of some values, each as it stands in a configuration."""

    choices: Annotated[tuple[Any, ...], Field(min_length=2)]


@dataclasses.dataclass(frozen=True)
class Space:
    """A checked space; `fields` by their full names, in the file's order."""

    fields: Mapping[str, Range | Choices]

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], which: str, config: Config, where: str
    ) -> "Space":
        """Checks what a file holds against the configuration.

        Args:
          values: field -> range or choices, as read.
          which: the model, whose section's fields may vary.
          config: where each range's ends and each choice must fit.
          where: the file, for messages.

        Raises:
          UsageError: naming the field and what is wrong with it.
        """
        fields = {}
        if not values:
            raise UsageError(f"{where} names no field to vary.")
        for name, value in values.items():
            try:
                _check_name(str(name), which, values)
                fields[name] = _parsed(str(name), value, config)
            except ValidationError as error:
                why = explain(error, Config)
                raise UsageError(f"{where}: {name}: {why}") from error
            except ValueError as error:
                raise UsageError(f"{where}: {name}: {error}") from error
        return cls(fields)

    def distributions(self) -> dict[str, Any]:
        """Optuna's; a choice is known to it by its JSON."""
        from optuna import distributions

        found: dict[str, Any] = {}
        for name, field in self.fields.items():
            if isinstance(field, Choices):
                texts = [json.dumps(choice) for choice in field.choices]
                found[name] = distributions.CategoricalDistribution(texts)
            elif _number_of(name) is int:
                low, high = int(field.low), int(field.high)
                found[name] = distributions.IntDistribution(
                    low, high, field.log, int(field.step or 1)
                )
            else:
                found[name] = distributions.FloatDistribution(
                    field.low, field.high, field.log, field.step
                )
        return found

    def config(self, base: Config, params: Mapping[str, Any]) -> Config:
        """The configuration of what the distributions gave.

        Raises:
          ValidationError: values that do not go together.
        """
        return with_values(base, self.values(params))

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Field -> value, of what the distributions gave."""
        return {
            name: json.loads(params[name])
            if isinstance(field, Choices)
            else params[name]
            for name, field in self.fields.items()
        }

    def params_of(self, config: Config) -> dict[str, Any]:
        """What the distributions would give for a configuration.

        Fields whose values lie outside are left out.
        """
        params: dict[str, Any] = {}
        for name, field in self.fields.items():
            value = _value(config, name)
            if isinstance(field, Choices):
                if value in field.choices:
                    params[name] = json.dumps(value)
            elif value is not None and field.low <= value <= field.high:
                steps = (value - field.low) / (field.step or 1)
                if field.step is None or steps == int(steps):
                    params[name] = value
        return params

    def to_json(self) -> dict[str, Any]:
        """Plain values that it follows from."""
        return {n: f.model_dump(mode="json") for n, f in self.fields.items()}


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Puts values in the places of fields such as `ranking.experts.number`.

    Raises:
      ValidationError: a value that does not fit.
    """
    plain = config.model_dump(mode="json")
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = plain
        for section in sections:
            # A section that is off is turned on.
            inner[section] = inner[section] or {}
            inner = inner[section]
        inner[last] = value
    return Config.model_validate(plain)


def _check_name(name: str, which: str, names: Sequence[str] | Any) -> None:
    if not name.startswith(f"{which}."):
        raise ValueError(f"only fields of the section `{which}` can vary")
    _annotation(name)  # That it exists.
    fixed = name.split(".")[1]
    if fixed in _FIXED[which]:
        raise ValueError(
            "it decides what the validation metric is, or has no part in it; "
            "set it in the configuration"
        )
    inside = [other for other in names if name.startswith(f"{other}.")]
    if inside:
        raise ValueError(f"it is a part of {inside[0]}, which varies too")


def _parsed(name: str, value: Any, config: Config) -> Range | Choices:
    if not isinstance(value, Mapping):
        raise ValueError(
            "give a range, {low: 0.1, high: 0.5}, or {choices: [0.1, 0.5]}, "
            f"got {value!r}"
        )
    if "choices" in value:
        # As the configuration has them: 1e-3 is text in YAML, and a number.
        fitted = tuple(
            _value(with_values(config, {name: choice}), name)
            for choice in _validated(Choices, value).choices
        )
        if len({json.dumps(choice) for choice in fitted}) < len(fitted):
            raise ValueError(f"a choice is there twice, in {list(fitted)}")
        return Choices(choices=fitted)
    number = _number_of(name)
    if number is None:
        raise ValueError("it is not a number: give {choices: [...]}")
    field = _validated(Range, value)
    for end in (field.low, field.high, field.step or 1):
        if number is int and end != int(end):
            raise ValueError(f"it is a whole number, got {end}")
    for end in (field.low, field.high):
        with_values(config, {name: number(end)})
    return field


def _validated(kind: type[_Kind], value: Any) -> _Kind:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(explain(error, kind)) from error


def _value(config: Config, name: str) -> Any:
    """A field's plain value; None inside a section that is off."""
    found: Any = config.model_dump(mode="json")
    for part in name.split("."):
        found = None if found is None else found[part]
    return found


def _number_of(name: str) -> type[int] | type[float] | None:
    """Which kind of number a field is."""
    kinds = _alternatives(_annotation(name))
    return next((k for k in (float, int) if k in kinds), None)


def _annotation(name: str) -> Any:
    """A field's declared type.

    Raises:
      ValueError: there is none of that name.
    """
    found: Any = Config
    for part in name.split("."):
        fields: dict[str, Any] = {}
        for kind in _alternatives(found):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                fields |= kind.model_fields
        if part not in fields:
            near = difflib.get_close_matches(part, fields, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no such field{hint}")
        found = fields[part].annotation
    return found


def _alternatives(annotation: Any) -> list[Any]:
    """What a type may be: `Annotated[float, ...] | None` is float or None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [k for a in get_args(annotation) for k in _alternatives(a)]
    return [annotation]
