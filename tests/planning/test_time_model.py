"""The time model."""

import pytest
from site_profiles import MPNET, a_site, a_spec, point, speeds

from fedpipe_operator.planning import plan_round
from fedpipe_operator.planning.sizes import uniform_ranks, update_bytes
from fedpipe_operator.planning.time_model import (
    download_seconds,
    evaluation_seconds,
    fixed_seconds,
    forward_share,
    generation_seconds,
    global_bytes,
    has_speed,
    padded_row_tokens,
    relative_step_seconds,
    step_seconds,
    tokens_per_second,
    upload_seconds,
)
from fedpipe_trainer.contract import GenerationSpeed, Throughput
from fedpipe_trainer.data import compose_batches


def test_a_pass_takes_a_time_of_its_own_and_one_for_each_sample_and_beyond_the_measured_batches_the_speed_is_constant() -> None:
    """10 samples take twice as long as 2: one more takes an eighth of what 2 take."""
    site = a_site(points=(point(bits=16, batch=2, speed=100), point(bits=16, batch=10, speed=250)))

    assert [tokens_per_second(site, 16, batch) for batch in (1, 2, 6, 10, 64)] == pytest.approx([100, 100, 6 / 0.03, 250, 250])


def test_of_two_lengths_of_a_batch_the_one_nearest_to_a_mean_row_gives_the_speed() -> None:
    two = (point(bits=16, batch=2, length=128, speed=100), point(bits=16, batch=2, length=64, speed=50))

    assert tokens_per_second(a_site(points=two, mean_tokens=120.0), 16, 2) == 100
    assert tokens_per_second(a_site(points=two, mean_tokens=60.0, longest_tokens=70), 16, 2) == 50
    assert tokens_per_second(a_site(points=two, mean_tokens=96.0, longest_tokens=0), 16, 2) == 100


def test_bits_that_were_not_measured_are_as_slow_as_the_slowest_that_were() -> None:
    site = a_site(points=(point(bits=16, batch=1, speed=100), point(bits=4, batch=1, speed=70)))

    assert tokens_per_second(site, 8, 1) == 70


def test_a_site_without_any_measured_step_has_no_speed() -> None:
    with pytest.raises(ValueError, match="'ward' contains no measured training step"):
        tokens_per_second(a_site(points=()), 16, 1)


def test_only_steps_of_the_whole_model_are_its_speed() -> None:
    recomputed = point(bits=16, batch=1, speed=50).model_copy(update={"gradient_checkpointing": True})
    shallow = a_step_of_the_upper_layers(lowest=3, speed=900)

    assert tokens_per_second(a_site(points=(recomputed, shallow, point(bits=16, batch=1, speed=100))), 16, 1) == 100
    assert not has_speed(a_site(points=(recomputed, shallow)))


def test_the_seconds_of_a_step_are_its_tokens_over_the_speed() -> None:
    assert step_seconds(a_site(points=speeds(400.0), mean_tokens=50.0, longest_tokens=50), 16, 8) == 1.0


def test_rows_are_padded_by_half_of_what_a_batch_of_like_lengths_spans_and_to_a_multiple_of_eight() -> None:
    site = a_site(mean_tokens=60.0, longest_tokens=120, train_samples=160)

    assert padded_row_tokens(site, 16) == 60.0 + 3.5 + 120 / (2 * 10)
    assert padded_row_tokens(site, 1) == 60.0
    assert padded_row_tokens(site, 1000) == 120.0, "one batch holds all lengths"


@pytest.mark.parametrize(("n", "longest", "mean", "batch", "measured"), [(600, 256, 175.0, 16, 0.039), (600, 128, 62.0, 16, 0.064)])
def test_the_padded_share_is_about_that_which_was_measured(n: int, longest: int, mean: float, batch: int, measured: float) -> None:
    """20 Newsgroups and E2E (the lengths' means are about those of these sets)."""
    row = padded_row_tokens(a_site(mean_tokens=mean, longest_tokens=longest, train_samples=n), batch)

    assert 1 - mean / row == pytest.approx(measured, abs=0.03)


def test_without_the_longest_sample_no_padding_is_assumed() -> None:
    assert padded_row_tokens(a_site(mean_tokens=60.0, longest_tokens=0), 16) == 60.0


def test_the_time_of_an_adapter_is_that_of_4_bytes_for_each_element_of_its_factors_and_head() -> None:
    site = a_site(base=MPNET)
    factors = 48 * 2 * (768 + 768)

    assert update_bytes(MPNET.weights, uniform_ranks(MPNET.weights, 2), {"classifier.weight": (20, 768)}) == 4 * (factors + 20 * 768)
    assert global_bytes(site, 2, {}) == 4 * factors
    assert global_bytes(site, 2, {"classifier.weight": (20, 768)}) == 4 * (factors + 20 * 768)


def test_set_up_loading_and_the_download_do_not_depend_on_the_steps() -> None:
    site = a_site(up=8e6, down=80e6, setup_seconds=7.0, load_seconds={16: 3.0, 4: 5.0})

    assert upload_seconds(site, 1_000_000) == 1.0
    assert download_seconds(site, 10_000_000) == 1.0
    assert fixed_seconds(site, 16) == 7.0 + 3.0
    assert fixed_seconds(site, 8) == 7.0 + 5.0


