import math

import pyarrow as pa
import pytest

from schemas.errors import InputError
from schemas.events import (
    EventSchema,
    ExtraColumn,
    check_columns,
    row_errors,
)

NOON_US = 1_700_000_000_000_000  # 14 November 2023


def _watches(**columns: list) -> pa.Table:
    rows = len(next(iter(columns.values()))) if columns else 1
    base = {
        "user_id": ["u"] * rows,
        "video_id": ["v"] * rows,
        "event_time_us": [NOON_US] * rows,
        "watch_time_s": [10.0] * rows,
        "completed": [True] * rows,
        "source": ["search"] * rows,
    }
    types = {
        "event_time_us": pa.int64(),
        "watch_time_s": pa.float64(),
        "completed": pa.bool_(),
    }
    return pa.table(
        {
            name: pa.array(values, types.get(name, pa.string()))
            for name, values in (base | columns).items()
        }
    )


SCHEMA = EventSchema.of_tables({"watches": _watches()})


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user_id", None, "user_id is missing"),
        ("user_id", "", "user_id is empty"),
        ("event_time_us", None, "event_time_us is missing"),
        # The same noon in seconds, milliseconds and nanoseconds.
        ("event_time_us", 1_700_000_000, "event_time_us is below"),
        ("event_time_us", 1_700_000_000_000, "event_time_us is below"),
        ("event_time_us", 1_700_000_000_000_000_000, "event_time_us is above"),
        ("watch_time_s", -0.5, "watch_time_s is below 0"),
        ("watch_time_s", math.nan, "watch_time_s is NaN"),
        ("watch_time_s", math.inf, "watch_time_s is infinite"),
        ("watch_time_s", 172_801.0, "watch_time_s is above"),
        ("completed", None, "completed is missing"),
    ],
)
def test_a_bad_row_is_found_and_named(column, value, reason) -> None:
    good = _watches()[column][0].as_py()
    rows = _watches(**{column: [good, value, good]})
    found = row_errors("watches", rows, SCHEMA)
    assert found[0] is None
    assert found[2] is None
    assert found[1].startswith(reason)


def test_unknown_watch_time_is_no_error_and_order_is_not_assumed() -> None:
    rows = _watches(
        watch_time_s=[None, 1.0], event_time_us=[NOON_US, NOON_US - 5]
    )
    assert row_errors("watches", rows, SCHEMA).tolist() == [None, None]


def test_the_ends_of_a_range_are_good() -> None:
    first_us, last_us = 946_684_800_000_000, 4_102_444_800_000_000
    rows = _watches(
        watch_time_s=[0.0, 172_800.0], event_time_us=[first_us, last_us]
    )
    assert row_errors("watches", rows, SCHEMA).tolist() == [None, None]


def test_the_unit_is_named_where_a_time_is_out_of_range() -> None:
    (reason,) = row_errors(
        "watches", _watches(event_time_us=[1_700_000_000]), SCHEMA
    )
    assert "UTC microseconds" in reason


def test_wrong_type_names_column_and_both_types() -> None:
    rows = _watches().set_column(
        2, "event_time_us", pa.array(["yesterday"], pa.string())
    )
    with pytest.raises(
        InputError, match=r"watches\.event_time_us.*string.*int64"
    ):
        check_columns("watches", rows, SCHEMA)


def test_missing_and_undeclared_columns_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="video_id"):
        EventSchema.of_tables({"watches": _watches().drop(["video_id"])})
    extra = _watches().append_column("mood", pa.array(["good"]))
    with pytest.raises(InputError, match=r"undeclared.*mood"):
        EventSchema.of_tables({"watches": extra})
    with pytest.raises(InputError, match="Unknown event table 'views'"):
        EventSchema.of_tables({"views": _watches()})


def test_schema_survives_json_with_extras_and_labels() -> None:
    schema = EventSchema(
        {"watches": SCHEMA.columns["watches"], "impressions": ("user_id",)},
        {"impressions": (ExtraColumn("mood", "categorical", "moods"),)},
        ("long_view",),
    )
    again = EventSchema.from_json(schema.to_json())
    assert again.arrow("impressions") == pa.schema(
        [
            ("user_id", pa.string()),
            ("mood", pa.string()),
            ("labels.long_view", pa.bool_()),
        ]
    )
    assert again.extras_of("impressions") == schema.extras_of("impressions")
    assert not again.has("searches")
    assert again.has("watches", "completed")
    assert not again.has("watches", "undated")
