"""Loss of the model when the SAE's reconstruction replaces the activation, compared with noise of the same size.

    KL(c)        mean over kept tokens of sum_v P log(P / Q), P clean, Q with x' of condition c in place of x, in nats
    tv_sae       mean over kept tokens of sum_v |P - Q| / 2, Q with the reconstruction
    kappa(c)     sum KL / sum ‖x' - x‖², the loss per unit of squared error
    ratio(c)     kl_sae / KL(c)
    kl_level     kl_sae / KL(mean ablation)
    ce_recovered (CE_ablated - CE_sae) / (CE_ablated - CE_clean)

The conditions are the reconstruction and the noise floors of Gurnee, "SAE reconstruction errors are (empirically)
pathological" (2024), and of Lee and Heimersheim, arXiv 2410.12555 (covariance and real differences), with shuffled and
reflected errors added. A ratio is never judged alone: shrinking a sound decoder lowers it while the loss rises.

KL grows with the square of the error, so few tokens carry much of it: 1% of them two fifths to three fifths on the
demo. The effect of a change on those few hides its effect on all others. tv_sae, the probability that goes to other
tokens, grows with the error itself: the same documents distinguish a change of it from chance five times better.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from sae_bench.engine.noise_floors import NoiseFloor, noise_floors
from sae_bench.errors import UsageError
from sae_bench.measure.measurement import Estimate, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.properties.kl_gap.error_parts import error_parts
from sae_bench.measure.properties.kl_gap.series import kl_series
from sae_bench.measure.properties.kl_gap.tail import TAIL_METRICS, tail_estimates
from sae_bench.measure.shared.token_type_gaps import TOKEN_GAP, frequency_correlation
from sae_bench.measure.uncertainty import ratio_or_undefined

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats

KL, KAPPA, CE = "KL by condition", "KL per squared error norm, by condition", "Next-token loss by condition"
"Charts that show every condition."
NO_ERROR = "the reconstruction has no error, so there is no floor of its size"

_TABLES = ("sae", "clean", "sae_odd", "linear_removed", "error_top", "error_rest")
"Names of tables that are not of a noise floor."

_JUDGED = (
    Metric(
        "kl_sae",
        "nats",
        "lower",
        "KL from clean to a model that reads the reconstruction",
        noise_free=True,
        family=KL,
        condition="sae",
    ),
    Metric(
        "tv_sae",
        "share",
        "lower",
        "next-token probability that the reconstruction moves to other tokens",
        noise_free=True,
    ),
    Metric("ce_gap", "nats", "lower", "next-token loss with the reconstruction minus the clean loss", noise_free=True),
    Metric("kl_level", "ratio", "lower", "KL over the KL of mean ablation", noise_free=True),
)
_REPORTED = (
    *(
        Metric(
            name,
            "share",
            "reported",
            f"loss recovered, from {ablation} ablation to clean",
            noise_free=True,
            family="Loss recovered, by ablation",
            condition=f"{ablation}_ablation",
        )
        for name, ablation in {"ce_recovered": "mean", "ce_recovered_zero": "zero"}.items()
    ),
    Metric("error_linear_share", "share", "reported", "share of the error that is linear in x", noise_free=True),
    Metric(
        "error_linear_kl_share",
        "share",
        "reported",
        "share of the KL removed with the error's linear part",
        noise_free=True,
    ),
    Metric(
        "kappa_error_top",
        "nats",
        "reported",
        "KL per squared norm of the error's top components",
        noise_free=True,
        family=KAPPA,
        condition="error_top",
    ),
    Metric(
        "kappa_error_rest",
        "nats",
        "reported",
        "KL per squared norm of the error without its top components",
        noise_free=True,
        family=KAPPA,
        condition="error_rest",
    ),
    Metric("frequency_correlation", "", "reported", "Spearman of token frequency and KL above isotropic noise"),
    Metric("logprob_l2", "nats", "reported", "mean distance of log-probabilities over the vocabulary", noise_free=True),
    *TAIL_METRICS,
)


def metrics(floors: tuple[NoiseFloor, ...]) -> tuple[Metric, ...]:
    """Declare the metrics of the reconstruction and of every noise floor; two with one name are a `UsageError`."""

    def of(prefix: str, floor: NoiseFloor, unit: str, meaning: str) -> Metric:
        family = {"kl": KL, "kappa": KAPPA, "ce": CE}.get(prefix, "")
        return Metric(
            f"{prefix}_{floor.name}",
            unit,
            "reported",
            meaning,
            version=floor.version,
            noise_free=not floor.draws,
            family=family,
            condition=floor.name if family else "",
        )

    def chart(name: str, meaning: str, family: str, condition: str) -> Metric:
        return Metric(name, "nats", "reported", meaning, noise_free=True, family=family, condition=condition)

    declared = (
        *_JUDGED,
        *(
            of("ratio", floor, "ratio", f"KL of the reconstruction over KL with {floor.meaning}")
            for floor in floors
            if floor.ratio
        ),
        *(of("kl", floor, "nats", f"KL with {floor.meaning} in place of the activation") for floor in floors),
        chart("kappa_sae", "KL of the reconstruction per squared error norm", KAPPA, "sae"),
        *(of("kappa", floor, "nats", f"KL per squared distance to x, with {floor.meaning}") for floor in floors),
        chart("ce_clean", "next-token loss of the clean model", CE, "clean"),
        chart("ce_sae", "next-token loss with the reconstruction", CE, "sae"),
        *(
            of("ce", floor, "nats", f"next-token loss with the site at {floor.meaning}")
            for floor in floors
            if floor.ablation
        ),
        *_REPORTED,
    )
    names = [metric.name for metric in declared]
    for floor in floors:
        of_floor = [name for name in names if name.endswith(f"_{floor.name}")]
        if floor.name in _TABLES or any(names.count(name) > 1 for name in of_floor):
            raise UsageError(
                f"noise floor {floor.name!r} has the name of another quantity of kl_gap; rename the function"
            )
    return declared


def measure(bench: Bench) -> Measurement:
    """Measure KL, loss and squared distance of every condition at every kept token."""
    tables = {**_ablations(bench), **bench.collect(lambda batch: _condition_tables(bench, batch), "kl_gap")}
    sums = {name: bench.per_cluster(table) for name, table in tables.items()}
    count, count_ce = bench.per_cluster(bench.keep), bench.per_cluster(bench.keep_ce)
    estimates: dict[str, Estimate] = {
        "kl_sae": Ratio(sums["kl/sae"], count),
        "tv_sae": Ratio(sums["tv/sae"], count),
        "ce_gap": Ratio(sums["ce/sae"] - sums["ce/clean"], count_ce),
        "kl_level": Ratio(sums["kl/sae"], sums["kl/mean_ablation"]),
        "logprob_l2": Ratio(sums["logprob_l2"], count),
        **_loss(sums, count_ce),
        **_levels(sums, count),
        **_error_parts(sums),
    }
    has_error = float(sums["square/sae"].sum()) > 0
    gap = bench.shared(TOKEN_GAP, lambda: tables["kl/sae"] - tables["kl/isotropic"])
    estimates["frequency_correlation"] = (
        frequency_correlation(bench, gap) if has_error else Undefined("the KL gap is 0 for every token type")
    )
    estimates.update(
        tail_estimates(bench) if has_error else {metric.name: Undefined(NO_ERROR) for metric in TAIL_METRICS}
    )
    return Measurement(
        estimates,
        bench.clusters,
        series=kl_series(bench, tables),
        settings={"include_bos": bench.include_bos, "tail_position": "middle"},
    )


def _condition_tables(bench: Bench, batch: Batch) -> dict[str, Tensor]:
    """Return (docs, pos) tables of one batch: KL, loss and squared distance of the SAE and of its noise floors."""
    x, error, pool = batch.x, bench.error(batch), bench.noise_pool()
    sae = bench.intervene(batch, x + error, distances=True, condition="sae")
    assert sae.logprob_distance is not None
    assert sae.total_variation is not None
    tables: dict[str, Tensor] = {
        "kl/sae": sae.kl,
        "ce/sae": sae.ce,
        "logprob_l2": sae.logprob_distance,
        "tv/sae": sae.total_variation,
        "square/sae": _square(error),
        "ce/clean": bench.intervene(batch, None).ce,
    }
    for floor in _error_floors(draws=False):
        value = floor.replacement(x, error, pool, bench.draw(batch, floor.name, 0))
        tables |= {
            f"kl/{floor.name}": bench.intervene(batch, value, condition=floor.name).kl,
            f"square/{floor.name}": _square(value - x),
        }
    for floor in _error_floors(draws=True):
        draws = range(bench.settings.tier.draws)
        values = [floor.replacement(x, error, pool, bench.draw(batch, floor.name, index)) for index in draws]
        outcomes = [
            bench.intervene(batch, value, condition=f"{floor.name}/{index}") for index, value in enumerate(values)
        ]
        tables[f"kl/{floor.name}"] = _mean([outcome.kl.double() for outcome in outcomes])
        tables[f"square/{floor.name}"] = _mean([_square(value - x) for value in values])
    return tables | _part_tables(bench, batch, sae.kl)


def _part_tables(bench: Bench, batch: Batch, kl: Tensor) -> dict[str, Tensor]:
    """Return the KL of the error's parts; the linear part is fitted on even documents and scored on odd ones."""
    x, error, parts = batch.x, bench.error(batch), error_parts(bench)
    odd = x.new_tensor(batch.documents)[:, None] % 2  # (docs, 1)
    residual = error - parts.linear(x)
    top = parts.top(error)
    tables = {
        "square/linear_removed": _square(residual) * odd,
        "square/sae_odd": _square(error) * odd,
        "kl/sae_odd": kl * odd,
    }
    for name, value in {"error_top": top, "error_rest": error - top}.items():
        tables |= {f"kl/{name}": bench.intervene(batch, x + value).kl, f"square/{name}": _square(value)}
    return tables | {"kl/linear_removed": _odd_kl(bench, batch, x + residual)}


