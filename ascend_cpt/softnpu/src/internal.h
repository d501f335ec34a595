// What the files of the runtime share, and operators do not need.
#pragma once
#include "softnpu.h"

SOFTNPU_EXPORT const char *aclGetRecentErrMsg();

namespace softnpu {

constexpr int kErrorFailure = 500002;          // ACL_ERROR_GE_FAILURE
constexpr int kErrorOutOfMemory = 207001;      // ACL_ERROR_RT_MEMORY_ALLOCATION
constexpr int kErrorInvalidParameter = 100000;  // ACL_ERROR_INVALID_PARAM

// What a process has asked of its device so far; see softnpu_read_counts.
enum Counter { kLaunches, kCollectives, kSynchronizations, kCopiesToHost, kCopiesToDevice, kNumCounters };
void add_to(Counter counter);

// The living object at an address, or null.
const Object *find_object(const void *address);

// Runs the second phase: 0 or an aclError. Deletes the executor unless it is repeatable.
int run_executor(Executor *executor);

// A call that nnopbase's interface filled in.
struct BuiltCall : Executor {
  std::string name;
  std::vector<Tensor *> inputs, outputs;
  void run() override;
};

// Runs `work` and turns what it throws into a recorded error and its number.
template <class F> int guarded(const std::string &what, F work) {
  try {
    return work();
  } catch (const std::exception &error) {
    return record_error(what + ": " + error.what());
  }
}

}  // namespace softnpu
