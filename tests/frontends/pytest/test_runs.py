"""The suite as a user runs it: selection, verdicts as outcomes, exit codes, reports."""

from __future__ import annotations

import json
import shlex
import shutil
from argparse import ArgumentTypeError
from dataclasses import replace
from typing import Any

import pytest

from sae_bench.errors import MeasurementError
from sae_bench.frontends.pytest.options import size
from sae_bench.measure.properties import reconstruction

WRONG_SITE = "blocks.1.hook_resid_prf"


@pytest.mark.parametrize(
    ("text", "found"),
    [("8GB", 8 * 10**9), ("8gb", 8 * 10**9), ("1.5 GiB", 3 << 29), ("512MiB", 512 << 20), ("2000000", 2_000_000)],
)
def test_sizes(text: str, found: int) -> None:
    assert size(text) == found


@pytest.mark.parametrize("text", ["", "GB", "8 gallons", "-1GB", "0", "12", "8GBs"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a size"):
        size(text)


def test_new_saes_pass_and_name_the_accept_command(suite: Any) -> None:
    result = suite()
    result.assert_outcomes(passed=6)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*lab/good*kl_gap.kl_sae*new*", "*--sae-accept --sae-accept-reason*"])
    report = suite.report()
    assert report["schema"] == 2
    assert set(report["saes"]["lab/good"]["properties"]) == {"kl_gap", "reconstruction", "sparsity"}


def test_accepted_then_unchanged_passes_with_a_change_of_exactly_zero(suite: Any) -> None:
    suite.accept()
    result = suite("--sae-docs", "40")
    result.assert_outcomes(passed=6)
    assert result.ret == 0
    metrics = suite.report()["saes"]["lab/good"]["properties"]["kl_gap"]["metrics"]
    assert metrics["kl_sae"]["verdict"] == "PASS"
    assert metrics["kl_sae"]["change"] == 0
    assert metrics["ce_gap"]["change"] == 0


def pasted(result: Any, beginning: str) -> list[str]:
    """The arguments of the pytest command that a run printed after ``beginning``."""
    line = next(line.strip() for line in result.outlines if line.strip().startswith(beginning))
    command, *arguments = shlex.split(line.removeprefix(beginning))
    assert command == "pytest"
    return arguments


def test_commands_that_are_printed_can_be_pasted(suite: Any) -> None:
    """From a folder that is not called benchmarks, for an SAE that its id does not find, and in the same tier."""
    suite.accept("--sae", "lab/good")
    worse = suite("--sae", "lab/good=./worse")
    again = suite.plain(*pasted(worse, "reproduce:"))
    assert again.ret == 1
    again.assert_outcomes(failed=1)
    assert next(line for line in again.outlines if "kl_gap.kl_sae of lab/good is" in line) in worse.outlines
    target = suite.plain(
        "test_sae.py", "--sae", "./worse", "--sae-model", "./model", "--sae-corpus", "./corpus.safetensors",
        "--sae-tier", "smoke", "--sae-property", "kl_gap",
    )  # fmt: skip
    accepted = suite.plain(*pasted(target, "accept the new values:"))
    assert accepted.ret == 0
    assert (suite.path / "baselines" / "worse.json").is_file()
    assert "rerun_command" not in (suite.path / "baselines" / "worse.json").read_text()


def test_a_worse_checkpoint_in_the_place_of_a_good_one_fails(suite: Any) -> None:
    suite.accept("--sae", "lab/good")
    result = suite("--sae", "lab/good=./worse", "--junitxml", "junit.xml")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*kl_gap.kl_sae of lab/good is *above the accepted*"])
    result.stdout.fnmatch_lines(["*reproduce:  pytest test_sae.py --sae lab/good=./worse --sae-property kl_gap *"])
    result.stdout.fnmatch_lines(["*if wanted:  pytest test_sae.py --sae lab/good=./worse * --sae-accept *"])
    result.stdout.no_fnmatch_line("*Traceback*")
    junit = (suite.path / "junit.xml").read_text()
    assert 'name="kl_gap.kl_sae"' in junit
    assert 'failures="' in junit
    assert 'failures="0"' not in junit


def test_a_better_checkpoint_is_improved(suite: Any) -> None:
    suite.accept("--sae", "lab/worse")
    result = suite("--sae", "lab/worse=./good")
    assert result.ret == 0
    assert suite.report()["saes"]["lab/worse"]["properties"]["kl_gap"]["verdict"] == "IMPROVED"


def test_controls_are_measured_beside_the_sae_and_neither_judged_nor_accepted(suite: Any) -> None:
    suite.accept("--sae", "lab/worse")
    result = suite("--sae", "lab/worse=./good", "--sae-controls", "--sae-accept", "--sae-accept-reason", "better")
    result.assert_outcomes(passed=15)
    assert result.ret == 0
    names = ("identity", "pca", "random", "permuted")
    saes = suite.report()["saes"]
    assert set(saes) == {"lab/worse", *(f"lab/worse/{name}" for name in names)}
    values = {name: saes[f"lab/worse/{name}"]["properties"] for name in names}
    results = [result for found in values.values() for result in found.values()]
    assert not any(metric.get("limit") for result in results for metric in result["metrics"].values())
    assert values["identity"]["kl_gap"]["metrics"]["kl_sae"]["value"] == 0
    assert values["identity"]["reconstruction"]["metrics"]["fvu"]["value"] == 0
    assert values["pca"]["reconstruction"]["metrics"]["fvu"]["value"] < 1
    for name in ("random", "permuted"):
        assert values[name]["reconstruction"]["metrics"]["fvu"]["value"] > 1
    assert [path.name for path in (suite.path / "baselines").rglob("*.json")] == ["worse.json"]


def test_what_has_no_value_is_undefined_for_a_control_and_an_error_for_an_sae(
    suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(bench: Any) -> Any:
        raise MeasurementError("no feature can be steered")

    monkeypatch.setattr(reconstruction, "PROPERTY", replace(reconstruction.PROPERTY, measure=measure))
    result = suite("--sae", "lab/good", "--sae-controls", "--sae-property", "reconstruction")
    result.assert_outcomes(passed=14, failed=1)
    verdicts = {sae: each["properties"]["reconstruction"]["verdict"] for sae, each in suite.report()["saes"].items()}
    assert verdicts.pop("lab/good") == "ERROR"
    assert set(verdicts.values()) == {"UNDEFINED"}


def test_sae_may_be_given_as_a_target(suite: Any) -> None:
    result = suite("--sae", "./good", "--sae-model", "model", "--sae-corpus", "corpus.safetensors")
    result.assert_outcomes(passed=3)
    assert set(suite.report()["saes"]) == {"good"}


def test_module_attribute_targets(suite: Any) -> None:
    (suite.path / "mylab.py").write_text(
        "import torch\n"
        "class Mine:\n"
        "    W_dec = torch.eye(16)\n"
        "    def encode(self, x): return x\n"
        "    def decode(self, f): return .9 * f\n"
        "mine = Mine()\n"
    )
    suite.repository.syspathinsert(suite.path)
    result = suite(
        "--sae",
        "mylab:mine",
        "--sae-model",
        "model",
        "--sae-site",
        "blocks.1.hook_resid_pre",
        "--sae-corpus",
        "corpus.safetensors",
    )
    result.assert_outcomes(passed=3)


def test_a_transcoder_may_be_given_as_a_target(suite: Any) -> None:
    """The model's own MLP, which is perfect where the MLP writes and nowhere else."""
    (suite.path / "mylab.py").write_text(
        "from torch.nn.functional import gelu\n"
        "from safetensors.torch import load_file\n"
        "weights = {name.partition('h.1.mlp.')[2]: w for name, w in load_file('model/model.safetensors').items()}\n"
        "class Mine:\n"
        "    d_in = 16\n"
        "    def encode(self, x):\n"
        "        return gelu(x @ weights['c_fc.weight'] + weights['c_fc.bias'], approximate='tanh')\n"
        "    def decode(self, f): return f @ weights['c_proj.weight'] + weights['c_proj.bias']\n"
        "mine = Mine()\n"
    )
    suite.repository.syspathinsert(suite.path)
    place = ("--sae-model", "model", "--sae-corpus", "corpus.safetensors", "--sae-site", "blocks.1.mlp.hook_in")
    result = suite("--sae", "mylab:mine", *place, "--sae-output-site", "blocks.1.hook_mlp_out")
    result.assert_outcomes(passed=3)
    (measured,) = suite.report()["saes"].values()
    assert measured["properties"]["reconstruction"]["metrics"]["fvu"]["value"] == pytest.approx(0, abs=1e-8)
    assert measured["properties"]["reconstruction"]["context"]["source"] == "blocks.1.mlp.hook_in"
    assert measured["properties"]["reconstruction"]["context"]["site"] == "blocks.1.hook_mlp_out"
    # Without it, what the MLP writes is held against what it reads.
    result = suite("--sae", "mylab:mine", *place)
    assert result.ret != 0
    assert "of the variance at blocks.1.mlp.hook_in" in result.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sae-output-site", "blocks.1.hook_mlp_out"], "*--sae-output-site*--sae gives none*"),
        (["--sae", "lab/goof"], "*lab/goof*did you mean 'lab/good'*"),
        (["--sae", "nobody=./good"], "*'nobody' is not registered*"),
        (["--sae-property", "kl_gp"], "*matches no property*kl_gap*"),
        (["--sae-limit", "kl_gap.kl_sea:5%"], "*not declared*kl_sae*"),
        (["--sae-limit", "kl_gap.kl_sae:five"], "*five*cannot be read*"),
        (["--sae-model", "model"], "*--sae-model*--sae gives none*"),
        (["--sae-compare", "nowhere.json"], "*nowhere.json*"),
        (["--sae-memory", "lots"], "*'lots' is not a size*8GB*"),
        (["--sae-device", "cuda:77"], "*device 'cuda:77' does not exist*--sae-device*"),
        (["--sae-device", "gpu"], "*unknown device 'gpu'*cuda*"),
        (["--sae-accept"], "*needs a reason*"),
        (["--sae-accept", "--sae-accept-reason", "x", "-k", "kl"], "*narrowed by -k*"),
    ],
)
def test_usage_errors_are_one_sentence_and_exit_four(suite: Any, arguments: list[str], message: str) -> None:
    result = suite(*arguments)
    assert result.ret == 4
    output = result.stdout.str() + result.stderr.str()
    pytest.LineMatcher(output.splitlines()).fnmatch_lines([message])
    assert "Traceback" not in output
    assert not (suite.path / "reports" / "latest.json").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "*broken*"),
        ("nan", "*NaN*"),
        ("width", "*8 dimensions*16 wide*"),
        ("site", "*blocks.1.hook_resid_prf*blocks.1.hook_resid_pre*"),
        ("architecture", "*architecture*"),
        ("negative", "*explains -*of the variance*"),
    ],
)
def test_one_broken_sae_is_an_error_and_the_others_still_run(suite: Any, damage: str, message: str) -> None:
    from safetensors.torch import load_file, save_file

    broken = suite.path / "broken"
    if damage != "missing":
        shutil.copytree(suite.path / "good", broken)
        weights = load_file(str(broken / "sae_weights.safetensors"))
        config = json.loads((broken / "cfg.json").read_text())
        if damage == "nan":
            weights["W_enc"][3, 4] = float("nan")
        elif damage == "width":
            config["d_in"] = 8
            weights = {
                "W_enc": weights["W_enc"][:8],
                "W_dec": weights["W_dec"][:, :8],
                "b_enc": weights["b_enc"],
                "b_dec": weights["b_dec"][:8],
            }
        elif damage == "site":
            config["metadata"]["hook_name"] = WRONG_SITE
        elif damage == "architecture":
            config["architecture"] = "quantum"
        else:
            weights["W_dec"] = -weights["W_dec"]
        save_file(
            {name: tensor.contiguous() for name, tensor in weights.items()}, str(broken / "sae_weights.safetensors")
        )
        (broken / "cfg.json").write_text(json.dumps(config))
    with (suite.path / "conftest.py").open("a") as file:
        file.write('register_sae("lab/broken", path="broken", model="model", corpus="corpus.safetensors")\n')
    others = ["--sae", "lab/good"] if damage == "nan" else []
    result = suite("--sae", "lab/broken", *others)
    assert result.ret == 1
    result.assert_outcomes(passed=3 if others else 0, failed=3)
    result.stdout.fnmatch_lines([message])
    assert "Traceback" not in result.stdout.str()
    report = suite.report()
    assert report["saes"]["lab/broken"]["properties"]["kl_gap"]["verdict"] == "ERROR"
    assert [report["saes"][sae]["properties"]["kl_gap"]["verdict"] for sae in others[1:]] == ["NEW"] * len(others[1:])


