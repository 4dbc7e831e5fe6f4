"""Hooks of the pytest plugin: options, one item per SAE and property, the report at the end, the exit code.

Importing this module imports neither torch nor scipy, so that suites which have nothing to do with SAEs are not slowed.
One process writes: xdist workers leave records, the controller collects them.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from sae_bench.errors import SAEBenchError
from sae_bench.frontends.pytest import options as sae_options
from sae_bench.frontends.pytest.items import SESSION, MissingItem, is_timed, property_of, session_of, spec_of

if TYPE_CHECKING:
    from sae_bench.run.run import Run

MARKERS = {
    "fidelity": "what the model loses when it reads the reconstruction",
    "geometry": "properties of the dictionary's directions",
    "steering": "what adding a feature's direction does",
    "concepts": "what the codes know of labelled concepts",
    "contract": "what every SAE must satisfy on any input",
    "speed": "how fast an SAE encodes and decodes on this machine; never judged",
}
_error_key = pytest.StashKey[str]()
_name_key = pytest.StashKey[str]()
PLACE = "sae_bench_place"
"Output of an xdist worker: the path of its suite's tests."
RECORD = "sae_bench.record"
"Equal to `sae_bench.report.run_folder.RECORD`, which suites without SAEs do not import."


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--sae-*`` options and their ini keys."""
    group = parser.getgroup("sae", "SAE quality")
    sae_options.add_options(group.addoption)
    for option in sae_options.OPTIONS:
        if not option.action:
            kind = "linelist" if option.kind == "list" else "string"
            parser.addini(option.ini_key, option.help.replace("%%", "%"), type=kind, default=None)  # type: ignore[arg-type]


def pytest_configure(config: pytest.Config) -> None:
    """Describe the markers, so that ``--strict-markers`` and ``pytest --markers`` know them."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.pluginmanager.register(RecordIntake(config), "sae_bench.collector")


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests() -> Generator[None, Any, Any]:
    """Turn a wrong registration, or a foreign ``sae_bench``, in a conftest into a one-line error."""
    try:
        return (yield)
    except Exception as error:
        # pytest 8.0 wraps what a conftest raised in another way than later ones.
        cause = getattr(error, "cause", None) or getattr(error, "excinfo", (None, error))[1]
        if isinstance(cause, SAEBenchError):
            raise pytest.UsageError(str(cause)) from None
        if isinstance(cause, ImportError) and str(cause.name or "").partition(".")[0] == "sae_bench":
            from sae_bench.registry.package_clash import clash_message

            if message := clash_message():
                raise pytest.UsageError(message) from None
        raise


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Print the list and stop, for ``--sae-list``."""
    if not config.getoption("sae_list"):
        return None
    from sae_bench.show.terminal import listing

    session = session_of(config)
    # pytest's own writer comes with its terminal reporter, which is not there yet.
    sys.stdout.write(listing(session.specs, session.properties, session.options.baselines))
    return 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Stop before anything is collected when an option is wrong."""
    config = session.config
    if _options_in_use(config):
        from sae_bench.registry.package_clash import clash_message

        # Choosing SAEs has to wait: conftests below the root are still to come.
        if message := clash_message():
            raise pytest.UsageError(message)
    if any(option.name.startswith("accept") for option in _options_in_use(config)):
        _refuse_narrowed_accept(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise a test by the chosen SAEs; ids are the SAEs' ids, so ``-k`` and node ids work."""
    from sae_bench.frontends.testing import OPERATIONS, PROPERTY_ATTRIBUTE

    name, timed = getattr(metafunc.function, PROPERTY_ATTRIBUTE, None), is_timed(metafunc.function)
    if name is None and not timed:
        return
    try:
        session = session_of(metafunc.config)
        chosen = session.speed if timed else name in session.properties
        # A control of known quality is as fast as any product: there is nothing to learn.
        specs = [spec for spec in session.specs if chosen and not (timed and spec.control)]
    except pytest.UsageError as error:
        metafunc.config.stash.setdefault(_error_key, str(error))
        specs = []
    metafunc.parametrize("sae_spec", specs, ids=[spec.id for spec in specs], scope="session")
    if timed:
        metafunc.parametrize("sae_operation", OPERATIONS)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark items by their property's kind, drop properties not chosen, add items for what vanished."""
    if (message := config.stash.get(_error_key, None)) is not None:
        raise pytest.UsageError(message)
    timed = [item for item in items if is_timed(getattr(item, "function", None))]
    suite = [item for item in items if property_of(item) is not None]
    if not suite and not timed:
        return
    from sae_bench.measure.properties import load_property
    from sae_bench.report.rerun_commands import place_of

    session = session_of(config)
    session.collected = True
    for item in suite:
        item.add_marker(load_property(str(property_of(item))).marker)
    _mark_timed(config, timed)
    chosen = [item for item in suite if spec_of(item) is not None and property_of(item) in session.properties]
    if config.getoption("benchmark_only", False):
        # What pytest-benchmark would skip was not chosen; a property that is skipped counts as lost.
        chosen = []
    dropped = {id(item) for item in suite} - {id(item) for item in chosen}
    dropped |= {id(item) for item in timed if spec_of(item) is None}
    if dropped:
        items[:] = [item for item in items if id(item) not in dropped]
    place = place_of((item.path for item in (*suite, *timed)), config.invocation_params.dir)
    session.locate(place)
    if hasattr(config, "workeroutput"):
        config.workeroutput[PLACE] = place
    if suite and not session.narrowed and not config.getoption("benchmark_only", False):
        parent = suite[0].parent or suite[0].session
        pairs: list[tuple[str, str | None]] = [(sae, None) for sae in session.vanished()]
        pairs += session.unmeasured({(spec_of(item).id, str(property_of(item))) for item in chosen})
        items.extend(MissingItem.of(parent, sae, name) for sae, name in pairs)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start a Ray cluster on the collected items, if one is to measure them."""
    sae_session = session.config.stash.get(SESSION, None)
    if sae_session is None or session.config.getoption("collectonly") or hasattr(session.config, "workerinput"):
        return
    pairs = [(spec_of(item), property_of(item)) for item in session.items]
    try:
        sae_session.distribute([(spec, name) for spec, name in pairs if spec is not None and name is not None])
    except SAEBenchError as error:
        raise pytest.UsageError(str(error)) from None


def _mark_timed(config: pytest.Config, timed: list[pytest.Item]) -> None:
    """Mark timings, and skip them where they would mean nothing."""
    why = None
    if hasattr(config, "workerinput"):
        why = "workers that share a machine slow each other down: time SAEs with -k speed and without -n"
    elif not config.pluginmanager.hasplugin("benchmark"):
        why = "pytest-benchmark is not loaded, and it takes the time"
    elif session_of(config).resolved["sae_ray"]:
        why = "SAEs are measured on a Ray cluster: time them with -k speed and without --sae-ray"
    for item in timed:
        item.add_marker("speed")
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def sae_run(request: pytest.FixtureRequest) -> Generator[Run]:
    """Return the run that measures and judges; it shares models, activations and SAEs between items."""
    session = session_of(request.config)
    session.open()
    session.show_progress()
    yield session.run
    session.run.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Turn a skipped item whose values were accepted into MISSING: nothing passes unmeasured."""
    report = yield
    name, spec = property_of(item), spec_of(item)
    if report.skipped and name is not None and spec is not None and not hasattr(report, "wasxfail"):
        session = session_of(item.config)
        if session.is_accepted(spec, name):
            session.open()
            checked = session.run.missing(spec.id, name, "its test was skipped")
            report.outcome, report.longrepr, report.when = "failed", checked.failure, "call"
            report.user_properties = [*report.user_properties, *checked.user_properties]
    return report


