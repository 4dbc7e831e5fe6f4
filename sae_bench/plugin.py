"""pytest hooks: options, one item per (SAE, property), the report at the end, and the exit code.

Importing this module imports neither torch nor scipy, so that suites which have nothing to do with SAEs are not slowed.
One process writes: xdist workers leave records, the controller collects them.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sae_bench import options as sae_options
from sae_bench.errors import SAEBenchError

if TYPE_CHECKING:
    from sae_bench.run import Run
    from sae_bench.session import Session

MARKERS = {
    "fidelity": "what the model loses when it reads the reconstruction",
    "geometry": "properties of the dictionary's directions",
    "steering": "what adding a feature's direction does",
    "concepts": "what the codes know of labelled concepts",
}
_session_key = pytest.StashKey["Session"]()
_error_key = pytest.StashKey[str]()


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


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """``--sae-list`` prints and stops."""
    if not config.getoption("sae_list"):
        return None
    from sae_bench.render.terminal import listing

    session = _session(config)
    config.get_terminal_writer().write(listing(session.specs, session.properties, session.options.baselines))
    return 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """A mistake in the options stops the run before anything is collected."""
    config = session.config
    given = [option for option in sae_options.OPTIONS if config.getoption(option.dest) not in (None, [], False)]
    if any(option.name.startswith("accept") for option in given):
        _refuse_narrowed_accept(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item for each chosen SAE; ids are the SAEs' ids, so ``-k`` and node ids work."""
    from sae_bench.testing import PROPERTY_ATTRIBUTE

    name = getattr(metafunc.function, PROPERTY_ATTRIBUTE, None)
    if name is None:
        return
    try:
        session = _session(metafunc.config)
        specs = session.specs if name in session.properties else []
    except (SAEBenchError, ImportError) as error:
        metafunc.config.stash.setdefault(_error_key, str(error))
        specs = []
    metafunc.parametrize("sae_spec", specs, ids=[spec.id for spec in specs], scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark items by their property's kind, drop unchosen properties, and add an item per vanished SAE."""
    if (message := config.stash.get(_error_key, None)) is not None:
        raise pytest.UsageError(message)
    suite = [item for item in items if _property_of(item) is not None]
    if not suite:
        return
    from sae_bench.properties import load_property

    session = _session(config)
    session.collected = True
    for item in suite:
        item.add_marker(load_property(str(_property_of(item))).marker)
    dropped = [item for item in suite if not hasattr(item, "callspec") or "sae_spec" not in item.callspec.params]
    unchosen = [item for item in suite if _property_of(item) not in session.properties]
    if gone := {id(item) for item in (*dropped, *unchosen)}:
        items[:] = [item for item in items if id(item) not in gone]
    if not session.narrowed:
        parent = suite[0].parent or suite[0].session
        items.extend(VanishedItem.from_parent(parent, name=f"accepted[{sae}]", sae=sae) for sae in session.vanished())


def _property_of(item: pytest.Item) -> str | None:
    from sae_bench.testing import PROPERTY_ATTRIBUTE

    return getattr(getattr(item, "function", None), PROPERTY_ATTRIBUTE, None)


class VanishedItem(pytest.Item):
    """Fails because an accepted report has no registered SAE any more."""

    def __init__(self, *, sae: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sae = sae

    def runtest(self) -> None:
        """Always MISSING: the item exists only where the SAE does not."""
        checked = _session(self.config).run.missing(self.sae)
        self.user_properties.extend(checked.user_properties)
        pytest.fail(str(checked.failure), pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The sentence alone."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Shown under the name of the accepted report."""
        return self.path, None, self.name


@pytest.fixture(scope="session")
def sae_run(request: pytest.FixtureRequest) -> Generator[Run]:
    """What measures and judges; it keeps models, activations and SAEs between items."""
    session = _session(request.config)
    session.show_progress()
    yield session.run
    session.run.close()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the record that an item left, in this process or in a worker."""
    if _active is None or report.when != "call":
        return
    from sae_bench.store import RECORD

    for key, value in report.user_properties:
        if key == RECORD:
            _active.collect(Path(str(value)), failed=report.failed)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report, accept if asked to, and turn "could not be judged" into exit code 11."""
    sae_session = session.config.stash.get(_session_key, None)
    if sae_session is None or not sae_session.collected or hasattr(session.config, "workerinput"):
        return
    failed_otherwise = session.testsfailed > sae_session.failed_items
    session.exitstatus = sae_session.finish(int(exitstatus), failed_otherwise)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table."""
    sae_session = config.stash.get(_session_key, None)
    if sae_session is not None and sae_session.collected:
        sae_session.summarise(terminalreporter)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker which folder the run writes to."""
    node.workerinput["sae_bench_folder"] = str(_session(node.config).folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Items of one SAE run on one worker, so that it is loaded once."""
    from sae_bench.scheduling import by_sae

    return by_sae(config, log)


_active: Session | None = None


def _session(config: pytest.Config) -> Session:
    """The run's session, made when it is first needed: options resolved, SAEs chosen, registrations frozen."""
    global _active
    if _session_key not in config.stash:
        from sae_bench._identity import verify_identity
        from sae_bench.session import Session

        verify_identity()
        resolved = sae_options.resolve(config.getoption, config.getini)
        config.stash[_session_key] = _active = Session(config, resolved)
    return config.stash[_session_key]


def _refuse_narrowed_accept(config: pytest.Config) -> None:
    narrowing = {"-k": "keyword", "-m": "markexpr", "-x": "maxfail", "--lf": "lf", "--deselect": "deselect"}
    used = [flag for flag, dest in narrowing.items() if config.getoption(dest, None)]
    used += [argument for argument in config.args if "::" in argument]
    if used:
        raise pytest.UsageError(
            f"--sae-accept refuses a run narrowed by {', '.join(used)}: what was left out would be accepted unseen; "
            f"narrow with --sae and --sae-property instead"
        )
    if not (config.getoption("sae_accept_reason") or "").strip():
        raise pytest.UsageError("accepting needs a reason: add --sae-accept-reason 'why the new values are right'")


