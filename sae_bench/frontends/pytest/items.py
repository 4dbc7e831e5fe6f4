"""What the hooks know of collected items and of their run: which SAE, which property, and the session behind them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sae_bench.errors import SAEBenchError
from sae_bench.frontends.pytest import options as sae_options

if TYPE_CHECKING:
    from sae_bench.frontends.pytest.session import Session

SESSION = pytest.StashKey["Session"]()


def session_of(config: pytest.Config) -> Session:
    """The run's session, made when it is first needed: options resolved, SAEs chosen, registrations frozen."""
    if SESSION not in config.stash:
        from sae_bench.registry.package_clash import PackageClash, verify_identity

        try:
            verify_identity()
            from sae_bench.frontends.pytest.session import Session

            resolved = sae_options.resolve(config.getoption, config.getini)
            config.stash[SESSION] = Session(config, resolved)
        except (SAEBenchError, PackageClash) as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[SESSION]


def is_timed(function: Any) -> bool:
    """Whether a test times SAEs."""
    from sae_bench.frontends.testing import SPEED_ATTRIBUTE

    return getattr(function, SPEED_ATTRIBUTE, False)


def spec_of(item: pytest.Item) -> Any:
    """The SAE of one of our items; None where no SAE was chosen."""
    found = item.callspec.params.get("sae_spec") if hasattr(item, "callspec") else None
    # An empty set of parameters is filled with a placeholder.
    return found if hasattr(found, "accepted_id") else None


def property_of(item: pytest.Item) -> str | None:
    """The property that one of our items measures."""
    from sae_bench.frontends.testing import PROPERTY_ATTRIBUTE

    return getattr(getattr(item, "function", None), PROPERTY_ATTRIBUTE, None)


class MissingItem(pytest.Item):
    """Fails because something accepted is not measured any more: an SAE, or one property of one."""

    def __init__(self, *, sae: str, property: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sae, self.property = sae, property

    @classmethod
    def of(cls, parent: pytest.Collector | pytest.Session, sae: str, property: str | None) -> MissingItem:
        """The item for an SAE that is registered no more, or for one of its properties."""
        name = f"accepted[{sae}]" if property is None else f"accepted_{property}[{sae}]"
        item: MissingItem = cls.from_parent(parent, name=name, sae=sae, property=property)
        return item

    def runtest(self) -> None:
        """Always MISSING: the item exists only where nothing else does."""
        session = session_of(self.config)
        session.open()
        checked = session.run.missing(self.sae, self.property)
        self.user_properties.extend(checked.user_properties)
        pytest.fail(str(checked.failure), pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The sentence alone."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Shown under the name of the accepted report."""
        return self.path, None, self.name
