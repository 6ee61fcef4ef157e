"""Gradients of depthwise convolutions of bfloat16 images whose channels are last in memory.

oneDNN has fast kernels for the forward pass, and for the gradient of the input where the stride is 1. The gradient of
the weights of 5 x 5 and 7 x 7 kernels takes it 5 to 14 times as long as the loops below, and that of the input with a
stride of 2 takes 13 to 41 times as long (`benchmarks/results/depthwise.json`).

Images are [N, H, W, C], gradients of the output [N, P, Q, C], both as the bits of bfloat16 numbers. `shape` has C, H,
W, P, Q and then, of both directions: size of the kernel, stride, padding, dilation; int64 [13]. The innermost loops run
over channels, which are independent, so the compiler uses all lanes of a register.
"""

from __future__ import annotations

from typing import Any

from kitae.native.link import as_f32, as_i64, as_u16, from_bf16, to_bf16


def weight_gradient(gradient: Any, images: Any, _: Any, shape: Any, first: Any, last: Any, total: Any) -> Any:
    """Add what images [first, last) contribute to `total`, float32 [kernel height, kernel width, C]."""
    s = as_i64(shape)
    c, height, width, tall, wide = s[0], s[1], s[2], s[3], s[4]
    for n in range(first, last):
        for p in range(tall):
            for i in range(s[5]):
                y = p * s[7] - s[9] + i * s[11]
                if y < 0 or y >= height:
                    continue
                for q in range(wide):
                    g = as_u16(gradient + 2 * c * ((n * tall + p) * wide + q))
                    for j in range(s[6]):
                        x = q * s[8] - s[10] + j * s[12]
                        if x < 0 or x >= width:
                            continue
                        pixel = as_u16(images + 2 * c * ((n * height + y) * width + x))
                        t = as_f32(total + 4 * c * (i * s[6] + j))
                        for k in range(c):
                            t[k] += from_bf16(g[k]) * from_bf16(pixel[k])
    return 0


def input_gradient(gradient: Any, weight: Any, out: Any, shape: Any, first: Any, last: Any, row: Any) -> Any:
    """Write the gradients of images [first, last), bfloat16 [N, H, W, C], to `out`.

    Args:
        weight: float32 [kernel height, kernel width, C].
        row: work area of W * C float32 numbers.
    """
    s = as_i64(shape)
    c, height, width, tall, wide = s[0], s[1], s[2], s[3], s[4]
    line = as_f32(row)
    for n in range(first, last):
        for y in range(height):
            for k in range(width * c):
                line[k] = 0.0
            for i in range(s[5]):
                p = y + s[9] - i * s[11]
                if p % s[7] != 0:
                    continue
                p = p // s[7]
                if p < 0 or p >= tall:
                    continue
                for q in range(wide):
                    g = as_u16(gradient + 2 * c * ((n * tall + p) * wide + q))
                    for j in range(s[6]):
                        x = q * s[8] - s[10] + j * s[12]
                        if x < 0 or x >= width:
                            continue
                        t = as_f32(row + 4 * c * x)
                        w = as_f32(weight + 4 * c * (i * s[6] + j))
                        for k in range(c):
                            t[k] += from_bf16(g[k]) * w[k]
            o = as_u16(out + 2 * c * width * (n * height + y))
            for k in range(width * c):
                o[k] = to_bf16(line[k])
    return 0
