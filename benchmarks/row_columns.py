"""Names of what `transform_rows.py` writes.

Apart, because the polars script must not pay for importing Beam.
"""

ROWS_FILE = "rows.parquet"
INPUT_COLUMNS = (
    "candidate_score",
    "video_lagged_impressions",
    "video_lagged_click_rate",
    "video_lagged_watch_time_s",
    "channel_lagged_impressions",
    "channel_lagged_click_rate",
    "channel_lagged_watch_time_s",
)
# The last two are made from the videos table.
COLUMNS = (*INPUT_COLUMNS, "duration_s", "video_age_days")
# A request shows no more videos, see `SimulatorConfig`.
MAX_CANDIDATES = 10
# Of the normalisation, on both sides.
NUM_QUANTILES = 200
