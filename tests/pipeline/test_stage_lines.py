from pipeline.stage_lines import stage_lines


def test_counters_of_one_part_stand_together() -> None:
    counts = {
        "after_test_watches": 2,
        "searches_over_user_cap": 0,
        "train_examples": 281_146,
        "train_labels_out_of_vocabulary": 0,
        "train_requests": 281_146,
        "train_users": 15_973,
        "valid_labels_out_of_vocabulary": 519,
    }
    assert stage_lines("retrieval_examples", 8.21, counts) == [
        "retrieval_examples: 8.2 s; after test: 2 watches; train: 281,146 "
        "examples, 15,973 users; valid: 519 labels out of vocabulary"
    ]


def test_terms_and_what_has_no_group() -> None:
    counts = {"channel_terms": 800, "requests_analyzed": 7, "video_terms": 9139}
    assert stage_lines("vocabularies", 4, counts) == [
        "vocabularies: 4.0 s; terms: channel 800, video 9,139; "
        "requests analyzed 7"
    ]
    assert stage_lines("export", 1, {}) == ["export: 1.0 s"]


def test_what_was_left_out_has_a_line_of_its_own() -> None:
    counts = {
        "watches.bad": 4,
        "watches.bad.user_id is missing": 1,
        "watches.bad.watch_time_s is NaN": 3,
        "watches.duplicates": 2,
        "watches.good": 94,
        "watches.read": 100,
        "watches_capped_users": 3,
        "watches_over_user_cap": 12_345,
    }
    assert stage_lines("events", 0.5, counts) == [
        "events: 0.5 s; watches: 4 bad, 2 duplicates, 94 good",
        "events: 1 row of watches in the dead letters: user_id is missing",
        "events: 3 rows of watches in the dead letters: watch_time_s is NaN",
        "events: 3 users with more watches than beam.max_events_per_user; "
        "the oldest beyond it, 12,345, were left out",
    ]
