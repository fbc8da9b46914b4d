"""Well-known models: their dimensions come to the published number of weights, and their names are enough."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from csgmv import bench, cli, known_models, layer_options
from csgmv.models import QWEN3_EMBEDDING_0_6B, layer_shapes

MODELS = known_models.models()


def norms_and_biases(kind: str, hidden: int, head_dim: int, qkv: int) -> int:
    """Weights of one decoder layer beside its projections, as transformers builds it: norms, biases of q, k and v."""
    more = {"qwen2": qkv, "qwen3": 2 * head_dim, "gemma2": 2 * hidden}
    return 2 * hidden + more.get(kind, 0)


@pytest.mark.parametrize("name", MODELS)
def test_the_dimensions_come_to_the_published_number_of_weights(name: str) -> None:
    """By the layers that are read, every weight counted: a wrong dimension, depth or vocabulary would show."""
    config = known_models.config(name)
    layers = {layer.name: layer for layer in layer_shapes(name)}
    four = [layers[part] for part in ("qkv", "o", "gate_up", "down")]
    linear = sum(layer.input_dim * sum(layer.slice_widths) for layer in four)
    head_dim = layers["o"].input_dim // config.num_attention_heads
    rest = norms_and_biases(config.model_type, config.hidden_size, head_dim, sum(layers["qkv"].slice_widths))
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    total = config.num_hidden_layers * (linear + rest) + config.hidden_size + embeddings
    assert total == MODELS[name]["parameters"]


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same_layers(name: str, tmp_path: Path) -> None:
    """From a config.json of these fields: in a folder or by its own path, over several GPUs too."""
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(MODELS[name]["config"]))
    assert layer_shapes(tmp_path) == layer_shapes(str(tmp_path / "config.json")) == layer_shapes(name)
    assert layer_shapes(tmp_path, tp=4) == layer_shapes(name, tp=4)


def test_every_model_names_its_source() -> None:
    """The config.json of its repository."""
    for name, model in MODELS.items():
        assert model["source"] == f"https://huggingface.co/{name}/blob/main/config.json"
        assert model.keys() <= {"source", "parameters", "also", "config"}


def test_no_two_models_share_a_name() -> None:
    """With or without the owner."""
    names = [other for name, model in MODELS.items() for other in (name, *model.get("also", ()))]
    assert len({name.lower().rpartition("/")[2] for name in names}) == len(names)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-Embedding-0.6B", "qwen3-embedding-0.6b", "QWEN/qwen3-embedding-0.6B"])
def test_a_name_is_enough_without_transformers_or_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any case, with or without the owner."""
    forbid_transformers(monkeypatch)
    assert tuple(layer_shapes(name)) == QWEN3_EMBEDDING_0_6B


@pytest.mark.parametrize(
    ("argv", "layers"),
    [
        (["bench", "--rank", "64"], bench.layers),
        (["tune", "--rank", "64"], layer_options.layers),
        (["coverage"], layer_options.layers),
        (["warmup", "--rank", "64", "--max-tokens", "8", "--max-loras", "2"], layer_options.layers),
    ],
)
def test_every_command_takes_the_name(argv: list[str], layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it takes a model."""
    args = cli.parser().parse_args([*argv, "--model", "qwen3-embedding-0.6b"])
    forbid_transformers(monkeypatch)
    assert tuple(layers(args)) == QWEN3_EMBEDDING_0_6B


def test_models_of_the_same_dimensions_are_known_too() -> None:
    """Under the name of what they were tuned from."""
    assert layer_shapes("meta-llama/Llama-3.1-8B-Instruct") == layer_shapes("llama-3.1-8b")


def test_a_folder_comes_before_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with transformers: who has a folder of this name means that."""
    pytest.importorskip("transformers")
    config = {**MODELS["Qwen/Qwen3-8B"]["config"], "intermediate_size": 4096}
    (tmp_path / "qwen3-8b").mkdir()
    (tmp_path / "qwen3-8b" / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    assert layer_shapes("qwen3-8b")[-1].input_dim == 4096


def forbid_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *more: object) -> object:
        if name.partition(".")[0] == "transformers":
            raise ImportError("no transformers here")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", importing)


def test_an_unknown_name_is_told_what_is_near_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Whether transformers is missing or finds nothing; the command line says it in one line."""
    transformers = pytest.importorskip("transformers")

    def missing(name: str, **_: object) -> None:
        raise OSError(f"{name} is not a local folder")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", missing)
    with pytest.raises(OSError, match=r"finds no config of Qwen/Qwen3-9B; .* Qwen/Qwen3-8B, .*: .* not a local folder"):
        layer_shapes("Qwen/Qwen3-9B")
    with pytest.raises(OSError, match=r"known by name are Qwen/Qwen3-0\.6B, .*microsoft/Phi-3"):
        layer_shapes("xyzzy")  # near nothing: all of them
    assert cli.main(["coverage", "--model", "lama-3.1-8b", "--gpu", "H200"]) == cli.USER_ERROR
    assert capsys.readouterr().err.endswith("got lama-3.1-8b; did you mean meta-llama/Llama-3.1-8B?\n")
    forbid_transformers(monkeypatch)
    with pytest.raises(ImportError, match=r"needs transformers.* Qwen/Qwen3-8B"):
        layer_shapes("Qwen/Qwen3-9B")
