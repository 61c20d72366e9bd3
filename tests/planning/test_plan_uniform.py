"""Mode Uniform: the same choice for all sites, limited by the weakest."""

from site_profiles import GIB, a_site, a_spec

from fedpipe_operator.planning import Plans, plan_round
from fedpipe_operator.sites import SiteProfile


def uniform(*sites: SiteProfile) -> Plans:
    return plan_round(a_spec(planning={"mode": "Uniform", "bits": [4, 16]}), {site.name: site for site in sites}, {})


def test_all_sites_get_the_best_choice_of_the_weakest() -> None:
    weak, strong = a_site("weak", memory_bytes=2 * GIB), a_site("strong", memory_bytes=64 * GIB, train_samples=64)

    both = uniform(weak, strong).plans
    weakest = uniform(weak).plans["weak"]

    choices = {(plan.bits, plan.batch_size, *set(plan.ranks.values())) for plan in both.values()}
    assert choices == {(weakest.bits, weakest.batch_size, *set(weakest.ranks.values()))}
    assert both["strong"].why[0].endswith("the same for all sites, limited by the weakest site (weak)")
    assert both["strong"].steps < both["weak"].steps


def test_a_site_without_a_feasible_choice_does_not_limit_the_others() -> None:
    tiny, strong = a_site("tiny", memory_bytes=GIB // 2), a_site("strong", memory_bytes=64 * GIB)

    plans = uniform(tiny, strong)

    assert plans.plans == uniform(strong).plans
    assert plans.excluded["tiny"].startswith("needs at least")


def test_a_site_that_shares_no_bit_width_with_most_is_excluded() -> None:
    odd = a_site("odd", unsupported={16: "no bf16"}, memory_bytes=64 * GIB)
    others = [a_site(name, unsupported={4: "no kernel"}, memory_bytes=64 * GIB) for name in ("a", "b")]

    plans = uniform(odd, *others)

    assert set(plans.plans) == {"a", "b"}
    choice = "16 bits, batch 16, rank 32"
    advice = "allow bits that all sites support, or set planning.mode to Auto"
    assert plans.excluded == {"odd": f"cannot run the choice that most sites can ({choice}): {advice}"}


def test_when_no_site_has_a_feasible_choice_each_has_its_reason() -> None:
    plans = uniform(a_site("a", memory_bytes=GIB // 2), a_site("b", memory_bytes=GIB // 4))

    assert plans.plans == {}
    assert all(reason.startswith("needs at least") for reason in plans.excluded.values())
