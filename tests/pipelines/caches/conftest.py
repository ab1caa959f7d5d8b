"""What the tests of caches share: rows of the support table, and classes left as they were."""

import pytest
from diffusers import FluxPipeline, WanPipeline


def pytest_collection_modifyitems(items):
    """Note the cache and the policy of each test for the support table, also of tests that are skipped."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "technique" in parameters and item.path.parent.name == "caches" and "pipelines" in item.path.parts:
            item.user_properties.append(("cache", str(parameters["technique"])))
            if "policy" in parameters:
                item.user_properties.append(("policy", parameters["policy"]))


@pytest.fixture(autouse=True)
def _pipeline_classes_as_they_were():
    """cache-dit patches the class of a pipeline, and leaves it patched until it is disabled on that pipeline."""
    before = {cls: dict(vars(cls)) for cls in (FluxPipeline, WanPipeline)}
    yield
    for cls, attributes in before.items():
        for name in vars(cls).keys() - attributes.keys():
            delattr(cls, name)
        cls.__call__ = attributes["__call__"]
