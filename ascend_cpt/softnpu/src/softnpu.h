// The contracts of the software NPU: objects behind CANN's opaque handles, and how operators are written.
//
// An operator of aclnn is one function, registered with the signature of its C interface:
//
//     OP(Muls, "tst") { call.out(2, map(call.in(0), ...)); }      // aclnnMuls(self, other, out)
//
// One letter per argument, without the trailing (workspaceSize, executor):
//     t tensor    s scalar    L list of tensors    I array of int64    F array of float    B array of bool
//     i int64     w int32     c int8               b bool              f float             d double       p text
//
// An operator called by name (aclop) is registered with NAMED_OP. Both throw Error for what they do not support: the
// text reaches MindSpore's exception, and the process ends. An operator never returns a made-up result.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#define SOFTNPU_EXPORT extern "C" __attribute__((visibility("default")))

namespace softnpu {

// aclDataType.
enum DType : int {
  F32 = 0, F16 = 1, I8 = 2, I32 = 3, U8 = 4, I16 = 6, U16 = 7, U32 = 8, I64 = 9, U64 = 10, F64 = 11, BOOL = 12, BF16 = 27
};
// Bytes of one element. Throws Error for a dtype that is not in the list above.
size_t item_bytes(int dtype);
const char *dtype_name(int dtype);
bool is_float(int dtype);
// One element as a double. 64-bit integers beyond 2^53 lose digits: use load_integer for them.
double load_item(const char *place, int dtype);
// Rounds once, to nearest, ties to even; an integer dtype takes the truncated value.
void store_item(char *place, int dtype, double value);
int64_t load_integer(const char *place, int dtype);
void store_integer(char *place, int dtype, int64_t value);
// `n` elements starting at `p`, `stride` elements apart, to and from double. Half precision is rounded once, to even.
void load_run(const char *p, int dtype, int64_t stride, int64_t n, double *to);
void store_run(char *p, int dtype, int64_t stride, int64_t n, const double *from);
// The same for elements that lie one after the other.
void load_items(const char *from, int dtype, double *to, size_t count);
void store_items(char *to, int dtype, const double *from, size_t count);

using Dims = std::vector<int64_t>;
int64_t count_elements(const Dims &dims);
Dims dense_strides(const Dims &dims);

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// Keeps the text for aclGetRecentErrMsg, prints it, and returns an aclError other than 0.
int record_error(const std::string &text);

// What CANN's handles point to. `kind` comes first, so that a handle of unknown type can be read.
enum class Kind : int { tensor = 0x50f7, scalar, integers, floats, booleans, list };
struct Object {
  Kind kind;
  explicit Object(Kind k) : kind(k) {}
};
struct Tensor : Object {
  Dims dims, strides;  // of the view, in elements
  int64_t offset = 0;  // of the view's first element, in elements
  int dtype = F32;
  char *data = nullptr;
  Tensor() : Object(Kind::tensor) {}
  int64_t count() const { return count_elements(dims); }
  int64_t rank() const { return static_cast<int64_t>(dims.size()); }
  char *first() const { return data + offset * static_cast<int64_t>(item_bytes(dtype)); }
  bool is_dense() const { return strides == dense_strides(dims); }
};
struct Scalar : Object {
  double real = 0;
  int64_t integer = 0;  // exact where the dtype is one of integers
  int dtype = F32;
  Scalar() : Object(Kind::scalar) {}
};
struct Array : Object {
  std::vector<int64_t> integers;  // of integer and bool arrays
  std::vector<double> reals;      // of float arrays
  explicit Array(Kind k) : Object(k) {}
};
struct List : Object {
  std::vector<Tensor *> items;
  List() : Object(Kind::list) {}
};
// Dtype, shape and, where they say something, strides and offset: "float16[2,3]", "float32[4,1]/(1,8)+3".
std::string describe(const Object *object);

struct Arr;  // a dense array in double, see arrays.h

struct Argument {
  char code = 0;  // letter of the signature
  Object *object = nullptr;
  int64_t integer = 0;
  double real = 0;
  std::string text;
};
// A prepared call. It ends with its run, unless MindSpore made it repeatable.
struct Executor {
  bool is_repeatable = false;
  virtual ~Executor() = default;
  virtual void run() = 0;  // throws Error
};
class Call;
using Handler = void (*)(Call &);

// One call of an aclnn operator: its arguments by position. An accessor of another type than the signature's throws.
class Call : public Executor {
 public:
  const std::string *name = nullptr;
  Handler handler = nullptr;
  std::vector<Argument> arguments;

