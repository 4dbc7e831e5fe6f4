"""The console script between runs: compare, accept, show, prune and history, without torch."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sae_bench.frontends.cli import main
from sae_bench.registry.register import SAES
from tests.support.packed_page import unpacked

HEAVY = ("torch", "transformers", "transformer_lens", "pandas", "plotly", "scipy.stats", "pytest")


def _git(toy: Any, *arguments: str) -> None:
    who = ("-c", "user.name=A Person", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *arguments], cwd=toy.path, check=True, capture_output=True)


@pytest.fixture
def accepted(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Accepted values, committed, and a later run that is worse in one of them."""
    monkeypatch.chdir(toy.path)
    toy.accept("-q")
    _git(toy, "init", "--quiet")
    _git(toy, "add", "baselines")
    _git(toy, "commit", "--quiet", "-m", "first release")
    toy.say(lab_a__kl_gap=1.2)
    toy("-q")
    SAES.__init__("SAE")  # type: ignore[misc]
    return toy


def test_compare_accept_and_history(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    latest = "reports/latest.json"
    assert main(["compare", "baselines", latest]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["compare", "baselines", latest, "--limit", "kl_gap.kl_sae:30%"]) == 0
    assert main(["compare", latest, latest]) == 0
    assert main(["show", latest]) == 0
    capsys.readouterr()

    accept = ["accept", latest, "--only", "kl_gap", "--reason", "smaller dictionary"]
    assert main(accept) == 0
    out = capsys.readouterr().out
    assert "kl_gap.kl_sae of lab/a" in out
    assert "->" in out
    # Accepted, and yet a long way from the anchor: that has to be said as well.
    assert main(["compare", "baselines", latest]) == 1
    assert "drifted" in capsys.readouterr().out
    assert main([*accept, "--reanchor"]) == 0
    assert main(["compare", "baselines", latest]) == 0
    _git(accepted, "commit", "--quiet", "-am", "smaller dictionary")
    capsys.readouterr()

    assert main(["history", "lab/a", "--metric", "kl_gap.*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lab/a"
    assert lines[2].split()[0] == "kl_gap.kl_sae"
    before, after = map(float, lines[2].split()[1:])
    assert after == pytest.approx(1.2 * before, rel=1e-2)
    assert [line.split(None, 1)[1] for line in lines[3:]] == ["first release", "smaller dictionary"]


def test_history_draws_each_metric_over_commits(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accept", "reports/latest.json", "--only", "kl_gap", "--reason", "a smaller dictionary"]) == 0
    _git(accepted, "commit", "--quiet", "-am", "smaller dictionary")
    for named in (["lab/a"], ["baselines/"], ["lab/a", "--metric", "kl_gap.*"]):
        assert main(["history", *named, "--html", "history.html"]) == 0
        page = (accepted.path / "history.html").read_text()
        titles = re.findall(r"<h4>(.*?)</h4>", page)
        assert "kl_gap.kl_sae" in titles
        assert ("sparsity.l0" in titles) == ("--metric" not in named)
        assert ("lab/b" in page) == (named == ["baselines/"])
        line = unpacked(page, "figures")[f"f{titles.index('kl_gap.kl_sae')}"]["data"][0]
        assert line["name"] == "lab/a"
        assert line["y"][1] == pytest.approx(1.2 * line["y"][0], rel=1e-2)
        assert "a smaller dictionary" in page


def test_what_a_run_excuses_compare_excuses(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    known = "known_failures={'reconstruction.explained_variance': 'early checkpoint'}"
    toy.register(
        f'from sae_bench import register_sae\nregister_sae("lab/a", path="a", {known}, '
        'limits=["reconstruction.explained_variance:max:-9"])\n'
    )
    assert toy.accept("-q").ret == 0
    assert toy("-q").ret == 0
    SAES.__init__("SAE")  # type: ignore[misc]
    folder, latest = str(toy.path / "baselines"), toy.path / "reports" / "latest.json"
    capsys.readouterr()
    assert main(["compare", folder, str(latest)]) == 0
    assert "early checkpoint" in capsys.readouterr().out
    without = latest.read_text().replace('"known_reason": "early checkpoint"', '"known_reason": ""')
    latest.write_text(without.replace('"KNOWN"', '"FAIL"'))
    assert main(["compare", folder, str(latest)]) == 1


@pytest.mark.parametrize("given", ["command line", "ini"])
def test_a_limit_of_one_run_is_not_accepted(given: str, toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The declared limit that it took the place of is; without one, the metric has none."""
    limits = ["kl_gap.kl_sae:500%", "sparsity.l1:1%", "sparsity.l0:max:1e9"]
    if given == "ini":
        (toy.path / "pytest.ini").write_text("[pytest]\nsae_limits =\n  " + "\n  ".join(limits) + "\n")
        given_now = []
    else:
        given_now = [part for limit in limits for part in ("--sae-limit", limit)]
    assert toy.accept("-q", *given_now).ret == 0
    kl_gap = toy.report()["saes"]["lab/a"]["properties"]["kl_gap"]["metrics"]
    assert kl_gap["kl_sae"]["limits"] == [{"kind": "change", "percent": 500.0, "source": given}]
    held = json.loads((toy.path / "baselines" / "lab" / "a.json").read_text())["saes"]["lab/a"]["properties"]
    kept = {
        f"{name}.{metric}": [(limit["percent"], limit["source"]) for limit in each["limits"]]
        for name, result in held.items()
        for metric, each in result["metrics"].items()
        if "limits" in each
    }
    assert kept["kl_gap.kl_sae"] == [(2, "property")]
    assert kept["sparsity.l0"] == [(5, "property")]
    assert "sparsity.l1" not in kept
    assert "overruled" not in str(held)
    assert "per_cluster" in held["sparsity"]["metrics"]["l1"], "the same command can compare it"

    toy.say(lab_a__kl_gap=1.2)
    assert toy.accept("-q", *given_now).ret == 0
    later = str(toy.path / "baselines" / "lab" / "a.json")
    first = toy.path / "first.json"
    first.write_text(json.dumps({**json.loads(Path(later).read_text()), "saes": {"lab/a": {"properties": held}}}))
    SAES.__init__("SAE")  # type: ignore[misc]
    capsys.readouterr()
    assert main(["compare", str(first), later]) == 1, "the run let it pass, the property would not"
    assert "kl_gap.kl_sae" in capsys.readouterr().out


def test_render_writes_what_is_asked_for(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    wanted = ["--html", "out/page.html", "--markdown", "out/page.md", "--csv", "out/rows.csv"]
    assert main(["render", "reports/latest.json", *wanted]) == 0
    assert capsys.readouterr().out.split() == wanted[1::2]
    page, text = ((accepted.path / "out" / name).read_text() for name in ("page.html", "page.md"))
    assert "of each document, accepted and now" in page
    assert text.startswith("## SAE quality: FAIL")
    assert "out/page.html" in text
    rows = list(csv.DictReader((accepted.path / "out" / "rows.csv").open()))
    held = accepted.report()["saes"]
    assert len(rows) == sum(len(each["metrics"]) for sae in held.values() for each in sae["properties"].values())

    assert main(["render", "reports/latest.json", "--html", "alone.html", "--baselines", "nowhere"]) == 0
    assert "of each document, accepted and now" not in (accepted.path / "alone.html").read_text()
    assert main(["render", "baselines/lab/a.json", "--markdown", "accepted.md"]) == 0
    assert "lab/a" in (accepted.path / "accepted.md").read_text()


def test_prune_lists_first(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = accepted.path / "baselines" / "lab" / "b.json"
    register = (accepted.path / "conftest.py").read_text().splitlines()
    accepted.register("\n".join(line for line in register if "lab/b" not in line))
    assert main(["prune"]) == 0
    assert "would be removed" in capsys.readouterr().out
    assert path.exists()
    SAES.__init__("SAE")  # type: ignore[misc]
    assert main(["prune", "--yes", "--property", "sparsity"]) == 0
    assert not path.exists()
    kept = json.loads((accepted.path / "baselines" / "lab" / "a.json").read_text())
    assert set(kept["saes"]["lab/a"]["properties"]) == {"kl_gap", "reconstruction"}
    assert accepted("-q").ret == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "nowhere.json", "nowhere.json"], "no report at nowhere.json"),
        (["accept", "nowhere.json", "--reason", "x"], "no report at nowhere.json"),
        (["history", "--baselines", "nowhere"], "no accepted report under nowhere"),
        (["history", "nowhere/"], "no accepted report under nowhere"),
        (["render", "nowhere.json", "--html", "x.html"], "no report at nowhere.json"),
        (["render", "nowhere.json"], "nothing to write: add --html OUT, --markdown OUT or --csv OUT"),
        (["prune", "--conftest", "nowhere.py"], "no nowhere.py that registers SAEs"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_four(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 4
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["compare", "baselines", "reports/latest.json"],
        ["compare", "baselines", "baselines/lab/a.json"],
        ["compare", "reports/latest.json", "baselines/lab/a.json"],
        ["show", "reports/latest.json"],
        ["render", "reports/latest.json", "--markdown", "x.md"],
        ["history", "--html", "x.html"],
        ["accept", "reports/latest.json", "--reason", "x"],
        ["history"],
        ["prune", "--keep", "lab/a"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_nothing_heavy_is_imported(arguments: list[str], once: Any) -> None:
    """Nor a property, where a report says enough about itself: only `prune` asks what is declared."""
    code = f"""
import sys
from pathlib import Path
from sae_bench.frontends.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules])
print([name for name in sys.modules if name.startswith("sae_bench.measure.properties.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=once)
    heavy, properties = done.stdout.splitlines()[-2:]
    assert heavy == "[]", done.stdout
    assert (properties == "[]") == (arguments[0] != "prune"), properties
    if arguments[0] == "compare":
        assert "1 pass" in done.stdout


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A report that no engine was needed for."""
    from sae_bench.judge.judge import judge
    from sae_bench.judge.limits import parse_rule
    from sae_bench.judge.verdicts import AcceptedProperty
    from sae_bench.measure.measurement import Accepted, Measurement, Metric, Ratio
    from sae_bench.report.convert import PropertyDeclaration, property_result
    from sae_bench.report.provenance import Provenance
    from sae_bench.report.report import Report, write_report

    folder = tmp_path_factory.mktemp("reports")
    kl = Ratio([float(n) for n in range(1, 9)], [1.0] * 8)
    found, metrics, ids = (
        Measurement({"kl_sae": kl}, tuple(range(8))),
        (Metric("kl_sae", "nats", "lower", ""),),
        range(8),
    )
    held = AcceptedProperty({"kl_sae": Accepted(kl.value, kl, tuple(ids), 1)}, {})
    rules = [parse_rule("kl_gap.kl_sae:5%", "property")]
    verdict = judge("kl_gap", metrics, "kl_sae", found, held, sae="lab/a", rules=rules, context={})

    declared = PropertyDeclaration("kl_gap", 1, metrics, "kl_sae")
    result = property_result(found, verdict, declared, context={}, accepted=held)
    report = Report.of({"lab/a": {"kl_gap": result}}, Provenance("0123abc", False, "2026-11-20T12:00:00Z"))
    write_report(report, folder / "reports" / "latest.json")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    accept = ["accept", str(folder / "reports" / "latest.json"), "--baselines", str(folder / "baselines")]
    # Where these tests run in CI, accepting wants to be told so.
    assert main([*accept, "--reason", "x", "--in-ci"]) == 0
    return folder


def test_collecting_the_suite_imports_no_torch() -> None:
    code = f"""
import sys, pytest
code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "benchmarks/"])
print(int(code), [name for name in {HEAVY[:4]!r} if name in sys.modules])
"""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_sae_bench"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], env=environment
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout
    assert "test_kl_gap[demo/topk]" in done.stdout


@pytest.mark.parametrize(("first", "second"), [("12:00:00Z", "12:00:00Z"), ("13:30:00+02:00", "12:00:00Z")])
def test_history_is_in_the_order_of_commits(
    first: str, second: str, accepted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commits of one second, and of one day in two time zones."""
    monkeypatch.setenv("GIT_COMMITTER_DATE", f"2026-11-20T{first}")
    _git(accepted, "commit", "--quiet", "--amend", "--no-edit")
    assert main(["accept", "reports/latest.json", "--only", "kl_gap", "--reason", "a smaller dictionary"]) == 0
    monkeypatch.setenv("GIT_COMMITTER_DATE", f"2026-11-20T{second}")
    _git(accepted, "commit", "--quiet", "-am", "smaller dictionary")
    assert main(["history", "lab/a", "--html", "history.html"]) == 0
    page = (accepted.path / "history.html").read_text()
    index = re.findall(r"<h4>(.*?)</h4>", page).index("kl_gap.kl_sae")
    before, after = unpacked(page, "figures")[f"f{index}"]["data"][0]["y"]
    assert after == pytest.approx(1.2 * before, rel=1e-2)
