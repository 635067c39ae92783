// SPDX-License-Identifier: Apache-2.0
// Named-dimension checks on tensors: one place for shapes, dtypes, devices, layouts and gradients.
// Works on symbolic sizes, so that one body serves eager, Meta and torch.compile.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cstring>
#include <initializer_list>
#include <sstream>
#include <string>

namespace srr_fast {

// A dimension: a name bound by the first tensor that carries it, plus a constant; or, without a name, that constant.
struct Dim {
  const char* name;
  int64_t plus;
  Dim(const char* name, int64_t plus = 0) : name(name), plus(plus) {}
  Dim(int size) : name(nullptr), plus(size) {}
};

// The arguments of one call of one op. Every failed check names op, argument, what is wanted and what was given.
class Args {
 public:
  explicit Args(const char* op) : op_(op) {}

  // `dims` and `dtypes` are what the argument must have; every tensor must lie on the device of the first.
  void tensor(const char* name, const at::Tensor& t, std::initializer_list<Dim> dims,
              std::initializer_list<at::ScalarType> dtypes) {
    bool dtype_known = false;
    for (const auto dtype : dtypes) dtype_known |= t.scalar_type() == dtype;
    TORCH_CHECK_TYPE(dtype_known, op_, ": ", name, " must be ", wanted(dims, dtypes), ", got ", describe(t));
    TORCH_CHECK_VALUE(t.layout() == at::kStrided, op_, ": ", name, " must be a strided tensor, got layout ",
                      t.layout());
    TORCH_CHECK_VALUE(t.dim() == static_cast<int64_t>(dims.size()), op_, ": ", name, " must be ", wanted(dims, dtypes),
                      ", got ", describe(t));
    const bool wants_grad = (t.requires_grad() && c10::GradMode::is_enabled()) || t._fw_grad(/*level=*/0).defined();
    TORCH_CHECK_VALUE(!wants_grad, op_, ": ", name,
                      " requires a gradient, which the native op does not compute; wanted a detached tensor, "
                      "torch.no_grad(), or the differentiable srr_fast.reference");
    if (device_ == nullptr) device_ = &t;
    TORCH_CHECK_VALUE(t.device() == device_->device(), op_, ": ", name, " must be on ", device_->device(), ", got ",
                      describe(t));
    int64_t i = 0;
    for (const Dim& dim : dims) {
      const c10::SymInt size = t.sym_size(i++);
      const c10::SymInt* known = dim.name ? find(dim.name) : nullptr;
      if (dim.name && known == nullptr) {
        names_[bound_] = dim.name;
        sizes_[bound_++] = size - dim.plus;
        continue;
      }
      const c10::SymInt want = known ? *known + dim.plus : c10::SymInt(dim.plus);
      const auto size_int = size.maybe_as_int(), want_int = want.maybe_as_int();
      if (size_int && want_int) {
        TORCH_CHECK_VALUE(*size_int == *want_int, op_, ": ", name, " must be ", wanted(dims, dtypes), ", got ",
                          describe(t));
      } else {
        TORCH_SYM_CHECK(size.sym_eq(want), op_, ": ", name, " must be ", wanted(dims, dtypes));
      }
    }
  }

  const c10::SymInt& size(const char* name) const { return *find(name); }

 private:
  const c10::SymInt* find(const char* name) const {
    for (int i = 0; i < bound_; ++i)
      if (std::strcmp(names_[i], name) == 0) return &sizes_[i];
    return nullptr;
  }

  // "float32 [M, d=64]"
  std::string wanted(std::initializer_list<Dim> dims, std::initializer_list<at::ScalarType> dtypes) const {
    std::ostringstream out;
    const char* between = "";
    for (const auto dtype : dtypes) {
      out << between << dtype_name(dtype);
      between = "/";
    }
    out << " [";
    between = "";
    for (const Dim& dim : dims) {
      out << between;
      between = ", ";
      if (dim.name == nullptr) {
        out << dim.plus;
        continue;
      }
      out << dim.name;
      if (dim.plus) out << " + " << dim.plus;
      if (const c10::SymInt* known = find(dim.name)) out << "=" << *known + dim.plus;
    }
    out << "]";
    return out.str();
  }

  static std::string dtype_name(at::ScalarType dtype) {
    switch (dtype) {
      case at::kFloat:
        return "float32";
      case at::kHalf:
        return "float16";
      case at::kBFloat16:
        return "bfloat16";
      case at::kDouble:
        return "float64";
      case at::kLong:
        return "int64";
      case at::kInt:
        return "int32";
      case at::kByte:
        return "uint8";
      default:
        return c10::toString(dtype);
    }
  }

  static std::string describe(const at::Tensor& t) {
    std::ostringstream out;
    out << dtype_name(t.scalar_type()) << " " << t.sym_sizes() << " on " << t.device();
    return out.str();
  }

  const char* op_;
  const at::Tensor* device_ = nullptr;
  static constexpr int kMost = 8;
  int bound_ = 0;
  const char* names_[kMost];
  c10::SymInt sizes_[kMost];
};

}  // namespace srr_fast
