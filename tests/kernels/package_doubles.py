"""The compiled halves of causal-conv1d and mamba-ssm, in PyTorch and on any device, as strict as they are.

They refuse what ``csrc/causal_conv1d.cpp`` of causal-conv1d 1.7.0 and ``csrc/selective_scan/selective_scan.cpp`` of
mamba-ssm 2.3.2.post1 refuse, and what these would get silently wrong (memory that the kernels take for channel-last).
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional as F

from kernels import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(*conditions):
    """What TORCH_CHECK is in C++."""
    if not all(conditions):
        raise RuntimeError(f"the kernel refuses this: {conditions.index(False) + 1}. condition of {len(conditions)}")


def gradients(function, inputs, grads):
    """Gradients of ``function(*inputs)``, from a thread of its own: inside an operation autograd is switched off."""

    def compute():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grads)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compute).result()


class StrictConv1d:
    """``causal_conv1d_cuda``, channel-last only; ``calls`` counts by function."""

    def __init__(self):
        self.calls = {"fwd": 0, "bwd": 0}

    def causal_conv1d_fwd(self, x, weight, bias, seq_idx, initial_states, out, final_states_out, silu_activation):
        self.calls["fwd"] += 1
        check(seq_idx is None)
        self._check(x, weight, bias, initial_states, final_states_out)
        check(out.shape == x.shape, out.dtype == x.dtype, self._channel_last(out))
        y, final = self._convolve(x, weight, bias, initial_states, silu_activation)
        out.copy_(y)
        if final_states_out is not None:
            final_states_out.copy_(final)

    def causal_conv1d_bwd(
        self, x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, dweight, dbias, dinitial_states, silu
    ):
        self.calls["bwd"] += 1
        check(seq_idx is None)
        self._check(x, weight, bias, initial_states, dfinal_states, dinitial_states)
        check(dout.shape == x.shape, dout.stride(1) == 1, dout.stride(0) % 8 == dout.stride(2) % 8 == 0)
        check(dx.shape == x.shape, dx.dtype == x.dtype, self._channel_last(dx))
        check(dweight.dtype == dbias.dtype == torch.float32)
        before = () if initial_states is None else (initial_states,)
        after = () if dfinal_states is None else (dfinal_states,)

        def convolve(x, weight, bias, first=None):
            return self._convolve(x, weight, bias, first, silu)[: 1 + len(after)]

        grads = gradients(convolve, (x, weight, bias, *before), (dout, *after))
        dx.copy_(grads[0])
        dweight.add_(grads[1])  # the kernels add to what is there
        dbias.add_(grads[2])
        if dinitial_states is not None:
            dinitial_states.copy_(grads[3])

    @staticmethod
    def _convolve(x, weight, bias, first, silu):
        width = weight.shape[1]
        before = x.new_zeros(*x.shape[:2], width - 1) if first is None else first
        long = torch.cat([before, x], dim=2)
        y = F.conv1d(long.float(), weight.float()[:, None], bias.float(), groups=len(weight))
        return (F.silu(y) if silu else y).to(x.dtype), long[..., -(width - 1) :]

    @staticmethod
    def _channel_last(tensor):
        """As the kernels tell it, and as they read it: groups of 8 channels at addresses of 16 bytes."""
        batch, channel, position = tensor.stride()
        return (
            (channel == 1 and position > 1)
            and tensor.shape[1] % 8 == position % 8 == batch % 8 == 0
            and tensor.data_ptr() % 16 == 0
        )

    def _check(self, x, weight, bias, *states):
        check(x.dtype in DTYPES, weight.dtype in DTYPES, bias.dtype == weight.dtype)
        check(self._channel_last(x))
        check(2 <= weight.shape[1] <= 4)
        check(weight.shape[0] == x.shape[1], bias.shape == (x.shape[1],), bias.stride(0) == 1)
        for state in states:
            if state is not None:
                check(state.shape == (*x.shape[:2], weight.shape[1] - 1), state.dtype == x.dtype)
                check(state.stride(1) == 1)


class StrictSelectiveScan:
    """``selective_scan_cuda`` without gate, bias and softplus: zeros before the text, no gradient of the last state."""

    def __init__(self):
        self.calls = {"fwd": 0, "bwd": 0}

    def fwd(self, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        self.calls["fwd"] += 1
        check(z is None, delta_bias is None, delta_softplus is False)
        self._check(u, delta, A, B, C, D)
        chunks = (u.shape[2] + 2047) // 2048
        return [self._scan(u, delta, A, B, C, D), torch.zeros(*u.shape[:2], chunks, 2 * A.shape[1])]

    def bwd(self, u, delta, A, B, C, D, z, delta_bias, dout, kept, out, dz, delta_softplus, recompute_out_z):
        self.calls["bwd"] += 1
        check(z is None, delta_bias is None, out is None, dz is None)
        check(delta_softplus is False, recompute_out_z is False)
        self._check(u, delta, A, B, C, D)
        check(dout.shape == u.shape, dout.dtype == u.dtype, dout.stride(2) == 1)
        check(kept.is_contiguous(), kept.shape == (*u.shape[:2], (u.shape[2] + 2047) // 2048, 2 * A.shape[1]))
        return [*(t.contiguous() for t in gradients(self._scan, (u, delta, A, B, C, D), dout)), None]

    @staticmethod
    def _scan(u, delta, A, B, C, D):
        u, delta, B, C = (t.transpose(-1, -2) for t in (u, delta, B[:, 0], C[:, 0]))
        nothing = torch.zeros(len(u), *A.shape)
        y, _ = reference.selective_scan_reference(u, delta, A, B, C, D, nothing)
        return y.transpose(1, 2).contiguous()

    @staticmethod
    def _check(u, delta, A, B, C, D):
        (batch, channels, steps), N = u.shape, A.shape[1]
        check(all(t.dtype == torch.float32 for t in (u, delta, A, B, C, D)))
        check(delta.shape == u.shape, A.shape == (channels, N), N <= 256)
        check(B.shape == C.shape == (batch, 1, N, steps), D.shape == (channels,))
        check(all(t.stride(-1) == 1 for t in (u, delta, B, C, D)))
