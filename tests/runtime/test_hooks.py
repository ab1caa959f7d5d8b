"""A method that is intercepted while somebody uses the hook, and untouched afterwards."""

import copy
import inspect

from diffusers import DDIMScheduler

from iec.runtime.hooks import Hook, install, uninstall


class Counter:
    """An object with a method that may be intercepted."""

    def __init__(self, start=0):
        self.value = start

    def step(self, amount: int, *, twice: bool = False) -> int:
        """Add `amount`."""
        self.value += amount * (2 if twice else 1)
        return self.value


def through(handler):
    return lambda owner: handler


def negated(original, args, kwargs):
    return -original(*args, **kwargs)


def test_a_call_goes_through_the_handler_with_its_arguments():
    counter, seen = Counter(), []

    def handler(original, args, kwargs):
        seen.append((args, kwargs))
        return original(*args, **kwargs)

    hook = install(counter, "step", through(handler))
    assert counter.step(3, twice=True) == 6
    assert seen == [((3,), {"twice": True})]
    uninstall(hook)


def test_without_a_handler_the_call_is_plain():
    counter = Counter()
    hook = install(counter, "step", through(None))
    assert counter.step(3) == 3
    uninstall(hook)


def test_the_hook_finds_its_handler_by_its_owner():
    counter, asked = Counter(), []
    hook = install(counter, "step", lambda owner: asked.append(owner))
    counter.step(1)
    assert asked == [counter]
    uninstall(hook)


def test_uninstalling_leaves_no_trace():
    counter = Counter()
    before = dict(vars(counter))
    uninstall(install(counter, "step", through(negated)))
    assert vars(counter) == before
    assert counter.step(3) == 3


def test_an_attribute_that_shadowed_the_method_comes_back():
    counter = Counter()
    counter.step = lambda amount: amount + 100
    replaced = counter.step
    hook = install(counter, "step", through(negated))
    assert counter.step(1) == -101
    uninstall(hook)
    assert counter.step is replaced


def test_two_users_share_one_hook_until_the_last_is_gone():
    counter = Counter()
    first = install(counter, "step", through(negated))
    second = install(counter, "step", through(negated))
    assert first is second
    uninstall(first)
    assert counter.step(3) == -3
    uninstall(second)
    assert "step" not in vars(counter)


def test_another_object_of_the_class_is_untouched():
    counter, other = Counter(), Counter()
    hook = install(counter, "step", through(negated))
    assert other.step(3) == 3
    uninstall(hook)


def test_a_replacement_during_the_run_is_left_alone():
    counter = Counter()
    hook = install(counter, "step", through(negated))

    def replacement(amount):
        return amount

    counter.step = replacement
    uninstall(hook)
    assert counter.step is replacement


def test_a_deep_copy_of_a_hooked_object_steps_itself():
    counter = Counter(10)
    hook = install(counter, "step", through(negated))
    copied = copy.deepcopy(counter)
    assert copied.step(1) == 11
    assert counter.value == 10
    assert not isinstance(copied.step, Hook)
    uninstall(hook)
    assert copied.step(1) == 12


def test_a_deep_copy_of_the_attributes_alone_keeps_the_hook():
    counter = Counter()
    hook = install(counter, "step", through(negated))
    counter.__dict__.update(copy.deepcopy(counter.__dict__))  # as a panorama does between its views
    assert counter.step is hook
    uninstall(hook)
    assert "step" not in vars(counter)


def test_the_signature_and_the_docstring_stay_visible():
    scheduler = DDIMScheduler()
    plain = inspect.signature(scheduler.step)
    hook = install(scheduler, "step", through(negated))
    assert inspect.signature(scheduler.step) == plain
    assert "eta" in inspect.signature(scheduler.step).parameters
    assert scheduler.step.__doc__ == DDIMScheduler.step.__doc__
    uninstall(hook)
