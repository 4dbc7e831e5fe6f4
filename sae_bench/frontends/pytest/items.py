"""Look up the SAE and the property of collected items, and the session that they belong to."""

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
    """Return the session of a run; on the first call options are resolved, SAEs chosen and registrations frozen."""
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
    """Return True for a test that times SAEs."""
    from sae_bench.frontends.testing import SPEED_ATTRIBUTE

    return getattr(function, SPEED_ATTRIBUTE, False)


def spec_of(item: pytest.Item) -> Any:
    """Return the SAE of an item; None where no SAE was chosen."""
    spec = item.callspec.params.get("sae_spec") if hasattr(item, "callspec") else None
    # pytest fills an empty set of parameters with a placeholder.
    return spec if hasattr(spec, "accepted_id") else None


def property_of(item: pytest.Item) -> str | None:
    """Return the property that an item measures."""
    from sae_bench.frontends.testing import PROPERTY_ATTRIBUTE

    return getattr(getattr(item, "function", None), PROPERTY_ATTRIBUTE, None)


class MissingItem(pytest.Item):
    """Item that fails because an accepted SAE, or one of its properties, is not measured any more."""

    def __init__(self, *, sae: str, property: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sae, self.property = sae, property

    @classmethod
    def of(cls, parent: pytest.Collector | pytest.Session, sae: str, property: str | None) -> MissingItem:
        """Return the item for an SAE that is registered no more, or for one of its properties."""
        name = f"accepted[{sae}]" if property is None else f"accepted_{property}[{sae}]"
        item: MissingItem = cls.from_parent(parent, name=name, sae=sae, property=property)
        return item

    def runtest(self) -> None:
        """Fail with the verdict MISSING: the item exists only where nothing measures."""
        session = session_of(self.config)
        session.open()
        checked = session.run.missing(self.sae, self.property)
        self.user_properties.extend(checked.user_properties)
        pytest.fail(str(checked.failure), pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """Return the failure as one sentence."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return the name of the accepted report, which pytest shows for the item."""
        return self.path, None, self.name
