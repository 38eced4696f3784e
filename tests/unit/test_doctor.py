"""What is doubtful about a corpus, in sentences that are true."""

from dataclasses import replace

from gpt2.corpus.doctor import Part, Report, Stats, examine

PART = Part(documents=100, characters=90_000, text_bytes=90_000, tokens=30_000)
STATS = Stats(200, 0, 0, "whole documents", "bpe:512", 512, 0.0, {}, {}, PART, PART)
REPORT = Report(STATS, 64, 200_000, 400, 400, 100, 8)


def test_nothing_is_said_of_what_is_sound() -> None:
    assert examine(REPORT) == ()


def test_repeats_are_counted_as_repeats() -> None:
    (said,) = examine(replace(REPORT, stats=replace(STATS, duplicates=50)))
    assert "50 of 200 documents repeat an earlier one" in said


def test_documents_of_a_few_tokens_judge_nothing() -> None:
    (said,) = examine(replace(REPORT, stats=replace(STATS, validation=replace(PART, documents=6000))))
    assert "5 tokens on average" in said


def test_the_smallest_preset_is_named_only_to_whom_it_helps() -> None:
    few = replace(STATS, train=replace(PART, tokens=100))
    (large,) = examine(replace(REPORT, stats=few))
    (small,) = examine(replace(REPORT, stats=few, parameters=113_000))
    assert "--model.preset gpt2-nano" in large
    assert "preset" not in small and "--model.n-layer" in small
