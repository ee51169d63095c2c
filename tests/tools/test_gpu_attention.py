"""Attention of packed rows: what the script for GPUs measures runs on a CPU, and is right there."""

import json
import sys

import pytest
import torch

from ..conftest import ROOT, dry_rows, load_tool

# what needs a GPU: the flash kernel, and jagged tensors that are causal
ELSEWHERE = {("varlen", "gpt"), ("varlen", "bert"), ("nested", "gpt")}


@pytest.mark.slow
def test_all_rows_of_a_dry_run_are_right(tmp_path):
    rows = dry_rows(tmp_path, "attention")
    own = (tmp_path / "attention.jsonl").read_text().splitlines()
    assert rows == [json.loads(line) for line in own]
    failed = {(row["contender"], row["model"]) for row in rows if "error" in row}
    assert failed <= ELSEWHERE, rows
    right = {
        (r["contender"], r["model"]) for r in rows if r.get("apart", 1) <= (r.get("most") or 0)
    }
    assert right >= {("flex", "gpt"), ("flex", "bert"), ("flex", "t5"), ("nested", "bert")}
    assert all(row["forward_ms"] > 0 for row in rows if "error" not in row)
    assert all(0 < row["seen"] < 1 for row in rows)


def attended(q, k, v, edges, longest, *, causal):
    """A sequence at a time."""
    assert int(edges.diff().max()) == longest
    found = []
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        parts = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=causal)
        found.append(out.transpose(0, 1))
    return torch.cat(found)


def by_flag(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False):
    """As torch 2.10 has it."""
    return attended(q, k, v, cu_q, max_q, causal=is_causal)


def by_window(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
    """As torch has it since."""
    return attended(q, k, v, cu_q, max_q, causal=window_size == (-1, 0))


@pytest.mark.parametrize("kernel", [by_flag, by_window])
@pytest.mark.parametrize("model", ["gpt", "bert"])
def test_sequences_of_varlen_are_the_documents(kernel, model, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.syspath_prepend(ROOT / "tools" / "bench")  # its contenders import each other
    tool = load_tool("gpu_attention")
    packed = tool.packed_rows(model, 64, 20, tool.DRY(torch.device("cpu")))
    packed.documents_BL[:, -3:] = -1  # padding
    want = tool.outcome(tool.sdpa(packed), packed, torch.float32)
    found = tool.outcome(tool.CONTENDERS["varlen"](packed), packed, torch.float32)
    assert tool.apart(found, want) < 1e-5


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    tool = load_tool("gpu_attention")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_attention.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no CUDA device; to see that it runs: --device cpu --dry"):
        tool.main()


def test_what_takes_too_long_is_told(monkeypatch):
    tool = load_tool("gpu_attention")
    monkeypatch.setattr(tool.time, "monotonic", lambda: 1.0)
    rows = list(tool.case("bert", 32, 20, tool.DRY(torch.device("cpu")), 0.0))
    assert [row["contender"] for row in rows] == list(tool.CONTENDERS)
    assert all(row["error"] == "TimeoutError: no time left; set --seconds" for row in rows)
