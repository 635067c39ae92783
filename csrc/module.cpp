// SPDX-License-Identifier: Apache-2.0
// The Python module srr_fast._C: what was built, packing, and the prepared scorer. Decides nothing.
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "ops.h"

namespace py = pybind11;

namespace {

// Tensors that only the dispatcher can read: their data lies elsewhere, or nowhere.
constexpr c10::DispatchKeySet kWrapped({c10::DispatchKey::Python, c10::DispatchKey::ZeroTensor,
                                        c10::DispatchKey::Functionalize, c10::DispatchKey::FuncTorchBatched,
                                        c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::Conjugate});

// Tracing, functorch and dispatch modes watch calls that go through the dispatcher.
bool dispatcher_at_work() {
  return !(c10::impl::tls_local_dispatch_key_set().included_ - c10::default_included_set).empty();
}

// A packed ranker bound to its settings; immutable, so any number of threads may call it at once.
class PreparedScorer {
 public:
  PreparedScorer(at::Tensor packed, int64_t d, int64_t p, int64_t heads, int64_t layers, int64_t ffn, bool norm_first,
                 bool bf16, const std::string& scope, double temperature)
      : ranker_{std::move(packed), p, heads, layers, ffn, norm_first, bf16, srr_fast::parse_scope("prepare", scope),
                temperature} {
    srr_fast::check_shape("prepare", ranker_);
    const srr::RankerLayout layout{d, p, heads, layers, ffn, norm_first, bf16};
    TORCH_CHECK_VALUE(ranker_.bytes.numel() == layout.size_bytes(), "prepare: packed must hold ", layout.size_bytes(),
                      " bytes, got ", ranker_.bytes.numel());
  }

  using Output = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

  // Nothing where the inputs are not the native op's: not plain tensors, gradients wanted, another dtype or device, a
  // dispatch mode at work. The caller has other ways for those.
  std::optional<Output> call(py::handle inst, py::handle resp, py::handle offsets, py::handle out) const {
    if (!serves(inst) || !serves(resp) || dispatcher_at_work()) return std::nullopt;
    if (!offsets.is_none() && !THPVariable_CheckExact(offsets.ptr())) return std::nullopt;
    srr_fast::ScoreResult result;
    if (!out.is_none()) {
      if (!PyTuple_Check(out.ptr()) || PyTuple_GET_SIZE(out.ptr()) != 3) return std::nullopt;
      at::Tensor* const into[] = {&result.scores, &result.probs, &result.best};
      for (int i = 0; i < 3; ++i) {
        PyObject* given = PyTuple_GET_ITEM(out.ptr(), i);
        if (!THPVariable_CheckExact(given)) return std::nullopt;
        *into[i] = THPVariable_Unpack(given);
      }
    }
    const at::Tensor& inst_tensor = THPVariable_Unpack(inst.ptr());
    const at::Tensor& resp_tensor = THPVariable_Unpack(resp.ptr());
    srr_fast::OptionalTensor offsets_tensor;
    if (!offsets.is_none()) offsets_tensor = THPVariable_Unpack(offsets.ptr());
    py::gil_scoped_release release;
    result = srr_fast::score(inst_tensor, resp_tensor, offsets_tensor, ranker_, std::move(result));
    return Output{result.scores, result.probs, result.best};
  }

 private:
  bool serves(py::handle value) const {
    if (!THPVariable_CheckExact(value.ptr())) return false;
    const at::Tensor& t = THPVariable_Unpack(value.ptr());
    return t.layout() == at::kStrided && t.scalar_type() != at::kDouble &&
           t.device().type() == ranker_.bytes.device().type() && !t.key_set().has_any(kWrapped) &&
           !(t.requires_grad() && c10::GradMode::is_enabled()) && !t._fw_grad(/*level=*/0).defined();
  }

  srr_fast::PackedRanker ranker_;
};

py::dict build_info() {
  py::dict info;
  py::list devices, isas;
  devices.append("cpu");
#ifdef SRR_FAST_CUDA
  devices.append("cuda");
  info["cuda"] = SRR_FAST_CUDA;
#else
  info["cuda"] = py::none();
#endif
  for (const char* const* name = srr::cpu_isas(); *name; ++name) isas.append(*name);
  info["devices"] = devices;
  info["cpu_isas"] = isas;
  info["cpu_isa"] = srr::cpu_isa();
  info["compiler"] = __VERSION__;
  info["torch"] = SRR_FAST_TORCH;
  return info;
}

// torch's exceptions as Python's own, without the C++ stack in their text.
void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const c10::TypeError& e) {
    py::set_error(PyExc_TypeError, e.what_without_backtrace());
  } catch (const c10::ValueError& e) {
    py::set_error(PyExc_ValueError, e.what_without_backtrace());
  } catch (const c10::Error& e) {
    py::set_error(PyExc_RuntimeError, e.what_without_backtrace());
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::register_local_exception_translator(translate);
  m.def("build_info", build_info, "What this extension was built with and which kernels it holds.");
  m.def(
      "select_cpu_isa",
      [](const std::string& name) {
        TORCH_CHECK_VALUE(srr::select_cpu_isa(name.c_str()), "select_cpu_isa: no kernels for '", name, "'");
      },
      py::arg("name"), "Use the CPU kernels of one instruction set from now on, in the whole process.");
  m.def("pack_ranker", srr_fast::pack_ranker, py::arg("tensors"), py::arg("heads"), py::arg("layers"), py::arg("ffn"),
        py::arg("norm_first"), py::arg("bf16"), "Pack a ranker's tensors; uint8, for the ops and PreparedScorer.");
  py::class_<PreparedScorer>(m, "PreparedScorer")
      .def(py::init<at::Tensor, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, const std::string&, double>(),
           py::arg("packed"), py::arg("d"), py::arg("p"), py::arg("heads"), py::arg("layers"), py::arg("ffn"),
           py::arg("norm_first"), py::arg("bf16"), py::arg("scope"), py::arg("temperature"))
      .def("__call__", &PreparedScorer::call, py::arg("inst"), py::arg("resp"), py::arg("offsets") = py::none(),
           py::arg("out") = py::none());
}