def test_accepting_is_refused_in_ci_and_for_errors(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = suite.accept()
    result.stdout.fnmatch_lines(["*not accepted*CI*"])
    assert not (suite.path / "baselines").exists()


def test_hard_limits_from_the_command_line_and_known_failures(suite: Any) -> None:
    limit = ("--sae", "lab/good", "--sae-limit", "reconstruction.explained_variance:min:0.999")
    assert suite(*limit).ret == 1
    register = (suite.path / "conftest.py").read_text()
    known = 'known_failures={"reconstruction.explained_variance": "small on purpose"})'
    (suite.path / "conftest.py").write_text(
        register.replace('corpus="corpus.safetensors")', f'corpus="corpus.safetensors", {known}')
    )
    result = suite(*limit)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*small on purpose*"])
    result = suite("--sae", "lab/good")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*remove*"])


def test_listing_measures_nothing(suite: Any) -> None:
    result = suite("--sae-list")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*lab/good*", "*lab/worse*"])
    assert not (suite.path / "reports").exists()


def test_json_goes_where_it_is_asked_to(suite: Any) -> None:
    suite("--sae", "lab/good", "--sae-json", "out/mine.json")
    assert json.loads((suite.path / "out" / "mine.json").read_text()) == suite.report()


def test_an_unrelated_suite_is_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\ndef test_it(): assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    result = pytester.runpytest_subprocess("-p", "no:hypothesispytest", "-p", "no:jaxtyping", "-p", "no:typeguard")
    result.assert_outcomes(passed=1)
    assert not (pytester.path / "reports").exists()


def test_little_memory_from_the_ini_file_changes_no_number(suite: Any) -> None:
    arguments = ("--sae", "lab/good", "--sae-property", "reconstruction", "--sae-property", "sparsity")
    suite(*arguments)
    first = suite.report()["saes"]["lab/good"]["properties"]
    (suite.path / "pytest.ini").write_text("[pytest]\nsae_memory = 1MB\n")
    result = suite(*arguments)
    assert result.ret == 0
    assert suite.report()["run"]["options"]["given"]["sae_memory"] == "ini"
    second = suite.report()["saes"]["lab/good"]["properties"]
    assert {name: each["metrics"] for name, each in first.items()} == {
        name: each["metrics"] for name, each in second.items()
    }


def test_selfcheck_records_noise_and_refuses_tighter_limits(suite: Any) -> None:
    one = ("--sae", "lab/good", "--sae-property", "kl_gap", "-p", "no:cacheprovider", "--sae-tier", "smoke")
    quick = (*one, "--sae-docs", "16", "--sae-selfcheck")
    accept = ("--sae-accept", "--sae-accept-reason", "measured")
    by_noise = ("--sae-limit", "kl_gap.ratio_isotropic:1noise")
    assert suite.plain(*quick, *accept, *by_noise).ret == 0
    metrics = suite.report()["saes"]["lab/good"]["properties"]["kl_gap"]["metrics"]
    # What draws noise moves; what does not, stays within the last bits.
    assert metrics["ratio_isotropic"]["noise"] > 1e-3 * metrics["ratio_isotropic"]["value"]
    assert metrics["kl_sae"]["noise"] < 1e-4 * metrics["kl_sae"]["value"]
    held = json.loads((suite.path / "baselines" / "lab" / "good.json").read_text())
    noise = held["saes"]["lab/good"]["properties"]["kl_gap"]["metrics"]["ratio_isotropic"]["noise"]
    assert noise == pytest.approx(metrics["ratio_isotropic"]["noise"], rel=1e-5)

    tight = ("--sae-limit", "kl_gap.ratio_isotropic:0.0001%")
    result = suite.plain(*one, "--sae-docs", "16", *tight)
    assert result.ret == 4
    assert "less than the noise" in result.stdout.str() + result.stderr.str()
    result = suite.plain(*quick, *tight)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*widen it, as in*+1noise*"])
    assert suite.plain(*one, "--sae-docs", "16", *by_noise).ret == 0


def test_resumed_measurements_of_the_engine_are_the_same_to_the_last_bit(suite: Any, monkeypatch: Any) -> None:
    """Records of a run that was interrupted, judged anew: not even the series differ."""

    def stop(bench: Any) -> None:
        raise KeyboardInterrupt

    suite("--sae", "lab/good")
    whole = suite.report()["saes"]
    with monkeypatch.context() as patch:
        patch.setattr("sae_bench.run.run.load_property", _stopping_at("sparsity", stop))
        assert suite("--sae", "lab/good", no_reraise_ctrlc=True).ret == 2
    result = suite("--sae", "lab/good")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["2 of 3 results were taken from a run that did not finish"])
    resumed = suite.report()["saes"]
    for saes in (whole, resumed):
        for found in saes["lab/good"]["properties"].values():
            found.pop("seconds")
    assert resumed == whole


def _stopping_at(name: str, stop: Any) -> Any:
    from dataclasses import replace

    from sae_bench.measure.properties import load_property

    return lambda wanted: replace(load_property(wanted), measure=stop) if wanted == name else load_property(wanted)
