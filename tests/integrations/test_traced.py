"""torch.compile takes a wrapped model as one graph, which batches and adapters to come do not change."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from csgmv.integrations.transformers import MultiLoRA
from serving_toys import DEVICE, Attention, expected, save, three


def inputs(rows: int, tokens: int) -> torch.Tensor:
    return torch.randn(rows, tokens, 32, generator=torch.Generator().manual_seed(rows)).to(DEVICE)


class Counter:
    """A backend of `torch.compile` that runs graphs as they are, and notes their operators."""

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []

    def compile(self, graph: torch.fx.GraphModule, _: object) -> object:
        """The graph itself."""
        self.graphs.append([node.target.name() for node in graph.graph.nodes if "csgmv" in str(node.target)])
        return graph.forward


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_same_as_eager(tmp_path: Path, backend: str) -> None:
    """Functionalised or not, with adapters and without."""
    folders, model, x = three(tmp_path), Attention(), inputs(3, 2)
    torch._dynamo.reset()
    with MultiLoRA(model, folders) as many:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for names in (["qv", None, "all"], [None] * 3):
            with many.use(names):
                torch.testing.assert_close(compiled(x), expected(folders, names, x), rtol=1e-5, atol=1e-5)


def test_one_graph_for_all_batches(tmp_path: Path) -> None:
    """Other names, rows, tokens and adapters compile nothing: one graph with adapters, one without. q, k, v share."""
    folders, model = three(tmp_path), Attention()
    torch._dynamo.reset()
    counter = Counter()
    with MultiLoRA(model, folders, max_loras=4) as many:
        compiled = torch.compile(model, backend=counter.compile, fullgraph=True, dynamic=True)
        for rows, tokens, names in ((2, 3, ["all", "o"]), (3, 2, ["o", None, "qv"]), (4, 5, ["qv", "all"])):
            x = inputs(rows, tokens)
            with many.use(names):
                each = [name for name in names for _ in range(rows // len(names))]
                torch.testing.assert_close(compiled(x), expected(folders, each, x), rtol=1e-5, atol=1e-5)
        folders["new"] = save(tmp_path / "new", 7, 1.5, ["k_proj", "o_proj"])
        many.add("new", folders["new"])
        with many.use(["new", "qv"]):
            torch.testing.assert_close(
                compiled(x := inputs(2, 4)), expected(folders, ["new", "qv"], x), rtol=1e-5, atol=1e-5
            )
        with_adapters = ["csgmv::served_add"] * 2
        assert counter.graphs == [with_adapters]
        compiled(x)
        compiled(inputs(5, 2))
        assert counter.graphs == [with_adapters, []]
    assert all(shared._traced is None for shared in many._serving.inputs)


def test_layers_that_read_different_tensors_compute_nothing_in_vain() -> None:
    """Cross-attention by its name: as many products in the graph as without adapters, and nothing is kept."""

    class Cross(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder_attn = Attention()

        def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            attn = self.encoder_attn
            return torch.cat([attn.q_proj(x), attn.k_proj(other), attn.v_proj(other)], -1)

    model, x, other = Cross(), inputs(2, 2), inputs(2, 2) + 1
    torch._dynamo.reset()
    products: list[int] = []

    def counted(graph: torch.fx.GraphModule, _: object) -> object:
        products.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    with MultiLoRA(model, {}, target_modules=["q_proj", "k_proj", "v_proj"]) as many, many.use(many.static(2, 2)):
        torch.compile(model, backend=counted, fullgraph=True)(x, other)
        assert all(shared._traced is None for shared in many._serving.inputs)
    assert products == [3]


def test_a_layer_that_is_wrapped_later_is_compiled_again(tmp_path: Path) -> None:
    """A graph that was compiled before knows nothing of it, and is not used."""
    folders, model, x = three(tmp_path), Attention(), inputs(2, 2)
    torch._dynamo.reset()
    with MultiLoRA(model, {"o": folders["o"]}, max_loras=2) as many:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        with many.use(["o", None]):
            compiled(x)
        many.add("qv", folders["qv"])
        with many.use(["o", "qv"]):
            torch.testing.assert_close(compiled(x), expected(folders, ["o", "qv"], x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled(x), Attention()(x))


def test_a_graph_outside_of_a_batch_says_so(tmp_path: Path) -> None:
    """An operator that finds nothing to serve does not guess."""
    model, x = Attention(), inputs(1, 1)
    with MultiLoRA(model, three(tmp_path)) as many:
        number = many._serving.number
        for serving in (number, number + 1000):
            with pytest.raises(RuntimeError, match=r"compiled within MultiLoRA\.use runs outside of it"):
                torch.ops.csgmv.served_add([copy.copy(x)], x, serving, "", 0, None)
        with many.use(["all"]), pytest.raises(RuntimeError, match="or for another batch"):
            torch.ops.csgmv.served_add([copy.copy(x)], x, number, "static 1000", 0, None)


def test_a_graph_for_each_static_batch(tmp_path: Path) -> None:
    """Inductor may capture it with that batch's buffers; refilling these compiles nothing."""
    folders, model, x = three(tmp_path), Attention(), inputs(2, 2)
    torch._dynamo.reset()
    counter = Counter()
    with MultiLoRA(model, folders) as many:
        compiled = torch.compile(model, backend=counter.compile, fullgraph=True)
        first, second = many.static(2, 2), many.static(2, 2)
        for count, batch, names in ((1, first, ["all", "o"]), (2, second, ["o", "qv"]), (2, first, ["qv", None])):
            batch.update(names)
            with many.use(batch):
                torch.testing.assert_close(compiled(x), expected(folders, names, x), rtol=1e-5, atol=1e-5)
            assert len(counter.graphs) == count
