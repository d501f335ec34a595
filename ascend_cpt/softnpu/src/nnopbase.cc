// What the wheel's own operator library (libcust_opapi.so) calls: an executor that is filled argument by argument.
// MindSpore takes AllFinite from there.
#include <cmath>
#include "internal.h"

namespace softnpu {

namespace {

void place(std::vector<Tensor *> &tensors, Tensor *tensor, uint32_t i) {
  if (tensors.size() <= i) tensors.resize(i + 1);
  tensors[i] = tensor;
}

// Raises the flag where an element is not finite; several calls share one flag.
void run_all_finite(const BuiltCall &call) {
  constexpr size_t kBlock = 1024;
  const Tensor &in = *call.inputs.at(0);
  const Tensor &flag = *call.outputs.at(0);
  if (!in.is_dense()) throw Error("AllFinite does not support strided tensors");
  double block[kBlock];
  auto count = static_cast<size_t>(in.count());
  for (size_t start = 0; start < count; start += kBlock) {
    size_t size = std::min(kBlock, count - start);
    load_items(in.first() + start * item_bytes(in.dtype), in.dtype, block, size);
    for (size_t i = 0; i < size; i++) {
      if (!std::isfinite(block[i])) return store_item(flag.first(), flag.dtype, 1);
    }
  }
}

}  // namespace

void BuiltCall::run() {
  std::string text = "built " + name + "(";
  for (auto *tensor : inputs) text += describe(tensor) + ", ";
  text += "->";
  for (auto *tensor : outputs) text += " " + describe(tensor);
  text += ")";
  if (name != "AllFinite") throw Error("the software NPU does not implement this operator; called as " + text);
  if (is_tracing()) trace(text);
  run_all_finite(*this);
}

}  // namespace softnpu

using namespace softnpu;

SOFTNPU_EXPORT int NnopbaseCreateExecutorSpace(void **space) {
  static int only;
  *space = &only;
  return 0;
}
SOFTNPU_EXPORT Executor *NnopbaseGetExecutor(void *, const char *name, char *, uint32_t, char *, uint32_t, char *, uint32_t) {
  auto *call = new BuiltCall;
  call->name = name;
  return call;
}
SOFTNPU_EXPORT int NnopbaseAddInput(Executor *executor, Tensor *tensor, uint32_t i) {
  place(static_cast<BuiltCall *>(executor)->inputs, tensor, i);
  return 0;
}
SOFTNPU_EXPORT int NnopbaseAddOutput(Executor *executor, Tensor *tensor, uint32_t i) {
  place(static_cast<BuiltCall *>(executor)->outputs, tensor, i);
  return 0;
}
SOFTNPU_EXPORT int NnopbaseGetUnContiguousTensors(void *, void **list) { *list = nullptr; return 0; }
SOFTNPU_EXPORT int NnopbaseGetUnContExecutor(void *, void **executor) { *executor = nullptr; return 0; }
SOFTNPU_EXPORT int NnopbaseGetApiFunc(const char *, void **function) { *function = nullptr; return 0; }
SOFTNPU_EXPORT int NnopbaseRunForWorkspace(Executor *, uint64_t *bytes) { *bytes = 0; return 0; }
SOFTNPU_EXPORT int NnopbaseRunWithWorkspace(Executor *executor, void *, void *, uint64_t) { return run_executor(executor); }
