// aclnn's objects: tensors, scalars, arrays and lists behind opaque handles, and the text of the last error.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sstream>
#include "internal.h"

namespace softnpu {

namespace {

// What is alive, so that the arguments of an unknown operator can be told from numbers. Never destroyed: MindSpore
// destroys objects from its own static destructors.
struct Registry {
  std::mutex lock;
  std::map<const void *, const Object *> alive;
  std::string error;
};
Registry &registry() {
  static auto *only = new Registry;
  return *only;
}

template <class T> T *track(T *object) {
  std::lock_guard<std::mutex> guard(registry().lock);
  registry().alive[object] = object;
  return object;
}

template <class T> int release(const T *object) {
  if (!object) return 0;
  {
    std::lock_guard<std::mutex> guard(registry().lock);
    if (!registry().alive.erase(object)) return 0;
  }
  delete object;
  return 0;
}

template <class T, class V> Array *make_array(Kind kind, const V *values, uint64_t count) {
  auto *array = new Array(kind);
  if constexpr (std::is_same_v<T, double>) array->reals.assign(values, values + count);
  else array->integers.assign(values, values + count);
  return track(array);
}

void describe_dims(std::ostream &out, const Dims &dims) {
  for (size_t i = 0; i < dims.size(); i++) out << (i ? "," : "") << dims[i];
}

}  // namespace

bool is_tracing() {
  static const bool on = getenv("ASCEND_CPT_SOFTNPU_TRACE") != nullptr;
  return on;
}

void trace(const std::string &text) { fprintf(stderr, "[softnpu] %s\n", text.c_str()); }

int record_error(const std::string &text) {
  fprintf(stderr, "softnpu: %s\n", text.c_str());
  std::lock_guard<std::mutex> guard(registry().lock);
  registry().error = text;
  return kErrorFailure;
}

const Object *find_object(const void *address) {
  std::lock_guard<std::mutex> guard(registry().lock);
  auto found = registry().alive.find(address);
  return found == registry().alive.end() ? nullptr : found->second;
}

std::string describe(const Object *object) {
  std::ostringstream out;
  if (!object) return "none";
  switch (object->kind) {
    case Kind::tensor: {
      auto *tensor = static_cast<const Tensor *>(object);
      out << dtype_name(tensor->dtype) << '[';
      describe_dims(out, tensor->dims);
      out << ']';
      if (!tensor->is_dense()) {
        out << "/(";
        describe_dims(out, tensor->strides);
        out << ')';
      }
      if (tensor->offset) out << '+' << tensor->offset;
      break;
    }
    case Kind::scalar: {
      auto *scalar = static_cast<const Scalar *>(object);
      out << dtype_name(scalar->dtype) << '(' << scalar->real << ')';
      break;
    }
    case Kind::list: {
      out << '[';
      for (auto *item : static_cast<const List *>(object)->items) out << describe(item) << ' ';
      out << ']';
      break;
    }
    default: {
      auto *array = static_cast<const Array *>(object);
      out << '(';
      for (int64_t value : array->integers) out << value << ',';
      for (double value : array->reals) out << value << ',';
      out << ')';
    }
  }
  return out.str();
}

}  // namespace softnpu

using namespace softnpu;

SOFTNPU_EXPORT Tensor *aclCreateTensor(const int64_t *dims, uint64_t rank, int dtype, const int64_t *strides,
                                       int64_t offset, int /*format*/, const int64_t *, uint64_t, void *data) {
  auto *tensor = new Tensor;
  if (rank) tensor->dims.assign(dims, dims + rank);
  if (rank && strides) tensor->strides.assign(strides, strides + rank);
  else tensor->strides = dense_strides(tensor->dims);
  tensor->offset = offset;
  tensor->dtype = dtype;
  tensor->data = static_cast<char *>(data);
  return track(tensor);
}

SOFTNPU_EXPORT Scalar *aclCreateScalar(void *value, int dtype) {
  auto *scalar = new Scalar;
  try {
    scalar->real = load_item(static_cast<char *>(value), dtype);
    scalar->integer = load_integer(static_cast<char *>(value), dtype);
  } catch (const Error &error) {
    record_error(std::string("aclCreateScalar: ") + error.what());
    delete scalar;
    return nullptr;
  }
  scalar->dtype = dtype;
  return track(scalar);
}

SOFTNPU_EXPORT Array *aclCreateIntArray(const int64_t *values, uint64_t count) {
  return make_array<int64_t>(Kind::integers, values, count);
}
SOFTNPU_EXPORT Array *aclCreateFloatArray(const float *values, uint64_t count) {
  return make_array<double>(Kind::floats, values, count);
}
SOFTNPU_EXPORT Array *aclCreateBoolArray(const bool *values, uint64_t count) {
  return make_array<int64_t>(Kind::booleans, values, count);
}
SOFTNPU_EXPORT List *aclCreateTensorList(Tensor *const *tensors, uint64_t count) {
  auto *list = new List;
  list->items.assign(tensors, tensors + count);
  return track(list);
}

SOFTNPU_EXPORT int aclDestroyTensor(const Tensor *tensor) { return release(tensor); }
SOFTNPU_EXPORT int aclDestroyScalar(const Scalar *scalar) { return release(scalar); }
SOFTNPU_EXPORT int aclDestroyIntArray(const Array *array) { return release(array); }
SOFTNPU_EXPORT int aclDestroyFloatArray(const Array *array) { return release(array); }
SOFTNPU_EXPORT int aclDestroyBoolArray(const Array *array) { return release(array); }
SOFTNPU_EXPORT int aclDestroyTensorList(const List *list) {
  if (!list) return 0;
  for (auto *tensor : list->items) release(tensor);
  return release(list);
}

SOFTNPU_EXPORT int aclGetViewShape(const Tensor *tensor, int64_t **dims, uint64_t *rank) {
  *rank = tensor->dims.size();
  *dims = new int64_t[*rank + 1];  // the caller deletes it
  std::copy(tensor->dims.begin(), tensor->dims.end(), *dims);
  return 0;
}

// A cached call is run again with other addresses.
SOFTNPU_EXPORT int aclSetTensorAddr(Call *, size_t, Tensor *tensor, void *address) {
  tensor->data = static_cast<char *>(address);
  return 0;
}
SOFTNPU_EXPORT int aclSetDynamicTensorAddr(Call *, size_t, size_t place, List *list, void *address) {
  list->items[place]->data = static_cast<char *>(address);
  return 0;
}

SOFTNPU_EXPORT const char *aclGetRecentErrMsg() {
  static thread_local std::string copy;
  std::lock_guard<std::mutex> guard(registry().lock);
  copy = registry().error;
  return copy.c_str();
}
