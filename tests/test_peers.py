"""bench_peers.py's JSON: what is refused, which times are compared, and what they add up to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import peer_runs
from csgmv import peers


def run(tmp_path: Path, content: object) -> peers.Run:
    return peers.read(peer_runs.put(tmp_path / "run.json", content))


def test_a_row_is_compared_with_its_fastest_peer(tmp_path: Path) -> None:
    """cuBLAS, the limit and the floor are no peers; what a wrong backend left out is not compared."""
    content = peer_runs.document()
    content["decode"][0]["csgmv"] = 5.0
    del content["decode"][0]["s523_sk"], content["decode"][1]["csgmv"]
    first, second, *_ = run(tmp_path, content).comparisons("decode")
    assert first.labels == ("1 × 1", "qkv")
    assert (first.best_peer, first.ahead, first.over_floor) == (15.8, 15.8 / 5.0, 5.0 / 0.4)
    assert (second.best_peer, second.ahead, second.over_floor) == (10.8, None, None)
    assert peers.Comparison((), {"floor": 1.0, "cublas": 1.0, "csgmv": 2.0}).ahead is None


def test_prefill_is_each_backend_at_its_best_single_chunk_size(tmp_path: Path) -> None:
    """The one with the least sum over all eight calls, not the best of each call."""
    content = peer_runs.document()
    for row in content["prefill"]:
        row["csgmv_s"], row["csgmv_e"] = {16: (30.0, 30.0), 32: (1.0, 50.0), 64: (20.0, 20.0), 128: (21.0, 20.0)}[
            row["chunk"]
        ]
        row["s511_s"], row["s511_e"] = row["chunk"], 2 * row["chunk"]
    measured = run(tmp_path, content)
    assert measured.best_chunks() == {
        "floor": 16, "limit": 16, "cublas": 16, "s511": 16, "s523": 128, "vllm": 16, "csgmv": 64
    }  # fmt: skip
    calls = measured.comparisons("prefill")
    assert [call.labels for call in calls[:5]] == [
        *((layer, "shrink") for layer in ("qkv", "o", "gate_up", "down")),
        ("qkv", "expand"),
    ]
    assert [(call.us["csgmv"], call.us["s511"]) for call in calls] == [(20.0, 16)] * 4 + [(20.0, 32)] * 4


def test_sums_are_over_the_eight_calls(tmp_path: Path) -> None:
    """At the best single chunk size and at 16; with add_lora the peers' are what they were, and there is no floor."""
    content = peer_runs.document()
    for row in content["prefill"]:
        row |= {"csgmv_s": 1.0 * row["chunk"], "csgmv_e": 2.0, "csgmv_pair": 256.0 / row["chunk"]}
    sums = {sum_.labels: sum_ for sum_ in run(tmp_path, content).prefill_sums()}
    both, small, joint, joint_small = sums.values()
    assert list(sums) == [
        (f"sum, {how}", size)
        for how in ("shrink + expand", "add_lora")
        for size in ("best chunk size", "chunk size 16")
    ]
    assert (both.us["csgmv"], small.us["csgmv"]) == (4 * 18.0, 4 * 18.0)
    assert (joint.us["csgmv"], joint_small.us["csgmv"]) == (4 * 2.0, 4 * 16.0)
    floor = sum(row["floor_s"] + row["floor_e"] for row in content["prefill"] if row["chunk"] == 64)
    assert both.us["floor"] == small.us["floor"] == pytest.approx(floor)
    assert both.us["s523"] == joint.us["s523"] < small.us["s523"] == joint_small.us["s523"]
    assert not {"floor", "limit", "cublas"} & joint.us.keys()


