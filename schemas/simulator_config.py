"""Settings of the simulated video platform, the default source of logs."""

from __future__ import annotations

import datetime

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SimulatorConfig(BaseModel):
    """Size and behaviour of the simulated platform.

    The defaults give about 1.1 million impressions and 0.5 million watches:
    20,000 users x 30 days x 0.19 requests x 10 impressions = 1.14 million.

    Raises:
      ValueError: a field is out of bounds or unknown, or there are fewer
        channels than topics, or fewer videos than channels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_users: int = Field(20_000, ge=20, description="Users.")
    num_videos: int = Field(
        10_000, ge=50, description="Videos uploaded before or within the log."
    )
    num_channels: int = Field(800, ge=5, description="Channels.")
    num_topics: int = Field(40, ge=5, description="Topics.")
    num_days: int = Field(30, ge=1, description="Days (UTC) the log covers.")
    start_date: datetime.date = Field(
        datetime.date(2024, 1, 1), description="First day (UTC) of the log."
    )
    requests_per_user_day: float = Field(
        0.19,
        gt=0.0,
        le=10.0,
        description="Mean recommendation requests of one user on one day.",
    )
    impressions_per_request: int = Field(
        10, ge=1, le=100, description="Most videos shown for one request."
    )
    organic_watches_per_request: float = Field(
        3.0,
        ge=0.0,
        le=20.0,
        description="Mean visits by search or from other sites per request.",
    )
    within_log_upload_share: float = Field(
        0.6,
        ge=0.0,
        le=1.0,
        description="Share of the videos that are uploaded within the log.",
    )
    viral_share: float = Field(
        0.02, ge=0.0, le=1.0, description="Share of videos that go viral."
    )
    clickbait_share: float = Field(
        0.08,
        ge=0.0,
        le=1.0,
        description="Share of videos that are clicked more, watched less.",
    )
    randomized_share: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="Share of requests whose positions are shuffled.",
    )
    autoplay_share: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="Share of the home requests that go to the autoplaying "
        "surface `shorts`, where unclicked videos play for some seconds.",
    )
    interest_drift_per_day: float = Field(
        0.03,
        ge=0.0,
        le=1.0,
        description="Share of users who swap one interest for another, a day.",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> SimulatorConfig:
        if not self.num_topics <= self.num_channels <= self.num_videos:
            raise ValueError(
                "Expected `num_topics` <= `num_channels` <= `num_videos`, "
                f"received {self.num_topics}, {self.num_channels}, "
                f"{self.num_videos}. Raise the number of videos or lower the "
                "number of channels or topics."
            )
        return self
