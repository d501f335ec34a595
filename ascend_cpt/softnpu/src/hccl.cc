// libhccl between processes of this machine.
#include <algorithm>
#include <cmath>
#include <cstring>
#include "group.h"

namespace softnpu {

namespace {

// By HcclDataType.
constexpr int kDTypes[] = {I8, I16, I32, F16, F32, I64, U64, U8, U16, U32, F64, BF16};
enum Reduction : int { kSum = 0, kProduct = 1, kMaximum = 2, kMinimum = 3 };
constexpr int kNone = -1;
constexpr size_t kBlock = 1024;
constexpr size_t kRootInfoBytes = 4108;
constexpr size_t kNameBytes = 128;

struct CommConfig {
  char reserved[24];
  uint32_t buffer_size, is_deterministic;
  char name[kNameBytes];
};
struct SendRecvItem {
  int kind;  // 0 send, 1 receive
  void *data;
  uint64_t count;
  int dtype;
  uint32_t peer;
};

int to_dtype(int type) {
  if (type < 0 || type >= static_cast<int>(std::size(kDTypes))) throw Error("unsupported HCCL data type " + std::to_string(type));
  return kDTypes[type];
}

Operation make_operation(const char *name, uint64_t count, int dtype, int reduction, int root) {
  Operation operation{};
  std::strncpy(operation.name, name, sizeof operation.name - 1);
  operation.count = count;
  operation.dtype = dtype;
  operation.reduction = reduction;
  operation.root = root;
  return operation;
}

template <class T> T reduce_pair(T a, T b, int reduction) {
  switch (reduction) {
    case kSum: return a + b;
    case kProduct: return a * b;
    case kMaximum: return a > b || a != a ? a : b;
    case kMinimum: return a < b || a != a ? a : b;
    default: throw Error("unsupported HCCL reduction " + std::to_string(reduction));
  }
}

// Reduces the same elements of every part in the order of ranks: floating-point numbers in double with one rounding.
void reduce(char *to, const std::vector<const char *> &parts, size_t count, int dtype, int reduction) {
  size_t bytes = item_bytes(dtype);
  if (!is_float(dtype)) {
    for (size_t i = 0; i < count; i++) {
      int64_t total = load_integer(parts[0] + i * bytes, dtype);
      for (size_t r = 1; r < parts.size(); r++) {
        int64_t next = load_integer(parts[r] + i * bytes, dtype);
        if (dtype == U64) total = static_cast<int64_t>(reduce_pair(static_cast<uint64_t>(total), static_cast<uint64_t>(next), reduction));
        else total = reduce_pair(total, next, reduction);
      }
      store_integer(to + i * bytes, dtype, total);
    }
    return;
  }
  double total[kBlock], next[kBlock];
  for (size_t start = 0; start < count; start += kBlock) {
    size_t size = std::min(kBlock, count - start);
    load_items(parts[0] + start * bytes, dtype, total, size);
    for (size_t r = 1; r < parts.size(); r++) {
      load_items(parts[r] + start * bytes, dtype, next, size);
      for (size_t i = 0; i < size; i++) total[i] = reduce_pair(total[i], next[i], reduction);
    }
    store_items(to + start * bytes, dtype, total, size);
  }
}

// Rounds of at most `chunk` elements: calls run(first element, number of elements).
template <class F> void in_rounds(uint64_t count, size_t chunk, F run) {
  for (uint64_t start = 0; start < count; start += chunk) run(start, std::min<uint64_t>(chunk, count - start));
}

void all_reduce(Group &group, const Operation &operation, const char *from, char *to) {
  size_t bytes = item_bytes(operation.dtype);
  std::lock_guard<std::mutex> guard(group.collective_lock);
  in_rounds(operation.count, kChunkBytes / bytes, [&](uint64_t start, uint64_t count) {
    group.begin_round(operation, [&](char *slot) { std::memcpy(slot, from + start * bytes, count * bytes); });
    // Every rank reduces its part once, so that all end with the same bits.
    uint64_t first = count * group.rank() / group.size(), last = count * (group.rank() + 1) / group.size();
    std::vector<const char *> parts;
    for (uint32_t r = 0; r < group.size(); r++) parts.push_back(group.slot(r) + first * bytes);
    reduce(group.shared_result() + first * bytes, parts, last - first, operation.dtype, operation.reduction);
    group.wait_for_all(operation.name);
    if (to) std::memcpy(to + start * bytes, group.shared_result(), count * bytes);
  });
}

void all_gather(Group &group, const Operation &operation, const char *from, char *to) {
  size_t bytes = item_bytes(operation.dtype);
  std::lock_guard<std::mutex> guard(group.collective_lock);
  in_rounds(operation.count, kChunkBytes / bytes, [&](uint64_t start, uint64_t count) {
    group.begin_round(operation, [&](char *slot) { std::memcpy(slot, from + start * bytes, count * bytes); });
    for (uint32_t r = 0; r < group.size(); r++) {
      std::memcpy(to + (r * operation.count + start) * bytes, group.slot(r), count * bytes);
    }
  });
}

void reduce_scatter(Group &group, const Operation &operation, const char *from, char *to) {
  size_t bytes = item_bytes(operation.dtype);
  std::lock_guard<std::mutex> guard(group.collective_lock);
  in_rounds(operation.count, kChunkBytes / bytes / group.size(), [&](uint64_t start, uint64_t count) {
    group.begin_round(operation, [&](char *slot) {
      for (uint32_t r = 0; r < group.size(); r++) {
        std::memcpy(slot + r * count * bytes, from + (r * operation.count + start) * bytes, count * bytes);
      }
    });
    std::vector<const char *> parts;
    for (uint32_t r = 0; r < group.size(); r++) parts.push_back(group.slot(r) + group.rank() * count * bytes);
    reduce(to + start * bytes, parts, count, operation.dtype, operation.reduction);
  });
}

void broadcast(Group &group, const Operation &operation, char *data) {
  size_t bytes = item_bytes(operation.dtype);
  auto root = static_cast<uint32_t>(operation.root);
  if (root >= group.size()) throw Error("Broadcast from rank " + std::to_string(root) + ", but the group has " + std::to_string(group.size()) + " ranks");
  std::lock_guard<std::mutex> guard(group.collective_lock);
  in_rounds(operation.count, kChunkBytes / bytes, [&](uint64_t start, uint64_t count) {
    group.begin_round(operation, [&](char *slot) {
      if (group.rank() == root) std::memcpy(slot, data + start * bytes, count * bytes);
    });
    if (group.rank() != root) std::memcpy(data + start * bytes, group.slot(root), count * bytes);
  });
}

void all_to_all(Group &group, const char *from, const uint64_t *send_counts, const uint64_t *send_starts, size_t send_bytes,
                char *to, const uint64_t *receive_counts, const uint64_t *receive_starts, size_t receive_bytes) {
  for (uint32_t r = 0; r < group.size(); r++) {
    group.send(r, from + send_starts[r] * send_bytes, send_counts[r] * send_bytes);
  }
  for (uint32_t r = 0; r < group.size(); r++) {
    group.receive(r, to + receive_starts[r] * receive_bytes, receive_counts[r] * receive_bytes);
  }
}

// Runs a call of the C interface: `work(group)` throws Error.
template <class F> int run(const char *name, void *comm, F work) {
  if (!comm) return record_error(std::string("Hccl") + name + ": no communicator");
  add_to(kCollectives);
  auto &group = *static_cast<Group *>(comm);
  if (is_tracing()) {
    trace(std::string("Hccl") + name + " rank " + std::to_string(group.rank()) + " of " + std::to_string(group.size()) + " in " + group.label());
  }
  return guarded(std::string("Hccl") + name, [&] {
    work(group);
    return 0;
  });
}

char *bytes_of(void *data) { return static_cast<char *>(data); }
const char *bytes_of(const void *data) { return static_cast<const char *>(data); }

std::vector<uint64_t> add_up(const uint64_t *counts, uint32_t size) {
  std::vector<uint64_t> starts(size, 0);
  for (uint32_t r = 1; r < size; r++) starts[r] = starts[r - 1] + counts[r - 1];
  return starts;
}

int join(const std::string &name, const std::string &label, uint32_t rank, uint32_t size, void **comm) {
  return guarded("HcclCommInit", [&] {
    if (is_tracing()) trace("HcclCommInit " + label + " rank " + std::to_string(rank) + " of " + std::to_string(size));
    *comm = Group::join(name, label, rank, size);
    return 0;
  });
}

std::string read_name(const CommConfig *config) {
  return config ? std::string(config->name, strnlen(config->name, kNameBytes)) : std::string();
}

}  // namespace

}  // namespace softnpu

