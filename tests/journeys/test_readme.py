"""Every command in the README is run here, in the order it stands there, in a checkout like the one it speaks of."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.heavy

README = Path(__file__).parents[2] / "README.md"
ROOT = README.parent
BLOCKS = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
WIDTH, VOCABULARY = 16, 61

ELSEWHERE = {
    "make bench": "the make test below, and .ci/run runs it",
    "make test": "this is it",
    "pip install pytest-sae-bench": "test_the_wheel_holds_what_the_readme_needs",
    "python -m sae_bench.demo.build --out /tmp/demo": "tests/demo/test_build.py, with fewer steps",
}
"Commands that cannot be run inside a test, and what runs them instead."


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS.findall(README.read_text()) if kind == language]


def commands() -> list[str]:
    """Command lines of all shell blocks, without comments."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line.split("  #")[0].split(" # ")[0].strip() for line in lines if line.strip()]


def save_gpt2(folder: Path) -> None:
    """Twelve layers and GPT-2's hook names, at a width that takes no time."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=12, n_head=2, n_positions=128, initializer_range=0.2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1} | {f"w{index}": index for index in range(2, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def save_sae(folder: Path, scale: float) -> None:
    """More than 101 features, so that every property has something to say."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(104, WIDTH, generator=generator), dim=1)
    eye = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    encoder = torch.cat([eye, 0.01 * rows])
    decoder = torch.cat([scale * eye, 0.01 * rows])
    tensors = {
        "W_enc": encoder.T.contiguous(),
        "W_dec": decoder,
        "b_enc": torch.zeros(len(encoder)),
        "b_dec": torch.zeros(WIDTH),
    }
    folder.mkdir(parents=True)
    save_file(tensors, str(folder / "sae_weights.safetensors"))
    config = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": len(encoder),
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.8.hook_resid_pre", "model_name": "gpt2", "prepend_bos": True},
    }
    (folder / "cfg.json").write_text(json.dumps(config))


@pytest.fixture
def checkout(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Pytester]:
    """What the README's reader has: a model, two checkpoints, a text; and the conftest that the README shows."""
    from sae_bench.registry.register import SAES

    monkeypatch.delenv("CI", raising=False)
    SAES.__init__("SAE")  # type: ignore[misc]
    root = pytester.path
    save_gpt2(root / "gpt2")
    save_sae(root / "checkpoints" / "v3", 0.93)
    save_sae(root / "checkpoints" / "v4", 0.96)
    (root / "corpora").mkdir()
    generator = torch.Generator().manual_seed(3)
    stories = torch.randint(2, VOCABULARY, (40, 60), generator=generator).tolist()
    (root / "stories.txt").write_text("\n\n".join(" ".join(f"w{token}" for token in story) for story in stories))
    (root / "conftest.py").write_text(blocks("python")[0])
    shutil.copytree(ROOT / "benchmarks", root / "benchmarks", ignore=shutil.ignore_patterns("engine", "__pycache__"))
    (root / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib -p no:cacheprovider\n")
    yield pytester
    SAES.__init__("SAE")  # type: ignore[misc]


def run(checkout: pytest.Pytester, command: str) -> int:
    from sae_bench.frontends import cli
    from sae_bench.registry.register import SAES

    words = shlex.split(command)
    if words[0] == "pytest-sae-bench":
        return cli.main(words[1:])
    assert words[0] == "pytest", f"the README has a command that no test knows: {command}"
    SAES.__init__("SAE")  # type: ignore[misc]
    return int(checkout.runpytest_inprocess(*words[1:], "--sae-docs", "16").ret)


def expected(command: str) -> tuple[int, ...]:
    """Exit codes that the README leads its reader to expect."""
    if "./checkpoints/" in command or "--sae-limit" in command:
        return (0, 1, 11)
    return (0,)


def test_every_command_runs(checkout: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands():
        if command in ELSEWHERE or command.startswith(("case ", "exit ", "rm ")):
            continue
        first = command.split(";")[0]
        code = run(checkout, first.replace("@demo/*", "@mylab/*"))
        assert code in expected(first), f"{first} ended with {code}: {capsys.readouterr().out[-2000:]}"


def test_the_registration_names_real_fields() -> None:
    import inspect

    from sae_bench import register_sae

    block = blocks("python")[0]
    named = set(re.findall(r"^    (\w+)=", block, re.MULTILINE))
    assert named <= set(inspect.signature(register_sae).parameters)


def test_make_runs_what_the_readme_says(tmp_path: Path) -> None:
    import subprocess

    for target, wanted in {"bench": "pytest benchmarks/", "test": "pytest tests"}.items():
        said = subprocess.run(
            ["make", "-n", "-C", str(ROOT), target], capture_output=True, text=True, check=True
        ).stdout
        assert wanted in said


def test_every_verdict_is_explained() -> None:
    from sae_bench.judge.verdicts import Verdict

    text = README.read_text()
    for verdict in Verdict:
        assert f"| {verdict.value} |" in text


def test_every_property_is_listed() -> None:
    from sae_bench.measure.properties import load_property, property_names

    text = README.read_text()
    for name in property_names():
        assert f"| `{name}` |" in text, name
        assert f"`{load_property(name).primary_metric}`" in text, name
