"""The settings: the committed example, and where each default comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from still_ray.config.distill import DistillConfig, load_distill_config
from still_ray.config.loading import dump_recipe
from still_ray.types import InputError

EXAMPLE = Path(__file__).resolve().parents[2] / "jobs" / "distill.yaml"


def test_the_example_lists_every_setting_with_its_default() -> None:
    assert list(yaml.safe_load(EXAMPLE.read_text())) == list(DistillConfig.model_fields)
    assert load_distill_config(EXAMPLE) == DistillConfig()


def test_every_setting_says_what_it_is_and_where_its_default_comes_from() -> None:
    for name, field in DistillConfig.model_fields.items():
        assert "Source: " in (field.description or ""), name


def test_a_prompt_is_taken_from_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "distill.yaml").write_text("prompt: ask.txt\n")
    monkeypatch.chdir(tmp_path)
    path = Path("settings/distill.yaml")
    assert load_distill_config(path).prompt == str(tmp_path / "settings" / "ask.txt")
    assert load_distill_config(path, ["prompt=ask.txt"]).prompt == str(tmp_path / "ask.txt")
    assert load_distill_config(path, ["prompt=builtin:markers"]).prompt == "builtin:markers"


def test_resolved_settings_read_back_as_the_same(tmp_path: Path) -> None:
    config = load_distill_config(None, ["temperature=null", "extra_body={a: {b: [1, 1e-5]}}", "prompt=/x/ask.txt"])
    (tmp_path / "distill.yaml").write_text(dump_recipe(config, {"model": "m"}))
    assert load_distill_config(tmp_path / "distill.yaml") == config


def test_a_key_of_a_request_that_has_a_setting_is_refused_in_the_extra_body() -> None:
    with pytest.raises(InputError, match="extra_body may not hold max_completion_tokens"):
        load_distill_config(None, ["extra_body={max_completion_tokens: 5}"])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *((text, "must hold JSON values only") for text in ("2024-01-01", ".nan", "[.inf]", "{1: 2}", "!!binary aGk=")),
        ("!!set {b, c}", "must hold JSON values only"),
        (r'"\ud800"', "holds half of a surrogate pair"),
        ("&loop [*loop]", "is nested more than 100 levels deep"),
    ],
)
def test_what_json_cannot_say_is_refused_in_the_extra_body(value: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"extra_body.* {reason}"):
        load_distill_config(None, [f"extra_body={{a: {value}}}"])


def test_half_a_character_is_refused_in_the_system_prompt() -> None:
    with pytest.raises(InputError, match=r"system_prompt.* holds half of a surrogate pair"):
        load_distill_config(None, [r'system_prompt="\ud800"'])
