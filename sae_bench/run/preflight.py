"""Check limits, known failures and accepted reports before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sae_bench.errors import StoreError, UsageError
from sae_bench.judge.limits import Rule, check_accepted, check_known_failures, check_rules, parse_rule
from sae_bench.judge.verdicts import AcceptedProperty
from sae_bench.measure.properties import Property, load_property, property_names
from sae_bench.registry.spec import SAESpec
from sae_bench.report import baselines
from sae_bench.run.noise import check_noise

if TYPE_CHECKING:
    from sae_bench.run.options import RunOptions


def rules_for(spec: SAESpec, declared: Property, of_run: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return all limits that may concern a property of an SAE, weakest source first; a control has none."""
    if spec.control is not None:
        return ()
    rules = [parse_rule(f"{declared.name}.{limit}", "property") for limit in declared.limits]
    rules += [parse_rule(limit, "registration") for limit in spec.limits]
    if spec.l0 is not None:
        rules += [
            parse_rule(f"sparsity.l0:{kind}:{spec.l0 * share}", "registration")
            for kind, share in (("min", 0.9), ("max", 1.1))
        ]
    return (*rules, *of_run)


def check_names(specs: Sequence[SAESpec], rules: Sequence[Rule], registered: Sequence[str] = ()) -> None:
    """Raise a `UsageError` for a limit or a known failure that names no declared metric.

    A limit for some SAEs must name one that is chosen or ``registered``.
    """
    declared = [load_property(name) for name in property_names()]
    known = [f"{each.name}.{metric.name}" for each in declared for metric in each.metrics]
    ids = {*registered, *(spec.id for spec in specs)}
    check_rules(rules, known)
    check_rules([rule for rule in rules if rule.sae != "*"], known, sorted(ids))
    for spec in specs:
        check_rules([parse_rule(limit, "registration") for limit in spec.limits], known)
        check_known_failures(spec.known_failures, known, spec.origin)


def check_accepted_reports(specs: Sequence[SAESpec], properties: Sequence[str], options: RunOptions) -> None:
    """Raise a `UsageError` for an accepted report that is unreadable, of another SAE, or gives a limit no width.

    Raises:
        UsageError: before anything is measured, since a long run that cannot be judged helps nobody.
    """
    _check_files(specs)
    if not options.compare:
        return
    where = options.reference or options.baselines
    for spec in specs:
        for declared in map(load_property, properties):
            accepted = _accepted(where, spec, declared.name)
            if accepted is None:
                continue
            rules = rules_for(spec, declared, options.rules)
            if options.selfcheck:
                # The noise will be measured before it is needed.
                rules = tuple(rule for rule in rules if not rule.limit.noise)
            check_accepted(rules, declared.name, declared.metrics, spec.id, accepted.metrics)
            if not options.selfcheck:
                values = {name: each.value for name, each in accepted.metrics.items() if math.isfinite(each.value)}
                noise = {name: each.noise for name, each in accepted.metrics.items() if each.noise is not None}
                check_noise(rules, declared.name, declared.metrics, spec.id, values, noise)


def _accepted(where: Path, spec: SAESpec, name: str) -> AcceptedProperty | None:
    try:
        return baselines.accepted_property(where, spec.accepted_id, name)
    except StoreError as error:
        raise UsageError(str(error)) from None


def _check_files(specs: Sequence[SAESpec]) -> None:
    """Raise a `UsageError` when two SAEs would share an accepted file, or one file would be the folder of another."""
    owners: dict[PurePosixPath, SAESpec] = {}
    for spec in specs:
        path = PurePosixPath(f"{spec.accepted_id}.json")
        if path in owners:
            raise UsageError(
                f"{owners[path].id!r} and {spec.id!r} would share the accepted report {path}: give one another id"
            )
        owners[path] = spec
    for path, spec in owners.items():
        for parent in path.parents:
            if parent in owners:
                raise UsageError(
                    f"the accepted report of {owners[parent].id!r} ({owners[parent].origin}) is the file {parent}, "
                    f"and that of {spec.id!r} ({spec.origin}) would lie below it: give one another id"
                )
