import numpy as np
import pytest
import torch
from tiny_models import ddim_pipe, tiny_unet

import iec
from iec.evaluation.generate import generate
from iec.models.unconditional import UnconditionalPipeline
from iec.runtime import SpacedDDIMScheduler


def pipeline():
    pipe = UnconditionalPipeline(tiny_unet(), SpacedDDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(*args, **kwargs):
    return torch.cat([batch.images for batch in generate(*args, **kwargs)])


def test_the_last_batch_is_padded_and_cut():
    batches = list(generate(pipeline(), 5, 3, batch_size=2))
    assert [list(batch.indices) for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [tuple(batch.images.shape) for batch in batches] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    assert all(batch.summary.num_images == 2 for batch in batches)


@pytest.mark.parametrize("correction", [None, iec.IECConfig()])
def test_fewer_images_are_the_first_of_more(correction):
    more = images(pipeline(), 6, 3, batch_size=4, correction=correction)
    fewer = images(pipeline(), 3, 3, batch_size=4, correction=correction)
    assert torch.equal(fewer, more[:3])


def test_skipped_batches_do_not_change_the_others():
    everything = list(generate(pipeline(), 6, 3, batch_size=2))
    rest = list(generate(pipeline(), 6, 3, batch_size=2, skip=frozenset({0, 1})))
    assert len(rest) == 1
    assert torch.equal(rest[0].images, everything[2].images)


def test_an_image_is_the_rounded_sample_of_its_own_seed():
    pipe = pipeline()
    x_t = iec.initial_noise([iec.image_generator(3, 2)], (3, 8, 8))
    alone = iec.sample(pipe.unet, x_t, num_steps=4, config=None)[0]
    expected = np.rint(((alone / 2 + 0.5).clamp(0, 1) * 255).numpy()).astype(int)
    found = images(pipe, 3, 4, seed=3, batch_size=3)[2].numpy().astype(int)
    assert np.abs(found - expected).max() <= 1  # another batch size agrees to rounding


def test_another_seed_gives_other_images():
    assert not torch.equal(images(pipeline(), 2, 2, seed=0), images(pipeline(), 2, 2, seed=1))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_images": 0}, "num_images must be at least 1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": 2000}, r"seed must lie in 0\.\.1999"),
        ({"seed": -1}, r"seed must lie in 0\.\.1999"),
        ({"num_images": 1_000_001}, "At most 1000000 images"),
        ({"inputs": {"prompt": "a cat"}}, "takes no 'prompt'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sampled(settings, sentence):
    arguments = {"num_images": 2, "num_steps": 2, **settings}
    with pytest.raises(ValueError, match=sentence):
        generate(pipeline(), **arguments)


def test_a_pipeline_with_an_input_that_was_not_given_is_refused_by_name():
    class Prompted(UnconditionalPipeline):
        def __call__(self, prompt, generator=None, num_inference_steps=2, output_type="np"):
            raise AssertionError("must not be called")

    with pytest.raises(ValueError, match="Prompted needs 'prompt', which was not given"):
        generate(Prompted(tiny_unet(), SpacedDDIMScheduler()), 2, 2)


def test_diffusers_own_pipeline_is_sampled_as_it_stands():
    pipe = ddim_pipe(tiny_unet())
    generators = [iec.image_generator(0, i) for i in range(2)]
    expected = pipe(batch_size=2, generator=generators, num_inference_steps=3, output_type="np").images
    found = images(pipe, 2, 3, batch_size=2)
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), np.rint(expected * 255).astype(np.uint8))


def test_images_take_prompts_in_turn_whatever_the_batches():
    seen = []

    class Prompted(UnconditionalPipeline):
        def __call__(self, prompt, generator=None, num_inference_steps=2, output_type="np"):
            seen.append(prompt)
            return super().__call__(generator, num_inference_steps=num_inference_steps, output_type=output_type)

    pipe = Prompted(tiny_unet(), SpacedDDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    list(generate(pipe, 5, 2, batch_size=2, inputs={"prompt": ["a", "b", "c"]}))
    list(generate(pipe, 2, 2, batch_size=2, inputs={"prompt": "d"}))
    assert seen == [["a", "b"], ["c", "a"], ["b", "c"], ["d", "d"]]
    with pytest.raises(ValueError, match="'prompt' is an empty list"):
        generate(pipe, 2, 2, inputs={"prompt": []})
