"""Mode Uniform: all sites alike, held to the weakest."""

from site_profiles import GIB, a_site, a_spec

from fedpipe_operator.planning import Plans, plan_round
from fedpipe_operator.sites.profile import SiteProfile


def uniform(*sites: SiteProfile) -> Plans:
    return plan_round(a_spec(planning={"mode": "Uniform", "bits": [4, 16]}), {site.name: site for site in sites}, {})


def test_all_sites_get_what_the_weakest_can_carry() -> None:
    weak, strong = a_site("weak", memory_bytes=2 * GIB), a_site("strong", memory_bytes=64 * GIB, train_samples=64)

    both = uniform(weak, strong).plans
    alone = uniform(weak).plans["weak"]

    choices = {(plan.bits, plan.batch_size, *set(plan.ranks.values())) for plan in both.values()}
    assert choices == {(alone.bits, alone.batch_size, *set(alone.ranks.values()))}
    assert both["strong"].why[0].endswith("what all sites can carry, held to the weakest (weak)")
    assert both["strong"].steps < both["weak"].steps


def test_a_site_that_can_hold_nothing_holds_nobody_back() -> None:
    tiny, strong = a_site("tiny", memory_bytes=GIB // 2), a_site("strong", memory_bytes=64 * GIB)

    plans = uniform(tiny, strong)

    assert plans.plans == uniform(strong).plans
    assert plans.excluded["tiny"].startswith("needs at least")


def test_a_site_that_shares_no_bit_width_with_most_is_left_out() -> None:
    odd = a_site("odd", unsupported={16: "no bf16"}, memory_bytes=64 * GIB)
    others = [a_site(name, unsupported={4: "no kernel"}, memory_bytes=64 * GIB) for name in ("a", "b")]

    plans = uniform(odd, *others)

    assert set(plans.plans) == {"a", "b"}
    expected = "cannot carry what most sites can (16 bits, batch 16, rank 32): allow bits that all support, or set planning.mode to Auto"
    assert plans.excluded == {"odd": expected}


def test_when_no_site_can_hold_anything_each_says_why() -> None:
    plans = uniform(a_site("a", memory_bytes=GIB // 2), a_site("b", memory_bytes=GIB // 4))

    assert plans.plans == {}
    assert all(reason.startswith("needs at least") for reason in plans.excluded.values())