def test_a_wrong_call_leaves_its_chunk_size_out_of_the_sums(tmp_path: Path) -> None:
    """A sum of seven calls is no sum; a backend that has no chunk size left has none at all."""
    content = peer_runs.document()
    for row in content["prefill"]:
        if row["chunk"] in (16, 128) and row["layer"] == "o":
            del row["csgmv_s"], row["csgmv_e"], row["csgmv_pair"]
        if row["layer"] == "down":
            del row["vllm_s"], row["vllm_e"]
    measured = run(tmp_path, content)
    assert measured.best_chunks()["csgmv"] == 64
    assert "vllm" not in measured.best_chunks()
    assert [("csgmv" in sum_.us, "vllm" in sum_.us) for sum_ in measured.prefill_sums()] == [
        (True, False), (False, False), (True, False), (False, False)
    ]  # fmt: skip
    assert all("vllm" not in call.us for call in measured.comparisons("prefill"))


def test_host_is_shrink_expand_and_both(tmp_path: Path) -> None:
    """csgmv's one call is compared with a peer's two."""
    calls = run(tmp_path, peer_runs.document()).comparisons("host")
    assert [call.labels for call in calls] == [("shrink",), ("expand",), ("both",), ("both, add_lora",)]
    assert [call.us["csgmv"] for call in calls] == [9.5, 10.5, 20.0, 14.0]
    assert [call.us["s523"] for call in calls] == [21.0, 24.0, 45.0, 45.0]


def test_suites_may_be_missing(tmp_path: Path) -> None:
    """All but one, which need not be about kernels."""
    assert list(run(tmp_path, {"host": peer_runs.document()["host"]}).suites) == ["host"]
    assert list(run(tmp_path, peer_runs.whole_models()).suites) == ["e2e"]


def drop(content: dict[str, Any], suite: str, index: int, name: str) -> None:
    del content[suite][index][name]


@pytest.mark.parametrize(
    ("bend", "said"),
    [
        (lambda c: drop(c, "mixed", 1, "floor"), "$.mixed[1].floor: missing"),
        (lambda c: drop(c, "decode", 0, "tokens"), "$.decode[0].tokens: missing"),
        (lambda c: drop(c, "prefill", 2, "s511_e"), "$.prefill[2].s511_e: missing, though s511_s is there"),
        (lambda c: drop(c, "host", 0, "torch.empty"), "torch.empty"),
        (lambda c: c["decode"][3].update(csgmv="fast"), "$.decode[3].csgmv: expected a number above 0"),
        (lambda c: c["decode"][3].update(csgmv=0), "$.decode[3].csgmv: expected a number above 0"),
        (lambda c: c["decode"][3].update(s600=3.0), "$.decode[3].s600: unknown field"),
        (lambda c: c["mixed"][0].update(layer="a|b"), "$.mixed[0].layer: expected a layer's name"),
        (lambda c: c["mixed"][0].update(adapters=8.0), "$.mixed[0].adapters: expected an integer"),
        (lambda c: c["mixed"].append(c["mixed"][0]), "$.mixed[8]: the same launch as $.mixed[0]"),
        (lambda c: c["host"].append(c["host"][0]), "$.host[1]: the same launch as $.host[0]"),
        (lambda c: c["prefill"].pop(), "$.prefill: no row of layer down and chunk 128"),
        (lambda c: c.update(decode=[]), "$.decode: expected an array of 1 or more"),
        (lambda c: c.update(decode={}), "$.decode: expected an array of 1 or more"),
        (lambda c: c.update(figures=[]), "$.figures: unknown field"),
        (dict.clear, "$: expected one or more of prefill, mixed, decode, host, e2e, got none"),
    ],
)
def test_every_fault_is_told_with_its_place(bend: Any, said: str, tmp_path: Path) -> None:
    """File, JSON path, what was expected and what came."""
    content = peer_runs.document()
    bend(content)
    with pytest.raises(ValueError, match=r"run\.json: ") as caught:
        run(tmp_path, content)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", json.dumps({"decode": [[1]]}), '{"decode": [NaN]}', "[" * 100_000]
)
def test_what_is_no_such_file_is_refused(text: str, tmp_path: Path) -> None:
    """By a ValueError that names the file, whatever is in it."""
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.json: "):
        peers.read(path)
