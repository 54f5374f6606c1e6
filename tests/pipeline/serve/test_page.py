"""The page in a headless browser, on a log with a title that is a script."""

import http.client
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.pipeline.serve.browser import Browser, chromium
from tests.pipeline.serve.conftest import FOUND, SOURCES
from tests.pipeline.serve.rest_client import call

NONE = "no chromium on the path (Debian's package `chromium`)"
RANKED = (
    "[...document.querySelectorAll('#ranked .title')].map(t => t.textContent)"
)
READY = (
    "(document.getElementById('state')?.textContent ?? '')"
    ".startsWith('answered')"
)


def recommend(server, **body):
    return call(server, "/api/recommend", body)


def test_a_user_of_the_log(server, made):
    watches = pq.read_table(next(made.glob("events/*/watches-*.parquet")))
    counts = watches.group_by("user_id").aggregate([("user_id", "count")])
    order = sorted(
        zip(*counts.to_pydict().values(), strict=True),
        key=lambda c: (-c[1], c[0]),
    )
    status, users = call(server, "/api/users?q=")
    assert status == 200
    assert [(u["user_id"], u["watches"]) for u in users] == order[:20]
    user = order[0][0]
    (found,) = call(server, f"/api/users?q={user}")[1]
    assert found["user_id"] == user
    status, answer = recommend(server, user_id=user)
    assert status == 200
    rows = watches.to_pylist()
    own = [r for r in rows if r["user_id"] == user]
    own.sort(key=lambda r: r["event_time_us"], reverse=True)
    watched = [v["video_id"] for v in answer["request"]["history"]]
    assert watched == [r["video_id"] for r in own[:6]]
    # Ranked by the number in the id; found in the order of `FOUND`.
    ids = [row["video_id"] for row in answer["ranked"]]
    assert ids == sorted(FOUND, reverse=True)
    for row in answer["ranked"]:
        number = int(row["video_id"][1:])
        assert row["score"] == number
        assert row["predictions"]["expected_watch_time_s"] == number
        place = FOUND.index(row["video_id"])
        assert row["source"]["name"] == SOURCES[place]
        # Among its own: co-watch has two, the tower the other three.
        assert row["source"]["rank"] == (1, 2, 1, 2, 3)[place]
    assert answer["versions"] == {"recommender": 1}


def test_a_typed_history(server, made):
    history = [FOUND[0], "unknown", FOUND[1]]
    _, answer = recommend(server, history=history, searches=["cats"])
    told = answer["request"]
    assert [v["video_id"] for v in told["history"]] == history
    assert told["searches"] == ["cats"]
    videos = pq.read_table(next(made.glob("events/*/videos-*.parquet")))
    lasts = dict(
        zip(
            videos["video_id"].to_pylist(),
            videos["duration_s"].to_pylist(),
            strict=True,
        )
    )
    seconds = [v["watch_time_s"] for v in told["history"]]
    assert seconds[0] == pytest.approx(lasts[FOUND[0]])
    assert seconds[1] is None
    # Three watches, no age: 30 and falling.
    scores = {r["video_id"]: r["source"]["score"] for r in answer["ranked"]}
    assert [scores[v] for v in FOUND] == [30.0, 29.0, 28.0, 27.0, 26.0]


