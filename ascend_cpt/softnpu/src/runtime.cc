// libascendcl's runtime: the device's memory is the host's, and everything has happened when a call returns.
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include "internal.h"

namespace softnpu {

namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kDriverBytes = 2ull << 30;  // what a real device keeps for itself
constexpr uint32_t kNumDevices = 64;         // as many processes as anybody starts on one machine
constexpr uint32_t kNumCores = 24;
constexpr int kRunModeHost = 1;
constexpr int kEventComplete = 1;
constexpr int kToDevice = 1, kToHost = 2;  // aclrtMemcpyKind

std::atomic<uint64_t> g_counts[kNumCounters];

size_t read_total_bytes() {
  const char *text = getenv("ASCEND_CPT_SOFTNPU_MEMORY_GB");
  double gigabytes = text ? atof(text) : 0;
  return static_cast<size_t>((gigabytes > 0 ? gigabytes : 64) * (1ull << 30));
}

size_t round_up(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

// Every block by its address, with what it counts against the device's memory. Never destroyed: MindSpore frees from
// static destructors.
class Memory {
 public:
  int allocate(void **address, size_t bytes, bool on_device) {
    size_t rounded = round_up(bytes ? bytes : 1);
    size_t counted = on_device ? rounded : 0;
    if (!take(counted)) return refuse(bytes);
    void *block = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) {
      give_back(counted);
      return record_error("out of host memory: cannot allocate " + std::to_string(bytes) + " bytes"), kErrorOutOfMemory;
    }
    std::lock_guard<std::mutex> guard(lock_);
    blocks_[block] = {rounded, counted};
    *address = block;
    return 0;
  }

  int release(void *address) {
    if (!address) return 0;
    std::lock_guard<std::mutex> guard(lock_);
    auto found = blocks_.find(address);
    if (found == blocks_.end()) return kErrorInvalidParameter;
    munmap(address, found->second.bytes);
    used_ -= found->second.counted;
    blocks_.erase(found);
    return 0;
  }

  // Physical memory of the virtual-memory interface: a number that counts; the pages come with the reserved addresses.
  bool take(size_t bytes) {
    std::lock_guard<std::mutex> guard(lock_);
    if (bytes && used_ + bytes > total_ - kDriverBytes) return false;
    used_ += bytes;
    return true;
  }
  void give_back(size_t bytes) {
    std::lock_guard<std::mutex> guard(lock_);
    used_ -= bytes;
  }
  int refuse(size_t bytes) {
    record_error("out of device memory: " + std::to_string(bytes) + " bytes requested, " +
                 std::to_string(available()) + " free of " + std::to_string(total_) +
                 " (ASCEND_CPT_SOFTNPU_MEMORY_GB sets the size of an emulated device)");
    return kErrorOutOfMemory;
  }
  size_t total() const { return total_; }
  size_t available() {
    std::lock_guard<std::mutex> guard(lock_);
    return total_ - kDriverBytes - used_;
  }

 private:
  struct Block {
    size_t bytes, counted;
  };
  std::mutex lock_;
  std::map<void *, Block> blocks_;
  const size_t total_ = std::max(read_total_bytes(), kDriverBytes + (size_t{64} << 20));
  size_t used_ = 0;
};

Memory &memory() {
  static auto *only = new Memory;
  return *only;
}

struct Context {
  int32_t device = 0;
};
struct Stream {
  int32_t id = 0;
};
struct Event {
  uint64_t recorded_us = 0;
};
struct PhysicalMemory {
  size_t bytes;
};

std::atomic<int32_t> g_device{0};
std::atomic<int32_t> g_num_streams{0};
thread_local Context *t_context = nullptr;
Context *default_context() {
  static auto *only = new Context;
  return only;
}

uint64_t now_us() {
  using namespace std::chrono;
  return static_cast<uint64_t>(duration_cast<microseconds>(steady_clock::now().time_since_epoch()).count());
}

int copy(void *to, size_t capacity, const void *from, size_t bytes) {
  if (bytes > capacity) {
    record_error("cannot copy " + std::to_string(bytes) + " bytes into a buffer of " + std::to_string(capacity) + " bytes");
    return kErrorInvalidParameter;
  }
  if (bytes) std::memmove(to, from, bytes);
  return 0;
}

int copy_between(void *to, size_t capacity, const void *from, size_t bytes, int kind) {
  if (kind == kToHost) add_to(kCopiesToHost);
  if (kind == kToDevice) add_to(kCopiesToDevice);
  return copy(to, capacity, from, bytes);
}

int synchronize() {
  add_to(kSynchronizations);
  return 0;
}

int fill(void *to, size_t capacity, int32_t value, size_t bytes) {
  if (bytes > capacity) return kErrorInvalidParameter;
  if (bytes) std::memset(to, value, bytes);
  return 0;
}

int make_stream(void **stream) {
  *stream = new Stream{g_num_streams++};
  return 0;
}

}  // namespace

