"""What `vector_add` is compiled for: three element types, two blocks, any size and alignment."""

from kernel import add_kernel

from gristmill import aot

TARGETS = ["sm_80", "sm_90"]

add = (
    aot.Kernel(add_kernel)
    .spec(
        x_ptr=aot.Ptr("T"),
        y_ptr=aot.Ptr("T"),
        out_ptr=aot.Ptr("T"),
        n_elements=aot.Int([16, None]),
        BLOCK_SIZE=[128, 1024],
        num_warps=[4],
    )
    .types(T=["fp16", "bf16", "fp32"])
    .tie("x_ptr", "y_ptr", "out_ptr")
    .grid("cdiv(n_elements, BLOCK_SIZE)")
)
