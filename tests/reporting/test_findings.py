"""What a page tells of a key is what its record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from csgmv import rules, workload
from csgmv.reporting import findings
from csgmv.reporting.findings import Bandwidth, Finding
from fabricated import ADD_LORA, BETTER, EXPAND, document, finalist, put, record

TERABYTE = Bandwidth(1e12, "of the test")
# A shrink of 101 rows of 5 adapters, 1024 → 3·64: x, A and h in bfloat16.
MOVED = 2 * (101 * 1024 + 5 * 192 * 1024 + 101 * 192)


def read(folder: Path, *records: dict[str, Any], **options: Any) -> findings.Book:
    put(folder, "one.json", document(*records))
    return findings.read(folder, **options)


def finding(folder: Path, made: dict[str, Any]) -> Finding:
    return read(folder, made).chapters[0].findings[0]


def test_times_and_shares(tmp_path: Path) -> None:
    """A third saved is a speed-up of 1.5; the floor is bytes over bandwidth."""
    found = finding(tmp_path, record(30.0, 20.0))
    assert found.baked == tuple(BETTER)
    assert (found.served_us, found.speedup) == (20.0, 1.5)
    assert found.noise == pytest.approx(0.12 / 30)
    assert found.floor_us(TERABYTE) == pytest.approx(MOVED / 1e6)
    assert found.share(TERABYTE) == pytest.approx(MOVED / 1e6 / 20)
    assert found.winner is not None
    assert found.winner["registers"] == 96


def test_where_two_batches_decided_the_floor_is_their_mean(tmp_path: Path) -> None:
    """The geometric one, as that of times."""
    found = finding(tmp_path, record(tuned_on=2))
    sparse = 2 * (8 * 1024 + 8 * 192 * 1024 + 8 * 192)
    assert found.floor_us(TERABYTE) == pytest.approx((MOVED * sparse) ** 0.5 / 1e6)


def test_a_default_that_is_kept_is_what_is_served(tmp_path: Path) -> None:
    """Its speed-up is 1, whatever the finalists took."""
    found = finding(tmp_path, record(30.0, 29.9))
    assert (found.baked, found.served_us, found.speedup) == (None, 30.0, 1.0)
    assert list(found.slower_batches()) == []


def test_a_default_that_does_not_run_is_no_reference(tmp_path: Path) -> None:
    """There is a time, but no speed-up and no noise."""
    found = finding(tmp_path, record(None, 20.0))
    assert (found.served_us, found.speedup, found.noise) == (20.0, None, None)


def test_batches_that_lose_by_more_than_the_noise(tmp_path: Path) -> None:
    """0.12 µs of noise: 0.1 µs more is none."""
    others = [[8, 8, 8, 10.0, 12.5], [9, 9, 9, 10.0, 10.1]]
    [(batch, ratio)] = finding(tmp_path, record(others=others)).slower_batches()
    assert (batch.tokens, ratio) == (8, 0.8)


@pytest.mark.parametrize(("op", "header"), [("shrink", {}), ("expand", EXPAND), ("add_lora", ADD_LORA)])
def test_bytes_are_those_that_bench_counts(op: str, header: dict[str, Any], tmp_path: Path) -> None:
    """On the very batch, whatever rows each adapter has."""
    made = document(**header)
    row = (
        [*BETTER, *[64, 64, 64, 4, 4, 3, None, True], False] if op == "add_lora" else [64, 64, 64, 4, 4, 3, None, True]
    )
    if op != "shrink":
        made["records"] = [record(None, candidates=[], finalists=[finalist(row, 20.0)])]
    put(tmp_path, "one.json", made)
    [found] = findings.read(tmp_path).chapters[0].findings
    ids = workload.adapter_ids("zipf", 40, 5)
    work = workload.make(
        1024, (256, 64, 64), ids, [64] * 5, dtype=torch.bfloat16, chunk_size=16, device=torch.device("cpu")
    )
    assert found.moved_bytes(40, 5) == work.moved_bytes(op)


def test_without_a_bandwidth_the_fastest_launch_gives_it(tmp_path: Path) -> None:
    """Of all batches timed; and it says which one that was."""
    bandwidth = read(tmp_path).chapters[0].bandwidth
    assert bandwidth.bytes_per_s == pytest.approx(2 * (8 * 1024 + 8 * 192 * 1024 + 8 * 192) / 10e-6)
    assert "shrink 1024 → 3·64, bfloat16, chunk 16, 6-11 segments, 8 tokens" in bandwidth.source


def test_a_bandwidth_given_or_measured_counts(tmp_path: Path) -> None:
    """By option, or from a file that `csgmv bench --json` wrote on that GPU."""
    assert read(tmp_path, bandwidth=2e12).chapters[0].bandwidth.bytes_per_s == 2e12
    bench = put(tmp_path / "elsewhere", "bench.json", {"gpu": "NVIDIA H200", "copy_bandwidth": 4.1e12, "figures": []})
    found = findings.read(tmp_path / "one.json", bench=bench).chapters[0].bandwidth
    assert found.bytes_per_s == 4.1e12
    assert "bench.json" in found.source


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "no JSON", '{"gpu": "NVIDIA H200", "copy_bandwidth": "4"}', '{"gpu": "A", "copy_bandwidth": -1}'],
)
def test_a_malformed_bench_file_is_an_error(content: str, tmp_path: Path) -> None:
    """That says what was expected."""
    bench = tmp_path / "bench"
    bench.write_text(content)
    with pytest.raises(ValueError, match="--bench: expected what `csgmv bench --json` wrote"):
        findings.read(put(tmp_path, "one.json", document()), bench=bench)


def test_another_gpus_bandwidth_is_refused(tmp_path: Path) -> None:
    """By its name."""
    bench = tmp_path / "bench"
    bench.write_text(json.dumps({"gpu": "NVIDIA A100", "copy_bandwidth": 1.6e12}))
    with pytest.raises(ValueError, match="--bench: expected figures of NVIDIA H200, got those of 'NVIDIA A100'"):
        findings.read(put(tmp_path, "one.json", document()), bench=bench)


def test_gpus_are_chapters_and_can_be_chosen(tmp_path: Path) -> None:
    """By a part of the name; a bandwidth is one GPU's."""
    put(tmp_path, "one.json", document())
    put(tmp_path, "other.json", document(gpu="NVIDIA A100"))
    assert [chapter.gpu for chapter in findings.read(tmp_path).chapters] == ["NVIDIA A100", "NVIDIA H200"]
    assert [chapter.gpu for chapter in findings.read(tmp_path, "h2").chapters] == ["NVIDIA H200"]
    with pytest.raises(ValueError, match="--gpu: expected part of the name of one of NVIDIA A100, NVIDIA H200, got"):
        findings.read(tmp_path, "B200")
    with pytest.raises(ValueError, match="--bandwidth: expected results of one GPU, got those of NVIDIA A100, NVIDIA"):
        findings.read(tmp_path, bandwidth=1e12)