using namespace softnpu;

SOFTNPU_EXPORT int HcclGetRootInfo(char *info) {
  return guarded("HcclGetRootInfo", [&] {
    std::memset(info, 0, kRootInfoBytes);
    std::strncpy(info, open_meeting_point().c_str(), kNameBytes - 1);
    return 0;
  });
}
// Returns when all ranks have come: MindSpore withdraws the root's name once rank 0 is through.
SOFTNPU_EXPORT int HcclCommInitRootInfoConfig(uint32_t size, const char *info, uint32_t rank, const CommConfig *config, void **comm) {
  return join(info, read_name(config), rank, size, comm);
}
SOFTNPU_EXPORT int HcclCommInitRootInfo(uint32_t size, const char *info, uint32_t rank, void **comm) {
  return join(info, "", rank, size, comm);
}
SOFTNPU_EXPORT int HcclCreateSubCommConfig(void **parent, uint32_t size, uint32_t *, uint64_t id, uint32_t rank,
                                           const CommConfig *config, void **comm) {
  auto &group = *static_cast<Group *>(*parent);
  return join(group.name() + "." + std::to_string(id), read_name(config), rank, size, comm);
}
// The memory stays until the process ends: other threads may be inside, and other ranks not yet through.
SOFTNPU_EXPORT int HcclCommDestroy(void *) { return 0; }
SOFTNPU_EXPORT uint32_t HcclGetCommConfigCapability() { return 3; }  // buffer size, determinism, name
SOFTNPU_EXPORT int HcclGetCommName(void *comm, char *name) {
  snprintf(name, kNameBytes, "%s", static_cast<Group *>(comm)->label().c_str());
  return 0;
}
SOFTNPU_EXPORT int HcclGetRankId(void *comm, uint32_t *rank) { *rank = static_cast<Group *>(comm)->rank(); return 0; }
SOFTNPU_EXPORT int HcclGetRankSize(void *comm, uint32_t *size) { *size = static_cast<Group *>(comm)->size(); return 0; }
SOFTNPU_EXPORT int HcclGetCommAsyncError(void *, int *error) { *error = 0; return 0; }
SOFTNPU_EXPORT const char *HcclGetErrorString(int) { return aclGetRecentErrMsg(); }

