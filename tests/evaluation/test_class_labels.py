from collections import Counter

import pytest
from tiny_models import ddim_pipe

from iec.evaluation.class_labels import class_inputs, num_classes, random_class
from iec.evaluation.per_image import PerImage, listed, of_batch, recorded


def class_pipe():
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    vae = AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=2)
    transformer = DiTTransformer2DModel(2, 4, in_channels=4, out_channels=8, num_layers=1, sample_size=4)
    return DiTPipeline(transformer, vae, DDIMScheduler())


def test_classes_by_number_are_taken_in_turn():
    inputs = class_inputs(class_pipe(), "1+5+9", 0)
    assert inputs == {"class_labels": [1, 5, 9]}
    assert of_batch(inputs, range(2, 6)) == {"class_labels": [9, 1, 5, 9]}
    assert class_inputs(class_pipe(), "207", 0) == {"class_labels": [207]}


def test_all_classes_get_as_many_images():
    labels = of_batch(class_inputs(class_pipe(), "all", 0), range(3000))["class_labels"]
    assert set(Counter(labels).values()) == {3}
    assert len(set(labels)) == 1000


def test_a_random_class_depends_on_seed_and_image_alone():
    inputs = class_inputs(class_pipe(), "random", 3)
    labels = of_batch(inputs, range(10))["class_labels"]
    assert labels == [random_class(1000, 3, i) for i in range(10)]
    assert of_batch(inputs, range(7, 9))["class_labels"] == labels[7:9]
    assert listed(inputs, 4) == {"class_labels": labels[:4]}
    assert labels != of_batch(class_inputs(class_pipe(), "random", 4), range(10))["class_labels"]
    counts = Counter(random_class(4, 0, i) for i in range(4000))
    assert set(counts) == {0, 1, 2, 3}
    assert all(abs(count - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5 for count in counts.values())


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ("1000", "The classes of this model are 0 to 999, but 1000 was asked for"),
        ("-1", "'-1' are no classes: write 207"),
        ("cat", "'cat' are no classes"),
        ("1+", "are no classes"),
        (None, "DiTPipeline needs classes, which were not given: use --classes 207"),
    ],
)
def test_what_is_no_class_of_the_model_is_refused(classes, sentence):
    with pytest.raises(ValueError, match=sentence):
        class_inputs(class_pipe(), classes, 0)


def test_a_pipeline_without_classes_is_refused_by_name():
    with pytest.raises(ValueError, match="DDIMPipeline has no classes: leave out --classes"):
        class_inputs(ddim_pipe(), "1", 0)
    assert class_inputs(ddim_pipe(), None, 0) == {}
    with pytest.raises(ValueError, match="How many classes this DDIMPipeline has cannot be told"):
        num_classes(ddim_pipe())


def test_a_record_tells_inputs_apart():
    assert recorded({"prompt": "a", "guidance_scale": 7.5}) == {"prompt": "a", "guidance_scale": 7.5}
    one, other = (recorded({"prompt": prompts})["prompt"] for prompts in (["a", "b"], ["ab", ""]))
    assert one.startswith("2 prompts, ")
    assert one != other
    assert recorded({"class_labels": [1, 5]}) == {"class_labels": [1, 5]}
    assert recorded({"class_labels": list(range(100))})["class_labels"].startswith("100 values, ")
    assert recorded({"x": PerImage("random", int)}) == {"x": "random"}
    assert of_batch({"prompt": "a", "eta": 0.5}, range(2)) == {"prompt": ["a", "a"], "eta": 0.5}