def test_videos_are_found_by_every_word(server, made):
    table = pq.read_table(next(made.glob("events/*/videos-*.parquet")))
    both = {
        v: f"{title} {v}"
        for v, title in zip(
            table["video_id"].to_pylist(),
            table["title"].to_pylist(),
            strict=True,
        )
    }
    words = both["v000005"].split(">")[1].split()
    # The middle of one word in capitals, and the whole of another.
    asked = words[1][1:4].upper(), words[0]
    _, found = call(server, f"/api/videos?q={asked[0]}%20{asked[1]}")
    expected = {
        v for v, text in both.items() if all(a.lower() in text for a in asked)
    }
    assert 0 < len(expected) < 20
    assert {v["video_id"] for v in found} == expected
    watches = [v["watches"] for v in found]
    assert watches == sorted(watches, reverse=True)
    assert call(server, "/api/videos?q=nothing-like-it") == (200, [])


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"user_id": "nobody"}, 400, "no user 'nobody'"),
        ({"user_id": 3}, 400, "`user_id`"),
        ({"history": "v1"}, 400, "`history`"),
        ({"history": ["v"] * 1_000_000}, 400, "`history`"),
        ({"searches": ["x" * (10 << 20)]}, 400, "`searches.0`"),
        ({"nonsense": 1}, 400, "`nonsense`"),
        ([], 400, "a JSON object"),
    ],
)
def test_wrong_wishes(server, body, status, said):
    received, answer = call(server, "/api/recommend", body)
    assert received == status
    assert said in answer["error"]
    assert "\n" not in answer["error"]


def test_other_hosts_names_are_refused(server):
    """A site that points its name here reads nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port)
    connection.request("GET", "/api/users", headers={"Host": "example.org"})
    assert connection.getresponse().status == 400


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = chromium()
    if program is None:
        pytest.skip(NONE)
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.browser
def test_the_page_shows_candidates_and_the_ranked_list(browser, server):
    browser.look(1400, 1000)
    browser.open(f"http://127.0.0.1:{server.rest_port}/")
    browser.wait(READY)
    (user, *_) = call(server, "/api/users?q=")[1]
    _, answer = recommend(server, user_id=user["user_id"])
    shown = [row["title"] for row in answer["ranked"]]
    assert browser.run(RANKED) == shown
    text = browser.run("document.body.innerText")
    assert "not TensorFlow Serving" in text
    assert f"Ranked for {user['user_id']}" in text
    assert "query tower" in text
    # v000040: 40 seconds and clicked with 0.4.
    first = browser.run("document.querySelector('#ranked li').innerText")
    assert "40 s" in first and "clicked 40.0 %" in first
    assert browser.problems == []


@pytest.mark.browser
def test_a_history_is_typed(browser, server):
    browser.open(f"http://127.0.0.1:{server.rest_port}/")
    browser.wait(READY)
    browser.run("document.getElementById('by-history').click()")
    for video in FOUND[:2]:
        browser.run(
            "{const t = document.getElementById('video-text');"
            f"t.value = '{video}'; t.dispatchEvent(new Event('input'));}}"
        )
        button = f"document.querySelector('#videos [data-video={video}]')"
        browser.wait(
            f"{button} !== null && document.querySelectorAll("
            "'#videos button').length === 1"
        )
        browser.run(f"{button}.click()")
    browser.wait("document.querySelectorAll('#watched li').length === 2")
    browser.wait(READY)
    scores = "document.querySelector('.scored li').innerText"
    assert "20.00" in browser.run(scores)
    # The most recent first, and the address says it.
    told = browser.run("location.hash")
    assert told == f"#video={FOUND[1]}&video={FOUND[0]}&typed=1"
    browser.run("document.querySelector('#watched button').click()")
    browser.wait("document.querySelectorAll('#watched li').length === 1")
    browser.wait(f"{scores}.includes('10.00')")
    assert browser.problems == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_markup_in_titles_is_text_and_nothing_overflows(
    browser, server, tmp_path, width, dark
):
    browser.look(width, 1200, dark)
    browser.open(f"http://127.0.0.1:{server.rest_port}/")
    browser.wait(READY)
    assert all(t.startswith("<img src=x") for t in browser.run(RANKED))
    assert browser.run("document.images.length") == 0
    assert browser.run("document.documentElement.scrollWidth") <= width
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    channels = [int(c) for c in ground[4:-1].split(",")]
    assert (max(channels) < 60) == dark and (min(channels) > 200) != dark
    folder = Path(os.environ.get("WATCHNEXT_SCREENSHOTS", tmp_path))
    name = f"page-{width}-{'dark' if dark else 'light'}.png"
    browser.screenshot(folder / name)
    assert (folder / name).stat().st_size > 20_000
    assert browser.problems == []