def test_the_first_step_of_a_process_takes_longer_once() -> None:
    site = a_site(load_seconds={16: 3.0}, first_step_seconds={16: 4.0, 4: 9.0})

    assert fixed_seconds(site, 16) == 3.0 + 4.0
    assert fixed_seconds(site, 8) == 3.0 + 9.0


def test_the_evaluation_is_a_forward_pass_over_the_validation_samples() -> None:
    site = a_site(points=speeds(400.0), load_seconds={}, validation_samples=100, mean_tokens=80.0)

    assert evaluation_seconds(site, 16, 50) == 50 * 80 / 800
    assert evaluation_seconds(site, 16, 1000) == 100 * 80 / 800
    assert fixed_seconds(site, 16, evaluated=50) == 5.0


def test_the_evaluation_gains_as_much_speed_with_larger_batches_as_training_does() -> None:
    """Measured with batches of one, where it is twice as fast as training."""
    points = (point(bits=16, batch=1, speed=200.0), point(bits=16, batch=8, speed=800.0))
    points = tuple(one.model_copy(update={"evaluate_tokens_per_second": 400.0}) for one in points)
    site = a_site(points=points, validation_samples=96, mean_tokens=80.0)

    assert evaluation_seconds(site, 16, 100, [1, 8]) == pytest.approx([96 * 80 / 400, 96 * 80 / 1600])


def test_an_evaluation_of_few_samples_has_the_speed_of_the_passes_that_it_makes() -> None:
    points = tuple(point(bits=16, batch=batch, speed=100.0 * batch) for batch in (1, 4, 16))
    site = a_site(points=points, validation_samples=4)

    assert evaluation_seconds(site, 16, 100, 16) == evaluation_seconds(site, 16, 100, 4)


@pytest.mark.parametrize("samples", [1, 2, 5, 17, 33, 40, 640])
def test_a_step_of_a_site_of_few_samples_takes_as_long_as_the_samples_that_it_has(samples: int) -> None:
    site = a_site(points=speeds(100.0), train_samples=samples, mean_tokens=50.0, longest_tokens=50)
    steps = len(compose_batches([50] * samples, 16, seed=0))

    assert step_seconds(site, 16, 16) * steps == pytest.approx(samples * 50 / 100)


def test_the_passes_of_a_step_of_few_samples_are_as_large_as_they_are() -> None:
    """8.5 samples in passes of 4 are three passes."""
    points = (point(bits=16, batch=1, speed=100), point(bits=16, batch=16, speed=400))
    site = a_site(points=points, train_samples=17, mean_tokens=50.0, longest_tokens=50)

    assert step_seconds(site, 16, 16, micro_batch=16) == pytest.approx(8.5 * 50 / tokens_per_second(site, 16, 8.5))
    assert step_seconds(site, 16, 16, micro_batch=4) == pytest.approx(8.5 * 50 / tokens_per_second(site, 16, 8.5 / 3))


def a_step_of_the_upper_layers(*, lowest: int, speed: float) -> Throughput:
    return point(bits=16, batch=1, speed=speed).model_copy(update={"lowest_layer": lowest})


def test_the_forward_pass_s_share_follows_from_a_step_of_the_upper_layers() -> None:
    """A third of the layers at a step of half the time: forward + (1 - forward) / 3 = 1/2."""
    points = (point(bits=16, batch=1, speed=400.0), a_step_of_the_upper_layers(lowest=20, speed=800.0))

    assert forward_share(a_site(points=points), 16) == pytest.approx(0.25)


def test_without_such_a_step_the_share_follows_from_the_speed_of_a_forward_pass() -> None:
    slow = point(bits=16, batch=1, speed=400.0).model_copy(update={"evaluate_tokens_per_second": 1000.0})

    assert forward_share(a_site(points=(slow,)), 16) == pytest.approx(0.4)


def test_of_bits_that_were_not_measured_the_share_is_that_of_the_operations() -> None:
    assert forward_share(a_site(points=(point(bits=4, batch=1),)), 16) == 0.5


@pytest.mark.parametrize("speed", [1.0, 1e6])
def test_a_share_that_no_model_has_is_a_wrong_measurement(speed: float) -> None:
    points = (point(bits=16, batch=1, speed=400.0), a_step_of_the_upper_layers(lowest=20, speed=speed))

    assert 0.1 <= forward_share(a_site(points=points), 16) <= 0.9


def test_a_step_of_the_upper_layers_has_the_whole_forward_and_its_part_of_the_backward_pass() -> None:
    def relative(trained: int, *, checkpointing: bool = False, cached: float = 0.0) -> float:
        return float(relative_step_seconds(12, trained, forward=0.4, checkpointing=checkpointing, cached_share=cached))

    assert relative(12) == pytest.approx(1)
    assert relative(3) == pytest.approx(0.4 + 0.6 / 4)
    assert relative(12, checkpointing=True) == pytest.approx(1.4)
    assert relative(3, checkpointing=True) == pytest.approx(0.4 + 0.6 / 4 + 0.4 / 4)
    assert relative(3, cached=1.0) == pytest.approx(1 / 4)
    assert relative(3, cached=0.5) == pytest.approx((relative(3) + 1 / 4) / 2)
    assert relative(12, cached=1.0) == pytest.approx(1)