  bool has(size_t i) const { return at(i, "tsLIFB").object != nullptr; }  // an optional argument may be null
  Tensor &tensor(size_t i) const { return object<Tensor>(i, "t"); }
  Scalar &scalar_object(size_t i) const { return object<Scalar>(i, "s"); }
  double scalar(size_t i) const { return scalar_object(i).real; }
  const std::vector<int64_t> &integers(size_t i) const { return object<Array>(i, "IB").integers; }
  const std::vector<double> &reals(size_t i) const { return object<Array>(i, "F").reals; }
  const std::vector<Tensor *> &list(size_t i) const { return object<List>(i, "L").items; }
  int64_t integer(size_t i) const { return at(i, "iwcb").integer; }
  bool flag(size_t i) const { return at(i, "bc").integer != 0; }
  double real(size_t i) const { return at(i, "fd").real; }
  const std::string &text(size_t i) const { return at(i, "p").text; }
  // Defined in arrays.h.
  Arr in(size_t i) const;                    // the tensor's elements
  void out(size_t i, const Arr &a) const;    // rounds into the tensor; nothing where the argument is null

  void run() override;

 private:
  const Argument &at(size_t i, const char *codes) const;
  template <class T> T &object(size_t i, const char *codes) const {
    Object *found = at(i, codes).object;
    if (!found) refuse_null(i);
    return static_cast<T &>(*found);
  }
  [[noreturn]] void refuse_null(size_t i) const;
};
struct Operator {
  std::string signature;
  Handler run;
};
std::map<std::string, Operator> &operators();
struct Registration {
  Registration(const char *name, const char *signature, Handler run) { operators()[name] = {signature, run}; }
};

// Operators called by name with described buffers. Tensors are dense.
struct Attribute {
  std::string text;
  std::vector<double> values;
};
struct NamedCall {
  std::string name;
  std::vector<Tensor> inputs, outputs;
  std::map<std::string, Attribute> attributes;
  double attribute(const std::string &key, double otherwise) const {
    auto found = attributes.find(key);
    return found == attributes.end() || found->second.values.empty() ? otherwise : found->second.values[0];
  }
  Arr in(size_t i) const;
  void out(size_t i, const Arr &a) const;
};
std::string describe(const NamedCall &call);
using NamedHandler = void (*)(NamedCall &);
std::map<std::string, NamedHandler> &named_operators();
struct NamedRegistration {
  NamedRegistration(const char *name, NamedHandler run) { named_operators()[name] = run; }
};

// Whether every call is printed (ASCEND_CPT_SOFTNPU_TRACE=1), and the printing of one.
bool is_tracing();
void trace(const std::string &text);

}  // namespace softnpu

#define OP(name, signature)                                                                    \
  static void run_##name(::softnpu::Call &call);                                               \
  static const ::softnpu::Registration registered_##name("aclnn" #name, signature, run_##name); \
  static void run_##name([[maybe_unused]] ::softnpu::Call &call)
#define NAMED_OP(name)                                                                         \
  static void run_by_name_##name(::softnpu::NamedCall &call);                                  \
  static const ::softnpu::NamedRegistration registered_by_name_##name(#name, run_by_name_##name); \
  static void run_by_name_##name([[maybe_unused]] ::softnpu::NamedCall &call)
