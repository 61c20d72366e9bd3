"""A site's plan with its forecast of memory, seconds and bytes."""

from collections.abc import Mapping
from functools import partial

from fedpipe_operator import conversion
from fedpipe_operator.api import CodecType
from fedpipe_operator.formatting import bytes_text, rate_text
from fedpipe_operator.planning.choices import Choice, found_share_of, load_need, other_seconds_of, seconds_of_steps
from fedpipe_operator.planning.memory_model import Step, training_peak
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.sizes import update_file_bytes
from fedpipe_operator.planning.time_model import forward_share, relative_step_seconds
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Forecast, Plan


def choice_of(plan: Plan) -> Choice:
    """The combination that a plan was made of."""
    return Choice(plan.bits, plan.batch_size, plan.micro_batch, plan.gradient_checkpointing, plan.lowest_layer, plan.cache_activations)


def forecast(request: PlanRequest, site: SiteProfile, choice: Choice, *, ranks: Mapping[str, int], steps: int) -> Forecast:
    """What a choice with these ranks and steps needs at a site."""
    sent = request.update_bytes(site, ranks)
    of_steps = seconds_of_steps(request, site, choice, steps)
    return Forecast(
        memory_bytes=max(0, int(peak_of(request, site, choice, ranks))),
        seconds=float(other_seconds_of(request, site, choice.bits, sent, choice.micro_batch)) + of_steps,
        step_seconds=of_steps,
        cached_share=found_share_of(request, site, choice, steps),
        upload_bytes=update_file_bytes(site.base.weights, ranks, request.head, request.codecs),
        download_bytes=request.download_file(site),
    )


def peak_of(request: PlanRequest, site: SiteProfile, choice: Choice, ranks: Mapping[str, int]) -> float:
    """Peak bytes of this choice with these ranks: of training, corrected by what earlier rounds showed, or of loading the base."""
    return max(training_peak_of(request, site, choice, ranks), load_need(site, choice.bits))


def training_peak_of(request: PlanRequest, site: SiteProfile, choice: Choice, ranks: Mapping[str, int]) -> float:
    """The same without the peak of loading."""
    predicted = training_peak(site, bits=choice.bits, step=_step_of(request, site, choice), ranks=ranks, options=request.options)
    return request.correction(site).memory * predicted


def is_in_memory(request: PlanRequest, site: SiteProfile, choice: Choice, ranks: Mapping[str, int]) -> bool:
    """Whether this choice with these ranks needs no more memory than a plan of the site may use."""
    training = training_peak_of(request, site, choice, ranks)
    return training <= request.memory_budget(site) and peak_of(request, site, choice, ranks) <= request.load_budget(site)


def _step_of(request: PlanRequest, site: SiteProfile, choice: Choice) -> Step:
    return Step(choice.micro_batch, request.longest_sequence(site), choice.lowest_layer, choice.checkpointing)


def with_found_share(site: SiteProfile, plan: Plan, share: float) -> Plan:
    """The plan with the seconds that would be forecast if this share of its passes was to find its activations in the cache."""
    layers, predicted = max(1, site.base.layers), plan.forecast
    of_share = partial(
        relative_step_seconds,
        layers,
        layers - plan.lowest_layer,
        forward=forward_share(site, plan.bits),
        checkpointing=plan.gradient_checkpointing,
    )
    steps = predicted.step_seconds * float(of_share(cached_share=share) / of_share(cached_share=predicted.cached_share))
    seconds = predicted.seconds - predicted.step_seconds + steps
    return plan.model_copy(
        update={"forecast": predicted.model_copy(update={"step_seconds": steps, "seconds": seconds, "cached_share": share})}
    )


def make_plan(  # noqa: PLR0913 -- the parts of a plan
    request: PlanRequest,
    site: SiteProfile,
    choice: Choice,
    *,
    ranks: Mapping[str, int],
    steps: int,
    why: tuple[str, ...],
    limited_by: str = "",
) -> Plan:
    """The plan that the trainer gets. Every weight is named; those below the trained layers have rank 0."""
    training = request.spec.training
    return Plan(
        bits=choice.bits,
        batch_size=choice.batch,
        micro_batch_size=choice.micro_batch,
        steps=steps,
        ranks={weight.name: ranks.get(weight.name, 0) for weight in site.base.weights},
        layers=site.base.layers,
        lowest_layer=choice.lowest_layer,
        gradient_checkpointing=choice.checkpointing,
        cache_activations=choice.cached,
        scaling=conversion.scaling(training.scaling),
        alpha=training.alpha,
        forecast=forecast(request, site, choice, ranks=ranks, steps=steps),
        limited_by=limited_by,
        why=(*why, *_codec_reason(request, site, ranks), *_assumptions(request, site)),
    )


def _codec_reason(request: PlanRequest, site: SiteProfile, ranks: Mapping[str, int]) -> list[str]:
    """What the codec of the run's updates saves, as a sentence; none without a codec."""
    if request.spec.codec.type is CodecType.IDENTITY:
        return []
    sent, plain = (update_file_bytes(site.base.weights, ranks, request.head, codecs) for codecs in (request.codecs, ()))
    return [f"its update travels as {request.spec.codec.type.value}: {bytes_text(sent)} instead of {bytes_text(plain)}"]


def _assumptions(request: PlanRequest, site: SiteProfile) -> list[str]:
    """What the plan of a site rests on that is not known of it, as sentences. Transfers of earlier rounds have shown its bandwidth."""
    if not site.assumed or request.correction(site).transfers != 1:
        return []
    rates = {"up": site.up, "down": site.down}
    told = " and ".join(f"{rate_text(rates[direction])} {direction}" for direction in site.assumed)
    fields = " and ".join(f"capacity.bandwidth.{direction}" for direction in site.assumed)
    return [f"a bandwidth of {told} is assumed, because none was claimed or could be measured: set {fields} of its EdgeSite"]