void add_to(Counter counter) { g_counts[counter].fetch_add(1, std::memory_order_relaxed); }

}  // namespace softnpu

using namespace softnpu;

SOFTNPU_EXPORT int aclInit(const char *) { return 0; }
SOFTNPU_EXPORT int aclFinalize() { return 0; }
SOFTNPU_EXPORT int aclnnInit(const char *) { return 0; }
SOFTNPU_EXPORT int aclnnFinalize() { return 0; }

SOFTNPU_EXPORT const char *aclrtGetSocName() { return "Ascend910B1"; }
SOFTNPU_EXPORT int aclrtGetRunMode(int *mode) { *mode = kRunModeHost; return 0; }
SOFTNPU_EXPORT int aclrtGetDeviceCount(uint32_t *count) { *count = kNumDevices; return 0; }
SOFTNPU_EXPORT int aclrtSetDevice(int32_t device) { g_device = device; return 0; }
SOFTNPU_EXPORT int aclrtGetDevice(int32_t *device) { *device = g_device; return 0; }
SOFTNPU_EXPORT int aclrtDeviceGetBareTgid(int32_t *pid) { *pid = getpid(); return 0; }
SOFTNPU_EXPORT int aclrtDeviceCanAccessPeer(int32_t *can, int32_t, int32_t) { *can = 1; return 0; }
SOFTNPU_EXPORT int aclrtGetDeviceResLimit(int32_t, int, uint32_t *value) { *value = kNumCores; return 0; }
SOFTNPU_EXPORT int aclrtGetStreamResLimit(void *, int, uint32_t *value) { *value = kNumCores; return 0; }
SOFTNPU_EXPORT int aclrtGetResInCurrentThread(int, uint32_t *value) { *value = kNumCores; return 0; }

SOFTNPU_EXPORT int aclrtCreateContext(void **context, int32_t device) {
  *context = t_context = new Context{device};
  return 0;
}
SOFTNPU_EXPORT int aclrtGetCurrentContext(void **context) {
  *context = t_context ? t_context : default_context();
  return 0;
}
SOFTNPU_EXPORT int aclrtSetCurrentContext(void *context) {
  t_context = static_cast<Context *>(context);
  return 0;
}
// Other threads may still name it.
SOFTNPU_EXPORT int aclrtDestroyContext(void *) { return 0; }

SOFTNPU_EXPORT int aclrtCreateStream(void **stream) { return make_stream(stream); }
SOFTNPU_EXPORT int aclrtCreateStreamWithConfig(void **stream, uint32_t, uint32_t) { return make_stream(stream); }
SOFTNPU_EXPORT int aclrtDestroyStream(void *stream) { delete static_cast<Stream *>(stream); return 0; }
SOFTNPU_EXPORT int aclrtDestroyStreamForce(void *stream) { delete static_cast<Stream *>(stream); return 0; }
SOFTNPU_EXPORT int aclrtStreamQuery(void *, int *status) { *status = 0; return 0; }  // complete
SOFTNPU_EXPORT int rtGetStreamId(void *stream, int32_t *id) {
  *id = stream ? static_cast<Stream *>(stream)->id : 0;
  return 0;
}

SOFTNPU_EXPORT int aclrtCreateEventWithFlag(void **event, uint32_t) { *event = new Event; return 0; }
SOFTNPU_EXPORT int aclrtCreateEventExWithFlag(void **event, uint32_t) { *event = new Event; return 0; }
SOFTNPU_EXPORT int aclrtDestroyEvent(void *event) { delete static_cast<Event *>(event); return 0; }
SOFTNPU_EXPORT int aclrtRecordEvent(void *event, void *) { static_cast<Event *>(event)->recorded_us = now_us(); return 0; }
SOFTNPU_EXPORT int aclrtQueryEventStatus(void *, int *status) { *status = kEventComplete; return 0; }
SOFTNPU_EXPORT int aclrtEventElapsedTime(float *ms, void *start, void *end) {
  *ms = static_cast<float>(static_cast<Event *>(end)->recorded_us - static_cast<Event *>(start)->recorded_us) / 1000;
  return 0;
}
SOFTNPU_EXPORT int aclrtEventGetTimestamp(void *event, uint64_t *us) { *us = static_cast<Event *>(event)->recorded_us; return 0; }