def _odd_kl(bench: Bench, batch: Batch, value: Tensor) -> Tensor:
    """Return (docs, pos) KL on odd documents, which alone are run; 0 on even ones."""
    kl = value.new_zeros(batch.keep.shape)
    rows = [row for row, document in enumerate(batch.documents) if document % 2]
    if rows:
        odd_batch = bench.batch(tuple(batch.documents[row] for row in rows))
        length = odd_batch.keep.shape[1]
        kl[rows, :length] = bench.intervene(odd_batch, value[rows, :length]).kl
    return kl


def _ablations(bench: Bench) -> dict[str, Tensor]:
    """Return tables of the ablations; they do not depend on the SAE, so all SAEs of a site share them."""
    ablations = tuple(floor for floor in noise_floors() if floor.ablation)

    def tokens(batch: Batch) -> dict[str, Tensor]:
        tables: dict[str, Tensor] = {}
        for floor in ablations:
            value = floor.replacement(batch.x, batch.x * 0, bench.noise_pool(), bench.draw(batch, floor.name, 0))
            outcome = bench.intervene(batch, value)
            tables |= {
                f"kl/{floor.name}": outcome.kl,
                f"ce/{floor.name}": outcome.ce,
                f"square/{floor.name}": _square(value - batch.x),
            }
        return tables

    key = ("ablations", bench.n_documents, ablations)
    return bench.site_data.shared(key, lambda: bench.collect(tokens, "ablations"))


