"""A UNet2DModel with as many attention heads at every level, as LDM-8 Churches has; diffusers fixes their width."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

# A folder's component is loaded through a base class that diffusers finds by name in the component's module.
from diffusers import ModelMixin, UNet2DModel  # noqa: F401
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention


def _with_settings_of(parent: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Show the parent's settings in the signature of `init`, where diffusers looks for what a class can take."""

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD]
        theirs = list(inspect.signature(parent.__init__).parameters.values())[1:]  # type: ignore[misc]
        keywords = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in theirs]

        @functools.wraps(init)
        def decorated(*args: Any, **settings: Any) -> None:
            init(*args, **settings)

        decorated.__signature__ = inspect.Signature([*own, *keywords])  # type: ignore[attr-defined]
        return decorated

    return decorate


class FixedHeadsUNet2DModel(UNet2DModel):  # type: ignore[misc]
    """num_attention_heads: of every attention. The other settings are those of `UNet2DModel`.

    Raises ValueError where the heads do not divide the channels of an attention.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    @_with_settings_of(UNet2DModel)
    def __init__(self, num_attention_heads: int = 1, **settings: Any) -> None:
        super().__init__(**{**settings, "attention_head_dim": None})
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                width, rest = divmod(module.inner_dim, num_attention_heads)
                if rest:
                    raise ValueError(
                        f"{num_attention_heads} heads do not divide the {module.inner_dim} channels of '{name}'."
                    )
                module.heads = module.sliceable_head_dim = num_attention_heads
                module.scale = width**-0.5
