"""Running on from a site gives what a full pass gives, to the last bit, on every architecture and at every site."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.errors import LoadError, MeasurementError, UsageError
from sae_bench.model import unembed
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model, wrap_model
from sae_bench.registry.site import KINDS, MODULES, Site, parse_site

ARCHITECTURES = ("GPT2", "Llama", "GPTNeoX", "Gemma2", "Gemma3", "Qwen2", "Qwen3", "Mistral")


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(2, 61, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("processed", [False, True], ids=["as_stored", "processed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_suffix_equals_a_full_pass(
    tiny_model: Callable[..., Model], tokens: torch.Tensor, architecture: str, processed: bool
) -> None:
    model = tiny_model(architecture, processed)
    full = model.logits(tokens)
    fired = []
    for name in model.sites():
        site = parse_site(name)
        if site.layer != 1:
            continue
        try:
            seen = model.capture(tokens, site)
        except MeasurementError:
            continue
        fired.append(site.kind)
        assert seen.value.shape == (*tokens.shape, model.width(site))
        assert torch.equal(model.resume(tokens, seen.block_input, site, seen.value), full), name
        assert torch.equal(model.resume(tokens, seen.block_input, site, None), full), name
        changed = model.resume(tokens, seen.block_input, site, seen.value.flip(-1))
        assert (changed - full).abs().max() > 1e-3, f"{name} is replaced and nothing changes"
    assert set(fired) >= set(KINDS) - {"hook_resid_mid"}
    head = Site(1, "attn.hook_z", 2)
    seen = model.capture(tokens, head)
    assert seen.value.shape == (*tokens.shape, model.width(head))
    assert torch.equal(model.resume(tokens, seen.block_input, head, seen.value), full)
    whole = model.capture(tokens, Site(1, "attn.hook_z")).value
    changed = model.resume(tokens, seen.block_input, head, seen.value.flip(-1))
    start = 2 * model.width(head)
    whole[..., start : start + model.width(head)] = seen.value.flip(-1)
    assert torch.equal(changed, model.resume(tokens, seen.block_input, Site(1, "attn.hook_z"), whole))
    assert (changed - full).abs().max() > 1e-4
    for site in (Site(0, "hook_resid_pre"), Site(2, "hook_resid_post")):
        seen = model.capture(tokens, site)
        assert torch.equal(model.resume(tokens, seen.block_input, site, seen.value), full), str(site)
    assert torch.equal(model.logits(tokens), full), "the model is as it was before"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_replaced_value_does_what_a_hook_in_a_full_pass_does(
    tiny_model: Callable[..., Model], tokens: torch.Tensor, architecture: str
) -> None:
    model = tiny_model(architecture)
    noise = torch.Generator().manual_seed(2)
    for kind in set(KINDS) - {"hook_resid_mid"}:
        site = Site(1, kind)
        seen = model.capture(tokens, site)
        value = seen.value + torch.randn(seen.value.shape, generator=noise)
        hooked = model.bridge.run_with_hooks(
            tokens, fwd_hooks=[(str(site), lambda tensor, hook, value=value: value.view(tensor.shape))]
        )
        assert torch.equal(model.resume(tokens, seen.block_input, site, value), hooked.detach())


def test_selected_rows_are_those_of_the_whole(tiny_model: Callable[..., Model], tokens: torch.Tensor) -> None:
    for architecture in ("GPT2", "Gemma2"):
        model, site = tiny_model(architecture), Site(1, "hook_resid_pre")
        seen = model.capture(tokens, site)
        select = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(4)) > 0.4
        rows = model.resume(tokens, seen.block_input, site, seen.value, select=select)
        torch.testing.assert_close(rows, model.logits(tokens)[select], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wide", [False, True], ids=["small", "sliced"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_of_logits_are_those_of_the_whole(
    tiny_model: Callable[..., Model],
    tokens: torch.Tensor,
    architecture: str,
    wide: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, site = tiny_model(architecture), Site(1, "hook_resid_pre")
    seen = model.capture(tokens, site)
    select = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(4)) > 0.4
    full = model.resume(tokens, seen.block_input, site, seen.value.flip(-1))[select]
    if wide:
        monkeypatch.setattr(unembed, "SLICE", 25)
    assert model.unembeds_alone
    for rows in (1, 7, 1000):
        where = (tokens, seen.block_input, site, seen.value.flip(-1))
        blocks = [block.clone() for block in model.logit_blocks(*where, select=select, entries=rows * model.d_vocab)]
        assert [len(block) for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
        torch.testing.assert_close(torch.cat(blocks), full, rtol=1e-6, atol=1e-6)


def test_a_model_that_changes_its_logits_afterwards_is_run_to_its_end(
    tiny_model: Callable[..., Model], tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, site = wrap_model(tiny_model("GPT2").bridge), Site(1, "hook_resid_pre")
    forward = model.passes.logits
    monkeypatch.setattr(model.passes, "logits", lambda *given: forward(*given) / 8)
    seen, select = model.capture(tokens, site), tokens > 20
    where = (tokens, seen.block_input, site, seen.value)
    assert not model.unembeds_alone
    blocks = list(model.logit_blocks(*where, select=select, entries=12 * model.d_vocab))
    assert len(blocks) == 3
    torch.testing.assert_close(torch.cat(blocks), model.logits(tokens)[select], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_large_vocabulary_is_unembedded_in_slices(
    tiny_model: Callable[..., Model], tokens: torch.Tensor, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, site = tiny_model(architecture), Site(1, "hook_resid_pre")
    seen, full = model.capture(tokens, site), model.logits(tokens)
    last = model.capture(tokens, Site(model.n_layers - 1, "hook_resid_post")).value
    wide: list[int] = []
    linear = unembed.functional.linear

    def counted(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        wide.append(len(weight))
        return linear(rows, weight, bias)

    monkeypatch.setattr(unembed, "SLICE", 25)
    select = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(4)) > 0.4
    rows = model.resume(tokens, seen.block_input, site, seen.value, select=select)
    torch.testing.assert_close(rows, full[select], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.final_logits(last), full, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(unembed.functional, "linear", counted)
    asked = last.clone().requires_grad_()
    logits = model.final_logits(asked, differentiable=True)
    torch.testing.assert_close(logits.detach(), full, rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(logits[0, 3].logsumexp(-1), asked)
    assert slope[0, 3].abs().sum() > 0
    assert not slope[1].any()
    assert [width for width in wide if width in (25, 11, 61)] == [25, 25, 11]
    assert "forward" not in vars(model.bridge.unembed.original_component)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_of_the_last_residual_are_the_models_logits(
    tiny_model: Callable[..., Model], tokens: torch.Tensor, architecture: str
) -> None:
    model = tiny_model(architecture)
    last = model.capture(tokens, Site(model.n_layers - 1, "hook_resid_post")).value
    torch.testing.assert_close(model.final_logits(last), model.logits(tokens), rtol=1e-6, atol=1e-6)
    assert model.final_logits(last[0, 0]).shape == (model.d_vocab,)


def test_nothing_behind_the_site_runs_when_it_is_captured(
    tiny_model: Callable[..., Model], tokens: torch.Tensor
) -> None:
    model = tiny_model("Llama")
    later = model.bridge.blocks[2]
    ran: list[int] = []
    handle = later.register_forward_pre_hook(lambda *_: ran.append(2))
    before = model.bridge.blocks[0].register_forward_pre_hook(lambda *_: ran.append(0))
    try:
        seen = model.capture(tokens, Site(1, "hook_mlp_out"))
        assert ran == [0]
        # What form a block's output has is asked once a model, of its first block.
        model.resume(tokens, seen.block_input, Site(1, "hook_mlp_out"), seen.value)
        attention = model.bridge.blocks[0].attn.register_forward_pre_hook(lambda *_: ran.append(-1))
        model.resume(tokens, seen.block_input, Site(1, "hook_mlp_out"), seen.value)
        attention.remove()
        assert -1 not in ran, "a block before the site computed something"
    finally:
        handle.remove()
        before.remove()


class _Deaf:
    """A hook point that exists and is never reached."""

    def add_hook(self, hook: Any, level: int) -> None: ...

    def remove_hooks(self, direction: str, level: int) -> None: ...


def test_a_hook_that_never_fires_is_an_error(
    tiny_model: Callable[..., Model], tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, site = tiny_model("GPT2"), Site(1, "hook_mlp_out")
    seen = model.capture(tokens, site)
    full = model.logits(tokens)
    monkeypatch.setitem(vars(model), "_hooks", dict(model._hooks) | {str(site): _Deaf()})
    with pytest.raises(MeasurementError, match=r"blocks\.1\.hook_mlp_out.*never fired"):
        model.capture(tokens, site)
    with pytest.raises(MeasurementError, match=r"blocks\.1\.hook_mlp_out.*never fired"):
        model.resume(tokens, seen.block_input, site, seen.value)
    assert torch.equal(model.logits(tokens), full)


def test_an_error_in_the_middle_leaves_the_model_whole(tiny_model: Callable[..., Model], tokens: torch.Tensor) -> None:
    model, site = tiny_model("GPT2"), Site(2, "hook_resid_pre")
    seen, full = model.capture(tokens, site), model.logits(tokens)
    with pytest.raises(RuntimeError):
        model.resume(tokens, seen.block_input, site, seen.value[:, :5])
    assert torch.equal(model.logits(tokens), full)
    assert not any("forward" in vars(block) for block in model.bridge.blocks)
    assert not model.bridge.hook_dict[str(site)].fwd_hooks


def test_a_users_own_hook_stays(tiny_model: Callable[..., Model], tokens: torch.Tensor) -> None:
    model, site = tiny_model("GPT2"), Site(1, "hook_resid_pre")
    calls: list[int] = []

    def mine(tensor: torch.Tensor, hook: Any) -> None:
        calls.append(1)

    point = model.bridge.hook_dict[str(site)]
    point.add_hook(mine)
    try:
        seen = model.capture(tokens, site)
        model.resume(tokens, seen.block_input, site, seen.value)
        model.logits(tokens)
    finally:
        point.remove_hooks("fwd")
    assert len(calls) == 3


@pytest.mark.parametrize("architecture", ["GPT2", "Llama"])
def test_a_wrapped_object_measures_the_same(tiny_model: Callable[..., Model], architecture: str) -> None:
    loaded = tiny_model(architecture)
    wrapped = wrap_model(loaded.bridge, name="mine")
    tokens = torch.arange(2, 12)[None]
    assert torch.equal(wrapped.logits(tokens), loaded.logits(tokens))
    assert wrapped.sites() == loaded.sites()
    assert len(wrapped.identity["weights"]) == 64


def test_a_hooked_transformer_is_accepted_where_it_exists(tokens: torch.Tensor) -> None:
    lens = pytest.importorskip("transformer_lens")
    try:
        hooked = lens.HookedTransformer
    except (AttributeError, ImportError):
        pytest.skip("this TransformerLens has no HookedTransformer")
    config = lens.HookedTransformerConfig(
        n_layers=3, d_model=16, n_ctx=64, d_head=4, n_heads=4, d_vocab=61, act_fn="gelu", seed=0, init_weights=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = wrap_model(hooked(config))
    full = model.logits(tokens)
    for kind in (parse_site(name).kind for name in model.sites() if name.startswith("blocks.2.")):
        site = Site(2, kind)
        seen = model.capture(tokens, site)
        assert torch.equal(model.resume(tokens, seen.block_input, site, seen.value), full)
        assert not torch.equal(model.resume(tokens, seen.block_input, site, seen.value + 1), full)
        select = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(4)) > 0.4
        rows = model.resume(tokens, seen.block_input, site, seen.value, select=select)
        torch.testing.assert_close(rows, full[select], rtol=1e-6, atol=1e-6)
    last = model.capture(tokens, Site(2, "hook_resid_post")).value
    torch.testing.assert_close(model.final_logits(last), full, rtol=1e-6, atol=1e-6)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="a Linear cannot be used as a language model"):
        wrap_model(torch.nn.Linear(2, 2))


def test_identity_names_weights_and_processing_only(
    tiny_model: Callable[..., Model], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    plain, processed = tiny_model("GPT2"), tiny_model("GPT2", True)
    assert plain.identity["weights"] == processed.identity["weights"]
    assert processed.identity["processing"] == {"center_writing_weights": True, "fold_ln": True}
    assert plain.identity["processing"] == {}
    moved = shutil.copytree(model_folder("GPT2"), tmp_path / "elsewhere")
    assert load_model(str(moved)).identity == plain.identity
    assert tiny_model("Llama").identity != plain.identity
    assert plain.tokenizer_sha256
    assert plain.tokenizer_sha256 == processed.tokenizer_sha256


def test_one_place_has_one_name(tiny_model: Callable[..., Model], tokens: torch.Tensor) -> None:
    for architecture in ("GPT2", "GPTNeoX"):
        model = tiny_model(architecture)
        assert model.canonical(parse_site("layers.1.mlp")) == Site(1, "hook_mlp_out")
        assert model.canonical(parse_site("layers.1.attn")) == Site(1, "hook_attn_out")
        assert model.canonical(Site(1, "mlp.hook_in")) == Site(1, "mlp.hook_in")
    # Gemma norms what its MLP writes before adding it: two places, of which Hugging Face's name means the first.
    gemma = tiny_model("Gemma2")
    assert gemma.canonical(parse_site("layers.1.mlp")) == Site(1, "mlp.hook_out")
    raw = gemma.capture(tokens, Site(1, "mlp.hook_out")).value
    assert not torch.equal(raw, gemma.capture(tokens, Site(1, "hook_mlp_out")).value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_module_names_mean_what_hugging_face_shows(
    tiny_model: Callable[..., Model], model_folder: Callable[[str], Path], tokens: torch.Tensor, architecture: str
) -> None:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(model_folder(architecture), attn_implementation="eager").eval()
    blocks = next(name for name, module in hf.named_modules() if isinstance(module, torch.nn.ModuleList))
    inner = dict(hf.get_submodule(f"{blocks}.1").named_modules())
    names = {name: (module, end) for (name, end) in MODULES if (module := inner.get(name)) is not None}
    seen: dict[str, torch.Tensor] = {}

    def note(name: str, end: str) -> Callable[..., None]:
        def look(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            found = given if end == "input" else output[0] if isinstance(output, tuple) else output
            seen[f"{blocks}.1{name and '.' + name}.{end}"] = found.detach()

        return look

    for name, end in MODULES:
        if name in names:
            inner[name].register_forward_hook(note(name, end), with_kwargs=True)
    with torch.no_grad():
        output = hf(tokens, output_hidden_states=True)
    seen["hidden_states[1]"] = output.hidden_states[1]
    assert len(seen) >= 6
    model = tiny_model(architecture)
    for name, value in seen.items():
        ours = model.capture(tokens, model.canonical(parse_site(name))).value
        torch.testing.assert_close(ours, value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_nothing_is_written_to_a_site_that_is_only_read(tiny_model: Callable[..., Model], tokens: torch.Tensor) -> None:
    model, site = tiny_model("Llama"), parse_site("blocks.1.ln2.hook_normalized")
    seen = model.capture(tokens, site)
    assert seen.value.shape == (*tokens.shape, 16)
    with pytest.raises(MeasurementError, match=r"blocks\.1\.ln2\.hook_normalized cannot be intervened on"):
        model.resume(tokens, seen.block_input, site, seen.value)


def test_sites_that_do_not_exist(tiny_model: Callable[..., Model], tokens: torch.Tensor) -> None:
    model = tiny_model("GPT2")
    with pytest.raises(LoadError, match=r"names head 4, but model .* has heads 0 to 3"):
        model.width(Site(1, "attn.hook_z", 4))
    with pytest.raises(LoadError, match=r"blocks\.9\.hook_resid_pre does not exist in model .* blocks are 0 to 2"):
        model.capture(tokens, Site(9, "hook_resid_pre"))
    with pytest.raises(
        LoadError, match=r"has no site 'blocks\.1\.hook_resid_pree'; did you mean 'blocks\.1\.hook_resid"
    ):
        model.width(Site(1, "hook_resid_pree"))


def test_gradients_go_through_a_sliced_vocabulary(
    tiny_model: Callable[..., Model], tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, site = tiny_model("GPT2"), Site(1, "hook_resid_pre")
    seen, select = model.capture(tokens, site), tokens > 30
    where = (tokens, seen.block_input, site, seen.value, lambda logits: logits[:, 3] - logits[:, 40])
    whole = model.gradient(*where, select=select)
    monkeypatch.setattr(unembed, "SLICE", 25)
    torch.testing.assert_close(model.gradient(*where, select=select), whole, rtol=1e-5, atol=1e-7)
    assert whole.abs().sum() > 0
