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

bool plain(PyObject* value) {
  if (!THPVariable_CheckExact(value)) return false;
  const at::Tensor& t = THPVariable_Unpack(value);
  return !t.key_set().has_any(kWrapped) && !t.is_nested();
}

// Tracing, functorch and dispatch modes watch calls that go through the dispatcher.
bool dispatcher_at_work() {
  return !(c10::impl::tls_local_dispatch_key_set().included_ - c10::default_included_set).empty();
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

// A packed ranker bound to its settings; immutable, so any number of threads may call it at once.
struct PreparedScorer {
  srr_fast::PackedRanker ranker;

  bool serves(PyObject* value) const {
    if (!plain(value)) return false;
    const at::Tensor& t = THPVariable_Unpack(value);
    return t.layout() == at::kStrided && t.scalar_type() != at::kDouble &&
           t.device().type() == ranker.bytes.device().type() && !(t.requires_grad() && c10::GradMode::is_enabled()) &&
           !t._fw_grad(/*level=*/0).defined();
  }
};

constexpr char kCapsule[] = "srr_fast.PreparedScorer";
constexpr double kLongCallFlop = 1e6;  // other Python threads may run meanwhile; below it, letting them costs more

// The projection, which is most of the work wherever there is much of it.
double flop(const at::Tensor& inst, const at::Tensor& resp, int64_t p) {
  return 2.0 * p * static_cast<double>(inst.numel() + resp.numel());
}

// (inst, resp, offsets or None, out or None) -> out, or a tuple (scores, probs, best); called without pybind11's
// signature matching and casters, which cost more than a short list's arithmetic.
// None where the inputs are not the native op's: not plain tensors, gradients wanted, another dtype or device, a
// dispatch mode at work. The caller has other ways for those.
PyObject* call_scorer(PyObject* capsule, PyObject* const* args, Py_ssize_t count) {
  try {
    if (count != 4) return PyErr_Format(PyExc_TypeError, "score: wanted 4 arguments, got %zd", count);
    PyObject *const inst = args[0], *const resp = args[1], *const offsets = args[2], *const out = args[3];
    const auto& scorer = *static_cast<const PreparedScorer*>(PyCapsule_GetPointer(capsule, kCapsule));
    if (!scorer.serves(inst) || !scorer.serves(resp) || dispatcher_at_work()) Py_RETURN_NONE;
    if (offsets != Py_None && !plain(offsets)) Py_RETURN_NONE;
    srr_fast::ScoreResult result;
    at::Tensor* const results[] = {&result.scores, &result.probs, &result.best};
    if (out != Py_None) {
      if (!PyTuple_Check(out) || PyTuple_GET_SIZE(out) != 3) Py_RETURN_NONE;
      for (int i = 0; i < 3; ++i) {
        PyObject* given = PyTuple_GET_ITEM(out, i);
        if (!plain(given)) Py_RETURN_NONE;
        *results[i] = THPVariable_Unpack(given);
      }
    }
    const at::Tensor &inst_tensor = THPVariable_Unpack(inst), &resp_tensor = THPVariable_Unpack(resp);
    srr_fast::OptionalTensor offsets_tensor;
    if (offsets != Py_None) offsets_tensor = THPVariable_Unpack(offsets);
    {
      std::optional<py::gil_scoped_release> release;
      if (flop(inst_tensor, resp_tensor, scorer.ranker.p) > kLongCallFlop) release.emplace();
      srr_fast::score(inst_tensor, resp_tensor, offsets_tensor, scorer.ranker, result);
    }
    if (out != Py_None) return Py_NewRef(out);
    auto tuple = py::reinterpret_steal<py::object>(PyTuple_New(3));
    if (!tuple) return nullptr;
    for (int i = 0; i < 3; ++i) PyTuple_SET_ITEM(tuple.ptr(), i, THPVariable_Wrap(std::move(*results[i])));
    return tuple.release().ptr();
  } catch (...) {
    try {
      translate(std::current_exception());
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    } catch (const std::exception& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what());
    }
    return nullptr;
  }
}

py::object prepared_scorer(at::Tensor packed, int64_t d, int64_t p, int64_t heads, int64_t layers, int64_t ffn,
                           bool norm_first, bool bf16, const std::string& scope, double temperature) {
  static PyMethodDef method{"score", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_scorer)),
                            METH_FASTCALL, "score(inst, resp, offsets, out, /)"};
  srr_fast::PackedRanker ranker{
      std::move(packed), p, heads, layers, ffn, norm_first, bf16, srr_fast::parse_scope("prepare", scope), temperature};
  srr_fast::check_shape("prepare", ranker);
  const srr::RankerLayout layout{d, p, heads, layers, ffn, norm_first, bf16};
  TORCH_CHECK_VALUE(ranker.bytes.numel() == layout.size_bytes(), "prepare: packed must hold ", layout.size_bytes(),
                    " bytes, got ", ranker.bytes.numel());
  const py::capsule scorer(new PreparedScorer{std::move(ranker)}, kCapsule,
                           [](void* scorer) { delete static_cast<PreparedScorer*>(scorer); });
  auto function = py::reinterpret_steal<py::object>(PyCFunction_New(&method, scorer.ptr()));
  if (!function) throw py::error_already_set();
  return function;
}

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::register_local_exception_translator(translate);
  m.def("build_info", build_info, "What this extension was built with and which kernels it holds.");
  m.def(
      "select_cpu_isa",
      [](const std::string& name) {
        TORCH_CHECK_VALUE(srr::select_cpu_isa(name.c_str()), "select_cpu_isa: no kernels for '", name, "'");
      },
      py::arg("name"),
      "Use the CPU kernels of one instruction set from now on, in the whole process; not while another thread "
      "computes.");
  m.def("pack_ranker", srr_fast::pack_ranker, py::arg("tensors"), py::arg("heads"), py::arg("layers"), py::arg("ffn"),
        py::arg("norm_first"), py::arg("bf16"), "Pack a ranker's tensors; uint8, for the ops and prepared_scorer.");
  m.def("prepared_scorer", prepared_scorer, py::arg("packed"), py::arg("d"), py::arg("p"), py::arg("heads"),
        py::arg("layers"), py::arg("ffn"), py::arg("norm_first"), py::arg("bf16"), py::arg("scope"),
        py::arg("temperature"), "The score op bound to a packed ranker, as a function (inst, resp, offsets, out).");
}