def test_a_step_of_smaller_passes_has_their_speed() -> None:
    site = a_site(points=(point(bits=16, batch=2, speed=100), point(bits=16, batch=8, speed=400)), mean_tokens=50.0, longest_tokens=50)

    assert step_seconds(site, 16, 8) == 1.0
    assert step_seconds(site, 16, 8, micro_batch=2) == 4.0


SPEED = GenerationSpeed(prompt_seconds=0.5, token_seconds=0.2, sequence_token_seconds=0.1)


def test_answers_are_generated_token_by_token_in_batches() -> None:
    site = a_site(generation={16: SPEED}, validation_samples=100)

    assert generation_seconds(site, 16, 32, 11, [1, 8, 64]) == pytest.approx([16 + 10 * (32 * 0.2 + 3.2), 16 + 10 * 4, 16 + 10 * 3.4])
    assert generation_seconds(site, 16, 32, 1, 8) == pytest.approx(16)


def test_no_more_answers_are_generated_than_there_are_validation_samples() -> None:
    site = a_site(generation={16: SPEED}, validation_samples=5)

    assert generation_seconds(site, 16, 32, 11, 8) == generation_seconds(site, 16, 5, 11, 8)
    assert generation_seconds(site, 16, 0, 11, 8) == 0


def test_bits_whose_answers_were_not_measured_are_as_slow_as_the_slowest_that_were() -> None:
    slow = GenerationSpeed(prompt_seconds=5, token_seconds=2, sequence_token_seconds=1)
    site = a_site(generation={16: SPEED, 8: slow})

    assert generation_seconds(site, 4, 32, 11, 8) == generation_seconds(site, 8, 32, 11, 8)
    assert generation_seconds(a_site(), 16, 32, 11, [1, 8]).tolist() == [0, 0]


def test_the_forecast_of_a_round_has_the_seconds_of_the_answers_of_its_evaluation() -> None:
    def seconds(**evaluation: int) -> float:
        manual = {"mode": "Manual", "batchSizes": [8], "plans": [{"bits": 16, "rank": 8, "steps": 5}]}
        site = a_site(generation={16: SPEED}, validation_samples=100)
        return plan_round(a_spec(planning=manual, evaluation=evaluation), {"ward": site}, {}).plans.plans["ward"].forecast.seconds

    assert seconds(generations=32, maxNewTokens=11) - seconds(generations=0) == pytest.approx(16 + 10 * 4)


def test_answers_take_no_longer_than_the_trainer_gives_them() -> None:
    """It ends the evaluation at half of the deadline, so that there is time to train."""
    slow = GenerationSpeed(prompt_seconds=2, token_seconds=0.5, sequence_token_seconds=0)
    spec = a_spec(task={"type": "CausalLM", "prompt": "{a}", "response": "{b}"}, rounds={"deadline": "10m"}, planning={"bits": [16]})
    site = a_site(generation={16: slow})

    plan = plan_round(spec, {"ward": site}, {}).plans.plans["ward"]

    assert plan.forecast.seconds - plan.forecast.step_seconds < 0.5 * 600
    assert plan.steps > 1


def test_a_step_that_is_divided_among_devices_takes_as_long_as_its_share_on_one() -> None:
    """Speeds are those of all devices, each with a batch of the point: two of them take twice the tokens in the same time."""
    points, doubled = ((point(bits=16, batch=2, speed=100 * n), point(bits=16, batch=8, speed=250 * n)) for n in (1, 2))
    one, two = a_site(points=points, train_samples=640), a_site(points=doubled, train_samples=640, devices=2)

    for batch, micro_batch in ((16, 8), (16, 2), (4, 2), (20, 4)):
        of_one = step_seconds(one, 16, batch // 2, micro_batch=micro_batch) * padded_row_tokens(two, batch)
        of_two = step_seconds(two, 16, batch, micro_batch=micro_batch) * padded_row_tokens(one, batch // 2)
        assert of_two == pytest.approx(of_one)


def test_a_device_without_a_sample_helps_nobody() -> None:
    points = (point(bits=16, batch=1, speed=100),)
    one, eight = a_site(points=points), a_site(points=(point(bits=16, batch=1, speed=800),), devices=8)

    assert step_seconds(eight, 16, 4, micro_batch=1) == pytest.approx(step_seconds(one, 16, 4, micro_batch=1) / 4)


def test_passes_that_do_not_come_out_even_are_as_many_on_each_device() -> None:
    site = a_site(points=(point(bits=16, batch=1, speed=200), point(bits=16, batch=3, speed=300)), train_samples=6, devices=2)

    seconds = step_seconds(site, 16, 6, micro_batch=2)

    assert seconds == pytest.approx(6 * padded_row_tokens(site, 6) / tokens_per_second(site, 16, 1.5))
