"""Reading event files: pieces, columns, and what a bad file says."""

from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.events import ReadEvents, read_tables
from beam_jobs.runners import count, pipeline_options, run_pipeline
from schemas.errors import InputError

COLUMNS = pa.schema([("query", pa.string()), ("event_time_us", pa.int64())])


def _count(rows: pa.Table) -> None:
    count("batches", 1)
    count("rows", rows.num_rows)
    count("sum", sum(rows.column("event_time_us").to_pylist()))


def _read(files: list[str]) -> dict[str, int]:
    with run_pipeline(pipeline_options()) as job:
        _ = job.pipeline | ReadEvents(files, COLUMNS) | beam.Map(_count)
    return job.counts


def _write(path: Path, times: list[int]) -> str:
    table = pa.table(
        {
            "extra": pa.array([0.0] * len(times)),
            "event_time_us": pa.array(times, pa.int64()),
            "query": pa.array(["q"] * len(times)),
        }
    )
    pq.write_table(table, path, row_group_size=2)
    return str(path)


def test_reads_row_groups_of_all_files(tmp_path: Path) -> None:
    files = [
        _write(tmp_path / "a.parquet", [1, 2, 3, 4, 5]),
        _write(tmp_path / "b.parquet", [10]),
        _write(tmp_path / "empty.parquet", []),
    ]
    # Row groups of two rows: 3 + 1 + 0 batches; 1+2+3+4+5+10 = 25.
    assert _read(files) == {"batches": 4, "rows": 6, "sum": 25}
    table = read_tables(files, COLUMNS)
    assert table.schema.equals(COLUMNS)
    assert sorted(table.column("event_time_us").to_pylist()) == [
        1, 2, 3, 4, 5, 10,
    ]  # fmt: skip


def test_no_file_is_no_row() -> None:
    assert _read([]) == {}
    assert read_tables([], COLUMNS).num_rows == 0


def test_missing_file_names_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "gone.parquet")
    with pytest.raises(InputError, match=r"gone\.parquet cannot be opened"):
        _read([path])


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_corrupt_file_names_its_path(tmp_path: Path, damage: str) -> None:
    good = Path(_write(tmp_path / "good.parquet", [1])).read_bytes()
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"nonsense" if damage == "text" else good[:-20])
    with pytest.raises(InputError) as caught:
        _read([str(bad)])
    assert str(bad) in str(caught.value)
    assert "no readable Parquet" in str(caught.value)
    assert "while running" not in str(caught.value)


def test_damaged_data_page_names_its_path(tmp_path: Path) -> None:
    path = Path(_write(tmp_path / "page.parquet", list(range(2))))
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56  # The first page; the footer stays whole.
    path.write_bytes(bytes(data))
    wanted = pa.schema([("extra", pa.float64())])
    with pytest.raises(InputError, match=r"page\.parquet is no readable"):
        read_tables([str(path)], wanted)


def test_wrong_type_and_missing_column(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.parquet", [1])
    with pytest.raises(InputError, match="has type int64, expected double"):
        read_tables([path], pa.schema([("event_time_us", pa.float64())]))
    with pytest.raises(InputError, match="lacks the column 'other'"):
        read_tables([path], pa.schema([("other", pa.string())]))
