"""Names of sites: TransformerLens' hooks, Hugging Face's modules, and the off-by-one between them."""

from __future__ import annotations

import pytest

from sae_bench.errors import UsageError
from sae_bench.registry.site import Site, parse_site


@pytest.mark.parametrize(
    ("name", "end", "site"),
    [
        ("blocks.8.hook_resid_pre", "output", "blocks.8.hook_resid_pre"),
        ("blocks.8.hook_resid_mid", "input", "blocks.8.hook_resid_mid"),
        ("blocks.3.attn.hook_z", "output", "blocks.3.attn.hook_z"),
        ("blocks.3.attn.hook_z[5]", "output", "blocks.3.attn.hook_z[5]"),
        ("blocks.3.ln2.hook_normalized", "output", "blocks.3.ln2.hook_normalized"),
        # A block's output is the residual behind it, its input the one before it.
        ("layers.10", "output", "blocks.10.hook_resid_post"),
        ("layers.10", "input", "blocks.10.hook_resid_pre"),
        ("model.layers.10.output", "input", "blocks.10.hook_resid_post"),
        ("gpt_neox.layers.10.input", "output", "blocks.10.hook_resid_pre"),
        ("transformer.h.10", "output", "blocks.10.hook_resid_post"),
        # hidden_states[0] is the embedding, which enters block 0.
        ("hidden_states[0]", "output", "blocks.0.hook_resid_pre"),
        ("hidden_states[10]", "output", "blocks.10.hook_resid_pre"),
        ("layers.3.mlp", "output", "blocks.3.mlp.hook_out"),
        ("layers.3.mlp", "input", "blocks.3.mlp.hook_in"),
        ("transformer.h.3.attn", "output", "blocks.3.attn.hook_out"),
        ("model.layers.3.self_attn.o_proj.input", "output", "blocks.3.attn.hook_z"),
        ("model.layers.3.pre_feedforward_layernorm.output", "output", "blocks.3.mlp.hook_in"),
        ("model.layers.3.post_feedforward_layernorm.output", "output", "blocks.3.hook_mlp_out"),
    ],
)
def test_what_a_name_means(name: str, end: str, site: str) -> None:
    found = parse_site(name, end)  # type: ignore[arg-type]
    assert str(found) == site
    assert parse_site(str(found)) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.8.hook_resid_prr", "did you mean 'blocks.8.hook_resid_pre'"),
        ("blocks.8.hook_mlp_in", "is ambiguous: give 'blocks.8.mlp.hook_in' for the input of the MLP after its norm"),
        ("blocks.8.hook_resid_pre[2]", "names a head, which only attn.hook_z has"),
        ("layers.8.something", "unknown site 'layers.8.something': a site is a hook name"),
        ("layers.8.self_attn.input", "unknown site"),
        ("layers", "unknown site"),
        ("", "unknown site ''"),
        ("blocks.99999999999999999999.hook_resid_pre", "unknown site"),
    ],
)
def test_what_is_no_site(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        parse_site(name)


def test_a_head_is_part_of_the_name() -> None:
    assert Site(3, "attn.hook_z", 5) != Site(3, "attn.hook_z")
    assert str(Site(3, "attn.hook_z", 0)) == "blocks.3.attn.hook_z[0]"