def test_of_two_records_of_a_key_the_one_that_a_build_takes_counts(tmp_path: Path) -> None:
    """The larger gain, with its own record and run."""
    put(tmp_path, "a.json", document(record(30.0, 25.0, pruned={"of the loser": 1})))
    put(tmp_path, "b.json", document(record(30.0, 20.0, pruned={"of the winner": 1})))
    book = findings.read(tmp_path)
    [found] = book.chapters[0].findings
    assert (found.speedup, found.record["pruned"], book.lost) == (1.5, {"of the winner": 1}, 1)


def test_layers_name_the_dtype_only_where_there_are_several(tmp_path: Path) -> None:
    """Their dimensions and rank always."""
    put(tmp_path, "one.json", document())
    assert list(findings.read(tmp_path).chapters[0].layers("shrink")) == ["1024 → 3·64"]
    put(tmp_path, "half.json", document(dtype="float16"))
    chapter = findings.read(tmp_path).chapters[0]
    assert list(chapter.layers("shrink")) == ["1024 → 3·64 bfloat16", "1024 → 3·64 float16"]
    assert chapter.ops == ["shrink"]


def test_a_key_for_people() -> None:
    """With the numbers of segments that share it."""
    key = rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 1)
    assert findings.key_text(key) == "shrink 1024 → 3·64, bfloat16, chunk 16, 1 segment"
    assert findings.key_text(key._replace(segment_bucket=8)).endswith("chunk 16, 6-11 segments")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    """That names it."""
    with pytest.raises(ValueError, match=f"{tmp_path}: expected raw results, got none"):
        findings.read(tmp_path)