class RecordIntake:
    """Collector of the records that items write, in this process or in a worker."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect an item's record; only items of ours have one."""
        if report.when != "call" or hasattr(self.config, "workerinput"):
            return
        for key, value in report.user_properties:
            if key == RECORD:
                session = session_of(self.config)
                if (name := self.config.stash.get(_name_key, None)) is not None:
                    session.adopt(name)
                session.collect(str(value), failed=report.failed)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report, accept if asked to, and turn "could not be judged" into exit code 11."""
    sae_session = session.config.stash.get(SESSION, None)
    if sae_session is None or not sae_session.collected or hasattr(session.config, "workerinput"):
        return
    if session.config.getoption("collectonly"):
        return
    failed_otherwise = session.testsfailed > sae_session.failed_items
    session.exitstatus = sae_session.finish(int(exitstatus), failed_otherwise)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Generator[None, Any, Any]:
    """Print the table below the output of other plugins, also when one of them stops the run."""
    try:
        return (yield)
    finally:
        sae_session = config.stash.get(SESSION, None)
        if sae_session is not None and sae_session.collected:
            sae_session.summarise(terminalreporter)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give an xdist worker the folder of the run; a wrong option stops the run here."""
    config = node.config
    if _measures_saes(config):
        from sae_bench.frontends.pytest.scheduling import check_gpus

        session = session_of(config)
        if session.resolved["sae_ray"]:
            raise pytest.UsageError("--sae-ray and -n both spread SAEs over processes; choose one of them")
        try:
            check_gpus(len(config.option.tx), session.options.device)
        except SAEBenchError as error:
            raise pytest.UsageError(str(error)) from None
        node.workerinput.update(session.worker_input())
    else:
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        node.workerinput["sae_bench_name"] = config.stash.setdefault(_name_key, f"{moment}-workers")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the path of the tests from a worker; with xdist, only workers collect."""
    session = node.config.stash.get(SESSION, None)
    if session is not None and (place := getattr(node, "workeroutput", {}).get(PLACE)) is not None:
        session.locate(place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule all items of one SAE on one worker; leave suites without SAEs to xdist."""
    if not _measures_saes(config) or config.getoption("dist") != "load":
        return None
    from sae_bench.frontends.pytest.scheduling import by_sae

    return by_sae(config, log, [spec.id for spec in session_of(config).specs])


def _measures_saes(config: pytest.Config) -> bool:
    """Return True when this run measures SAEs, as far as a process that collects nothing can know."""
    if SESSION in config.stash or any(_options_in_use(config)):
        return True
    registration = sys.modules.get("sae_bench.registry.register")
    if registration is not None and len(registration.SAES):
        return True
    from importlib.metadata import entry_points

    return bool(entry_points(group="sae_bench.saes"))


def _options_in_use(config: pytest.Config) -> list[sae_options.Option]:
    return [option for option in sae_options.OPTIONS if config.getoption(option.dest) not in (None, [], False)]


def _refuse_narrowed_accept(config: pytest.Config) -> None:
    from sae_bench.frontends.pytest.selection import narrowed_by

    if used := narrowed_by(config):
        raise pytest.UsageError(
            f"--sae-accept refuses a run narrowed by {', '.join(used)}: what it leaves out would be accepted, too; "
            f"narrow with --sae and --sae-property instead"
        )
    if not (config.getoption("sae_accept_reason") or "").strip():
        raise pytest.UsageError("accepting needs a reason: add --sae-accept-reason 'why the new values are right'")