SOFTNPU_EXPORT int aclrtGetMemInfo(int, size_t *available, size_t *total) {
  *available = memory().available();
  *total = memory().total();
  return 0;
}
SOFTNPU_EXPORT int aclrtMalloc(void **address, size_t bytes, int) { return memory().allocate(address, bytes, true); }
SOFTNPU_EXPORT int aclrtMallocAlign32(void **address, size_t bytes, int) { return memory().allocate(address, bytes, true); }
SOFTNPU_EXPORT int aclrtMallocHost(void **address, size_t bytes) { return memory().allocate(address, bytes, false); }
SOFTNPU_EXPORT int aclrtFree(void *address) { return memory().release(address); }
SOFTNPU_EXPORT int aclrtFreeHost(void *address) { return memory().release(address); }

SOFTNPU_EXPORT int aclrtReserveMemAddress(void **address, size_t bytes, size_t, void *, uint64_t) {
  return memory().allocate(address, bytes, false);
}
SOFTNPU_EXPORT int aclrtReleaseMemAddress(void *address) { return memory().release(address); }
SOFTNPU_EXPORT int aclrtMallocPhysical(void **handle, size_t bytes, const void *, uint64_t) {
  if (!memory().take(bytes)) return memory().refuse(bytes);
  *handle = new PhysicalMemory{bytes};
  return 0;
}
SOFTNPU_EXPORT int aclrtFreePhysical(void *handle) {
  auto *physical = static_cast<PhysicalMemory *>(handle);
  memory().give_back(physical->bytes);
  delete physical;
  return 0;
}

SOFTNPU_EXPORT int aclrtMemcpy(void *to, size_t capacity, const void *from, size_t bytes, int kind) {
  add_to(kSynchronizations);  // the host waits for the copy
  return copy_between(to, capacity, from, bytes, kind);
}
SOFTNPU_EXPORT int aclrtMemcpyAsync(void *to, size_t capacity, const void *from, size_t bytes, int kind, void *) {
  return copy_between(to, capacity, from, bytes, kind);
}
SOFTNPU_EXPORT int aclrtMemset(void *to, size_t capacity, int32_t value, size_t bytes) {
  return fill(to, capacity, value, bytes);
}
SOFTNPU_EXPORT int aclrtMemsetAsync(void *to, size_t capacity, int32_t value, size_t bytes, void *) {
  return fill(to, capacity, value, bytes);
}

// Nothing is left to wait for, but on a device the host would wait here.
SOFTNPU_EXPORT int aclrtSynchronizeStream(void *) { return synchronize(); }
SOFTNPU_EXPORT int aclrtSynchronizeStreamWithTimeout(void *, int32_t) { return synchronize(); }
SOFTNPU_EXPORT int aclrtSynchronizeDevice() { return synchronize(); }
SOFTNPU_EXPORT int aclrtSynchronizeDeviceWithTimeout(int32_t) { return synchronize(); }
SOFTNPU_EXPORT int aclrtSynchronizeEvent(void *) { return synchronize(); }
SOFTNPU_EXPORT int aclrtSynchronizeEventWithTimeout(void *, int32_t) { return synchronize(); }
// Writes the counters of this process to `counts`, in the order of `Counter`.
SOFTNPU_EXPORT void softnpu_read_counts(uint64_t *counts) {
  for (int i = 0; i < kNumCounters; i++) counts[i] = g_counts[i].load(std::memory_order_relaxed);
}

SOFTNPU_EXPORT int aclrtLaunchCallback(void (*callback)(void *), void *data, int, void *) {
  callback(data);
  return 0;
}
SOFTNPU_EXPORT int aclrtProcessReport(int32_t timeout_ms) {
  // A thread asks for callbacks in a loop; all have run.
  usleep((timeout_ms > 0 && timeout_ms < 100 ? timeout_ms : 100) * 1000);
  return 0;
}
SOFTNPU_EXPORT void *aclrtAllocatorCreateDesc() { return calloc(1, 64); }
SOFTNPU_EXPORT int aclrtAllocatorDestroyDesc(void *descriptor) { free(descriptor); return 0; }

SOFTNPU_EXPORT int InitHugeMemThreadLocal(void *, bool) { return 0; }
SOFTNPU_EXPORT void UnInitHugeMemThreadLocal(void *, bool) {}
SOFTNPU_EXPORT void ReleaseHugeMem(void *, bool) {}
