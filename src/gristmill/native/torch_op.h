/* Operators' C functions behind torch's dispatcher, through its stable interface alone: what is built
   with one torch runs with later ones. */
#ifndef GRISTMILL_TORCH_OP_H
#define GRISTMILL_TORCH_OP_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include "gristmill/operand.h"

/* Of torch for a GPU alone: null with another one, which has no tensors there either. */
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void **ret_stream);

namespace gristmill {

using torch::stable::Tensor;

inline int32_t element_of(torch::headeronly::ScalarType type) {
    using torch::headeronly::ScalarType;
    switch (type) {
    case ScalarType::Bool: return GRISTMILL_U1;
    case ScalarType::Char: return GRISTMILL_I8;
    case ScalarType::Short: return GRISTMILL_I16;
    case ScalarType::Int: return GRISTMILL_I32;
    case ScalarType::Long: return GRISTMILL_I64;
    case ScalarType::Byte: return GRISTMILL_U8;
    case ScalarType::UInt16: return GRISTMILL_U16;
    case ScalarType::UInt32: return GRISTMILL_U32;
    case ScalarType::UInt64: return GRISTMILL_U64;
    case ScalarType::Half: return GRISTMILL_FP16;
    case ScalarType::BFloat16: return GRISTMILL_BF16;
    case ScalarType::Float: return GRISTMILL_FP32;
    case ScalarType::Double: return GRISTMILL_FP64;
    case ScalarType::Float8_e4m3fn: return GRISTMILL_FP8E4NV;
    case ScalarType::Float8_e5m2: return GRISTMILL_FP8E5;
    case ScalarType::Float8_e4m3fnuz: return GRISTMILL_FP8E4B8;
    case ScalarType::Float8_e5m2fnuz: return GRISTMILL_FP8E5B16;
    default: return -1;
    }
}

inline int32_t dtype_of(int32_t element) {
    switch (element) {
    case GRISTMILL_U1: return aoti_torch_dtype_bool();
    case GRISTMILL_I8: return aoti_torch_dtype_int8();
    case GRISTMILL_I16: return aoti_torch_dtype_int16();
    case GRISTMILL_I32: return aoti_torch_dtype_int32();
    case GRISTMILL_I64: return aoti_torch_dtype_int64();
    case GRISTMILL_U8: return aoti_torch_dtype_uint8();
    case GRISTMILL_U16: return aoti_torch_dtype_uint16();
    case GRISTMILL_U32: return aoti_torch_dtype_uint32();
    case GRISTMILL_U64: return aoti_torch_dtype_uint64();
    case GRISTMILL_FP16: return aoti_torch_dtype_float16();
    case GRISTMILL_BF16: return aoti_torch_dtype_bfloat16();
    case GRISTMILL_FP32: return aoti_torch_dtype_float32();
    case GRISTMILL_FP64: return aoti_torch_dtype_float64();
    case GRISTMILL_FP8E4NV: return aoti_torch_dtype_float8_e4m3fn();
    case GRISTMILL_FP8E5: return aoti_torch_dtype_float8_e5m2();
    case GRISTMILL_FP8E4B8: return aoti_torch_dtype_float8_e4m3fnuz();
    case GRISTMILL_FP8E5B16: return aoti_torch_dtype_float8_e5m2fnuz();
    default: STD_TORCH_CHECK(false, "torch has no dtype for gristmill's element type ", element);
    }
    return -1;
}

/* The GPU that a call's tensors are on, found as they are read. */
class Place {
  public:
    explicit Place(const char *name) : name_(name) {}

    void add(const Tensor &tensor) {
        const int32_t device = tensor.get_device_index();
        STD_TORCH_CHECK(tensor.is_cuda() && (device_ < 0 || device == device_), name_,
                        ": a tensor is on another device than the first one; all of a call are on "
                        "one GPU. Move it there.");
        device_ = device;
    }
    int32_t device() const { return device_; }

    void *stream() const {
        void *stream = nullptr;
        STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, name_, ": this torch has no GPUs");
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
        return stream;
    }

  private:
    const char *name_;
    int32_t device_ = -1;
};

/* A call of a kernel: what its C function takes of torch's values. */
class Launch {
  public:
    Launch(const char *name, const char *(*last_error)(void))
        : place_(name), name_(name), last_error_(last_error) {}