SOFTNPU_EXPORT int HcclAllReduce(const void *from, void *to, uint64_t count, int type, int reduction, void *comm, void *) {
  return run("AllReduce", comm, [&](Group &group) {
    all_reduce(group, make_operation("AllReduce", count, to_dtype(type), reduction, kNone), bytes_of(from), bytes_of(to));
  });
}
SOFTNPU_EXPORT int HcclReduce(const void *from, void *to, uint64_t count, int type, int reduction, uint32_t root, void *comm, void *) {
  return run("Reduce", comm, [&](Group &group) {
    auto operation = make_operation("Reduce", count, to_dtype(type), reduction, static_cast<int>(root));
    all_reduce(group, operation, bytes_of(from), group.rank() == root ? bytes_of(to) : nullptr);
  });
}
SOFTNPU_EXPORT int HcclAllGather(const void *from, void *to, uint64_t count, int type, void *comm, void *) {
  return run("AllGather", comm, [&](Group &group) {
    all_gather(group, make_operation("AllGather", count, to_dtype(type), kNone, kNone), bytes_of(from), bytes_of(to));
  });
}
SOFTNPU_EXPORT int HcclReduceScatter(const void *from, void *to, uint64_t count, int type, int reduction, void *comm, void *) {
  return run("ReduceScatter", comm, [&](Group &group) {
    reduce_scatter(group, make_operation("ReduceScatter", count, to_dtype(type), reduction, kNone), bytes_of(from), bytes_of(to));
  });
}
SOFTNPU_EXPORT int HcclBroadcast(void *data, uint64_t count, int type, uint32_t root, void *comm, void *) {
  return run("Broadcast", comm, [&](Group &group) {
    broadcast(group, make_operation("Broadcast", count, to_dtype(type), kNone, static_cast<int>(root)), bytes_of(data));
  });
}
SOFTNPU_EXPORT int HcclBarrier(void *comm, void *) {
  return run("Barrier", comm, [&](Group &group) {
    std::lock_guard<std::mutex> guard(group.collective_lock);
    group.begin_round(make_operation("Barrier", 0, I8, kNone, kNone), [](char *) {});
  });
}
SOFTNPU_EXPORT int HcclScatter(const void *from, void *to, uint64_t count, int type, uint32_t root, void *comm, void *) {
  return run("Scatter", comm, [&](Group &group) {
    size_t bytes = count * item_bytes(to_dtype(type));
    for (uint32_t r = 0; group.rank() == root && r < group.size(); r++) group.send(r, bytes_of(from) + r * bytes, bytes);
    group.receive(root, to, bytes);
  });
}
SOFTNPU_EXPORT int HcclSend(const void *data, uint64_t count, int type, uint32_t to, void *comm, void *) {
  return run("Send", comm, [&](Group &group) { group.send(to, data, count * item_bytes(to_dtype(type))); });
}
SOFTNPU_EXPORT int HcclRecv(void *data, uint64_t count, int type, uint32_t from, void *comm, void *) {
  return run("Recv", comm, [&](Group &group) { group.receive(from, data, count * item_bytes(to_dtype(type))); });
}
SOFTNPU_EXPORT int HcclBatchSendRecv(SendRecvItem *items, uint32_t count, void *comm, void *) {
  return run("BatchSendRecv", comm, [&](Group &group) {
    for (bool sending : {true, false}) {
      for (SendRecvItem *item = items; item < items + count; item++) {
        size_t bytes = item->count * item_bytes(to_dtype(item->dtype));
        if (sending && item->kind == 0) group.send(item->peer, item->data, bytes);
        if (!sending && item->kind == 1) group.receive(item->peer, item->data, bytes);
      }
    }
  });
}
SOFTNPU_EXPORT int HcclAlltoAllV(const void *from, const uint64_t *send_counts, const uint64_t *send_starts, int send_type, void *to,
                                 const uint64_t *receive_counts, const uint64_t *receive_starts, int receive_type, void *comm, void *) {
  return run("AlltoAllV", comm, [&](Group &group) {
    all_to_all(group, bytes_of(from), send_counts, send_starts, item_bytes(to_dtype(send_type)), bytes_of(to), receive_counts,
               receive_starts, item_bytes(to_dtype(receive_type)));
  });
}
SOFTNPU_EXPORT int HcclAlltoAll(const void *from, uint64_t send_count, int send_type, void *to, uint64_t receive_count,
                                int receive_type, void *comm, void *) {
  return run("AlltoAll", comm, [&](Group &group) {
    std::vector<uint64_t> sent(group.size(), send_count), received(group.size(), receive_count);
    auto send_starts = add_up(sent.data(), group.size()), receive_starts = add_up(received.data(), group.size());
    all_to_all(group, bytes_of(from), sent.data(), send_starts.data(), item_bytes(to_dtype(send_type)), bytes_of(to),
               received.data(), receive_starts.data(), item_bytes(to_dtype(receive_type)));
  });
}
// `counts[i * size + j]`: what rank i sends to rank j.
SOFTNPU_EXPORT int HcclAlltoAllVC(const void *from, const uint64_t *counts, int send_type, void *to, int receive_type, void *comm, void *) {
  return run("AlltoAllVC", comm, [&](Group &group) {
    const uint64_t *sent = counts + group.rank() * group.size();
    std::vector<uint64_t> received(group.size());
    for (uint32_t r = 0; r < group.size(); r++) received[r] = counts[r * group.size() + group.rank()];
    auto send_starts = add_up(sent, group.size()), receive_starts = add_up(received.data(), group.size());
    all_to_all(group, bytes_of(from), sent, send_starts.data(), item_bytes(to_dtype(send_type)), bytes_of(to), received.data(),
               receive_starts.data(), item_bytes(to_dtype(receive_type)));
  });
}
SOFTNPU_EXPORT int HcclAllGatherV(const void *from, uint64_t count, void *to, const uint64_t *counts, const uint64_t *starts,
                                  int type, void *comm, void *) {
  return run("AllGatherV", comm, [&](Group &group) {
    size_t bytes = item_bytes(to_dtype(type));
    for (uint32_t r = 0; r < group.size(); r++) group.send(r, from, count * bytes);
    for (uint32_t r = 0; r < group.size(); r++) group.receive(r, bytes_of(to) + starts[r] * bytes, counts[r] * bytes);
  });
}
SOFTNPU_EXPORT int HcclReduceScatterV(const void *from, const uint64_t *counts, const uint64_t *starts, void *to, uint64_t count,
                                      int type, int reduction, void *comm, void *) {
  return run("ReduceScatterV", comm, [&](Group &group) {
    int dtype = to_dtype(type);
    size_t bytes = item_bytes(dtype);
    for (uint32_t r = 0; r < group.size(); r++) group.send(r, bytes_of(from) + starts[r] * bytes, counts[r] * bytes);
    std::string received(count * bytes * group.size(), 0);
    std::vector<const char *> parts;
    for (uint32_t r = 0; r < group.size(); r++) {
      group.receive(r, &received[r * count * bytes], count * bytes);
      parts.push_back(&received[r * count * bytes]);
    }
    reduce(bytes_of(to), parts, count, dtype, reduction);
  });
}
