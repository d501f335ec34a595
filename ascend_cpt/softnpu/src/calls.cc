// The two phases of aclnn's operators. `aclnnXGetWorkspaceSize(arguments…, &size, &executor)` records a call,
// `aclnnX(workspace, size, executor, stream)` runs it. Generated trampolines bring both here with the operator's index.
#include <sys/resource.h>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include "internal.h"

// Of the generated file: the names of the trampolined operators.
extern "C" __attribute__((visibility("hidden"))) const char *const softnpu_operator_names[];

namespace softnpu {

std::map<std::string, Operator> &operators() {
  static auto *table = new std::map<std::string, Operator>;
  return *table;
}

std::map<std::string, NamedHandler> &named_operators() {
  static auto *table = new std::map<std::string, NamedHandler>;
  return *table;
}

const Argument &Call::at(size_t i, const char *codes) const {
  if (i >= arguments.size() || !std::strchr(codes, arguments[i].code)) {
    throw Error("argument " + std::to_string(i) + " is not one of \"" + codes + "\": the code of the operator does not "
                "match its signature");
  }
  return arguments[i];
}

void Call::refuse_null(size_t i) const { throw Error("argument " + std::to_string(i) + " is missing"); }

namespace {

constexpr int kActorNice = 10;  // a tenth of the time of a thread of ordinary priority
constexpr size_t kMaxUnknownArguments = 48;
constexpr uint64_t kNearStackBytes = 1 << 20;

// The arguments of a C call under the System V ABI of x86-64: integers and pointers in six registers, floating-point
// numbers in eight others, the rest on the stack in order.
class Registers {
 public:
  Registers(const uint64_t *saved, const uint64_t *stack) : saved_(saved), stack_(stack) {}
  uint64_t next_integer() { return num_integers_ < 6 ? saved_[num_integers_++] : stack_[num_stacked_++]; }
  uint64_t next_float() { return num_floats_ < 8 ? saved_[6 + num_floats_++] : stack_[num_stacked_++]; }
  bool is_near_stack(uint64_t value) const {
    auto base = reinterpret_cast<uint64_t>(stack_);
    return value > base && value < base + kNearStackBytes && value % 8 == 0;
  }

