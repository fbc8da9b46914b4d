"""An adapter's folder says its rank, its targets and its model; what is no plain LoRA is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from csgmv import layer_options, peft_adapter
from csgmv.models import LayerShape
from fabricated import LLAMA


def adapter(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    known = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "o_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(known))
    return folder


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    layer_options.add_arguments(parser.add_argument_group())
    return parser.parse_args(argv)


def model(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return str(folder)


def test_peft_writes_what_is_read(tmp_path: Path) -> None:
    """A config as PEFT itself saves it; the largest of the ranks counts."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=8, target_modules=["o_proj"], rank_pattern={"q_proj": 24}, base_model_name_or_path="some/model"
    )
    config.save_pretrained(tmp_path)
    assert peft_adapter.read(tmp_path) == ("some/model", 24, ["o_proj"])
    peft.LoraConfig(target_modules="all-linear").save_pretrained(tmp_path)
    assert peft_adapter.read(tmp_path) == ("", 8, "all-linear")


@pytest.mark.parametrize(
    ("written", "read"), [("All-Linear", "all-linear"), (["all-linear", "q_proj"], ["all-linear", "q_proj"])]
)
def test_the_word_for_all_layers_is_one_in_any_case_and_alone(written, read, tmp_path):
    """As PEFT takes it; among names it is a name that no module has."""
    content = {"peft_type": "LORA", "r": 8, "target_modules": written}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    assert peft_adapter.read(tmp_path).targets == read


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA, got 'IA3'"),
        ({"use_dora": True}, "expected plain LoRA, got use_dora = True"),
        ({"r": 0}, "expected r and rank_pattern to be positive integers, got 0"),
        ({"rank_pattern": {"q_proj": "8"}}, "expected r and rank_pattern to be positive integers, got '8'"),
        ({"target_modules": []}, r"expected target_modules to be names or a regular expression, got \[\]"),
        ({"target_modules": "(q_proj"}, r"expected target_modules to be names or a regular expression, got '\(q_proj'"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, config: dict[str, object], message: str) -> None:
    """The file and the field are named."""
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {message}"):
        peft_adapter.read(adapter(tmp_path, **config))


def test_what_is_no_adapters_folder_is_refused(tmp_path: Path) -> None:
    """Nor is a file that holds no JSON, or no object."""
    with pytest.raises(ValueError, match=r"expected a folder with an adapter_config\.json, got .*nowhere"):
        peft_adapter.read(tmp_path / "nowhere")
    for text, message in (("{", "expected JSON"), ("[]", r"expected an object, got \[\]")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            peft_adapter.read(tmp_path)


def test_options_take_layers_rank_and_model_from_adapters(tmp_path: Path) -> None:
    """Of several adapters the layers of any and the largest rank; --model goes before the adapter's own."""
    pytest.importorskip("transformers")
    base = model(tmp_path / "base")
    one = str(adapter(tmp_path / "one", base_model_name_or_path=base))
    two = str(
        adapter(tmp_path / "two", r=32, target_modules=["down_proj", "q_proj"], base_model_name_or_path="no/such")
    )
    args = parsed("--adapter", one)
    qkv, o, down = LayerShape("qkv", 96, (96, 32, 32)), LayerShape("o", 96, (96,)), LayerShape("down", 264, (96,))
    assert layer_options.layers(args) == [qkv, o]
    assert layer_options.rank(args) == 8
    args = parsed("--adapter", one, "--adapter", two, "--model", base)
    assert set(layer_options.layers(args)) == {qkv, o, down}
    assert layer_options.rank(args) == 32
    assert layer_options.rank(parsed("--adapter", one, "--rank", "64")) == 64


def test_options_say_what_is_missing(tmp_path: Path) -> None:
    """A model for an adapter that names none; a rank where no adapter has one, or where it is too small."""
    folder = str(adapter(tmp_path))
    with pytest.raises(ValueError, match=r"--adapter: expected --model too, since .* does not name its model"):
        layer_options.layers(parsed("--adapter", folder))
    with pytest.raises(
        ValueError, match=r"--rank: expected the adapters' rank, .* since there is no --adapter, got none"
    ):
        layer_options.rank(parsed("--layer", "o:96:96"))
    with pytest.raises(ValueError, match=r"--rank: expected at least 8, the rank of .*, got 4"):
        layer_options.rank(parsed("--adapter", folder, "--rank", "4"))
