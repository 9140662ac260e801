"""What the matrix product is compiled for: any mixture of sizes and rows that lie on 16 bytes or do
not, which is 64 patterns a type."""

from kernel import matmul_kernel

from gristmill import aot

TARGETS = ["sm_90"]

_any, _unit, _rows = aot.Int([None]), aot.Int([1]), aot.Int([16, None])

matmul = (
    aot.Kernel(matmul_kernel)
    .spec(a_ptr=aot.Ptr("T"), b_ptr=aot.Ptr("T"), c_ptr=aot.Ptr("T"))
    .spec(M=_any, N=_any, K=_any)
    .spec(stride_am=_rows, stride_ak=_unit, stride_bk=_rows, stride_bn=_unit)
    .spec(stride_cm=_rows, stride_cn=_unit)
    .spec(BLOCK_M=[64], BLOCK_N=[64], BLOCK_K=[32], GROUP_M=[8])
    .types(T=["fp16"])
    .grid("cdiv(M, BLOCK_M) * cdiv(N, BLOCK_N)")
)