def _error_floors(*, draws: bool) -> list[NoiseFloor]:
    """Return the registered floors that depend on the SAE's error, those that draw or the others."""
    return [floor for floor in noise_floors() if floor.draws == draws and not floor.ablation]


def _levels(sums: dict[str, Floats], count: Floats) -> dict[str, Estimate]:
    """Return KL, kappa and ratio of every condition; one of size 0 has neither kappa nor ratio."""
    levels = {"kappa_sae": ratio_or_undefined(sums["kl/sae"], sums["square/sae"], NO_ERROR)}
    for floor in noise_floors():
        kl = sums[f"kl/{floor.name}"]
        levels[f"kl_{floor.name}"] = Ratio(kl, count)
        levels[f"kappa_{floor.name}"] = ratio_or_undefined(kl, sums[f"square/{floor.name}"], NO_ERROR)
        if floor.ratio:
            levels[f"ratio_{floor.name}"] = ratio_or_undefined(sums["kl/sae"], kl, NO_ERROR)
    return levels


def _loss(sums: dict[str, Floats], count: Floats) -> dict[str, Estimate]:
    """Return losses, and the share of the ablations' damage that the reconstruction does not do."""
    clean, sae = sums["ce/clean"], sums["ce/sae"]
    mean, zero = sums["ce/mean_ablation"], sums["ce/zero_ablation"]
    return {
        "ce_clean": Ratio(clean, count),
        "ce_sae": Ratio(sae, count),
        **{f"ce_{floor.name}": Ratio(sums[f"ce/{floor.name}"], count) for floor in noise_floors() if floor.ablation},
        "ce_recovered": Ratio(mean - sae, mean - clean),
        "ce_recovered_zero": Ratio(zero - sae, zero - clean),
    }


def _error_parts(sums: dict[str, Floats]) -> dict[str, Estimate]:
    names = ("error_linear_share", "error_linear_kl_share", "kappa_error_top", "kappa_error_rest")
    if sums["square/sae"].sum() == 0:
        return {name: Undefined(NO_ERROR) for name in names}
    if sums["square/sae_odd"].sum() == 0:
        reason = "the linear part is fitted on even documents and scored on odd ones, and there is no odd document"
        shares: dict[str, Estimate] = {name: Undefined(reason) for name in names[:2]}
    else:
        shares = {
            "error_linear_share": _share_removed(sums, "square"),
            "error_linear_kl_share": _share_removed(sums, "kl"),
        }
    return shares | {
        f"kappa_{part}": Ratio(sums[f"kl/{part}"], sums[f"square/{part}"]) for part in ("error_top", "error_rest")
    }


def _share_removed(sums: dict[str, Floats], quantity: str) -> Ratio:
    whole = sums[f"{quantity}/sae_odd"]
    return Ratio(whole - sums[f"{quantity}/linear_removed"], whole)


def _mean(tables: list[Tensor]) -> Tensor:
    total = tables[0]
    for table in tables[1:]:
        total = total + table
    return total / len(tables)


def _square(value: Tensor) -> Tensor:
    return value.double().square().sum(-1)


PROPERTY: Property


def __getattr__(name: str) -> Property:
    """Declare `PROPERTY` on access: a conftest.py may have registered a noise floor since it was last read."""
    if name == "PROPERTY":
        return _property(noise_floors())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _property(floors: tuple[NoiseFloor, ...]) -> Property:
    return Property(
        name="kl_gap",
        question="What does the model lose when it reads the reconstruction, and is that more than noise would cost?",
        primary_metric="kl_sae",
        metrics=metrics(floors),
        limits=("kl_sae:2%", "tv_sae:2%", "ce_gap:5%+0.001", "kl_level:max:0.25", "ratio_isotropic:max:5"),
        measure=measure,
        marker="fidelity",
    )
