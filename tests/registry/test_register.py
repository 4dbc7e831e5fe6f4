"""Registering an SAE: every parameter is a field, and paths start at the registering file."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from sae_bench.errors import UsageError
from sae_bench.registry import register
from sae_bench.registry.register import register_sae
from sae_bench.registry.registry import Registry
from sae_bench.registry.spec import SAESpec

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "SAES", Registry("SAE"))


def test_every_parameter_is_a_field_and_every_other_field_is_set_by_the_suite() -> None:
    parameters = set(inspect.signature(register_sae).parameters)
    names = {field.name for field in fields(SAESpec)}
    assert parameters <= names
    assert names - parameters == {"origin", "baseline_id", "command_options", "control"}


def test_values_are_converted_and_paths_start_at_the_registering_file() -> None:
    spec = register_sae(
        "a",
        path=Path("weights"),
        model="gpt2",
        corpus=Path(__file__).name,
        tags=["x"],
        family=["lab/b", Path("wide")],
        limits=["kl_gap.kl_sae:max:1"],
        model_kwargs={"fold_ln": True},
    )
    assert spec.path == str(HERE / "weights")
    assert spec.model == "gpt2", "a hub name stays as it is"
    assert spec.corpus == __file__
    assert spec.family == ("lab/b", str(HERE / "wide"))
    assert (spec.tags, spec.limits) == (("x",), ("kl_gap.kl_sae:max:1",))
    assert (spec.model_kwargs, spec.known_failures) == ({"fold_ln": True}, {})
    assert spec.origin.startswith(f"{__file__}:")
    assert register.SAES["a"] is spec


def test_one_path_in_place_of_a_list_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"family='lab/b' must be a list of ids or paths, such as \['lab/b'\]"):
        register_sae("a", path="x", family="lab/b")