    /* `fixed`: the element type that it must have; 0: any. */
    gristmill_pointer pointer(const Tensor &tensor, int32_t fixed) {
        place_.add(tensor);
        const int32_t element = element_of(tensor.scalar_type());
        STD_TORCH_CHECK(element > 0 && (!fixed || element == fixed), name_,
                        ": a tensor has another element type than the kernel was compiled for (code ",
                        element, ", needed is ", fixed, ")");
        return {tensor.data_ptr(), element};
    }
    gristmill_pointer pointer(const std::optional<Tensor> &tensor, int32_t fixed) {
        return tensor ? pointer(*tensor, fixed) : gristmill_pointer{nullptr, GRISTMILL_NONE};
    }
    gristmill_descriptor descriptor(const Tensor &tensor, size_t rank) {
        const gristmill_pointer found = pointer(tensor, 0);
        const auto sizes = tensor.sizes(), strides = tensor.strides();
        STD_TORCH_CHECK(sizes.size() == rank, name_, ": a tensor has ", sizes.size(),
                        " dimensions; the kernel takes it with ", rank);
        return {found.data, found.dtype, sizes.data(), strides.data()};
    }
    void *stream() {
        guard_.emplace(place_.device());
        return place_.stream();
    }
    void check(int32_t status) const { STD_TORCH_CHECK(status == GRISTMILL_OK, last_error_()); }

  private:
    Place place_;
    const char *name_;
    const char *(*last_error_)(void);
    std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

/* An operator of an artifact. */
struct Op {
    const char *name;
    int32_t (*plan)(gristmill_operand *, gristmill_op_plan *);
    int32_t (*run)(const gristmill_operand *, const gristmill_op_plan *, void *);
    const char *(*last_error)(void);
};

/* A call: its arguments are read in the schema's order, then it runs. */
class Call {
  public:
    Call(const Op &op, size_t operands)
        : op_(op), place_(op.name), operands_(operands), kept_(operands) {}

    void add(const Tensor &tensor) {
        place_.add(tensor);
        kept_[count_] = tensor;
        read(count_++, tensor);
    }
    void add(const std::optional<Tensor> &tensor) {
        if (tensor) return add(*tensor);
        count_++;
    }
    void add(double number) { operands_[count_++].number = number; }
    void add(int64_t integer) { operands_[count_++].integer = integer; }
    void add(bool flag) { operands_[count_++].integer = flag; }
    void add(const std::string &text) { operands_[count_++].text = text.c_str(); } /* the caller's */

    /* The outputs. Arguments that no kernel was made for as they lie are made contiguous, once. */
    std::vector<Tensor> run(bool may_copy) {
        torch::stable::accelerator::DeviceGuard guard(place_.device());
        gristmill_op_plan plan = {};
        int32_t status = op_.plan(operands_.data(), &plan);
        if (status == GRISTMILL_NO_SPECIALISATION && may_copy && make_contiguous()) {
            status = op_.plan(operands_.data(), &plan);
        }
        STD_TORCH_CHECK(status == GRISTMILL_OK, op_.last_error());
        const size_t made = static_cast<size_t>(plan.outputs + plan.workspaces);
        std::vector<Tensor> tensors;
        for (size_t i = 0; i < made; i++) tensors.push_back(allocate(operands_[count_ + i]));
        status = op_.run(operands_.data(), &plan, place_.stream());
        STD_TORCH_CHECK(status == GRISTMILL_OK, op_.last_error());
        tensors.erase(tensors.begin() + plan.outputs, tensors.end()); /* in stream order */
        return tensors;
    }

  private:
    void read(size_t at, const Tensor &tensor) {
        gristmill_operand &operand = operands_[at];
        const auto sizes = tensor.sizes(), strides = tensor.strides();
        operand.data = tensor.data_ptr();
        operand.dtype = element_of(tensor.scalar_type());
        operand.rank = static_cast<int32_t>(sizes.size());
        for (size_t d = 0; d < sizes.size() && d < GRISTMILL_MAX_DIMENSIONS; d++) {
            operand.sizes[d] = sizes[d];
            operand.strides[d] = strides[d];
        }
    }

    bool make_contiguous() {
        bool any = false;
        for (size_t i = 0; i < count_; i++) {
            if (!kept_[i] || kept_[i]->is_contiguous()) continue;
            kept_[i] = torch::stable::contiguous(*kept_[i]);
            read(i, *kept_[i]);
            any = true;
        }
        return any;
    }

    Tensor allocate(gristmill_operand &operand) const {
        AtenTensorHandle made = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
            operand.rank, operand.sizes, operand.strides, dtype_of(operand.dtype),
            aoti_torch_device_type_cuda(), place_.device(), &made));
        Tensor tensor(made);
        operand.data = tensor.data_ptr();
        return tensor;
    }

    const Op &op_;
    Place place_;
    std::vector<gristmill_operand> operands_;
    std::vector<std::optional<Tensor>> kept_;
    size_t count_ = 0;
};

} // namespace gristmill

#endif
