// Operators that MindSpore calls by name with described buffers (aclop).
#include "internal.h"

namespace softnpu {

namespace {

struct DataBuffer {
  void *data;
  size_t bytes;
};
struct Attributes {
  std::map<std::string, Attribute> values;
};
struct TensorDescription {
  Tensor tensor;
  std::string constant;  // a value given at compile time, which counts instead of the buffer
};

Tensor make_tensor(const TensorDescription *description, const DataBuffer *buffer) {
  Tensor tensor = description->tensor;
  tensor.strides = dense_strides(tensor.dims);
  tensor.data = description->constant.empty() ? static_cast<char *>(buffer->data)
                                              : const_cast<char *>(description->constant.data());
  return tensor;
}

int set_number(Attributes *attributes, const char *name, double value) {
  attributes->values[name].values = {value};
  return 0;
}

template <class T> int set_numbers(Attributes *attributes, const char *name, int count, const T *values) {
  attributes->values[name].values.assign(values, values + count);
  return 0;
}

}  // namespace

std::string describe(const NamedCall &call) {
  std::string text = call.name + "(";
  for (auto &tensor : call.inputs) text += describe(&tensor) + ", ";
  for (auto &[name, attribute] : call.attributes) {
    text += name + "=" + attribute.text;
    for (double value : attribute.values) text += std::to_string(value) + " ";
    text += ", ";
  }
  text += "->";
  for (auto &tensor : call.outputs) text += " " + describe(&tensor);
  return text + ")";
}

}  // namespace softnpu

using namespace softnpu;

SOFTNPU_EXPORT DataBuffer *aclCreateDataBuffer(void *data, size_t bytes) { return new DataBuffer{data, bytes}; }
SOFTNPU_EXPORT int aclDestroyDataBuffer(const DataBuffer *buffer) { delete buffer; return 0; }
SOFTNPU_EXPORT int aclUpdateDataBuffer(DataBuffer *buffer, void *data, size_t bytes) { *buffer = {data, bytes}; return 0; }
SOFTNPU_EXPORT void *aclGetDataBufferAddr(const DataBuffer *buffer) { return buffer->data; }

SOFTNPU_EXPORT TensorDescription *aclCreateTensorDesc(int dtype, int rank, const int64_t *dims, int) {
  auto *description = new TensorDescription;
  description->tensor.dtype = dtype;
  if (rank > 0) description->tensor.dims.assign(dims, dims + rank);
  return description;
}
SOFTNPU_EXPORT void aclDestroyTensorDesc(const TensorDescription *description) { delete description; }
SOFTNPU_EXPORT size_t aclDataTypeSize(int dtype) {
  try {
    return item_bytes(dtype);
  } catch (const Error &) {
    return 0;  // as documented
  }
}
SOFTNPU_EXPORT size_t aclGetTensorDescNumDims(const TensorDescription *description) { return description->tensor.dims.size(); }
SOFTNPU_EXPORT int64_t aclGetTensorDescDim(const TensorDescription *description, size_t i) { return description->tensor.dims.at(i); }
SOFTNPU_EXPORT int aclGetTensorDescDimV2(const TensorDescription *description, size_t i, int64_t *size) {
  *size = description->tensor.dims.at(i);
  return 0;
}
SOFTNPU_EXPORT size_t aclGetTensorDescSize(const TensorDescription *description) {
  return description->tensor.count() * aclDataTypeSize(description->tensor.dtype);
}
SOFTNPU_EXPORT int aclSetTensorConst(TensorDescription *description, void *data, size_t bytes) {
  description->constant.assign(static_cast<char *>(data), bytes);
  return 0;
}

SOFTNPU_EXPORT Attributes *aclopCreateAttr() { return new Attributes; }
SOFTNPU_EXPORT void aclopDestroyAttr(const Attributes *attributes) { delete attributes; }
SOFTNPU_EXPORT int aclopSetAttrBool(Attributes *a, const char *name, uint8_t value) { return set_number(a, name, value); }
SOFTNPU_EXPORT int aclopSetAttrInt(Attributes *a, const char *name, int64_t value) { return set_number(a, name, static_cast<double>(value)); }
SOFTNPU_EXPORT int aclopSetAttrFloat(Attributes *a, const char *name, float value) { return set_number(a, name, value); }
SOFTNPU_EXPORT int aclopSetAttrDataType(Attributes *a, const char *name, int value) { return set_number(a, name, value); }
SOFTNPU_EXPORT int aclopSetAttrString(Attributes *a, const char *name, const char *value) {
  a->values[name].text = value;
  return 0;
}
SOFTNPU_EXPORT int aclopSetAttrListInt(Attributes *a, const char *name, int count, const int64_t *values) {
  return set_numbers(a, name, count, values);
}
SOFTNPU_EXPORT int aclopSetAttrListFloat(Attributes *a, const char *name, int count, const float *values) {
  return set_numbers(a, name, count, values);
}
SOFTNPU_EXPORT int aclopSetAttrListBool(Attributes *a, const char *name, int count, const uint8_t *values) {
  return set_numbers(a, name, count, values);
}

SOFTNPU_EXPORT int aclopCompileAndExecuteV2(const char *name, int num_inputs, TensorDescription **input_descriptions,
                                            DataBuffer **inputs, int num_outputs,
                                            TensorDescription **output_descriptions, DataBuffer **outputs,
                                            Attributes *attributes, int, int, const char *, void *) {
  add_to(kLaunches);
  NamedCall call;
  call.name = name;
  return guarded("operator by name", [&] {
    for (int i = 0; i < num_inputs; i++) call.inputs.push_back(make_tensor(input_descriptions[i], inputs[i]));
    for (int i = 0; i < num_outputs; i++) call.outputs.push_back(make_tensor(output_descriptions[i], outputs[i]));
    if (attributes) call.attributes = attributes->values;
    auto found = named_operators().find(name);
    if (found == named_operators().end()) {
      throw Error("the software NPU does not implement this operator; called as " + describe(call));
    }
    if (is_tracing()) trace("by name " + describe(call));
    try {
      found->second(call);
    } catch (const std::exception &error) {
      throw Error(describe(call) + ": " + error.what());
    }
    return 0;
  });
}
SOFTNPU_EXPORT int aclopCompileAndExecute(const char *name, int num_inputs, TensorDescription **input_descriptions,
                                          DataBuffer **inputs, int num_outputs, TensorDescription **output_descriptions,
                                          DataBuffer **outputs, Attributes *attributes, int engine, int compile,
                                          const char *path, void *stream) {
  return aclopCompileAndExecuteV2(name, num_inputs, input_descriptions, inputs, num_outputs, output_descriptions,
                                  outputs, attributes, engine, compile, path, stream);
}
