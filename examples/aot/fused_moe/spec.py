"""What the fused MoE kernel is compiled for: block-scaled FP8, three output types, with and without
the routers' weights, one, two and six experts a token."""

from moe_call import Config
from moe_kernel import fused_moe_kernel

from gristmill import aot

TARGETS = ["sm_90"]

_CONFIG = Config()
# Sizes and strides of all cases have 32 bits; without 64-bit variants a third less is compiled.
_ANY, _ONE, _ROWS = (aot.Int([one], widths=[32]) for one in (None, 1, 16))

fused_moe = (
    aot.Kernel(fused_moe_kernel)
    .spec(
        a_ptr=aot.Ptr("fp8e4nv", align=[16]),
        b_ptr=aot.Ptr("fp8e4nv", align=[16]),
        c_ptr=aot.Ptr("C", align=[16]),
        a_scale_ptr=aot.Ptr("fp32", align=[16]),
        b_scale_ptr=aot.Ptr("fp32", align=[16]),
        topk_weights_ptr=aot.Ptr("fp32", align=[16]),
        sorted_token_ids_ptr=aot.Ptr("i32", align=[16]),
        expert_ids_ptr=aot.Ptr("i32", align=[16]),
        num_tokens_post_padded_ptr=aot.Ptr("i32", align=[16]),
        N=_ROWS,
        K=_ROWS,
        EM=_ROWS,
        num_valid_tokens=_ANY,
        stride_am=_ROWS,
        stride_ak=_ONE,
        stride_be=_ROWS,
        stride_bk=_ONE,
        stride_bn=_ROWS,
        stride_cm=_ROWS,
        stride_cn=_ONE,
        stride_asm=_ANY,
        stride_ask=_ONE,
        stride_bse=_ANY,
        stride_bsk=_ONE,
        stride_bsn=_ANY,
    )
    .spec(
        group_n=[128],
        group_k=[128],
        BLOCK_SIZE_M=[_CONFIG.BLOCK_SIZE_M],
        BLOCK_SIZE_N=[_CONFIG.BLOCK_SIZE_N],
        BLOCK_SIZE_K=[_CONFIG.BLOCK_SIZE_K],
        GROUP_SIZE_M=[_CONFIG.GROUP_SIZE_M],
        MUL_ROUTED_WEIGHT=[False, True],
        top_k=[1, 2, 6],
        compute_type=aot.Type("C"),
        use_fp8_w8a8=[True],
        use_int8_w8a16=[False],
        num_warps=[_CONFIG.num_warps],
        num_stages=[_CONFIG.num_stages],
    )
    .types(C=["bf16", "fp16", "fp32"])
    .grid("cdiv(EM, BLOCK_SIZE_M) * cdiv(N, BLOCK_SIZE_N)")
)
