"""diffusers' attention with its four operands in the open: queries, keys, values and the softmax output.

diffusers computes attention in one fused call, inside which nothing can be quantized or measured.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

OPERANDS = ("query", "key", "value", "probabilities")


class OperandProcessor(nn.Module):
    """An attention processor that passes each operand through a module of its own.

    operands: a module for each of `OPERANDS`; the first three see [B * heads, tokens, channels per head], the last
    [B * heads, tokens, tokens]. original: the processor in whose place this one stands.
    """

    def __init__(self, operands: Mapping[str, nn.Module], original: Any = None) -> None:
        super().__init__()
        if set(operands) != set(OPERANDS):
            raise ValueError(f"Attention has the operands {', '.join(OPERANDS)}, but got {', '.join(operands)}.")
        self.operands = nn.ModuleDict(operands)
        self.original = original

    def __call__(  # diffusers reads its signature to decide which arguments to pass
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The attention's output, of the shape of `hidden_states` [B, tokens, C] or [B, C, H, W]."""
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
        query = self.operands["query"](attn.head_to_batch_dim(attn.to_q(hidden_states)))
        key = self.operands["key"](attn.head_to_batch_dim(attn.to_k(context)))
        value = self.operands["value"](attn.head_to_batch_dim(attn.to_v(context)))
        probabilities = self.operands["probabilities"](attn.get_attention_scores(query, key, mask))
        output = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        for layer in attn.to_out:  # a projection and a dropout
            output = layer(output)
        if len(shape) == 4:
            output = output.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            output = output + residual
        finished: torch.Tensor = output / attn.rescale_output_factor
        return finished


def opens_operands(module: nn.Module) -> bool:
    """Whether `module` is an attention that `OperandProcessor` computes."""
    return (
        type(module) is Attention
        and type(module.processor) in (AttnProcessor, AttnProcessor2_0)
        and module.to_k is not None
        and getattr(module, "norm_q", None) is None
        and getattr(module, "norm_k", None) is None
        and not getattr(module, "fused_projections", False)
    )
