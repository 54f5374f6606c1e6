"""Requests put together from the events alone, one at a time.

As a front end would: what was before, newest first. Nothing is shared with
the jobs that make the training examples.
"""

from collections import defaultdict
from itertools import chain

import numpy as np

from models.serving_requests import ranking_inputs

MODELS = ("retrieval", "ranking", "recommender")
# Rows that are compared; what the first stage finds and the second returns.
ROWS, CANDIDATES, TOP_K = 1000, 12, 5
DAY_US, OFFSET_US = 86_400_000_000, 19_800_000_000
PREFIXES = ("watch_history_", "impression_history_", "search_", "candidate_")


class FrontEnd:
    """Has the events as rows, and builds requests by their definition."""

    def __init__(self, tables, inputs):
        self.inputs = inputs
        self.rows = {n: by_user(t) for n, t in tables.items() if n != "videos"}
        videos = tables["videos"]
        self.channels = dict(
            zip(
                videos["video_id"].to_pylist(),
                videos["channel_id"].to_pylist(),
                strict=True,
            )
        )
        named = defaultdict(list)
        for row in tables["impressions"].to_pylist():
            named[row["request_id"]].append(row)
        # (user, time) -> impressions in their order on the screen.
        self.shown = {}
        for rows in named.values():
            key = rows[0]["user_id"], min(r["event_time_us"] for r in rows)
            assert key not in self.shown
            rows.sort(key=lambda r: (r["position"], r["video_id"]))
            self.shown[key] = rows
        self.totals = {}

    def request(self, user_id, time_us, shown=()):
        """name -> value, or list of as many values as there are."""
        user = self.rows["users"][user_id][0]
        once = {f"user_{n}": v for n, v in user.items()}
        once["request_time_us"] = time_us
        if shown:
            once |= {n: shown[0][n] for n in ("surface", "query_video_id")}
        lists = {
            "watch": self._newest("watches", user_id, time_us),
            "search": self._newest("searches", user_id, time_us),
            "impression": self._newest("impressions", user_id, time_us),
            "candidate": [r | self._lagged(r, time_us) for r in shown],
        }
        return {
            i.name: cell(once[i.name], i)
            if i.axis == "request"
            else [cell(value_of(i.name, row), i) for row in lists[i.axis]]
            for i in self.inputs
            if shown or not i.ranking_only
        }

    def _newest(self, table, user_id, time_us):
        """What the user did before, newest first."""
        name = "query" if table == "searches" else "video_id"
        rows = [
            row | known_of_its_end(row, time_us)
            for row in self.rows[table][user_id]
            if row["event_time_us"] < time_us
        ]
        rows.sort(key=lambda r: (r["event_time_us"], r[name]), reverse=True)
        return rows

    def _lagged(self, row, time_us):
        """Sums over everybody's impressions up to midnight."""
        midnight_us = (time_us + OFFSET_US) // DAY_US * DAY_US - OFFSET_US
        if midnight_us not in self.totals:
            self.totals[midnight_us] = self._totals(midnight_us)
        keys = {
            "video": row["video_id"],
            "channel": self.channels[row["video_id"]],
        }
        lagged = {}
        for group, key in keys.items():
            shown, clicked, watched_us = self.totals[midnight_us][group, key]
            rates = [None, None]
            if shown:
                rates = [clicked / shown, watched_us / 1e6 / shown]
            lagged[f"{group}_lagged_impressions"] = shown
            lagged[f"{group}_lagged_click_rate"] = rates[0]
            lagged[f"{group}_lagged_watch_time_s"] = rates[1]
        return lagged

    def _totals(self, before_us):
        totals = defaultdict(lambda: [0, 0, 0])
        for row in chain(*self.rows["impressions"].values()):
            if row["event_time_us"] >= before_us:
                continue
            video = row["video_id"]
            # Whole microseconds: the level of a value jumps where many rows
            # have it, and a sum of floats could come to lie just beside.
            spent_us = round(row["watch_time_s"] * 1e6)
            if row["event_time_us"] + spent_us > before_us:
                spent_us = 0  # Nobody knew of it at midnight.
            counted = 1, row["clicked"], spent_us
            for key in ("video", video), ("channel", self.channels[video]):
                for place, value in enumerate(counted):
                    totals[key][place] += value
        return totals


def by_user(table):
    rows = defaultdict(list)
    for row in table.to_pylist():
        rows[row["user_id"]].append(row)
    return rows


def known_of_its_end(row, time_us):
    """None until the time has been spent."""
    spent_s = row.get("watch_time_s")
    end_us = row["event_time_us"] + round((spent_s or 0.0) * 1e6)
    values = {"watch_time_s": spent_s, "completed": row.get("completed")}
    return values if end_us <= time_us else dict.fromkeys(values)


def value_of(name, row):
    names = (name, *(name.removeprefix(p) for p in PREFIXES))
    return next(row[n] for n in names if n in row)


def cell(value, raw):
    if value is None:
        return raw.absent
    if isinstance(value, bool) and raw.dtype == "float32":
        return float(value)
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return value.encode() if isinstance(value, str) else value


def full_lists(request, inputs):
    """name -> [1, ...], lists cut or filled up to the graph's lengths."""
    arrays = {}
    for i in inputs:
        array = np.full((1, *i.shape), i.absent, i.numpy_dtype)
        if i.axis == "request":
            array[0] = request[i.name]
        else:
            values = request[i.name][: i.length]
            array[0, : len(values)] = values
        arrays[i.name] = array
    return arrays


def inputs_of(platform, model):
    """What a client sends to a model."""
    if model == "retrieval":
        return platform.retrieval_inputs
    inputs = ranking_inputs(platform.inputs)
    if model == "ranking":
        return inputs
    return [i for i in inputs if i.axis != "candidate"]