 private:
  const uint64_t *saved_, *stack_;
  size_t num_integers_ = 0, num_floats_ = 0, num_stacked_ = 0;
};

template <class T> T reinterpret(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

Argument read_argument(char code, Registers &registers) {
  Argument argument;
  argument.code = code;
  switch (code) {
    case 't': case 's': case 'L': case 'I': case 'F': case 'B':
      argument.object = reinterpret_cast<Object *>(registers.next_integer());
      break;
    case 'i': argument.integer = static_cast<int64_t>(registers.next_integer()); break;
    case 'w': argument.integer = static_cast<int32_t>(registers.next_integer()); break;
    case 'c': argument.integer = static_cast<int8_t>(registers.next_integer()); break;
    case 'b': argument.integer = (registers.next_integer() & 255) != 0; break;
    case 'f': argument.real = reinterpret<float>(registers.next_float()); break;
    case 'd': argument.real = reinterpret<double>(registers.next_float()); break;
    case 'p':
      if (auto *text = reinterpret_cast<const char *>(registers.next_integer())) argument.text = text;
      break;
    default: throw Error(std::string("unknown letter '") + code + "' in a signature");
  }
  return argument;
}

std::string describe_argument(const Argument &argument) {
  switch (argument.code) {
    case 'i': case 'w': case 'c': case 'b': return std::to_string(argument.integer);
    case 'f': case 'd': return std::to_string(argument.real);
    case 'p': return '"' + argument.text + '"';
    default: return describe(argument.object);
  }
}

// Of an operator without a signature: living objects by their address, small numbers as they are. The list ends at the
// two trailing pointers, which point into the caller's frame at zeros.
std::string describe_unknown(Registers registers, const uint64_t *saved) {
  std::string text;
  for (size_t i = 0; i < kMaxUnknownArguments; i++) {
    uint64_t value = registers.next_integer();
    auto signed_value = static_cast<int64_t>(value);
    if (const Object *object = find_object(reinterpret_cast<void *>(value))) text += describe(object) + ", ";
    else if (registers.is_near_stack(value)) break;
    else if (signed_value > -100000 && signed_value < 100000) text += std::to_string(signed_value) + ", ";
    else text += "pointer, ";
  }
  return text + "floating-point registers " + std::to_string(reinterpret<double>(saved[6])) + " or " +
         std::to_string(reinterpret<float>(saved[6]));
}

std::string describe_call(const Call &call) {
  std::string text = *call.name + "(";
  for (size_t i = 0; i < call.arguments.size(); i++) text += (i ? ", " : "") + describe_argument(call.arguments[i]);
  return text + ")";
}

// MindSpore's actor threads wait in a busy loop until the launching thread has run every kernel of a step, also while
// that one sleeps in a collective. With more processes than cores they take the time of those that compute.
void calm_actors() {
  std::error_code error;
  for (const auto &entry : std::filesystem::directory_iterator("/proc/self/task", error)) {
    std::string name;
    std::getline(std::ifstream(entry.path() / "comm"), name);
    if (name.rfind("ActorThread", 0) == 0) {
      setpriority(PRIO_PROCESS, std::stoi(entry.path().filename().string()), kActorNice);
    }
  }
}

}  // namespace

void Call::run() {
  if (is_tracing()) trace(describe_call(*this));
  try {
    handler(*this);
  } catch (const std::exception &error) {
    throw Error(describe_call(*this) + ": " + error.what());
  }
}

int run_executor(Executor *executor) {
  static std::atomic<uint64_t> num_runs{0};
  uint64_t number = ++num_runs;
  add_to(kLaunches);
  if ((number & (number - 1)) == 0) calm_actors();  // seldom, and again: the threads may start later
  if (!executor) return record_error("an operator was run without being prepared");
  int code = 0;
  try {
    executor->run();
  } catch (const std::exception &error) {
    code = record_error(error.what());
  }
  if (!executor->is_repeatable) delete executor;
  return code;
}

}  // namespace softnpu

using namespace softnpu;

// `saved`: rdi rsi rdx rcx r8 r9 xmm0..xmm7; `stack`: what the caller pushed.
extern "C" __attribute__((visibility("hidden"))) int softnpu_prepare(int index, const uint64_t *saved,
                                                                     const uint64_t *stack) {
  const char *name = softnpu_operator_names[index];
  return guarded(name, [&] {
    Registers registers(saved, stack);
    auto found = operators().find(name);
    if (found == operators().end()) {
      throw Error("the software NPU does not implement this operator; called with (" + describe_unknown(registers, saved) + ")");
    }
    auto call = std::make_unique<Call>();
    call->name = &found->first;
    call->handler = found->second.run;
    for (char code : found->second.signature) call->arguments.push_back(read_argument(code, registers));
    auto *workspace_size = reinterpret_cast<uint64_t *>(registers.next_integer());
    auto **executor = reinterpret_cast<Executor **>(registers.next_integer());
    *workspace_size = 0;
    *executor = call.release();
    return 0;
  });
}

extern "C" __attribute__((visibility("hidden"))) int softnpu_execute(void *, uint64_t, Executor *executor, void *) {
  return run_executor(executor);
}

SOFTNPU_EXPORT int aclSetAclOpExecutorRepeatable(Executor *executor) {
  executor->is_repeatable = true;
  return 0;
}
SOFTNPU_EXPORT int aclDestroyAclOpExecutor(Executor *executor) {
  delete executor;
  return 0;
}

// A function of CANN that the emulation does not have: a result of zero would go unnoticed.
extern "C" __attribute__((visibility("hidden"))) int softnpu_refuse(const char *name) {
  return record_error(std::string(name) + ": the software NPU does not implement this CANN function");
}
extern "C" __attribute__((visibility("hidden"))) void softnpu_note(const char *name) {
  if (is_tracing()) trace(std::string("nothing to do in ") + name);
}

// The table of operators for tests and documentation: lines of a name and its signature.
SOFTNPU_EXPORT const char *softnpu_list_operators() {
  static auto *text = new std::string;
  text->clear();
  for (auto &entry : operators()) *text += entry.first + " " + entry.second.signature + "\n";
  for (auto &entry : named_operators()) *text += entry.first + " by name\n";
  return text->c_str();
}
